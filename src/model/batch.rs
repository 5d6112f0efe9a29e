//! What a round, or an evaluation, computes on: the rows of all its tasks, packed.

use std::ops::Range;

use crate::model::transformer::TokenBatch;
use crate::ops::dropout::RowKey;
use crate::ops::embedding_bag::Bags;

/// Rows of all tasks of a round (or of one evaluation batch), packed.
#[derive(Default)]
pub struct Batch {
    pub parts: Vec<Part>,
    /// Fused groups: consecutive parts, no task twice in one.
    pub groups: Vec<Range<usize>>,
    /// (rows) who each row is, for everything random.
    pub keys: Vec<RowKey>,
    /// (rows x inputs) for the `linear` encoder, else empty.
    pub features: Vec<f32>,
    /// One bag a row for the `bag` encoder, one bag a token for the `transformer`, else empty.
    pub bags: Bags,
    /// For the `transformer`, else empty.
    pub tokens: TokenBatch,
}

impl Batch {
    /// Tasks that are present.
    pub fn present(&self) -> usize {
        self.parts.iter().map(|part| part.present + 1).max().unwrap_or(0)
    }

    /// Rows of the encoder's input that belong to neighbouring parts: their tokens, where the batch has tokens.
    pub fn input_rows(&self, parts: &[Part]) -> Range<usize> {
        let rows = group_rows(parts);
        if self.tokens.is_empty() { rows } else { self.tokens.tokens(&rows) }
    }

    /// Those of a whole group, with what pads it.
    pub fn group_rows(&self, group: &[Part]) -> Range<usize> {
        let rows = group_rows(group);
        if self.tokens.is_empty() { rows } else { self.tokens.padded(&rows) }
    }

    /// By part of a group, its rows of the encoder's input, counted from the group's first.
    pub fn input_segments(&self, group: &[Part]) -> Vec<Range<usize>> {
        let first = self.group_rows(group).start;
        let own = |part: &Part| self.input_rows(std::slice::from_ref(part));
        group.iter().map(own).map(|rows| rows.start - first..rows.end - first).collect()
    }
}

/// One task's micro-batch.
pub struct Part {
    /// Run-wide index of the task.
    pub task: usize,
    /// Its position among the tasks present this round.
    pub present: usize,
    /// Which of a round's independent batches it belongs to; 0 where there is one.
    pub batch: usize,
    pub rows: Range<usize>,
    pub targets: Targets,
    /// Factor on d(sum of losses): the task's weight over its observed targets of the round, or over the sum of their classes' weights.
    pub scale: f32,
    /// The first micro-batch of its task and batch in this round: its gradients replace those of the round before.
    pub first: bool,
}

/// What the rows of a part should give.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// (rows; masked tokens for an `mlm` head) class index.
    Class(Vec<u32>),
    /// (rows x outputs), NaN where missing.
    Values(Vec<f32>),
    /// So many pairs of rows, each its own target among the others.
    Pairs(usize),
}

impl Targets {
    /// Rows of logits they are held against.
    pub fn rows(&self, outputs: usize) -> usize {
        match self {
            Self::Class(classes) => classes.len(),
            Self::Values(values) => values.len() / outputs,
            Self::Pairs(pairs) => 2 * pairs,
        }
    }

    /// Targets that are there.
    pub fn observed(&self) -> usize {
        match self {
            Self::Class(classes) => classes.len(),
            Self::Values(values) => values.iter().filter(|value| !value.is_nan()).count(),
            Self::Pairs(pairs) => *pairs,
        }
    }
}

pub fn group_rows(group: &[Part]) -> Range<usize> {
    match (group.first(), group.last()) {
        (Some(first), Some(last)) => first.rows.start..last.rows.end,
        _ => 0..0,
    }
}
