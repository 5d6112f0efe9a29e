//! What a run means, as plain values: one struct per table of the configuration file.
//!
//! Every field is present after resolution: defaults live in [`super::keys`], next to the rules that check them, so these
//! structs carry neither defaults nor rules. Relative file names have been made absolute by then.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub run: Run,
    pub data: Data,
    pub encoder: Encoder,
    pub train: Train,
    pub optimizer: Optimizer,
    pub clip: Clip,
    pub balance: Balance,
    pub surgery: Surgery,
    pub schedule: Schedule,
    pub memory: Memory,
    pub sampler: Sampler,
    pub eval: Eval,
    pub best: Best,
    pub checkpoint: Checkpoint,
    pub observe: Observe,
    /// Failures made on purpose, by name.
    pub faults: BTreeMap<String, Fault>,
    /// Built-in source of conflicting tasks; each becomes a task beside those of `tasks`.
    pub synthetic: Option<Synthetic>,
    /// One task per distinct value of a column, each with the settings of `task_defaults`.
    pub tasks_from: Option<TasksFrom>,
    /// Settings of every task made by `tasks_from` and `synthetic`; already merged into each entry of `tasks`.
    pub task_defaults: Task,
    /// By name, in name order: this order is the order of J's rows everywhere.
    pub tasks: BTreeMap<String, Task>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    pub name: String,
    pub seed: u64,
    /// `auto`, `cpu`, `cuda`, `cuda:N` or `emulated`.
    pub device: String,
    /// Folder that receives one folder per run.
    pub out: PathBuf,
    /// Worker threads; 0 means one per core.
    pub threads: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Relative data files and tokenizers are looked up here.
    pub root: PathBuf,
    /// Said when a data file is missing: where the set comes from.
    pub origin: String,
    pub on_bad_row: OnBadRow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBadRow {
    Error,
    Skip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderKind {
    Linear,
    Bag,
    Transformer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    Cls,
    Mean,
    Pooler,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    None,
    Relu,
    Gelu,
    Tanh,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoder {
    pub kind: EncoderKind,
    /// Width of what the heads see.
    pub hidden: usize,
    pub activation: Activation,
    /// Adds the layer's input to the first columns of its output; the input may not be wider than `hidden`.
    pub residual: bool,
    /// Probability of zeroing an element of the encoder's output while training.
    pub dropout: f64,
    /// `words`, or a `vocab.txt` (WordPiece) or `tokenizer.json` (Hugging Face). Text tasks only.
    pub tokenizer: Option<String>,
    /// WordPiece only: fold case and strip accents, as BERT's uncased vocabularies want.
    pub lowercase: bool,
    /// Tokens kept of one example, special tokens not counted.
    pub max_len: usize,
    /// Bag: longest n-gram, 1 to 3.
    pub ngrams: usize,
    /// Bag: rows of the hashed part of the table.
    pub buckets: usize,
    /// Bag: width of an embedding row; 0 means `hidden`.
    pub embedding_dim: usize,
    /// Bag: standard deviation of the initial rows; 0 starts at zero and leaves untouched rows out of memory.
    pub embedding_init: f64,
    /// Bag: probability of dropping an n-gram while training.
    pub word_dropout: f64,
    /// Transformer: a Hugging Face folder to start from; sizes are then its own.
    pub from: Option<String>,
    /// Rows of the word table; 0 means the tokenizer's size.
    pub vocabulary: usize,
    pub layers: usize,
    /// 0 means `hidden / 64`.
    pub heads: usize,
    /// Width of the feed-forward part; 0 means `4 * hidden`.
    pub intermediate: usize,
    /// Longest sequence, special tokens counted.
    pub positions: usize,
    pub pooling: Pooling,
    pub attention_dropout: f64,
    /// Added to the variance in layer normalization.
    pub norm_eps: f64,
    /// Standard deviation of initial weights.
    pub init: f64,
    /// `embeddings`, `layer.N` or `layer.N-M`: a prefix of the encoder that is not trained.
    pub freeze: Vec<String>,
    /// Keep only each layer's input and compute the rest again in the backward pass.
    pub recompute: bool,
    /// The frozen prefix's outputs are computed once and kept on disk.
    pub cache_frozen: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Exactly one of `epochs` and `rounds` is set.
    pub epochs: Option<f64>,
    pub rounds: Option<u64>,
    /// Examples of one task in one micro-batch.
    pub micro_batch: usize,
    /// Micro-batches per slot and round; their private gradients add up before surgery.
    pub accumulate: usize,
    /// Most tasks packed into one fused group; 0 means all of a round.
    pub fuse: usize,
    /// Share of the target probability spread evenly over all classes; classification only.
    pub label_smoothing: f64,
    /// Heads of one shape start from the same draw, so that gradients compare tasks and not heads.
    pub equal_heads: bool,
    /// Rounds in a row that may fail on a non-finite loss or gradient before the run stops.
    pub max_bad_rounds: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    Adamw,
    Sgd,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimizer {
    pub kind: OptimizerKind,
    pub lr: f64,
    /// Heads learn at `lr * head_lr_scale`.
    pub head_lr_scale: f64,
    /// Embedding rows learn at `lr * embedding_lr_scale`.
    pub embedding_lr_scale: f64,
    pub weight_decay: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// SGD only.
    pub momentum: f64,
    /// AdamW's second moment of an embedding row: one per `element`, or one per `row`.
    pub row_moment: RowMoment,
    /// Transformer: `lazy` moves the word rows a round touched, `dense` all of them.
    pub embedding: EmbeddingSteps,
    pub schedule: LrSchedule,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowMoment {
    Element,
    Row,
}

/// Which rows of a word table a step moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbeddingSteps {
    Lazy,
    Dense,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduleKind {
    Constant,
    Linear,
    Cosine,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LrSchedule {
    pub kind: LrScheduleKind,
    /// Below 1: share of all rounds; 1 and above: rounds.
    pub warmup: f64,
    /// Share of `lr` left at the last round.
    pub end: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipScope {
    Update,
    Task,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clip {
    /// Largest Euclidean norm; 0 switches clipping off.
    pub norm: f64,
    pub scope: ClipScope,
}

/// Keys whose value decides which other keys of their table act.
pub const METHOD_KEYS: [&str; 2] = ["surgery.method", "balance.method"];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Balance {
    pub method: String,
    /// The method's own parameters, all of them.
    #[serde(flatten)]
    pub params: Map<String, Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    Native,
    Sum,
    Mean,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadGradients {
    Own,
    Weighted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    Model,
    Layer,
    Tensor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    F32,
    Bf16,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Surgery {
    pub method: String,
    pub granularity: Granularity,
    pub storage: Storage,
    pub scale: Scale,
    pub heads: HeadGradients,
    /// The method's own parameters, all of them.
    #[serde(flatten)]
    pub params: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    pub mode: ScheduleMode,
    /// Time-sliced: whose round is next.
    pub policy: String,
    /// Share of the time of tasks that the policy would pass over.
    pub server_share: f64,
    /// Planned microseconds of one example.
    pub example_us: f64,
    /// Failures in a row after which a task is given up.
    pub max_retries: u32,
    /// Seconds of planned time before the first retry, doubling up to `retry_cap`.
    pub retry_base: f64,
    pub retry_cap: f64,
    /// Fused groups that are computed at the same time.
    pub lanes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleMode {
    Synchronous,
    TimeSliced,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Bytes the run's arenas may take; 0 means no limit.
    pub device: u64,
    /// What gives when they do not suffice.
    pub on_pressure: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerKind {
    Proportional,
    RoundRobin,
    Explicit,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampler {
    pub kind: SamplerKind,
    pub temperature: f64,
    /// Examples counted per task at most; 0 means no cap.
    pub cap: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eval {
    pub every: Every,
    /// Examples in one evaluation batch.
    pub batch: usize,
    /// Batches of an evaluation between two rounds; 0 for all of them.
    pub batches_per_round: u64,
    /// Also evaluate the test split when training ends.
    pub test: bool,
    pub slices: BTreeMap<String, Slice>,
}

/// `"epoch"`, `"end"`, or a number of rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Every {
    Rounds(u64),
    Named(EveryNamed),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EveryNamed {
    Epoch,
    End,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    pub column: String,
    pub equals: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// `mean(primary)`, `min(primary)`, `mean(loss)`, `max(loss)`, `mean(METRIC)`, `TASK.METRIC` or `TASK.loss`.
    pub metric: String,
    /// Evaluations without a better value before the run stops; 0 never stops early.
    pub patience: u32,
    /// Keep the best parameters in `best/`; needs a dev split.
    pub keep: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    pub every: Every,
    /// Newest checkpoints kept.
    pub keep: usize,
    /// Written from a copy while training goes on.
    pub background: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observe {
    /// Rounds between two `round` lines in metrics.jsonl.
    pub log_every: u64,
    /// Rounds between two `conflict` lines (cosine matrix, norms); 0 writes none.
    pub conflict_every: u64,
    /// Rounds in trace.json; 0 writes none.
    pub trace_rounds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    NotFinite,
    OutOfMemory,
    Crash,
    Stall,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    pub task: String,
    pub kind: FaultKind,
    /// The first round that may be hit.
    pub round: u64,
    pub times: u64,
    /// Length of a stall in milliseconds.
    pub ms: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Synthetic {
    /// Pairs of tasks that agree, that oppose each other, and tasks unrelated to all others.
    pub agree: usize,
    pub oppose: usize,
    pub alone: usize,
    pub features: usize,
    pub train: usize,
    pub dev: usize,
    pub test: usize,
    pub noise: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TasksFrom {
    pub file: PathBuf,
    /// Column naming the task of a row.
    pub task: String,
    /// Task names to use; empty means every value found.
    pub include: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Jsonl,
    Tsv,
    Csv,
    Parquet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadKind {
    Classification,
    Regression,
    Multilabel,
    Mlm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricKind {
    Accuracy,
    F1,
    Matthews,
    Pearson,
    Spearman,
    Mse,
    Mae,
    Auroc,
}

/// A micro-batch of `min` to `max` examples that aims at a time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adaptive {
    pub target_ms: f64,
    pub grow: f64,
    pub shrink: f64,
    pub min: usize,
    pub max: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// One file per split ...
    pub train: Option<PathBuf>,
    pub dev: Option<PathBuf>,
    pub test: Option<PathBuf>,
    /// ... or one file and the column that names the split of a row.
    pub file: Option<PathBuf>,
    pub split: Option<String>,
    /// Values of the split column that belong to each split.
    pub train_splits: Vec<String>,
    pub dev_splits: Vec<String>,
    pub test_splits: Vec<String>,
    /// From the file name when absent.
    pub format: Option<Format>,
    /// TSV and CSV: column names when the file has no header line; empty means it has one.
    pub columns: Vec<String>,
    /// TSV and CSV: fields may be quoted; by default only in CSV.
    pub quoted: Option<bool>,
    /// One column, or two for text pairs.
    pub text: Vec<String>,
    /// Dense features: one column holding a list, or one column per feature.
    pub features: Vec<String>,
    /// One column; several for multilabel or regression with several outputs.
    pub label: Vec<String>,
    pub head: HeadKind,
    /// Class names in index order; empty means discovered from the training rows, sorted.
    pub classes: Vec<String>,
    /// Factor on the task's loss.
    pub weight: f64,
    /// The larger goes first under `schedule.policy = "priority"`.
    pub priority: i64,
    /// Planned milliseconds within which the task commits once.
    pub deadline_ms: Option<f64>,
    /// Micro-batches that follow the measured time.
    pub adaptive: Option<Adaptive>,
    /// Present every `period`-th round.
    pub period: u64,
    /// Rounds after which the task is done; absent means it trains to the end.
    pub rounds: Option<u64>,
    /// Value of its primary metric on dev at which the task is done.
    pub target: Option<f64>,
    /// Tasks that must be done before this one starts.
    pub depends_on: Vec<String>,
    /// The first is the task's primary metric; empty means the usual ones of its head.
    pub metrics: Vec<MetricKind>,
    /// Sampler `explicit`: share of the slots of a round, relative to the other tasks'.
    pub share: f64,
    /// Bytes the task may take for itself (its row of J, head, moments, data); 0 means no limit.
    pub memory: u64,
    /// Built-in source; set by `[synthetic]`, never in a file.
    pub synthetic: Option<String>,
}
