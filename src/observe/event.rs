//! Everything a run reports, each as one line of metrics.jsonl.
//!
//! Every line has `v` (the version of this format), `kind` and `round`; the other fields depend on the kind. What
//! [`MetricsFile`](super::metrics_file::MetricsFile) adds to each is said there.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::surgery::conflict::{Conflicts, RoundConflicts};
use crate::surgery::ledger::{ContestedBlock, NamedPair};

/// Version of the lines; raised when a field changes its meaning.
pub const VERSION: u32 = 1;

pub enum Event<'a> {
    Start {
        round: u64,
        rounds: u64,
        tasks: &'a [&'a str],
        device: &'a str,
        threads: usize,
        bytes: u64,
    },
    Round(RoundEvent<'a>),
    /// Gradient conflicts of a round, and (1 + B) of (T x T) the run's moving means of the cosines: in the whole encoder,
    /// then in each of its blocks.
    Conflict {
        round: u64,
        tasks: &'a [&'a str],
        conflicts: &'a RoundConflicts,
        blocks: &'a [String],
        mean_cosines: &'a [Vec<f64>],
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
        already_reported: bool,
    },
    Evaluation {
        /// Rounds done when its parameters were copied, and when its outcome was known.
        round: u64,
        known: u64,
        scores: &'a Value,
        /// None if undefined.
        objective: Option<f64>,
        /// Tasks that the objective leaves out, being undefined for them.
        undefined: usize,
        best: bool,
        /// What is undefined, and why.
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
        /// Written because the run was interrupted here.
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
        blocks: Vec<ContestedBlock>,
        /// Rounds in which a method or balancer fell back.
        fallbacks: &'a BTreeMap<String, u64>,
        tasks: Vec<TaskEnd>,
    },
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
    pub last_error: Option<String>,
}

/// A committed round; per-task values are in the order of `tasks`.
pub struct RoundEvent<'a> {
    pub round: u64,
    pub epoch: f64,
    pub lr: f64,
    pub tasks: &'a [&'a str],
    pub losses: &'a [f64],
    /// The balancer's factors; empty where losses keep their own scale.
    pub factors: &'a [f64],
    /// One set, or one for each of the `blocks`.
    pub weights: &'a [Vec<f64>],
    pub blocks: &'a [String],
    pub norm: f64,
    pub clip: f64,
    /// Why the method's solver fell back, if it did.
    pub fallback: Option<&'a str>,
    pub ms: f64,
}

impl Event<'_> {
    /// Whether it happens again when a run goes on from a checkpoint before it. Not so: checkpoints that are there, but for those
    /// that an uninterrupted run would not have, and changes of the configuration.
    pub fn happens_again(&self) -> bool {
        !matches!(self, Event::Checkpoint { interrupted: false, .. } | Event::Changed { .. })
    }

    pub fn json(&self) -> Value {
        let (kind, mut value) = match self {
            Event::Start { round, rounds, tasks, device, threads, bytes } => (
                "start",
                json!({ "round": round, "rounds": rounds, "tasks": tasks, "device": device, "threads": threads, "bytes": bytes }),
            ),
            Event::Round(round) => ("round", round.json()),
            Event::Conflict { round, tasks, conflicts, blocks, mean_cosines } => {
                ("conflict", round_conflicts_json(*round, tasks, conflicts, blocks, mean_cosines))
            }
            Event::Anomaly { round, task, message } => ("anomaly", json!({ "round": round, "task": task, "message": message })),
            Event::Adapted { round, task, micro_batch, ms, straggler } => {
                ("adapted", json!({ "round": round, "task": task, "micro_batch": micro_batch, "ms": ms, "straggler": straggler }))
            }
            Event::Failure { round, task, status, message, state, failures_in_a_row, already_reported: _ } => (
                "failure",
                json!({
                    "round": round, "task": task, "status": status, "message": message, "state": state,
                    "failures_in_a_row": failures_in_a_row,
                }),
            ),
            Event::Evaluation { round, known, scores, objective, undefined, best, warnings, seconds } => {
                let mut value = json!({ "round": round, "objective": objective, "best": best, "seconds": seconds });
                if *undefined > 0 {
                    value["objective_undefined"] = json!(undefined);
                }
                if !warnings.is_empty() {
                    value["warnings"] = json!(warnings);
                }
                if known != round {
                    value["known"] = json!(known);
                }
                merge(&mut value, scores);
                ("eval", value)
            }
            Event::Target { round, task, metric, value, target } => {
                ("target", json!({ "round": round, "task": task, "metric": metric, "value": value, "target": target }))
            }
            Event::Checkpoint { round, path, seconds, interrupted: _ } => {
                ("checkpoint", json!({ "round": round, "path": path, "seconds": seconds }))
            }
            Event::Changed { round, changes } => ("changed", json!({ "round": round, "changes": changes })),
            Event::End { round, reason, seconds, peak_bytes, conflicts, blocks, fallbacks, tasks } => {
                let pair = |pair: &NamedPair| json!({ "tasks": pair.tasks, "cosine": pair.cosine, "share": pair.share, "rounds": pair.rounds });
                let conflicts: Vec<Value> = conflicts.iter().map(pair).collect();
                let block =
                    |block: &ContestedBlock| json!({ "block": block.block, "share": block.share, "cosine": block.cosine });
                let blocks: Vec<Value> = blocks.iter().map(block).collect();
                let value = json!({
                    "round": round, "reason": reason, "seconds": seconds, "peak_bytes": peak_bytes,
                    "conflicts": conflicts, "contested_blocks": blocks, "fallbacks": fallbacks,
                    "tasks": tasks,
                });
                ("end", value)
            }
        };
        value["v"] = json!(VERSION);
        value["kind"] = json!(kind);
        value
    }
}

impl RoundEvent<'_> {
    fn json(&self) -> Value {
        let by_task = |values: &[f64]| -> Map<String, Value> {
            self.tasks.iter().zip(values).map(|(task, value)| ((*task).to_owned(), json!(value))).collect()
        };
        let mut value = json!({
            "round": self.round,
            "epoch": self.epoch,
            "lr": self.lr,
            "losses": by_task(self.losses),
            "norm": self.norm,
            "clip": self.clip,
            "ms": self.ms,
        });
        match self.weights {
            [one] => value["weights"] = Value::Object(by_task(one)),
            many => {
                let by_block = self.blocks.iter().zip(many).map(|(block, set)| (block.clone(), Value::Object(by_task(set))));
                value["block_weights"] = Value::Object(by_block.collect());
            }
        }
        if !self.factors.is_empty() {
            value["balance"] = Value::Object(by_task(self.factors));
        }
        if let Some(reason) = self.fallback {
            value["fallback"] = json!(reason);
        }
        value
    }
}

/// The whole encoder's conflicts, and beside them those of its blocks where there are several.
fn round_conflicts_json(
    round: u64,
    tasks: &[&str],
    conflicts: &RoundConflicts,
    blocks: &[String],
    mean_cosines: &[Vec<f64>],
) -> Value {
    let mut value = conflict_json(&conflicts.whole, &mean_cosines[0]);
    value["round"] = json!(round);
    value["tasks"] = json!(tasks);
    if !conflicts.blocks.is_empty() {
        let parts = blocks.iter().zip(conflicts.blocks.iter().zip(&mean_cosines[1..]));
        let parts = parts.map(|(name, (conflicts, means))| (name.clone(), conflict_json(conflicts, means)));
        value["blocks"] = Value::Object(parts.collect());
    }
    value
}

fn conflict_json(conflicts: &Conflicts, mean_cosines: &[f64]) -> Value {
    let count = conflicts.norms.len().max(1);
    let rows = |values: &[f64]| -> Vec<Vec<f64>> { values.chunks(count).map(<[f64]>::to_vec).collect() };
    json!({
        "norms": conflicts.norms,
        "cosines": rows(&conflicts.cosines),
        "mean_cosines": rows(mean_cosines),
        "similarities": rows(&conflicts.similarities()),
        "pairs": conflicts.pairs,
        "tragic_pairs": conflicts.tragic_pairs(),
        "share": conflicts.share(),
        "yielded": conflicts.yielded,
    })
}

fn merge(value: &mut Value, other: &Value) {
    if let (Value::Object(value), Value::Object(other)) = (value, other) {
        value.extend(other.clone());
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
        let event = Event::Conflict { round: 3, tasks: &["a", "b"], conflicts: &round, blocks: &blocks, mean_cosines: &means };
        let value = event.json();
        assert_eq!(value["blocks"]["y"]["pairs"], 1);
        assert_eq!((value["v"].as_u64(), value["kind"].as_str(), value["round"].as_u64()), (Some(1), Some("conflict"), Some(3)));
        assert_eq!(value["cosines"][0][1], -0.5);
    }
}
