//! The transformer's input: word, position and segment rows added up, then normalized.

use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

use super::embedding_bag::{RowInit, Table};
use super::gemm::Write;
use super::jacobian_rows::{JacobianRows, Slot};
use super::simd::add_scaled;
use crate::machine::host::HostMemory;
use crate::machine::tape::{Op, Operands};
use crate::machine::tensor::Tensor;

/// Packed tokens (n each).
#[derive(Clone, Copy)]
pub struct Tokens<'a> {
    pub ids: &'a [u32],
    /// In its sequence.
    pub positions: &'a [u32],
    /// 0 for the first text, 1 for the second of a pair.
    pub types: &'a [u32],
}

/// sum (n x dim) = word row + position row + type row of each token. `positions` and `types` are (count x dim).
pub fn token_embedding_forward(sum: &mut [f32], tokens: Tokens, table: Table, positions: &[f32], types: &[f32]) {
    let dim = table.dim;
    sum.par_chunks_mut(dim).enumerate().with_min_len(8).for_each(|(token, sum)| {
        table.read(tokens.ids[token], sum);
        let position = &positions[tokens.positions[token] as usize * dim..][..dim];
        let kind = &types[tokens.types[token] as usize * dim..][..dim];
        add_two(sum, position, kind);
    });
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn add_two(sum: &mut [f32], a: &[f32], b: &[f32]) {
    for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
        *sum = (*sum + a) + b;
    }
}

/// Where one segment's gradients of the position and type rows go.
pub struct EmbeddingGradient<'a> {
    /// Packed tokens of the segment.
    pub tokens: Range<usize>,
    /// (count x dim)
    pub positions: &'a mut [f32],
    pub types: &'a mut [f32],
    pub write: Write,
}

/// Each segment's position and type rows gain the dsum (n x dim) of its tokens, in packed order. The word rows' gradient is
/// row-sparse and is built of dsum elsewhere.
pub fn token_embedding_backward(segments: &mut [EmbeddingGradient], dsum: &[f32], tokens: Tokens, dim: usize) {
    segments.par_iter_mut().for_each(|segment| {
        if segment.write == Write::Replace {
            segment.positions.fill(0.0);
            segment.types.fill(0.0);
        }
        for token in segment.tokens.clone() {
            let dsum = &dsum[token * dim..][..dim];
            add_row(&mut segment.positions[tokens.positions[token] as usize * dim..][..dim], dsum);
            add_row(&mut segment.types[tokens.types[token] as usize * dim..][..dim], dsum);
        }
    });
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn add_row(out: &mut [f32], row: &[f32]) {
    add_scaled(out, 1.0, row);
}

/// As [`token_embedding_forward`].
pub struct TokenEmbeddingForward<'a> {
    /// (n x dim)
    pub sum: Tensor,
    pub tokens: Tokens<'a>,
    /// (rows of the table) slots, as [`Table`] has them.
    pub slots: &'a [u32],
    /// (slots x dim) f32
    pub values: Tensor,
    pub init: RowInit,
    pub positions: Tensor,
    pub types: Tensor,
}

impl Op for TokenEmbeddingForward<'_> {
    fn name(&self) -> &'static str {
        "token_embedding_forward"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.values, self.positions, self.types], [self.sum])
    }

    fn host(&self, memory: &HostMemory) {
        let (positions, types) = (memory.read(self.positions), memory.read(self.types));
        let table = Table { dim: self.sum.columns, slots: self.slots, values: memory.read(self.values), init: self.init };
        token_embedding_forward(memory.write(self.sum), self.tokens, table, positions, types);
    }
}

/// Gradients of the position and type rows of every segment, into its row of J.
pub struct TokenEmbeddingBackward<'a> {
    /// (n x dim)
    pub dsum: Tensor,
    pub tokens: Tokens<'a>,
    pub jacobian: JacobianRows,
    /// Columns of J: those of the positions, then those of the types.
    pub columns: Range<usize>,
    /// Of the positions.
    pub positions: usize,
}

impl Op for TokenEmbeddingBackward<'_> {
    fn name(&self) -> &'static str {
        "token_embedding_backward"
    }

    fn operands(&self) -> Operands {
        Operands { writes: self.jacobian.tensors(&self.columns), ..Operands::new([self.dsum], []) }
    }

    fn host(&self, memory: &HostMemory) {
        self.jacobian.each(memory, self.columns.clone(), |slots| {
            let mut segments = Vec::with_capacity(slots.len());
            for Slot { rows, values, write } in slots {
                let (positions, types) = values.split_at_mut(self.positions);
                segments.push(EmbeddingGradient { tokens: rows, positions, types, write });
            }
            token_embedding_backward(&mut segments, memory.read(self.dsum), self.tokens, self.dsum.columns);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::embedding_bag::UNTOUCHED;

    /// Two tokens of one sequence: ids 3 (untouched, zero) and 1.
    const TOKENS: Tokens = Tokens { ids: &[3, 1], positions: &[0, 1], types: &[0, 1] };

    #[test]
    fn three_rows_are_added() {
        let table = Table {
            dim: 2,
            slots: &[UNTOUCHED, 0, UNTOUCHED, UNTOUCHED],
            values: &[1.0, 2.0],
            init: RowInit { seed: 0, deviation: 0.0 },
        };
        let mut sum = [9.0; 4];
        token_embedding_forward(&mut sum, TOKENS, table, &[10.0, 20.0, 30.0, 40.0], &[100.0, 200.0, 300.0, 400.0]);
        assert_eq!(sum, [110.0, 220.0, 331.0, 442.0]);
    }

    /// The op is linear, so its gradient is exact.
    #[test]
    fn gradients_gather_by_position_and_type() {
        let (mut positions, mut types) = ([9.0; 6], [9.0; 4]);
        let segment = EmbeddingGradient { tokens: 0..2, positions: &mut positions, types: &mut types, write: Write::Replace };
        token_embedding_backward(&mut [segment], &[1.0, 2.0, 3.0, 4.0], TOKENS, 2);
        assert_eq!(positions, [1.0, 2.0, 3.0, 4.0, 0.0, 0.0]);
        assert_eq!(types, [1.0, 2.0, 3.0, 4.0]);
        let segment = EmbeddingGradient { tokens: 1..2, positions: &mut positions, types: &mut types, write: Write::Add };
        token_embedding_backward(&mut [segment], &[1.0, 2.0, 3.0, 4.0], TOKENS, 2);
        assert_eq!(types, [1.0, 2.0, 6.0, 8.0]);
    }
}
