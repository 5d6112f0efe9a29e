//! Where the private gradients of a block go: a stretch of each present task's row of J.

use std::ops::Range;

use super::layout::Piece;
use crate::model::network::Part;
use crate::ops::gemm::Write;
use crate::ops::layer_norm::{NormGradient, layer_norm_weight_backward};
use crate::ops::linear::{WeightGradient, linear_weight_backward};

/// The rows of J that a group's parts write to.
pub struct JacobianRows<'a> {
    pub jacobian: &'a mut [f32],
    /// Columns of J.
    pub width: usize,
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
    /// Calls `work` with the slots that may be written at once: all parts' rows, or where all add to one row each alone, so
    /// that the order of additions does not depend on the grouping.
    pub fn each(&mut self, columns: Range<usize>, mut work: impl FnMut(Vec<Slot>)) {
        if !self.stored {
            for (number, part) in self.parts.iter().enumerate() {
                let write = if part.first && part.present == 0 { Write::Replace } else { Write::Add };
                work(vec![Slot { part: number, values: &mut self.jacobian[columns.clone()], write }]);
            }
            return;
        }
        let mut rows = self.jacobian.chunks_exact_mut(self.width);
        let mut next = 0;
        let mut slots = Vec::with_capacity(self.parts.len());
        for (number, part) in self.parts.iter().enumerate() {
            let index = part.present * self.batches + part.batch;
            let row = rows.nth(index - next).expect("J has a row for each present task");
            next = index + 1;
            let write = if part.first { Write::Replace } else { Write::Add };
            slots.push(Slot { part: number, values: &mut row[columns.clone()], write });
        }
        work(slots);
    }

    /// Weight and bias gradients of a linear layer; `rows` (by part) are those of dout and x.
    #[allow(clippy::too_many_arguments, reason = "a piece of J, its rows, and the product's operands")]
    pub fn linear(
        &mut self,
        columns: Range<usize>,
        piece: &Piece,
        rows: &[Range<usize>],
        dout: &[f32],
        x: &[f32],
        inputs: usize,
        outputs: usize,
    ) {
        self.each(columns, |slots| {
            let mut segments = Vec::with_capacity(slots.len());
            for Slot { part, values, write } in slots {
                let (weight, bias) = piece.split(values);
                segments.push(WeightGradient { rows: rows[part].clone(), weight, bias, write });
            }
            linear_weight_backward(&mut segments, dout, x, inputs, outputs);
        });
    }

    /// Gain and shift gradients of a normalization.
    pub fn norm(&mut self, columns: Range<usize>, piece: &Piece, rows: &[Range<usize>], dout: &[f32], x: &[f32], stats: &[f32]) {
        self.each(columns, |slots| {
            let mut segments = Vec::with_capacity(slots.len());
            for Slot { part, values, write } in slots {
                let (gain, shift) = piece.split(values);
                segments.push(NormGradient { rows: rows[part].clone(), gain, shift, write });
            }
            layer_norm_weight_backward(&mut segments, dout, x, stats);
        });
    }
}
