//! Everything a run reports, each as one line of metrics.jsonl.
//!
//! Every line has `v` (the version of this format), `kind` and `round`; the other fields depend on the kind. What
//! [`MetricsFile`](super::metrics_file::MetricsFile) adds to each is said there.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::surgery::conflict::{Conflicts, RoundConflicts};
use crate::surgery::ledger::{ContestedBlock, NamedPair};

/// Version of the lines; raised when a field changes its meaning.
pub const VERSION: u32 = 1;

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event<'a> {
    Start {
        round: u64,
        rounds: u64,
        tasks: &'a [&'a str],
        device: &'a str,
        threads: usize,
        bytes: u64,
        /// What the bytes are for, in the order of allocation: buffers on the run's device, if it has one.
        buffers: &'a [BufferBytes],
    },
    Round(RoundEvent<'a>),
    /// Gradient conflicts of a round: in the whole encoder, then, where there are several, in each of its blocks.
    Conflict {
        round: u64,
        tasks: &'a [&'a str],
        #[serde(flatten)]
        whole: ConflictStatistics<'a>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        blocks: BTreeMap<&'a str, ConflictStatistics<'a>>,
    },
    /// A round without commit.
    Anomaly {
        round: u64,
        task: Option<&'a str>,
        message: &'a str,
    },
    /// The micro-batch of a task was changed for the time that the slowest group it was in took.
    Adapted {
        round: u64,
        task: &'a str,
        micro_batch: usize,
        ms: f64,
        /// Halved, because of two times in a row far beyond the usual ones.
        straggler: bool,
    },
    /// What a round took, in microseconds, where the run goes by it.
    Measured {
        round: u64,
        /// Who took part in it.
        tasks: &'a [&'a str],
        /// All of it, where the scheduler's clock is measured.
        #[serde(skip_serializing_if = "Option::is_none")]
        us: Option<u32>,
        /// The slowest group that each task with an `adaptive` micro-batch was in.
        #[serde(skip_serializing_if = "Option::is_none")]
        groups: Option<ByTask<'a, u32>>,
    },
    /// The weights by which tasks share the time, changed by what their rounds took and waited since the last change.
    Reweighted {
        /// Rounds done.
        round: u64,
        weights: ByTask<'a>,
        /// In all.
        busy_ms: ByTask<'a>,
        /// On average.
        wait_ms: ByTask<'a>,
    },
    /// Deadlines that cannot be met at what rounds really take.
    Late {
        round: u64,
        message: &'a str,
    },
    /// A task's part of a round came to nothing.
    Failure {
        round: u64,
        task: &'a str,
        /// `not_finite`, `out_of_memory` or `crashed`.
        status: &'static str,
        /// What happened, and what is done about it.
        message: &'a str,
        /// Where the task stands now.
        state: &'static str,
        failures_in_a_row: u32,
        /// An [`Event::Anomaly`] has told people already.
        #[serde(skip)]
        already_reported: bool,
    },
    #[serde(rename = "eval")]
    Evaluation {
        /// Rounds done when its parameters were copied.
        round: u64,
        /// Rounds done when its outcome was known, where others.
        #[serde(skip_serializing_if = "Option::is_none")]
        known: Option<u64>,
        #[serde(flatten)]
        scores: &'a Value,
        /// None if undefined.
        objective: Option<f64>,
        /// Tasks that the objective leaves out, being undefined for them.
        #[serde(rename = "objective_undefined", skip_serializing_if = "is_zero")]
        undefined: usize,
        best: bool,
        /// What is undefined, and why.
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        warnings: &'a [String],
        seconds: f64,
    },
    /// A task's primary metric has reached its target: the task is done.
    Target {
        round: u64,
        task: &'a str,
        metric: &'a str,
        value: f64,
        target: f64,
    },
    Checkpoint {
        round: u64,
        path: &'a str,
        /// None where a process before this one wrote it, and was killed before it said so.
        seconds: Option<f64>,
        /// As long training stood still for it; of [`Event::Checkpoint::seconds`] a part where it was written beside training.
        held_up: Option<f64>,
        /// Written because the run was interrupted here.
        #[serde(skip)]
        interrupted: bool,
    },
    /// `resume --set` changed keys of the configuration: for each, `from` and `to`.
    Changed {
        round: u64,
        changes: &'a Map<String, Value>,
    },
    End {
        round: u64,
        reason: &'a str,
        seconds: f64,
        peak_bytes: u64,
        /// The run's most conflicting pairs.
        conflicts: Vec<NamedPair>,
        /// The blocks in which tasks conflicted most.
        #[serde(rename = "contested_blocks")]
        blocks: Vec<ContestedBlock>,
        /// Rounds in which a method or balancer fell back.
        fallbacks: &'a BTreeMap<String, u64>,
        schedule: ScheduleEnd,
        tasks: Vec<TaskEnd>,
        /// By split: what the best parameters come to, or the last ones where none were kept, as `eval --json` tells it.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        scores: BTreeMap<&'static str, Value>,
    },
}

/// A buffer of the run, as `plan --json` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BufferBytes {
    pub name: String,
    pub bytes: u64,
}

/// Conflicts of access on the encoder's parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ScheduleEnd {
    /// Quanta that waited for one that wrote the same blocks, or for one that read what they write.
    pub write_write: u64,
    pub read_write: u64,
    /// Gradients that were committed although they had missed commits, as `schedule.max_staleness` allows.
    pub stale: u64,
}

/// How a task came out of the run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskEnd {
    pub task: String,
    /// `done`, `failed`, `waiting` (for its parents), or where it stood when the run was interrupted.
    pub state: &'static str,
    /// Rounds it took part in, and rounds in which its part failed.
    pub rounds: u64,
    pub rounds_lost: u64,
    pub retries: u64,
    pub rollbacks: u64,
    /// Examples of its micro-batch at the end.
    pub micro_batch: usize,
    /// Rounds that ended by their `deadline_ms` on the wall clock, and later, since the process began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadlines_met: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadlines_missed: Option<u64>,
    pub last_error: Option<String>,
}

/// A committed round.
#[derive(Serialize)]
pub struct RoundEvent<'a> {
    pub round: u64,
    pub epoch: f64,
    pub lr: f64,
    pub losses: ByTask<'a>,
    /// The balancer's factors; none where losses keep their own scale.
    #[serde(rename = "balance", skip_serializing_if = "Option::is_none")]
    pub factors: Option<ByTask<'a>>,
    #[serde(flatten)]
    pub weights: Weights<'a>,
    pub norm: f64,
    pub clip: f64,
    /// Why the method's solver fell back, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<&'a str>,
    pub ms: f64,
}

/// A value for each task: an object by their names.
#[derive(Clone, Copy)]
pub struct ByTask<'a, T = f64> {
    pub tasks: &'a [&'a str],
    pub values: &'a [T],
}

impl<T: Serialize> Serialize for ByTask<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.tasks.iter().zip(self.values))
    }
}

/// Surgery's weights: one set of them, or one for each block of the encoder.
#[derive(Serialize)]
pub enum Weights<'a> {
    #[serde(rename = "weights")]
    Whole(ByTask<'a>),
    #[serde(rename = "block_weights")]
    Blocks(BTreeMap<&'a str, ByTask<'a>>),
}

impl<'a> Weights<'a> {
    pub fn new(tasks: &'a [&'a str], blocks: &'a [String], sets: &'a [Vec<f64>]) -> Self {
        match sets {
            [one] => Self::Whole(ByTask { tasks, values: one }),
            many => {
                Self::Blocks(blocks.iter().map(String::as_str).zip(many.iter().map(|values| ByTask { tasks, values })).collect())
            }
        }
    }
}

/// How the gradients of T tasks point at each other; lists of lists are (T x T).
#[derive(Serialize)]
pub struct ConflictStatistics<'a> {
    norms: &'a [f64],
    cosines: Vec<&'a [f64]>,
    /// The run's moving means of the cosines.
    mean_cosines: Vec<&'a [f64]>,
    similarities: Vec<Vec<f64>>,
    pairs: usize,
    tragic_pairs: usize,
    share: f64,
    yielded: &'a [f64],
}

impl<'a> ConflictStatistics<'a> {
    fn new(conflicts: &'a Conflicts, mean_cosines: &'a [f64]) -> Self {
        let count = conflicts.norms.len().max(1);
        Self {
            norms: &conflicts.norms,
            cosines: conflicts.cosines.chunks(count).collect(),
            mean_cosines: mean_cosines.chunks(count).collect(),
            similarities: conflicts.similarities().chunks(count).map(<[f64]>::to_vec).collect(),
            pairs: conflicts.pairs,
            tragic_pairs: conflicts.tragic_pairs(),
            share: conflicts.share(),
            yielded: &conflicts.yielded,
        }
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl<'a> Event<'a> {
    /// `mean_cosines` are (1 + B) of (T x T): in the whole encoder, then in each of its blocks.
    pub fn conflict(
        round: u64,
        tasks: &'a [&'a str],
        conflicts: &'a RoundConflicts,
        blocks: &'a [String],
        mean_cosines: &'a [Vec<f64>],
    ) -> Self {
        let parts = conflicts.blocks.iter().zip(&mean_cosines[1..]).map(|(own, means)| ConflictStatistics::new(own, means));
        let whole = ConflictStatistics::new(&conflicts.whole, &mean_cosines[0]);
        Event::Conflict { round, tasks, whole, blocks: blocks.iter().map(String::as_str).zip(parts).collect() }
    }

    /// Whether it happens again when a run goes on from a checkpoint before it. Not so: checkpoints that are there, but for those
    /// that an uninterrupted run would not have, and changes of the configuration.
    pub fn happens_again(&self) -> bool {
        !matches!(self, Event::Checkpoint { interrupted: false, .. } | Event::Changed { .. })
    }

    pub fn json(&self) -> Value {
        let mut value = json!(self);
        value["v"] = json!(VERSION);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_says_what_it_is() {
        let conflicts = Conflicts::of(&[1.0, -1.0, -1.0, 4.0], 2);
        let round = RoundConflicts { whole: conflicts.clone(), blocks: vec![conflicts; 2] };
        let (blocks, means) = (["x".to_owned(), "y".to_owned()], [const { [1.0, 0.0, 0.0, 1.0] }; 3].map(Vec::from));
        let event = Event::conflict(3, &["a", "b"], &round, &blocks, &means);
        let value = event.json();
        assert_eq!(value["blocks"]["y"]["pairs"], 1);
        assert_eq!((value["v"].as_u64(), value["kind"].as_str(), value["round"].as_u64()), (Some(1), Some("conflict"), Some(3)));
        assert_eq!(value["cosines"][0][1], -0.5);
    }
}
