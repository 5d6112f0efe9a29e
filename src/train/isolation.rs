//! A round from its examples to its commit, without the tasks that fail in it.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use anyhow::Result;

use crate::data::Corpus;
use crate::model::network::Batch;
use crate::observe::run_trace::{ComputedRound, QuantumSpan};
use crate::schedule::retry::Status;
use crate::surgery::update::Rates;
use crate::train::batch::{Purpose, Share, training_batch};
use crate::train::faults::InjectedFaults;
use crate::train::guard::what_happened;
use crate::train::lanes::{Quantum, RoundTimes};
use crate::train::round::{Anomaly, Committed, Outcome, Trainer};

/// A task's part of a round that came to nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// Run-wide index.
    pub task: usize,
    pub status: Status,
    /// E.g. "loss NaN on train examples 4, 8 (2 in all)".
    pub why: String,
}

/// What came of a round.
#[derive(Default)]
pub struct Attempt {
    /// The tasks that committed, and what.
    pub done: Option<(Vec<usize>, Committed)>,
    /// When it was computed, where that was measured.
    pub computed: Option<ComputedRound>,
    pub failures: Vec<Failure>,
    /// Something was not finite, and whose it is cannot be told: gradients were only added up.
    pub anomaly: Option<Anomaly>,
}

/// What a round goes by.
pub struct Work<'a> {
    pub corpus: &'a Corpus,
    /// Most tasks in a fused group.
    pub fuse: usize,
    pub purpose: Purpose,
    pub rates: &'a Rates,
    pub injected: &'a InjectedFaults,
}

impl Work<'_> {
    /// Computes and commits the round of `shares`. A task that fails is left out, and the others' round is computed again, as if it
    /// had been absent: none of its numbers is in the result. Errors: the device is lost.
    pub fn attempt(&self, trainer: &mut Trainer, mut shares: Vec<Share>) -> Result<Attempt> {
        let mut attempt = Attempt::default();
        self.injected.stall();
        shares.retain(|share| {
            let short = self.injected.takes_memory(share.task);
            if short {
                let why = "an allocation failed (made on purpose)".to_owned();
                attempt.failures.push(Failure { task: share.task, status: Status::OutOfMemory, why });
            }
            !short
        });
        while !shares.is_empty() {
            let failure = match self.pack(trainer, &shares) {
                Err(dead) => dead,
                Ok((_, present)) if present.is_empty() => break,
                Ok((batch, present)) => match self.compute(trainer, &batch, &present)? {
                    Ok(committed) => {
                        attempt.computed = committed.times.as_ref().map(|times| spans(times, &batch, &present));
                        attempt.done = Some((present, committed));
                        break;
                    }
                    Err(anomaly) => {
                        let Some(task) = anomaly.task else {
                            attempt.anomaly = Some(anomaly);
                            break;
                        };
                        let examples = shares.iter().find(|share| share.task == task).map_or(&[][..], |share| &share.examples);
                        Failure { task, status: Status::NotFinite, why: what_happened(&anomaly, examples) }
                    }
                },
            };
            shares.retain(|share| share.task != failure.task);
            attempt.failures.push(failure);
        }
        Ok(attempt)
    }

    fn compute(&self, trainer: &mut Trainer, batch: &Batch, present: &[usize]) -> Result<Outcome> {
        let balancer = trainer.solver.balancer.state();
        let outcome = trainer.run_round(batch, present, self.purpose.round, self.rates)?;
        if outcome.is_err() {
            // It had seen losses that now do not count.
            trainer.solver.balancer.restore(&balancer).expect("a balancer takes back its own state");
        }
        Ok(outcome)
    }

    /// Reads and packs the examples. If that panics, each task is tried alone to find whose reader died.
    fn pack(&self, trainer: &Trainer, shares: &[Share]) -> std::result::Result<(Batch, Vec<usize>), Failure> {
        let read = |shares: &[Share]| {
            shares.iter().for_each(|share| self.injected.read(share.task));
            let encoder = &trainer.model.network.spec.encoder;
            let (mut batch, present) = training_batch(self.corpus, encoder, self.fuse, shares, self.purpose);
            self.injected.poison(&mut batch);
            (batch, present)
        };
        // Reading changes nothing but its own batch, so that what a panic leaves behind is sound.
        let caught = |shares: &[Share]| catch_unwind(AssertUnwindSafe(|| read(shares)));
        caught(shares).map_err(|panic| {
            let dead = shares.iter().find_map(|share| Some((share.task, caught(std::slice::from_ref(share)).err()?)));
            let Some((task, panic)) = dead else { resume_unwind(panic) };
            Failure { task, status: Status::Crashed, why: format!("its reader died: {}", message(&*panic)) }
        })
    }
}

/// Whose quanta they were.
fn spans(times: &RoundTimes, batch: &Batch, present: &[usize]) -> ComputedRound {
    let span = |tasks: Vec<usize>, &Quantum { lane, start, time }: &Quantum| QuantumSpan { tasks, lane, start, time };
    let tasks = |group: &Range<usize>| batch.parts[group.clone()].iter().map(|part| part.task).collect();
    let groups = batch.groups.iter().zip(&times.groups).map(|(group, quantum)| span(tasks(group), quantum)).collect();
    ComputedRound { began: times.began, groups, commit: span(present.to_vec(), &times.commit) }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it did not say why")
}
