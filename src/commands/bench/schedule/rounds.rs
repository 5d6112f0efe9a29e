//! Quanta that really compute: rounds of one task each (forward, backward, commit) through the linear encoder.

use anyhow::{Result, ensure};

use crate::commands::bench::prepared::{Prepared, Shape};
use crate::config::schema::EncoderKind;
use crate::model::network::Batch;
use crate::schedule::retry::Status;

/// What a lane computes with.
pub struct Rounds {
    run: Prepared,
    /// A batch of each task.
    batches: Vec<Batch>,
    round: u64,
    /// Rounds that came to nothing.
    lost: u64,
}

/// How large rounds are, and how they are trained.
pub struct Size<'a> {
    pub tasks: usize,
    /// Examples of a round.
    pub batch: usize,
    /// Width of the encoder.
    pub hidden: usize,
    /// Surgery method.
    pub method: &'static str,
    pub device: &'a str,
}

impl Rounds {
    /// Each task has computed a round already: the first ones touch memory for the first time.
    pub fn new(size: &Size) -> Result<Self> {
        let &Size { tasks, batch, hidden, method, device } = size;
        let run = Prepared::new(&Shape {
            encoder: EncoderKind::Linear,
            hidden,
            tasks,
            batch,
            layers: 1,
            seq: 1,
            recompute: false,
            device,
            method,
            lanes: 1,
            rounds: 1,
        })?;
        let batches = (0..tasks).map(|task| run.batch(0, task..task + 1)).collect();
        let mut rounds = Self { run, batches, round: 0, lost: 0 };
        for task in 0..tasks {
            rounds.run(task);
        }
        rounds.check()?;
        Ok(rounds)
    }

    /// One round of a task.
    pub fn run(&mut self, task: usize) -> Status {
        let outcome = self.run.run_round(&self.batches[task], &[task], self.round);
        self.round += 1;
        self.lost += u64::from(outcome.is_err());
        outcome.map_or(Status::NotFinite, |_| Status::Ok)
    }

    /// An error if a round came to nothing: then no time means anything.
    pub fn check(&self) -> Result<()> {
        ensure!(self.lost == 0, "{} of {} rounds came to nothing: a loss or gradient was not finite", self.lost, self.round);
        Ok(())
    }
}
