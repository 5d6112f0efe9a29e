//! The fixed choices of a run that its rounds go by.

use crate::config::schema::{ClipScope, Scale};
use crate::ops::storage::Storage;
use crate::surgery::balance::Balancer;
use crate::surgery::methods::{Granularity, Method, Needs};

/// Gradient clipping; a norm of 0 is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    pub norm: f64,
    pub scope: ClipScope,
}

/// The fixed choices of a run that a round needs.
#[derive(Clone, Copy, Debug)]
pub struct RoundOptions {
    pub seed: u64,
    pub clip: Clip,
    pub scale: Scale,
    /// Parts of the encoder with weights of their own.
    pub granularity: Granularity,
    /// How the dense rows of J are kept.
    pub storage: Storage,
    /// Heads take the surgery's weight of their task instead of their own gradient.
    pub weighted_heads: bool,
    /// Rounds between two sets of conflict statistics; 0 for none.
    pub conflict_every: u64,
    /// What balancers that average over epochs go by.
    pub rounds_per_epoch: u64,
    /// Fused groups that are computed at the same time.
    pub lanes: usize,
    /// Gradients of several rounds are computed together and committed one after another.
    pub commits_apart: bool,
    /// Evaluation reads a copy of the parameters while training goes on.
    pub evaluates_copy: bool,
    /// Checkpoints are copied before they are written.
    pub copies_checkpoints: bool,
}

/// What solves a round: factors on the losses, then weights of the gradients.
pub struct Solvers {
    pub balancer: Box<dyn Balancer>,
    /// One for each part of the encoder that has weights of its own; all of one kind.
    pub methods: Vec<Box<dyn Method>>,
}

impl RoundOptions {
    /// Neither clipping nor statistics, the whole encoder at once, everything on its own scale.
    pub fn plain(seed: u64) -> Self {
        Self {
            seed,
            clip: Clip { norm: 0.0, scope: ClipScope::Update },
            scale: Scale::Native,
            granularity: Granularity::Model,
            storage: Storage::F32,
            weighted_heads: false,
            conflict_every: 0,
            rounds_per_epoch: 1,
            lanes: 1,
            commits_apart: false,
            evaluates_copy: false,
            copies_checkpoints: false,
        }
    }

    /// Whether each task's gradient must be kept apart.
    pub fn stores_jacobian(&self, method: &dyn Method) -> bool {
        let clips_tasks = self.clip.norm > 0.0 && self.clip.scope == ClipScope::Task;
        let Needs { gram, losses: _, second_batch, elementwise, row_state } = method.needs();
        gram || second_batch || elementwise || row_state || self.conflict_every > 0 || clips_tasks
    }
}
