//! The transformer's input: word, position and segment rows added up, then normalized.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use multiversion::multiversion;
use rayon::prelude::*;

use super::buckets;
use super::embedding_bag::{RowInit, Table};
use super::gemm::Write;
use super::jacobian_rows::{JacobianRows, PARTIAL_ROWS, PartialSums, Segment, Slot, most_partials};
use super::simd::add_scaled;
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch, Work};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
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
    /// (count x dim) f32 each
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

    fn work(&self) -> Work {
        // Three rows of f32 for each that is written.
        let Tensor { rows, columns, .. } = self.sum;
        Work { bytes: Operands::new([], [self.sum]).bytes() + 12 * (rows * columns) as u64, operations: 0 }
    }

    fn host(&self, memory: &HostMemory) {
        let (positions, types) = (memory.read(self.positions), memory.read(self.types));
        let table = Table { dim: self.sum.columns, slots: self.slots, values: memory.read(self.values), init: self.init };
        token_embedding_forward(memory.write(self.sum), self.tokens, table, positions, types);
    }

    /// Words where untouched rows are not zero, slots, positions and types.
    fn tables(&self) -> Vec<Bytes> {
        let Tokens { ids, positions, types } = self.tokens;
        let slots: Vec<u32> = ids.iter().map(|&word| self.slots[word as usize]).collect();
        let words = if self.init.deviation == 0.0 { &[][..] } else { ids };
        vec![bytes_of(words), bytes_of(&slots), bytes_of(positions), bytes_of(types)]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let &[words, slots, positions, types] = tables else { unreachable!("four tables") };
        let launch = Launch::warps("token_embedding_forward", self.sum)
            .addresses([self.sum.at, words, slots, positions, types])
            .addresses([self.values.at, self.positions.at, self.types.at])
            .int(self.sum.rows)
            .int(self.sum.columns)
            .long(self.init.seed)
            .double(self.init.deviation);
        vec![launch.into()]
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
    /// f32 that a device's kernels pass on, [`type_partials`] of them; none on the host.
    pub partials: Tensor,
}

/// Room for partial sums of the gradients of type rows.
pub fn type_partials(tokens: usize, segments: usize, types: usize, dim: usize) -> usize {
    most_partials(tokens, segments * types) * dim
}

/// Which tokens are added up, and where their sum goes, as `TokenSum` of kernels/token_embedding.cu.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct TokenSum {
    /// Of the sorted tokens, from `first` to `last`.
    first: u32,
    last: u32,
    at: u64,
    add: u64,
}

/// The sums of a backward pass.
#[derive(Default)]
struct Sums {
    /// Tokens of each sum, one after another.
    sources: Vec<u32>,
    /// By segment and position, to rows of J.
    positions: Vec<TokenSum>,
    /// Of some tokens of a segment and type, to partial rows; and where those go.
    types: Vec<TokenSum>,
    partials: PartialSums,
}

impl TokenEmbeddingBackward<'_> {
    fn sums(&self) -> Sums {
        let mut sums = Sums::default();
        let dim = self.dsum.columns;
        let (positions, types) = (self.positions / dim, (self.columns.len() - self.positions) / dim);
        for segment in self.jacobian.merged() {
            let offset = |row: usize| self.jacobian.offset(&segment, self.columns.start + row * dim);
            for (position, tokens) in sorted(self.tokens.positions, &segment, positions).iter().enumerate() {
                let add = u64::from(segment.write == Write::Add);
                sums.positions.push(token_sum(&mut sums.sources, tokens, offset(position), add));
            }
            for (kind, tokens) in sorted(self.tokens.types, &segment, types).iter().enumerate() {
                for tokens in tokens.chunks(PARTIAL_ROWS) {
                    let at = sums.types.len() * dim;
                    sums.types.push(token_sum(&mut sums.sources, tokens, at as u64, 0));
                }
                sums.partials.push(tokens.len().div_ceil(PARTIAL_ROWS), offset(positions + kind), segment.write);
            }
        }
        // As many as any segments of so many tokens have; those of no tokens go nowhere.
        for part in sums.types.len()..most_partials(self.dsum.rows, self.jacobian.merged().len() * types) {
            sums.types.push(token_sum(&mut sums.sources, &[], (part * dim) as u64, 0));
        }
        sums
    }
}

/// A segment's tokens by their number in `of`, below `count`.
fn sorted(of: &[u32], segment: &Segment, count: usize) -> Vec<Vec<u32>> {
    let mut by_number = vec![Vec::new(); count];
    for token in segment.rows.clone() {
        by_number[of[token] as usize].push(token as u32);
    }
    by_number
}

fn token_sum(sources: &mut Vec<u32>, tokens: &[u32], at: u64, add: u64) -> TokenSum {
    let first = sources.len() as u32;
    sources.extend(tokens);
    TokenSum { first, last: sources.len() as u32, at, add }
}

impl Op for TokenEmbeddingBackward<'_> {
    fn name(&self) -> &'static str {
        "token_embedding_backward"
    }

    fn operands(&self) -> Operands {
        let mut operands = Operands::new([self.dsum], [self.partials]);
        operands.writes.extend(self.jacobian.tensors(&self.columns));
        operands
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

    fn tables(&self) -> Vec<Bytes> {
        let Sums { sources, positions, types, partials } = self.sums();
        let own = [buckets::padded(&sources, 2 * self.dsum.rows, 0), bytes_of(&positions), bytes_of(&types)];
        own.into_iter().chain(partials.tables()).collect()
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let &[sources, positions, types, bounds, offsets, add] = tables else { unreachable!("six tables") };
        let (sums, jacobian, dim) = (self.sums(), &self.jacobian, self.dsum.columns);
        let launch = |rows: Address, narrow: usize, table: Address, count: usize| {
            Launch::new("token_embedding_sums", [count, dim.div_ceil(256), 1], 256)
                .vectors(dim)
                .addresses([rows, self.dsum.at, sources, table])
                .int(dim)
                .int(narrow)
        };
        let by_position = launch(jacobian.base(), jacobian.narrow(), positions, sums.positions.len());
        let by_type = launch(self.partials.at, 0, types, sums.types.len());
        let added = sums.partials.launch(jacobian, self.partials, [bounds, offsets, add], dim);
        vec![by_position.into(), by_type.into(), added.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::embedding_bag::{RowInit, UNTOUCHED};

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

#[cfg(test)]
mod cases {
    use super::*;
    use crate::machine::tensor::DType;
    use crate::ops::embedding_bag::UNTOUCHED;
    use crate::ops::testing::{On, Place, coarse_noise, noise, on_devices};

    const IDS: [u32; 11] = [0, 2, 1, 3, 3, 0, 2, 2, 1, 0, 3];
    const POSITIONS: [u32; 11] = [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3];
    const TYPES: [u32; 11] = [0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1];

    fn words_positions_and_types_are_added(on: On) {
        let tokens = Tokens { ids: &IDS, positions: &POSITIONS, types: &TYPES };
        let slots = [1, UNTOUCHED, 0, 2];
        for (dim, deviation) in [(8, 0.0), (264, 0.5), (768, 0.0)] {
            on.compare(|place: &mut Place| {
                let (values, init) = (place.f32(&noise(3 * dim, 0), dim), RowInit { seed: 77, deviation });
                // Types begin at an odd place.
                let (positions, types) = (place.f32(&noise(4 * dim, 1), dim), place.f32(&noise(2 * dim + 1, 2), 2 * dim + 1));
                let (types, sum) = (types.range(1..2 * dim + 1), place.room(IDS.len(), dim, DType::Bf16));
                place.run(&TokenEmbeddingForward { sum, tokens, slots: &slots, values, init, positions, types });
                vec![place.found("sum", sum)]
            });
        }
    }

    /// Three sequences of 70 tokens, which two segments share; no token has the last position.
    fn gradients(on: On, added: bool, dtype: DType) {
        let (dim, count, positions) = (264, 210, 71);
        let numbers: Vec<u32> = (0..count).map(|token| token % 70).collect();
        let types: Vec<u32> = (0..count).map(|token| u32::from(token % 70 > 66)).collect();
        let tokens = Tokens { ids: &[], positions: &numbers, types: &types };
        let (width, stride) = ((positions + 2) * dim, (positions + 2) * dim + 1);
        on.compare(|place: &mut Place| {
            let all = place.jacobian(&noise(2 * stride, 4), stride, dtype);
            let segment = |(row, rows, write): (usize, Range<usize>, Write)| {
                let row = if added { 0 } else { row };
                Segment { rows, row: all.rows(row..row + 1), write }
            };
            let segments = [(0, 0..140, Write::Replace), (1, 140..210, Write::Add)].map(segment).into();
            let jacobian = JacobianRows { segments, added, staging: place.staging(width, dtype) };
            let dsum = place.narrow(&coarse_noise(count as usize * dim, 5), dim);
            let partials = place.scratch(type_partials(count as usize, 2, 2, dim), DType::F32);
            place.run(&TokenEmbeddingBackward {
                dsum,
                tokens,
                jacobian,
                columns: 1..width + 1,
                positions: positions * dim,
                partials,
            });
            vec![place.found("gradients of positions and types", all)]
        });
    }

    fn gradients_of_segments(on: On) {
        gradients(on, false, DType::F32);
        gradients(on, false, DType::Bf16);
    }

    fn gradients_of_one_row(on: On) {
        gradients(on, true, DType::F32);
    }

    on_devices! {
        words_positions_and_types_are_added,
        gradients_of_segments,
        gradients_of_one_row,
    }
}
