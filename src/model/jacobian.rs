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
    /// `staging` holds the largest piece of a row while it is computed.
    Bf16 {
        rows: Buffer<bf16>,
        staging: Buffer,
    },
}

impl Jacobian {
    /// `piece`: most columns that are written at once.
    pub fn new(memory: &mut Memory, rows: usize, width: usize, storage: Storage, piece: usize) -> anyhow::Result<Self> {
        let values = match storage {
            Storage::F32 => Values::F32(memory.buffer("jacobian: dense", rows * width)?),
            Storage::Bf16 => Values::Bf16 {
                rows: memory.buffer_of("jacobian: dense, bf16", rows * width)?,
                staging: memory.buffer("jacobian: piece of a row in f32", piece)?,
            },
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
            Values::Bf16 { rows, .. } => Rows::Bf16((0..count).map(|row| &rows[at(row)]).collect()),
        }
    }

    /// One row in f32.
    pub fn row(&self, index: usize) -> Vec<f32> {
        let at = index * self.width..(index + 1) * self.width;
        match &self.values {
            Values::F32(values) => values[at].to_vec(),
            Values::Bf16 { rows, .. } => {
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
            Values::Bf16 { .. } => None,
        }
    }
}

/// The rows of J that a group's parts write to.
pub struct JacobianRows<'a> {
    pub jacobian: &'a mut Jacobian,
    /// Rows of each task, one for every independent batch of the round.
    pub batches: usize,
    /// Each task has its own row; otherwise all add to row 0.
    pub stored: bool,
    pub parts: &'a [Part],
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
        let width = self.jacobian.width;
        let row_of = |part: &Part| if self.stored { part.present * self.batches + part.batch } else { 0 };
        let write_of = |part: &Part| {
            let opens = part.first && (self.stored || part.present == 0);
            if opens { Write::Replace } else { Write::Add }
        };
        match &mut self.jacobian.values {
            Values::F32(values) if self.stored => {
                let mut rows = values.chunks_exact_mut(width);
                let mut next = 0;
                let mut slots = Vec::with_capacity(self.parts.len());
                for (number, part) in self.parts.iter().enumerate() {
                    let index = row_of(part);
                    let row = rows.nth(index - next).expect("J has a row for each present task");
                    next = index + 1;
                    slots.push(Slot { part: number, values: &mut row[columns.clone()], write: write_of(part) });
                }
                work(slots);
            }
            Values::F32(values) => {
                for (number, part) in self.parts.iter().enumerate() {
                    work(vec![Slot { part: number, values: &mut values[columns.clone()], write: write_of(part) }]);
                }
            }
            Values::Bf16 { rows, staging } => {
                let staged = &mut staging[..columns.len()];
                for (number, part) in self.parts.iter().enumerate() {
                    let row = &mut rows[row_of(part) * width..][columns.clone()];
                    let write = write_of(part);
                    if write == Write::Add {
                        widen(staged, row);
                    }
                    work(vec![Slot { part: number, values: staged, write }]);
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
