//! Batches that a thread of their own packs one round ahead, while a device computes.
//!
//! Which examples come next is foreseen, as if nobody failed in the round under way. Where it comes otherwise, what was packed is
//! dropped, and the batch is packed when its round begins: no number depends on what was foreseen.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

use super::accelerator::Prepared;
use super::batch::{Purpose, Share, training_batch};
use crate::data::Corpus;
use crate::model::network::Batch;
use crate::model::spec::ModelSpec;

/// What a batch is packed of.
#[derive(Clone, PartialEq)]
pub struct Draw {
    pub shares: Vec<Share>,
    pub purpose: Purpose,
}

/// A packed batch.
pub struct Packed {
    pub batch: Batch,
    /// Run-wide indices of the present tasks.
    pub present: Vec<usize>,
    pub prepared: Prepared,
}

/// The thread that packs.
pub struct Ahead {
    jobs: Sender<(Draw, Sender<Packed>)>,
    foreseen: Option<(Draw, Receiver<Packed>)>,
}

impl Ahead {
    /// Packs as a run does, at most `fuse` tasks in a group.
    pub fn start<'scope>(scope: &'scope Scope<'scope, '_>, corpus: &'scope Corpus, spec: ModelSpec, fuse: usize) -> Self {
        let (jobs, inbox) = channel::<(Draw, Sender<Packed>)>();
        scope.spawn(move || {
            for (Draw { shares, purpose }, packed) in inbox {
                // Whoever needs a batch that cannot be packed finds out why by packing it.
                let read = || {
                    let (batch, present) = training_batch(corpus, &*spec.encoder, fuse, &shares, purpose);
                    let prepared = Prepared::of(&spec, &batch, purpose.batches);
                    Packed { batch, present, prepared }
                };
                if let Ok(own) = catch_unwind(AssertUnwindSafe(read)) {
                    // Nobody may want it any more.
                    let _ = packed.send(own);
                }
            }
        });
        Self { jobs, foreseen: None }
    }

    /// Begins to pack what should come next, in place of what was foreseen before.
    pub fn foresee(&mut self, draw: Draw) {
        let (packed, packing) = channel();
        if self.jobs.send((draw.clone(), packed)).is_ok() {
            self.foreseen = Some((draw, packing));
        }
    }

    /// The batch of these examples if they were foreseen; waits until it is packed.
    pub fn take(&mut self, shares: &[Share], purpose: Purpose) -> Option<Packed> {
        let (draw, packing) = self.foreseen.take()?;
        if draw.purpose == purpose && draw.shares == shares { packing.recv().ok() } else { None }
    }
}
