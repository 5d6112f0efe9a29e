//! What loading gives: examples by task and split, ready to be drawn from.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::read::BadRows;
use super::scale::Scale;
use super::store::{FeatureStore, TokenStore};
use super::tokenizer::Tokenizer;
use crate::config::schema;

/// Every task's data.
pub struct Corpus {
    /// In name order.
    pub tasks: Vec<TaskData>,
    /// Features per example, where tasks have dense features.
    pub feature_dim: Option<usize>,
    /// Where tasks have text.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// What was found in each file read.
    pub files: Vec<FileReport>,
}

pub struct TaskData {
    pub name: String,
    pub settings: schema::Task,
    /// Width of the head: classes, labels of a multilabel task, regression values, words, or the encoder's output.
    pub outputs: usize,
    /// In index order; empty for regression.
    pub classes: Vec<String>,
    pub train: Split,
    /// Absent when the task has no examples of that split.
    pub dev: Option<Split>,
    pub test: Option<Split>,
    pub report: LoadReport,
    /// blake3 over all that training sees: inputs, labels, class names and their order, of train and dev. Not of how they are scaled.
    pub fingerprint: [u8; 32],
    /// What features and regression values are scaled by, where they are.
    pub feature_scale: Option<Arc<Scale>>,
    pub label_scale: Option<Scale>,
    /// (outputs) factors on the losses of its classes, where they have some.
    pub class_weights: Option<Arc<[f32]>>,
}

impl TaskData {
    pub fn split(&self, name: SplitName) -> Option<&Split> {
        match name {
            SplitName::Train => Some(&self.train),
            SplitName::Dev => self.dev.as_ref(),
            SplitName::Test => self.test.as_ref(),
        }
    }
}

pub struct Split {
    pub inputs: Inputs,
    pub targets: Targets,
    /// As they were before they were scaled, where they are.
    pub unscaled: Option<Targets>,
    /// Named subsets of `eval.slices`, one flag per example; empty for train.
    pub slices: BTreeMap<String, Vec<bool>>,
}

impl Split {
    /// Examples.
    pub fn len(&self) -> usize {
        self.rows() / self.rows_of_example()
    }

    /// Rows that the encoder makes of all its examples, in their order.
    pub fn rows(&self) -> usize {
        match &self.inputs {
            Inputs::Tokens(store) => store.len(),
            Inputs::Features(store) => store.len(),
        }
    }

    /// Rows that the encoder makes of one example.
    pub fn rows_of_example(&self) -> usize {
        if self.targets == Targets::Pairs { 2 } else { 1 }
    }

    /// Those of some neighbouring examples.
    pub fn rows_of(&self, examples: Range<usize>) -> Range<usize> {
        let each = self.rows_of_example();
        examples.start * each..examples.end * each
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Targets that metrics compare with: those of the data.
    pub fn given(&self) -> &Targets {
        self.unscaled.as_ref().unwrap_or(&self.targets)
    }
}

pub enum Inputs {
    Tokens(TokenStore),
    Features(FeatureStore),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Class index per example. // (len)
    Class(Vec<u32>),
    /// Regression values, or multilabel 0 and 1; NaN where a label is missing. // (len, dim)
    Values { dim: usize, values: Vec<f32> },
    /// The words of the inputs themselves.
    Words,
    /// Of each pair of texts the other one.
    Pairs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SplitName {
    Train,
    Dev,
    Test,
}

impl SplitName {
    pub const ALL: [SplitName; 3] = [SplitName::Train, SplitName::Dev, SplitName::Test];

    pub fn as_str(self) -> &'static str {
        match self {
            SplitName::Train => "train",
            SplitName::Dev => "dev",
            SplitName::Test => "test",
        }
    }
}

/// Rows of one task that are not examples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadReport {
    /// Rows without a label, by split: skipped for this task only.
    pub missing_labels: BTreeMap<SplitName, u64>,
    pub bad: BadRows,
}

impl LoadReport {
    pub fn is_clean(&self) -> bool {
        self.missing_labels.is_empty() && self.bad.is_empty()
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (split, count) in &self.missing_labels {
            write!(f, "{separator}{count} {} rows without a label", split.as_str())?;
            separator = "; ";
        }
        if !self.bad.is_empty() {
            write!(f, "{separator}{}", self.bad)?;
        }
        Ok(())
    }
}

/// What was found in one file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FileReport {
    pub path: PathBuf,
    /// Rows read, bad ones included.
    pub rows: u64,
    /// Rows of no task that is trained.
    pub other_tasks: u64,
    /// Rows whose split value is none of the task's, by value (the first few).
    pub other_splits: BTreeMap<String, u64>,
    /// Lines that cannot be read, whichever task they belong to.
    pub bad: BadRows,
}

/// How far loading is; told after each chunk of at most 2,048 rows.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The file's name.
    pub label: &'a str,
    /// Rows tokenized and stored.
    pub rows: u64,
    /// Bytes of the (packed) file read, and its size.
    pub bytes: u64,
    pub total_bytes: u64,
}
