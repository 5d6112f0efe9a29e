//! What the report takes of each line of metrics.jsonl; [`crate::observe::event`] says what the fields mean.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Values by task; null where one is not finite.
pub type ByTask = BTreeMap<String, Option<f64>>;

/// What every line has.
#[derive(Deserialize)]
pub struct Head {
    pub v: u32,
    pub kind: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Start {
    pub rounds: u64,
    pub tasks: Vec<String>,
    pub device: String,
    pub threads: usize,
    pub bytes: u64,
    /// Absent in runs of versions that did not tell.
    #[serde(default)]
    pub buffers: Vec<Buffer>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Buffer {
    pub name: String,
    pub bytes: u64,
}

#[derive(Deserialize)]
pub struct Round {
    pub round: u64,
    pub lr: Option<f64>,
    pub losses: ByTask,
    #[serde(default)]
    pub balance: ByTask,
    #[serde(default)]
    pub weights: ByTask,
    #[serde(default)]
    pub block_weights: BTreeMap<String, ByTask>,
    pub norm: Option<f64>,
    pub fallback: Option<String>,
    pub ms: Option<f64>,
}

/// A `conflict` line without its larger matrices.
#[derive(Deserialize)]
pub struct Conflict {
    pub round: u64,
    pub tasks: Vec<String>,
    pub norms: Vec<Option<f64>>,
    /// (T x T)
    pub cosines: Vec<Vec<Option<f64>>>,
    pub share: Option<f64>,
    pub yielded: Vec<Option<f64>>,
    #[serde(default)]
    pub blocks: BTreeMap<String, BlockShare>,
}

#[derive(Deserialize)]
pub struct BlockShare {
    pub share: Option<f64>,
}

/// The matrices of a `conflict` line that the heat map shows.
#[derive(Deserialize)]
pub struct ConflictMaps {
    pub round: u64,
    pub tasks: Vec<String>,
    #[serde(flatten)]
    pub whole: Map,
    #[serde(default)]
    pub blocks: BTreeMap<String, Map>,
}

#[derive(Deserialize)]
pub struct Map {
    /// (T x T)
    pub mean_cosines: Vec<Vec<Option<f64>>>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Evaluation {
    pub round: u64,
    /// By task: `loss`, `examples`, each metric, and `slices`.
    pub tasks: BTreeMap<String, BTreeMap<String, serde_json::Value>>,
    pub mean_primary: Option<f64>,
    pub objective: Option<f64>,
    pub best: bool,
}

impl Evaluation {
    pub fn value(&self, task: &str, metric: &str) -> Option<f64> {
        self.tasks.get(task)?.get(metric)?.as_f64()
    }
}

/// A line that tells what happened to the run or to one task.
#[derive(Clone, Debug, Deserialize)]
pub struct Incident {
    pub kind: String,
    pub round: u64,
    pub task: Option<String>,
    pub message: Option<String>,
    /// Of a failure: where the task stood then.
    pub state: Option<String>,
    /// Of an adapted micro-batch.
    pub micro_batch: Option<usize>,
    pub ms: Option<f64>,
    pub straggler: Option<bool>,
    /// Of a target that was reached.
    pub metric: Option<String>,
    pub value: Option<f64>,
    pub target: Option<f64>,
    /// Keys that `resume --set` changed.
    pub changes: Option<BTreeMap<String, Change>>,
    /// Of changed weights.
    pub weights: Option<ByTask>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Change {
    pub from: serde_json::Value,
    pub to: serde_json::Value,
}

#[derive(Clone, Debug, Deserialize)]
pub struct End {
    pub round: u64,
    pub reason: String,
    pub seconds: f64,
    pub peak_bytes: u64,
    #[serde(default)]
    pub contested_blocks: Vec<ContestedBlock>,
    #[serde(default)]
    pub fallbacks: BTreeMap<String, u64>,
    pub schedule: ScheduleEnd,
    pub tasks: Vec<TaskEnd>,
    /// By split; absent in runs of versions that did not tell.
    #[serde(default)]
    pub scores: BTreeMap<String, FinalScores>,
}

/// What the parameters that a run ended with come to.
#[derive(Clone, Debug, Deserialize)]
pub struct FinalScores {
    /// By task: `loss`, `examples`, each metric.
    pub tasks: BTreeMap<String, BTreeMap<String, serde_json::Value>>,
    pub mean_primary: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ContestedBlock {
    pub block: String,
    pub share: f64,
    pub cosine: f64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ScheduleEnd {
    pub write_write: u64,
    pub read_write: u64,
    pub stale: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct TaskEnd {
    pub task: String,
    pub state: String,
    pub rounds: u64,
    pub rounds_lost: u64,
    pub retries: u64,
    pub rollbacks: u64,
    pub micro_batch: usize,
    pub deadlines_met: Option<u64>,
    pub deadlines_missed: Option<u64>,
    pub last_error: Option<String>,
}
