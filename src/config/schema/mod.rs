//! What a run means: one declaration per table of the configuration file, of its keys and of the struct that holds them.
//!
//! Every field is present after resolution, and relative file names have been made absolute by then.

mod encoder;
mod eval;
mod methods;
mod run;
mod schedule;
mod sources;
mod task;
mod train;

use std::collections::BTreeMap;

pub use encoder::{Encoder, EncoderKind};
pub use eval::{Best, Eval, Every, EveryNamed, Slice};
pub use methods::{Balance, HeadGradients, METHOD_KEYS, Scale, Surgery, params_of};
pub use run::{Checkpoint, Data, DataPlace, FinalCheckpoint, Observe, OnBadRow, Run};
pub use schedule::{Fault, FaultKind, Feedback, Memory, Sampler, SamplerKind, Schedule, ScheduleMode};
pub use sources::{Synthetic, TasksFrom};
pub use task::{Adaptive, ClassWeights, Format, HeldOut, MetricKind, NamedClassWeights, Scaling, TASK, Task};
pub use train::{Clip, ClipScope, EmbeddingSteps, LrSchedule, LrScheduleKind, Optimizer, OptimizerKind, RowMoment, Train};

use super::table::table;
pub use crate::ops::heads::HeadKind;

const COUNT: i64 = 1 << 40;
const WIDTH: i64 = 1 << 16;
/// Random draws tell 2^32 rounds, and 2^32 examples of a task, apart.
pub const ROUNDS: i64 = u32::MAX as i64;
const EXAMPLES: i64 = u32::MAX as i64;

/// Values of `encoder.kind`.
const BAG: &[&str] = &["bag"];
const TRANSFORMER: &[&str] = &["transformer"];
const TEXT: &[&str] = &["bag", "transformer"];
const ONE_LAYER: &[&str] = &["linear", "bag"];

table! {
    /// A run.
    pub struct Config = ROOT {
        run: Run = {};
        data: Data = {};
        encoder: Encoder = {};
        train: Train = {};
        optimizer: Optimizer = {};
        clip: Clip = {};
        balance: Balance = {};
        surgery: Surgery = {};
        schedule: Schedule = {};
        memory: Memory = {};
        sampler: Sampler = {};
        eval: Eval = {};
        best: Best = {};
        checkpoint: Checkpoint = {};
        observe: Observe = {};
        faults: BTreeMap<String, Fault> = {};
        synthetic: Option<Synthetic> = none;
        tasks_from: Option<TasksFrom> = none;
        /// Whatever most tasks share: takes every key of a task.
        task_defaults: Task = {};
        /// One table per task. What a task does not set comes from `[task_defaults]`, then from the defaults.
        tasks: BTreeMap<String, Task> = {};
    }
}

#[cfg(test)]
mod tests {
    use crate::schedule::{Policy, policy::POLICIES};

    #[test]
    fn policies_are_read_by_their_names() {
        for policy in POLICIES {
            let read: &'static Policy = toml::Value::from(policy.name).try_into().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(read.name, policy.name);
        }
    }
}
