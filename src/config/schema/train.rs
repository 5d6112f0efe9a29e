//! The round: how much is computed in it, and the step it ends in.

use super::{ROUNDS, TEXT, TRANSFORMER};
use crate::choices::choices;
use crate::config::keys::Bounds;
use crate::config::table::table;

const ADAMW: &[&str] = &["adamw"];

table! {
    /// How long, and how much at a time.
    pub struct Train = TRAIN {
        /// Length of the run in passes over the training rows. Exactly one of `epochs` and `rounds` is needed; a later layer's
        /// wins.
        epochs: Option<f64> = none in Bounds::POSITIVE, resumable;
        /// Length of the run in rounds.
        rounds: Option<u64> = none in 1..=ROUNDS, resumable;
        /// Examples of one task in one micro-batch.
        micro_batch: usize = 32 in 1..=1 << 20;
        /// Micro-batches per slot and round; their private gradients add up before surgery.
        accumulate: usize = 1 in 1..=1 << 20;
        /// Most tasks packed into one fused group; 0 means all of a round.
        fuse: usize = 0 in 0..=1 << 20;
        /// Share of the target probability spread evenly over all classes; classification only.
        label_smoothing: f64 = 0.0 in Bounds::UNIT_OPEN;
        /// Heads of one shape start from the same draw, so that gradients compare tasks and not heads.
        equal_heads: bool = false;
        /// Rounds in a row that may fail on a non-finite loss or gradient before the run stops.
        max_bad_rounds: u32 = 3 in 1..=u32::MAX as i64, resumable;
    }
}

table! {
    /// The step taken once a round.
    pub struct Optimizer = OPTIMIZER {
        /// AdamW with decoupled weight decay, or SGD with momentum.
        kind: OptimizerKind = "adamw";
        /// Learning rate at the end of the warmup.
        lr: f64 = 1e-3 in Bounds::POSITIVE, resumable;
        /// Heads learn at `lr * head_lr_scale`.
        head_lr_scale: f64 = 1.0 in Bounds::NON_NEGATIVE, resumable;
        /// Embedding rows learn at `lr * embedding_lr_scale`.
        embedding_lr_scale: f64 = 1.0 in Bounds::NON_NEGATIVE, only("encoder.kind", TEXT), resumable;
        /// Decoupled; biases and norms are left out.
        weight_decay: f64 = 0.01 in Bounds::NON_NEGATIVE, resumable;
        /// Decay of the first moment.
        beta1: f64 = 0.9 in Bounds::UNIT_OPEN, only("optimizer.kind", ADAMW), resumable;
        /// Decay of the second moment.
        beta2: f64 = 0.999 in Bounds::UNIT_OPEN, only("optimizer.kind", ADAMW), resumable;
        /// Added to the root of the second moment.
        eps: f64 = 1e-8 in Bounds::POSITIVE, only("optimizer.kind", ADAMW), resumable;
        /// Decay of the velocity.
        momentum: f64 = 0.9 in Bounds::UNIT_OPEN, only("optimizer.kind", ["sgd"]), resumable;
        /// AdamW's second moment of an embedding row: one number per element, or one per row (a third less memory).
        row_moment: RowMoment = "element", only("encoder.kind", TEXT);
        /// Word rows that a step moves: those the round touched (as SparseAdam), or all (as AdamW over the whole table).
        embedding: EmbeddingSteps = "lazy", only("encoder.kind", TRANSFORMER);
        schedule: LrSchedule = {};
    }
}

choices! {
    pub enum OptimizerKind { Adamw = "adamw", Sgd = "sgd" }
}

choices! {
    pub enum RowMoment { Element = "element", Row = "row" }
}

choices! {
    /// Which rows of a word table a step moves.
    pub enum EmbeddingSteps { Lazy = "lazy", Dense = "dense" }
}

table! {
    /// The learning rate over the run.
    pub struct LrSchedule = LR_SCHEDULE {
        /// What the learning rate does after the warmup.
        kind: LrScheduleKind = "linear", resumable;
        /// Below 1: share of all rounds; 1 and above: rounds.
        warmup: f64 = 0.06 in Bounds::NON_NEGATIVE, resumable;
        /// Share of `lr` left at the last round.
        end: f64 = 0.0 in Bounds::UNIT, only("optimizer.schedule.kind", ["linear", "cosine"]), resumable;
    }
}

choices! {
    pub enum LrScheduleKind { Constant = "constant", Linear = "linear", Cosine = "cosine" }
}

table! {
    /// Limits the norm of what reaches the optimizer.
    pub struct Clip = CLIP {
        /// Largest Euclidean norm; 0 switches clipping off.
        norm: f64 = 1.0 in Bounds::NON_NEGATIVE, resumable;
        /// Clips the update after surgery, or each task's private gradient before it.
        scope: ClipScope = "update", resumable;
    }
}

choices! {
    /// Whose norm is limited.
    pub enum ClipScope {
        /// The whole update: shared gradient after surgery and all heads together.
        Update = "update",
        /// Each task's private gradient, encoder and head together, before surgery.
        Task = "task",
    }
}
