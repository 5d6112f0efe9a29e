//! Batches that a thread of their own packs some rounds ahead, while a device computes; the device's owner lays the next one into
//! pinned memory before it waits for the round under way.
//!
//! Which examples come next is foreseen, as if nobody failed until then. Where it comes otherwise, what was packed is dropped, and
//! the batch is packed when its round begins: no number depends on what was foreseen.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

use super::accelerator::Prepared;
use super::batch::{Purpose, Share, training_batch};
use crate::data::Corpus;
use crate::data::cursor::ExampleStream;
use crate::model::network::Batch;
use crate::model::spec::ModelSpec;
use crate::schedule::order::{Order, Scheduled};
use crate::train::run::Run;

/// What a batch is packed of.
#[derive(Clone, PartialEq)]
pub struct Draw {
    pub shares: Vec<Share>,
    pub purpose: Purpose,
}

/// A packed batch.
pub struct Packed {
    pub round: u64,
    pub batch: Batch,
    /// Run-wide indices of the present tasks.
    pub present: Vec<usize>,
    pub prepared: Prepared,
}

/// Rounds that are packed before they begin: one is laid out while another is packed.
pub const DEPTH: usize = 2;

/// The thread that packs.
pub struct Ahead {
    /// The tasks' examples, where the last round that was foreseen has left them.
    streams: Vec<ExampleStream>,
    jobs: Sender<Job>,
    /// Times that what was foreseen did not come: older jobs are not wanted any more.
    missed: Arc<AtomicU64>,
    /// What should come, the next round first; from where its batch comes, until someone takes that.
    foreseen: VecDeque<(Draw, Option<Receiver<Packed>>)>,
    /// How things stand after the last of these rounds.
    future: Option<Future>,
}

/// A batch to pack, and where it goes.
struct Job {
    draw: Draw,
    missed: u64,
    packed: Sender<Packed>,
}

/// A round that has not come yet.
struct Future {
    order: Order,
    scheduled: Scheduled,
    round: u64,
}

impl Ahead {
    /// Packs as a run does, at most `fuse` tasks in a group.
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        corpus: &'scope Corpus,
        spec: ModelSpec,
        fuse: usize,
        streams: Vec<ExampleStream>,
    ) -> Self {
        let (jobs, inbox) = channel::<Job>();
        let missed = Arc::new(AtomicU64::new(0));
        let now = Arc::clone(&missed);
        scope.spawn(move || {
            for Job { draw: Draw { shares, purpose }, missed, packed } in inbox {
                if missed != now.load(Ordering::Relaxed) {
                    continue;
                }
                // Whoever needs a batch that cannot be packed finds out why by packing it.
                let read = || {
                    let (batch, present) = training_batch(corpus, &*spec.encoder, fuse, &shares, purpose);
                    let prepared = Prepared::of(&spec, &batch, purpose.batches);
                    Packed { round: purpose.round, batch, present, prepared }
                };
                if let Ok(own) = catch_unwind(AssertUnwindSafe(read)) {
                    // Nobody may want it any more.
                    let _ = packed.send(own);
                }
            }
        });
        Self { streams, jobs, missed, foreseen: VecDeque::new(), future: None }
    }

    /// Begins to pack what should come after all that is foreseen.
    pub fn foresee(&mut self, draw: Draw) {
        let (packed, packing) = channel();
        // Without its thread nothing comes.
        let _ = self.jobs.send(Job { draw: draw.clone(), missed: self.missed.load(Ordering::Relaxed), packed });
        self.foreseen.push_back((draw, Some(packing)));
    }

    /// Whether these are the examples that were foreseen for the round that begins. If not, nothing is foreseen any more.
    pub fn foresaw(&mut self, shares: &[Share], purpose: Purpose) -> bool {
        let known = self.foreseen.pop_front().is_some_and(|(draw, _)| draw.purpose == purpose && draw.shares == shares);
        if !known {
            self.forget();
        }
        known
    }

    /// Nothing is foreseen any more: a task failed, which nobody had foreseen.
    pub fn forget(&mut self) {
        self.missed.fetch_add(1, Ordering::Relaxed);
        self.foreseen.clear();
        self.future = None;
    }

    /// From where the batch of the next round comes, if one is foreseen.
    pub fn take_next(&mut self) -> Option<Receiver<Packed>> {
        self.foreseen.front_mut()?.1.take()
    }
}

impl Run<'_> {
    /// The next examples of each present task.
    pub(super) fn shares(&self, streams: &mut [ExampleStream], micro_batches: &[usize]) -> Vec<Share> {
        let present = micro_batches.iter().enumerate().filter(|(_, count)| **count > 0);
        let share = |(task, micro_batches): (usize, &usize)| Share {
            task,
            examples: streams[task].take(micro_batches * self.config.train.accumulate * self.examples(task)),
            micro_batch: self.micro_batch(task),
        };
        present.map(share).collect()
    }

    /// Foresees [`DEPTH`] rounds after the one that was `scheduled`, as far as the run goes.
    pub(super) fn foresee(&self, ahead: &mut Ahead, scheduled: &Scheduled, now: Purpose) {
        let Ahead { streams, future, .. } = ahead;
        let future = future.get_or_insert_with(|| {
            streams.iter_mut().zip(&self.state.tasks).for_each(|(stream, task)| stream.seek(task.cursor));
            Future { order: self.order.clone(), scheduled: scheduled.clone(), round: now.round }
        });
        let mut draws = Vec::new();
        while ahead.foreseen.len() + draws.len() < DEPTH && future.advance(self.plan.rounds) {
            let shares = self.shares(streams, &future.scheduled.micro_batches);
            draws.push(Draw { shares, purpose: Purpose { round: future.round, ..now } });
        }
        draws.into_iter().for_each(|draw| ahead.foresee(draw));
    }
}

impl Future {
    /// Goes on to the next of `rounds`; false where there is none.
    fn advance(&mut self, rounds: u64) -> bool {
        let round = self.round + self.scheduled.commits.len().max(1) as u64;
        if round >= rounds {
            return false;
        }
        (self.scheduled, self.round) = (self.order.next_if_done(&self.scheduled, rounds - round), round);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::data::{self, synthetic};
    use crate::train::plan::model_spec;

    #[test]
    fn what_comes_as_foreseen_is_there_and_nothing_else() {
        let text = "[encoder]\nkind = \"linear\"\n[train]\nrounds = 1\n[synthetic]\nfeatures = 16\n";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        std::fs::write(&path, text).unwrap();
        let mut config = config::load(&path, &[]).unwrap().config;
        synthetic::expand(&mut config).unwrap();
        let mut corpus = data::load(&config, &|_| {}).unwrap();
        synthetic::load(&config, &mut corpus).unwrap();
        let spec = model_spec(&config, &corpus).unwrap();
        let draw = |examples: &[u32], round| Draw {
            shares: (0..2).map(|task| Share { task, examples: examples.to_vec(), micro_batch: 2 }).collect(),
            purpose: Purpose { seed: 1, round, batches: 1, fetched: false, padded: false },
        };
        std::thread::scope(|scope| {
            let mut ahead = Ahead::start(scope, &corpus, spec.clone(), 1, Vec::new());
            let Draw { shares, purpose } = draw(&[3, 5, 7], 4);
            assert!(!ahead.foresaw(&shares, purpose));
            ahead.foresee(draw(&[3, 5, 7], 4));
            let packing = ahead.take_next().expect("it was foreseen");
            assert!(ahead.foresaw(&shares, purpose));
            let Packed { batch, present, prepared, round } = packing.recv().unwrap();
            let (expected, tasks) = training_batch(&corpus, &*spec.encoder, 1, &shares, purpose);
            assert_eq!((&present, &batch.features, batch.groups.len()), (&tasks, &expected.features, 4));
            assert_eq!((prepared.features.len(), round), (6 * 16, 4));
            assert!(!ahead.foresaw(&shares, purpose), "it is given once");
            for other in [draw(&[3, 5], 4), draw(&[3, 5, 7], 5)] {
                ahead.foresee(other);
                ahead.foresee(draw(&[3, 5, 7], 4));
                assert!(!ahead.foresaw(&shares, purpose) && ahead.take_next().is_none(), "with it goes what would have followed");
            }
        });
    }
}
