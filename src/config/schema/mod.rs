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

pub use encoder::{Encoder, EncoderKind, Pooling};
pub use eval::{Best, Eval, Every, EveryNamed, Slice};
pub use methods::{Balance, Granularity, HeadGradients, METHOD_KEYS, Scale, Storage, Surgery, params_of};
pub use run::{Checkpoint, Data, Observe, OnBadRow, Run};
pub use schedule::{Fault, FaultKind, Feedback, Memory, Sampler, SamplerKind, Schedule, ScheduleMode};
pub use sources::{Synthetic, TasksFrom};
pub use task::{Adaptive, Format, HeadKind, MetricKind, Task};
pub use train::{Clip, ClipScope, EmbeddingSteps, LrSchedule, LrScheduleKind, Optimizer, OptimizerKind, RowMoment, Train};

use super::table::table;

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
    use serde::de::DeserializeOwned;

    use super::super::keys::Kind;
    use super::super::table::FieldType;
    use crate::ops::activation::Activation;
    use crate::schedule::Policy;
    use crate::schedule::access::OnStale;

    fn takes_its_names<T: FieldType + DeserializeOwned>() {
        let Kind::OneOf(names) = T::kind() else { panic!("{:?}", T::kind()) };
        for name in names {
            toml::Value::String(name.to_owned()).try_into::<T>().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    #[test]
    fn enums_of_other_rooms_take_the_names_of_their_keys() {
        takes_its_names::<Activation>();
        takes_its_names::<&'static Policy>();
        takes_its_names::<OnStale>();
    }
}
