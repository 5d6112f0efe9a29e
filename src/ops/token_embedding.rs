//! The transformer's input: word, position and segment rows added up, then normalized.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use multiversion::multiversion;
use rayon::prelude::*;

use super::embedding_bag::{RowInit, Table};
use super::gemm::Write;
use super::jacobian_rows::{JacobianRows, PARTIAL_ROWS, PartialSums, Slot, most_partials};
use super::row_index::TokensAt;
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

/// Where the tokens of a group are.
#[derive(Clone, Copy)]
pub enum TokenSource<'a> {
    /// With (rows of the table) slots, as [`Table`] has them.
    Packed(Tokens<'a>, &'a [u32]),
    /// As a device fetched them.
    Fetched(TokensAt),
}

impl<'a> TokenSource<'a> {
    /// On the host, which packs its batches.
    fn packed(self) -> (Tokens<'a>, &'a [u32]) {
        match self {
            Self::Packed(tokens, slots) => (tokens, slots),
            Self::Fetched(_) => unreachable!("the host packs its batches"),
        }
    }

    /// What is laid out of the types for a device.
    fn types_table(self) -> Bytes {
        match self {
            Self::Packed(tokens, _) => bytes_of(tokens.types),
            Self::Fetched(_) => Bytes::new(),
        }
    }
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
    pub tokens: TokenSource<'a>,
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
        let (tokens, slots) = self.tokens.packed();
        let table = Table { dim: self.sum.columns, slots, values: memory.read(self.values), init: self.init };
        token_embedding_forward(memory.write(self.sum), tokens, table, positions, types);
    }

    /// Of packed tokens, words where untouched rows are not zero, slots, positions and types.
    fn tables(&self) -> Vec<Bytes> {
        let TokenSource::Packed(Tokens { ids, positions, types }, slots) = self.tokens else { return Vec::new() };
        let slots: Vec<u32> = ids.iter().map(|&word| slots[word as usize]).collect();
        let words = if self.init.deviation == 0.0 { &[][..] } else { ids };
        vec![bytes_of(words), bytes_of(&slots), bytes_of(positions), bytes_of(types)]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let ([words, slots, positions, types], of_words) = match (self.tokens, tables) {
            (TokenSource::Fetched(own), _) => ([own.ids, own.slots, own.positions, own.types].map(|list| list.at), 1),
            (_, &[words, slots, positions, types]) => ([words, slots, positions, types], 0),
            _ => unreachable!("four tables"),
        };
        let launch = Launch::warps("token_embedding_forward", self.sum)
            .addresses([self.sum.at, words, slots, positions, types])
            .addresses([self.values.at, self.positions.at, self.types.at])
            .int(self.sum.rows)
            .int(self.sum.columns)
            .long(self.init.seed)
            .double(self.init.deviation)
            .int(of_words);
        vec![launch.into()]
    }
}

/// Gradients of the position and type rows of every segment, into its row of J.
pub struct TokenEmbeddingBackward<'a> {
    /// (n x dim)
    pub dsum: Tensor,
    pub tokens: TokenSource<'a>,
    /// (sequences + 1) bounds of each sequence's tokens, at their positions from 0 on.
    pub bounds: &'a [u32],
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
    types * most_partials(tokens, segments) * dim
}

/// A segment, as `SegmentSums` of kernels/token_embedding.cu.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SegmentSums {
    first_sequence: u32,
    last_sequence: u32,
    first_token: u32,
    last_token: u32,
    /// Of [`PARTIAL_ROWS`] tokens, of the segments before.
    chunks: u32,
    add: u32,
    at: u64,
}

impl TokenEmbeddingBackward<'_> {
    /// How many rows of positions and of types there are.
    fn rows(&self) -> [usize; 2] {
        [self.positions, self.columns.len() - self.positions].map(|columns| columns / self.dsum.columns)
    }

    /// Segments for the positions' rows, and what is added up of the partial sums of types.
    fn sums(&self) -> (Vec<SegmentSums>, PartialSums) {
        let (mut segments, mut partials, mut chunks) = (Vec::new(), PartialSums::default(), 0);
        let [positions, types] = self.rows();
        for segment in self.jacobian.merged() {
            let at = |row: usize| self.jacobian.offset(&segment, self.columns.start + row * self.dsum.columns);
            let [first_sequence, last_sequence] = [segment.rows.start, segment.rows.end]
                .map(|token| self.bounds.partition_point(|&bound| bound < token as u32) as u32);
            let [first_token, last_token] = [segment.rows.start, segment.rows.end].map(|token| token as u32);
            let (own, add) = (segment.rows.len().div_ceil(PARTIAL_ROWS), u32::from(segment.write == Write::Add));
            segments.push(SegmentSums { first_sequence, last_sequence, first_token, last_token, chunks, add, at: at(0) });
            (0..types).for_each(|kind| partials.push(own, at(positions + kind), segment.write));
            chunks += own as u32;
        }
        (segments, partials)
    }
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
            token_embedding_backward(&mut segments, memory.read(self.dsum), self.tokens.packed().0, self.dsum.columns);
        });
    }

    /// Types of packed tokens, bounds of sequences, segments, and those of the partial sums.
    fn tables(&self) -> Vec<Bytes> {
        let (segments, partials) = self.sums();
        let own = [self.tokens.types_table(), bytes_of(self.bounds), bytes_of(&segments)];
        own.into_iter().chain(partials.tables()).collect()
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let &[types, bounds, table, ends, offsets, add] = tables else { unreachable!("six tables") };
        let types = if let TokenSource::Fetched(own) = self.tokens { own.types.at } else { types };
        let ((segments, partials), jacobian, dim) = (self.sums(), &self.jacobian, self.dsum.columns);
        let ([positions, kinds], tiles) = (self.rows(), dim.div_ceil(256));
        let by_position = Launch::new("position_sums", [segments.len() * positions, tiles, 1], 256)
            .vectors(dim)
            .addresses([jacobian.base(), self.dsum.at, bounds, table])
            .int(positions)
            .int(dim)
            .int(jacobian.narrow());
        let by_type = Launch::new("type_sums", [most_partials(self.dsum.rows, segments.len()), tiles, kinds], 256)
            .vectors(dim)
            .addresses([self.partials.at, self.dsum.at, types, table])
            .int(segments.len())
            .int(dim);
        let added = partials.launch(jacobian, self.partials, [ends, offsets, add], dim);
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
    use crate::ops::jacobian_rows::Segment;
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
                let tokens = TokenSource::Packed(tokens, &slots);
                place.run(&TokenEmbeddingForward { sum, tokens, values, init, positions, types });
                vec![place.found("sum", sum)]
            });
        }
    }

    /// Three sequences of 70 tokens, which two segments share; no token has the last position.
    fn gradients(on: On, added: bool, dtype: DType) {
        let (dim, count, positions) = (264, 210, 71);
        let numbers: Vec<u32> = (0..count).map(|token| token % 70).collect();
        let types: Vec<u32> = (0..count).map(|token| u32::from(token % 70 > 66)).collect();
        let tokens = TokenSource::Packed(Tokens { ids: &[], positions: &numbers, types: &types }, &[]);
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
                bounds: &[0, 70, 140, 210],
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
