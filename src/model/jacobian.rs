//! The dense part of J, the tasks' private gradients of the encoder, and the stretches of it that a backward pass writes.

use std::ops::Range;

use super::network::Part;
use crate::device::memory::{Buffer, Memory};
use crate::ops::gemm::Write;
use crate::ops::layer_norm::{NormGradient, layer_norm_weight_backward};
use crate::ops::linear::{WeightGradient, linear_weight_backward};
use crate::ops::storage::{Rows, bf16, round, widen};

/// How the rows of J are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    F32,
    /// Each micro-batch's gradient is computed in f32, added in f32 to what the row holds, and rounded.
    Bf16,
}

/// (rows x width)
pub struct Jacobian {
    values: Values,
    width: usize,
}

enum Values {
    F32(Buffer),
    Bf16(Buffer<bf16>),
}

impl Jacobian {
    pub fn new(memory: &mut Memory, rows: usize, width: usize, storage: Storage) -> anyhow::Result<Self> {
        let values = match storage {
            Storage::F32 => Values::F32(memory.buffer("jacobian: dense", rows * width)?),
            Storage::Bf16 => Values::Bf16(memory.buffer_of("jacobian: dense, bf16", rows * width)?),
        };
        Ok(Self { values, width })
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Some columns of the first `count` rows.
    pub fn rows(&self, count: usize, columns: Range<usize>) -> Rows<'_> {
        let at = |row: usize| row * self.width + columns.start..row * self.width + columns.end;
        match &self.values {
            Values::F32(values) => Rows::F32((0..count).map(|row| &values[at(row)]).collect()),
            Values::Bf16(rows) => Rows::Bf16((0..count).map(|row| &rows[at(row)]).collect()),
        }
    }

    /// One row in f32.
    pub fn row(&self, index: usize) -> Vec<f32> {
        let at = index * self.width..(index + 1) * self.width;
        match &self.values {
            Values::F32(values) => values[at].to_vec(),
            Values::Bf16(rows) => {
                let mut wide = vec![0.0; self.width];
                widen(&mut wide, &rows[at]);
                wide
            }
        }
    }

    /// All values, row after row, where they are f32.
    pub fn f32_mut(&mut self) -> Option<&mut [f32]> {
        match &mut self.values {
            Values::F32(values) => Some(values),
            Values::Bf16(_) => None,
        }
    }
}

/// The rows of J that a group's parts write to, by part.
pub enum TaskRows<'a> {
    Own(Vec<&'a mut [f32]>),
    /// Kept in bf16.
    Rounded(Vec<&'a mut [bf16]>),
    /// All add to this one.
    One(&'a mut [f32]),
}

impl Jacobian {
    /// The rows of each of some groups; `rows` are their numbers by part, ascending over all groups. Where tasks have no rows of
    /// their own (`stored` is false), there is one group.
    pub fn split(&mut self, rows: &[Vec<usize>], stored: bool) -> Vec<TaskRows<'_>> {
        match (&mut self.values, stored) {
            (Values::F32(values), true) => deal(values, self.width, rows).into_iter().map(TaskRows::Own).collect(),
            (Values::Bf16(values), _) => deal(values, self.width, rows).into_iter().map(TaskRows::Rounded).collect(),
            (Values::F32(values), false) => {
                assert_eq!(rows.len(), 1, "groups that add to one row are computed one after the other");
                vec![TaskRows::One(values)]
            }
        }
    }
}

/// Numbered rows of a matrix, for each group its own.
fn deal<'a, T>(values: &'a mut [T], width: usize, rows: &[Vec<usize>]) -> Vec<Vec<&'a mut [T]>> {
    // An encoder that is frozen whole has rows of no columns.
    let mut all = values.chunks_exact_mut(width.max(1));
    let mut next = 0;
    let mut row = |&index: &usize| {
        if width == 0 {
            return &mut [][..];
        }
        let row = all.nth(index - next).expect("J has a row for each present task");
        next = index + 1;
        row
    };
    rows.iter().map(|rows| rows.iter().map(&mut row).collect()).collect()
}

/// The rows of J that a group's parts write to, and how.
pub struct JacobianRows<'a> {
    pub rows: TaskRows<'a>,
    pub parts: &'a [Part],
    /// Room for the largest piece of a row that is kept in bf16, while it is computed.
    pub staging: &'a mut [f32],
}

/// One part's stretch.
pub struct Slot<'a> {
    /// Number of the part in its group.
    pub part: usize,
    pub values: &'a mut [f32],
    pub write: Write,
}

impl JacobianRows<'_> {
    /// Calls `work` with the slots that may be written at once: all parts' rows; or each alone where all add to one row, so
    /// that the order of additions does not depend on the grouping, or where rows are rounded, so that one piece is staged.
    pub fn each(&mut self, columns: Range<usize>, mut work: impl FnMut(Vec<Slot>)) {
        let write_of = |part: &Part, opens: bool| if part.first && opens { Write::Replace } else { Write::Add };
        match &mut self.rows {
            TaskRows::Own(rows) => {
                let mut slots = Vec::with_capacity(self.parts.len());
                for (part, row) in rows.iter_mut().enumerate() {
                    slots.push(Slot { part, values: &mut row[columns.clone()], write: write_of(&self.parts[part], true) });
                }
                work(slots);
            }
            TaskRows::One(row) => {
                for (part, own) in self.parts.iter().enumerate() {
                    let write = write_of(own, own.present == 0);
                    work(vec![Slot { part, values: &mut row[columns.clone()], write }]);
                }
            }
            TaskRows::Rounded(rows) => {
                let staged = &mut self.staging[..columns.len()];
                for (part, row) in rows.iter_mut().enumerate() {
                    let row = &mut row[columns.clone()];
                    let write = write_of(&self.parts[part], true);
                    if write == Write::Add {
                        widen(staged, row);
                    }
                    work(vec![Slot { part, values: staged, write }]);
                    round(row, staged);
                }
            }
        }
    }

    /// Weight and bias gradients of a linear layer, which lie end to end; `rows` (by part) are those of dout and x.
    pub fn linear(
        &mut self,
        columns: Range<usize>,
        rows: &[Range<usize>],
        dout: &[f32],
        x: &[f32],
        inputs: usize,
        outputs: usize,
    ) {
        self.each(columns, |slots| {
            let mut segments = Vec::with_capacity(slots.len());
            for Slot { part, values, write } in slots {
                let (weight, bias) = values.split_at_mut(inputs * outputs);
                segments.push(WeightGradient { rows: rows[part].clone(), weight, bias, write });
            }
            linear_weight_backward(&mut segments, dout, x, inputs, outputs);
        });
    }

    /// Gain and shift gradients of a normalization, which lie end to end.
    pub fn norm(&mut self, columns: Range<usize>, rows: &[Range<usize>], dout: &[f32], x: &[f32], stats: &[f32]) {
        let gains = columns.len() / 2;
        self.each(columns, |slots| {
            let mut segments = Vec::with_capacity(slots.len());
            for Slot { part, values, write } in slots {
                let (gain, shift) = values.split_at_mut(gains);
                segments.push(NormGradient { rows: rows[part].clone(), gain, shift, write });
            }
            layer_norm_weight_backward(&mut segments, dout, x, stats);
        });
    }
}
