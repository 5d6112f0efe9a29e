//! The table of a task, and of `task_defaults`.

use std::path::PathBuf;

use serde::Deserialize;

use super::ROUNDS;
use crate::choices::choices;
use crate::config::keys::{Bounds, Kind, PathFrom, YEAR_MS};
use crate::config::table::table;
use crate::ops::heads::HeadKind;

/// Of a class; as f32 it is finite.
const WEIGHT: Bounds = Bounds::NON_NEGATIVE.up_to(1e9);
/// A cosine over it is an f32 that leaves a softmax something to do.
const TEMPERATURE: Bounds = Bounds { low: 1e-4, low_included: true, high: 1e3, high_included: true };
const DATA_FILE: Kind = Kind::Path(PathFrom::DataRoot);

table! {
    /// What is trained on: rows, a head, and when it takes part.
    pub struct Task = TASK {
        /// Training rows: one file, or several, by names or by patterns with `*` and `?` (`"part-*.csv"`; a `*` matches no `/`).
        /// A task has `train`, or `file`.
        train: Option<Vec<PathBuf>> = none in Kind::list(DATA_FILE);
        /// Rows evaluated while training: files, as of `train`, or a share of its rows, as in `dev = 0.1`. Which rows are held
        /// out follows from `run.seed` and their places in the files; of each class as many as its share.
        dev: Option<HeldOut> = none in Kind::number_or(Bounds::SHARE, Kind::list(DATA_FILE));
        /// Rows evaluated at the end: files, or a share of the training rows.
        test: Option<HeldOut> = none in Kind::number_or(Bounds::SHARE, Kind::list(DATA_FILE));
        /// One file with the rows of all splits.
        file: Option<PathBuf> = none in DATA_FILE;
        /// Column of `file` that names the split of a row.
        split: Option<String> = none in Kind::Column;
        /// Values of the split column that mean training.
        train_splits: Vec<String> = ["train"];
        /// Values of the split column that mean dev.
        dev_splits: Vec<String> = ["dev"];
        /// Values of the split column that mean test.
        test_splits: Vec<String> = ["test"];
        /// From the file name when absent.
        format: Option<Format> = none;
        /// TSV and CSV: column names when the file has no header line; empty means it has one.
        columns: Vec<String> = [] in Kind::list(Kind::Column);
        /// TSV and CSV: fields may be quoted; when absent, only in CSV.
        quoted: Option<bool> = none;
        /// One column, or two for text pairs.
        text: Vec<String> = [] in Kind::list(Kind::Column);
        /// Dense features: one column holding a list, or one column per feature. `"pixel*"` means all columns that begin so,
        /// `"x1..x9"` those from one to the other in the order of the (first) training file, and `"*"` all but the labels of the
        /// tasks that read the file, its split column and its task column.
        features: Vec<String> = [] in Kind::list(Kind::Column);
        /// Feature columns are moved to mean 0 and scaled to standard deviation 1, both of the task's training rows, or taken as
        /// they are. A checkpoint keeps the numbers, which hold for all rows that its model reads.
        feature_scale: Scaling = "standard", only("encoder.kind", ["linear"]);
        /// One column; several for multilabel or regression with several outputs. A row whose key is absent or null, or whose
        /// cell is empty, has no label. Multilabel in one column: a list of names, or a text with commas or semicolons between
        /// them; `[]`, as a list or as the text, says that none of the labels applies.
        label: Vec<String> = [] in Kind::list(Kind::Column);
        /// What the task predicts. `mlm`: the words at masked places of its text (15 % of them), for a transformer; it has no
        /// label. `similarity`: of a pair of texts, which are encoded apart, the second among those of the micro-batch's other
        /// pairs, by the cosine of their vectors ([evaluation.md](evaluation.md#pairs-of-texts)); it has neither label nor
        /// parameters.
        head: HeadKind = "classification";
        /// Class names in index order; empty means discovered from the training rows, sorted.
        classes: Vec<String> = [], only(".head", ["classification", "multilabel"]);
        /// Factors on the losses of the classes, in their order, or `"balanced"`: n / (k * count) of each of k classes among n
        /// training rows. The task's loss is then a weighted mean, which divides by the sum of its targets' weights; so is the
        /// loss of an evaluation, while its metrics are not weighted.
        class_weights: Option<ClassWeights> = none in Kind::word_or("balanced", Kind::list(WEIGHT)), only(".head", ["classification"]);
        /// `standard`: each number to predict is moved to mean 0 and scaled to standard deviation 1 of the training rows. Losses
        /// are on that scale; metrics, and what `predict` answers, are on the label's own.
        label_scale: Scaling = "none", only(".head", ["regression"]);
        /// Cosines are divided by it before the softmax over a micro-batch: 1 / `scale` of sentence-transformers'
        /// MultipleNegativesRankingLoss.
        temperature: f64 = 0.05 in TEMPERATURE, only(".head", ["similarity"]);
        /// Factor on the task's loss.
        weight: f64 = 1.0 in Bounds::POSITIVE;
        /// The larger goes first.
        priority: i64 = 0 in -1_000_000..=1_000_000, only("schedule.policy", ["priority"]);
        /// The task commits once in every such span of planned time; a set of deadlines that cannot be met is refused.
        deadline_ms: Option<f64> = none in Bounds::POSITIVE.up_to(YEAR_MS), only("schedule.policy", ["rms", "edf"]);
        adaptive: Option<Adaptive> = none;
        /// The task is present every `period`-th round.
        period: u64 = 1 in 1..=ROUNDS;
        /// Rounds after which the task is done; absent means it trains to the end.
        rounds: Option<u64> = none in 1..=ROUNDS;
        /// The task is done once its primary metric on dev is at least this (mse, rmse, mae: at most).
        target: Option<f64> = none in Bounds::NON_NEGATIVE;
        /// Tasks that must be done before this one starts; each needs `rounds` or `target`.
        depends_on: Vec<String> = [];
        /// The first is the task's primary metric; empty means the usual ones of its head. [evaluation.md](evaluation.md)
        /// defines them.
        metrics: Vec<MetricKind> = [];
        /// Share of the slots of a round, relative to the other tasks'.
        share: f64 = 1.0 in Bounds::POSITIVE, only("sampler.kind", ["explicit"]);
        /// What the task may take for itself (its row of J, head, moments, data); 0 means no limit.
        memory: u64 = 0 in Kind::Bytes;
    }
    with fields {
        /// The task of `[synthetic]` whose rows it has; set by the program, never in a file.
        pub synthetic: Option<String>,
    }
}

/// Where rows that are not trained on come from.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum HeldOut {
    /// Of the training rows.
    Share(f64),
    Files(Vec<PathBuf>),
}

impl HeldOut {
    /// None of a share.
    pub fn files(&self) -> &[PathBuf] {
        match self {
            HeldOut::Share(_) => &[],
            HeldOut::Files(files) => files,
        }
    }

    pub fn share(&self) -> Option<f64> {
        match self {
            HeldOut::Share(share) => Some(*share),
            HeldOut::Files(_) => None,
        }
    }
}

impl Task {
    /// Shares of the training rows that dev and test take; none where both have their own rows.
    pub fn shares(&self) -> Option<[f64; 2]> {
        let share = |held: &Option<HeldOut>| held.as_ref().and_then(HeldOut::share);
        let (dev, test) = (share(&self.dev), share(&self.test));
        (dev.is_some() || test.is_some()).then(|| [dev.unwrap_or(0.0), test.unwrap_or(0.0)])
    }

    /// The files of each split, by key.
    pub fn files(&self) -> [(&'static str, &[PathBuf]); 4] {
        [
            ("train", self.train.as_deref().unwrap_or_default()),
            ("dev", self.dev.as_ref().map_or(&[], HeldOut::files)),
            ("test", self.test.as_ref().map_or(&[], HeldOut::files)),
            ("file", self.file.as_slice()),
        ]
    }

    /// Which of `train`, `dev`, `test` and `file` are set.
    pub fn rows_set(&self) -> [(&'static str, bool); 4] {
        [
            ("train", self.train.is_some()),
            ("dev", self.dev.is_some()),
            ("test", self.test.is_some()),
            ("file", self.file.is_some()),
        ]
    }
}

/// What the losses of a task's classes are multiplied by.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum ClassWeights {
    List(Vec<f64>),
    Named(NamedClassWeights),
}

choices! {
    pub enum NamedClassWeights { Balanced = "balanced" }
}

choices! {
    /// How columns of numbers are scaled.
    pub enum Scaling { Standard = "standard", None = "none" }
}

choices! {
    pub enum Format { Jsonl = "jsonl", Tsv = "tsv", Csv = "csv", Parquet = "parquet" }
}

choices! {
    pub enum MetricKind {
        Accuracy = "accuracy",
        BalancedAccuracy = "balanced_accuracy",
        Precision = "precision",
        Recall = "recall",
        F1 = "f1",
        MacroF1 = "macro_f1",
        Matthews = "matthews",
        Auroc = "auroc",
        Pearson = "pearson",
        Spearman = "spearman",
        R2 = "r2",
        Mse = "mse",
        Rmse = "rmse",
        Mae = "mae",
        Cosine = "cosine",
    }
}

table! {
    /// Micro-batches that follow the measured time of a fused group, e.g. `{ target_ms = 50 }`. Sizes then depend on the
    /// machine: a rerun has other bytes, while the plan holds for any.
    pub struct Adaptive = ADAPTIVE {
        /// Time of a fused group with this task that its micro-batch aims at.
        target_ms: f64 = required in Bounds::POSITIVE;
        /// Factor after a group that took less than 0.8 of it.
        grow: f64 = 1.1 in Bounds::ABOVE_ONE;
        /// Factor after one that took more.
        shrink: f64 = 0.9 in Bounds::UNIT_OPEN;
        /// Fewest examples.
        min: usize = 1 in 1..=1 << 20;
        /// Most examples: what the plan reserves memory for.
        max: usize = 256 in 1..=1 << 20;
    }
}

impl Copy for Adaptive {}
