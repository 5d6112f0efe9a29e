//! Batches that a thread of their own packs one round ahead, while a device computes, and that the device's owner lays into pinned
//! memory before it waits for the round under way.
//!
//! Which examples come next is foreseen, as if nobody failed in the round under way. Where it comes otherwise, what was packed is
//! dropped, and the batch is packed when its round begins: no number depends on what was foreseen.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

use super::accelerator::Prepared;
use super::batch::{Purpose, Share, training_batch};
use crate::data::Corpus;
use crate::data::cursor::ExampleStream;
use crate::model::network::Batch;
use crate::model::spec::ModelSpec;
use crate::schedule::order::Dealt;
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

/// The thread that packs.
pub struct Ahead {
    /// The tasks' examples, of which the run's own streams are a round behind.
    pub streams: Vec<ExampleStream>,
    jobs: Sender<(Draw, Sender<Packed>)>,
    foreseen: Option<Draw>,
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
        let (jobs, inbox) = channel::<(Draw, Sender<Packed>)>();
        scope.spawn(move || {
            for (Draw { shares, purpose }, packed) in inbox {
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
        Self { streams, jobs, foreseen: None }
    }

    /// Begins to pack what should come next, in place of what was foreseen before; from where it comes.
    pub fn foresee(&mut self, draw: Draw) -> Receiver<Packed> {
        let (packed, packing) = channel();
        // Without its thread nothing comes.
        let _ = self.jobs.send((draw.clone(), packed));
        self.foreseen = Some(draw);
        packing
    }

    /// Whether these examples are those that were foreseen.
    pub fn foresaw(&mut self, shares: &[Share], purpose: Purpose) -> bool {
        self.foreseen.take().is_some_and(|draw| draw.purpose == purpose && draw.shares == shares)
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

    /// What should be drawn for the round after `dealt`, if there is one.
    pub(super) fn foresee(&self, dealt: &Dealt, now: Purpose, streams: &mut [ExampleStream]) -> Option<Draw> {
        let round = now.round + dealt.commits.len().max(1) as u64;
        let left = self.plan.rounds.checked_sub(round).filter(|&left| left > 0)?;
        let next = self.order.foresee(dealt, left);
        streams.iter_mut().zip(&self.state.tasks).for_each(|(stream, task)| stream.seek(task.cursor));
        Some(Draw { shares: self.shares(streams, &next.micro_batches), purpose: Purpose { round, ..now } })
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
            purpose: Purpose { seed: 1, round, batches: 1 },
        };
        std::thread::scope(|scope| {
            let mut ahead = Ahead::start(scope, &corpus, spec.clone(), 1, Vec::new());
            let Draw { shares, purpose } = draw(&[3, 5, 7], 4);
            assert!(!ahead.foresaw(&shares, purpose));
            let packing = ahead.foresee(draw(&[3, 5, 7], 4));
            assert!(ahead.foresaw(&shares, purpose));
            let Packed { batch, present, prepared, round } = packing.recv().unwrap();
            let (expected, tasks) = training_batch(&corpus, &*spec.encoder, 1, &shares, purpose);
            assert_eq!((&present, &batch.features, batch.groups.len()), (&tasks, &expected.features, 4));
            assert_eq!((prepared.features.len(), round), (6 * 16, 4));
            assert!(!ahead.foresaw(&shares, purpose), "it is given once");
            for other in [draw(&[3, 5], 4), draw(&[3, 5, 7], 5)] {
                ahead.foresee(other);
                assert!(!ahead.foresaw(&shares, purpose));
            }
        });
    }
}
