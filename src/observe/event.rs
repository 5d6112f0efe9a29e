//! Everything a run reports, each as one line of metrics.jsonl.
//!
//! Every line has `v` (the version of this format), `kind` and `round`; the other fields depend on the kind.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::surgery::conflict::{Conflicts, NamedPair};

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
    /// Gradient conflicts of a round, and (T x T) the run's moving means of the cosines.
    Conflict {
        round: u64,
        tasks: &'a [&'a str],
        conflicts: &'a Conflicts,
        mean_cosines: &'a [f64],
    },
    /// A round without commit.
    Anomaly {
        round: u64,
        task: Option<&'a str>,
        message: &'a str,
    },
    Evaluation {
        round: u64,
        scores: &'a Value,
        objective: Option<f64>,
        best: bool,
        seconds: f64,
    },
    Checkpoint {
        round: u64,
        path: &'a str,
        seconds: f64,
    },
    End {
        round: u64,
        reason: &'a str,
        seconds: f64,
        peak_bytes: u64,
        /// The run's most conflicting pairs.
        conflicts: Vec<NamedPair>,
        /// Rounds in which a method or balancer fell back.
        fallbacks: &'a BTreeMap<String, u64>,
    },
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
    pub weights: &'a [f64],
    pub norm: f64,
    pub clip: f64,
    /// Why the method's solver fell back, if it did.
    pub fallback: Option<&'a str>,
    pub ms: f64,
}

impl Event<'_> {
    pub fn round(&self) -> u64 {
        match self {
            Event::Round(event) => event.round,
            Event::Start { round, .. }
            | Event::Conflict { round, .. }
            | Event::Anomaly { round, .. }
            | Event::Evaluation { round, .. }
            | Event::Checkpoint { round, .. }
            | Event::End { round, .. } => *round,
        }
    }

    pub fn json(&self) -> Value {
        let (kind, mut value) = match self {
            Event::Start { round, rounds, tasks, device, threads, bytes } => (
                "start",
                json!({ "round": round, "rounds": rounds, "tasks": tasks, "device": device, "threads": threads, "bytes": bytes }),
            ),
            Event::Round(round) => ("round", round.json()),
            Event::Conflict { round, tasks, conflicts, mean_cosines } => {
                ("conflict", conflict_json(*round, tasks, conflicts, mean_cosines))
            }
            Event::Anomaly { round, task, message } => ("anomaly", json!({ "round": round, "task": task, "message": message })),
            Event::Evaluation { round, scores, objective, best, seconds } => {
                let mut value = json!({ "round": round, "objective": objective, "best": best, "seconds": seconds });
                merge(&mut value, scores);
                ("eval", value)
            }
            Event::Checkpoint { round, path, seconds } => {
                ("checkpoint", json!({ "round": round, "path": path, "seconds": seconds }))
            }
            Event::End { round, reason, seconds, peak_bytes, conflicts, fallbacks } => {
                let pair = |pair: &NamedPair| json!({ "tasks": pair.tasks, "cosine": pair.cosine, "share": pair.share, "rounds": pair.rounds });
                let conflicts: Vec<Value> = conflicts.iter().map(pair).collect();
                let value = json!({
                    "round": round, "reason": reason, "seconds": seconds, "peak_bytes": peak_bytes,
                    "conflicts": conflicts, "fallbacks": fallbacks,
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
            "weights": by_task(self.weights),
            "norm": self.norm,
            "clip": self.clip,
            "ms": self.ms,
        });
        if !self.factors.is_empty() {
            value["balance"] = Value::Object(by_task(self.factors));
        }
        if let Some(reason) = self.fallback {
            value["fallback"] = json!(reason);
        }
        value
    }
}

fn conflict_json(round: u64, tasks: &[&str], conflicts: &Conflicts, mean_cosines: &[f64]) -> Value {
    let rows = |values: &[f64]| -> Vec<Vec<f64>> { values.chunks(tasks.len().max(1)).map(<[f64]>::to_vec).collect() };
    json!({
        "round": round,
        "tasks": tasks,
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
        let event = Event::Conflict { round: 3, tasks: &["a", "b"], conflicts: &conflicts, mean_cosines: &[1.0, 0.0, 0.0, 1.0] };
        let value = event.json();
        assert_eq!((value["v"].as_u64(), value["kind"].as_str(), value["round"].as_u64()), (Some(1), Some("conflict"), Some(3)));
        assert_eq!(value["cosines"][0][1], -0.5);
    }
}
