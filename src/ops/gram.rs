//! Gram matrix of the private gradients: one pass over J gives every product of two rows.

#[cfg(test)]
mod cases;
mod host;

use std::ops::Range;

use super::chunks::Chunks;
use super::row_gradients::{RowGradients, row_gram};
use super::storage::Rows;
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch, Work};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::{DType, Tensor};
pub(super) use host::add_symmetric;
use host::block_grams;
pub use host::{gram, gram_of};

/// Some columns of rows of J.
pub(super) fn jacobian_rows<'m>(memory: &'m HostMemory, rows: &[Tensor], columns: Range<usize>) -> Rows<'m> {
    // An encoder that is frozen whole has rows of no columns.
    let part = |row: &Tensor| if row.is_none() { *row } else { row.range(columns.clone()) };
    match rows.first().map_or(DType::F32, |row| row.dtype) {
        DType::Bf16 => Rows::Bf16(rows.iter().map(|row| memory.read(part(row))).collect()),
        _ => Rows::F32(rows.iter().map(|row| memory.read(part(row))).collect()),
    }
}

/// Whether rows of J are kept in bf16, as kernels are told.
pub(super) fn narrow(rows: &[Tensor]) -> usize {
    usize::from(rows.first().is_some_and(|row| row.dtype == DType::Bf16))
}

/// Elements from one row of J to the next on a device.
pub(super) fn stride(rows: &[Tensor]) -> u64 {
    match rows {
        [first, second, ..] => (second.at - first.at) / first.dtype.bytes() as u64,
        rows => rows.first().map_or(0, |row| row.columns.next_multiple_of(4) as u64),
    }
}

/// Products of the tasks' gradients in each block, G_b = J_b J_b^T, and in all blocks together.
pub struct GramMatrices<'a> {
    /// (P) of each task; none where only embedding rows are multiplied.
    pub jacobian: Vec<Tensor>,
    /// Columns of each block.
    pub blocks: &'a [Range<usize>],
    /// The block of the embedding table, if there is one: kernels take it last, with its rows or without.
    pub table: Option<usize>,
    /// Its touched rows, where they are multiplied.
    pub rows: Option<RowGradients<'a>>,
    /// ((blocks + 1) x T T) f64, the last of all blocks together.
    pub gram: Tensor,
    /// (partial sums x T T) f64 that kernels write on the way; none on the host.
    pub partials: Tensor,
}

/// Most tasks of a round on a device: the kernels count the cells of a T x T matrix in 32 bits.
pub const MOST_TASKS: usize = 46_340;

/// Rows of J of which `gram_tile` multiplies every pair, and threads of a block of it and of `gram_finish`.
const GROUP: usize = 32;
const THREADS: u32 = 256;

impl GramMatrices<'_> {
    fn count(&self) -> usize {
        if self.jacobian.is_empty() { self.rows.as_ref().map_or(0, |rows| rows.tasks.len()) } else { self.jacobian.len() }
    }

    fn cut(&self) -> Cut {
        if self.jacobian.is_empty() {
            Cut::new(&vec![0..0; self.blocks.len()], self.table)
        } else {
            Cut::new(self.blocks, self.table)
        }
    }
}

/// How kernels cut the columns. The block of embedding rows comes last, whose partial sums then lie behind all others.
pub struct Cut {
    pub chunks: Chunks,
    /// Blocks in this order.
    order: Vec<usize>,
}

impl Cut {
    /// Of these blocks, of which one may be the embedding table's.
    pub fn new(blocks: &[Range<usize>], table: Option<usize>) -> Self {
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        order.sort_by_key(|block| Some(*block) == table);
        let columns = blocks.iter().map(|block| block.end as u64).max().unwrap_or(0);
        let ranges = order.iter().map(|&block| blocks[block].start as u64..blocks[block].end as u64);
        Self { chunks: Chunks::new(ranges, Chunks::gram_length(columns)), order }
    }

    /// (chunks) the block of each.
    pub(super) fn blocks(&self) -> impl Iterator<Item = usize> {
        self.chunks.ranges.iter().map(|&range| self.order[range as usize])
    }

    /// (blocks + 1) bounds of each block's partial sums, and of all, if `rows` more belong to the last in order.
    fn bounds(&self, rows: usize) -> Vec<[u32; 2]> {
        let count = self.order.len();
        let mut starts = self.chunks.starts(count);
        starts[count] += rows as u32;
        let mut bounds = vec![[0, starts[count]]; count + 1];
        for (&block, ends) in self.order.iter().zip(starts.windows(2)) {
            bounds[block] = [ends[0], ends[1]];
        }
        bounds
    }
}

impl Op for GramMatrices<'_> {
    fn name(&self) -> &'static str {
        "gram_matrices"
    }

    fn operands(&self) -> Operands {
        let mut operands = Operands::new([], [self.gram, self.partials]);
        operands.reads.extend(&self.jacobian);
        operands.reads.extend(self.rows.iter().flat_map(|rows| &rows.tasks));
        operands.reads.retain(|tensor| !tensor.is_none());
        operands
    }

    fn work(&self) -> Work {
        let bytes = if self.rows.is_none() { self.operands().bytes() } else { 0 };
        Work { bytes, operations: 0 }
    }

    fn host(&self, memory: &HostMemory) {
        let cells = self.count().pow(2);
        let mut grams = vec![vec![0.0; cells]; self.blocks.len()];
        if !self.jacobian.is_empty() {
            block_grams(&mut grams, &jacobian_rows(memory, &self.jacobian, 0..self.jacobian[0].columns), self.blocks);
        }
        if let (Some(rows), Some(block)) = (&self.rows, self.table) {
            row_gram(&mut grams[block], rows.merged(), &rows.read(memory));
        }
        let (own, total) = memory.write::<f64>(self.gram).split_at_mut(cells * grams.len());
        total.fill(0.0);
        for (own, gram) in own.chunks_exact_mut(cells).zip(&grams) {
            own.copy_from_slice(gram);
            total.iter_mut().zip(gram).for_each(|(total, value)| *total += value);
        }
    }

    /// Chunks, bounds of each block's partial sums, those of all, and the members of touched rows.
    fn tables(&self) -> Vec<Bytes> {
        let cut = self.cut();
        let mut tables = cut.chunks.tables().to_vec();
        tables.push(bytes_of(&cut.bounds(self.rows.as_ref().map_or(0, RowGradients::gram_partials))));
        tables.extend(self.rows.iter().flat_map(RowGradients::tables));
        tables
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let &[firsts, lengths, bounds, ref union @ ..] = tables else { unreachable!("three tables and more") };
        let (blocks, count) = (self.blocks.len(), self.count());
        let chunks = self.cut().chunks.len();
        let kernels = [(2, "gram_2"), (4, "gram_4"), (8, "gram_8"), (12, "gram_12"), (16, "gram_16")];
        let launch = match kernels.iter().find(|(most, _)| count <= *most) {
            Some((_, kernel)) => Launch::line(kernel, chunks, THREADS),
            None => {
                let groups = count.div_ceil(GROUP);
                Launch::new("gram_tile", [groups * (groups + 1) / 2, chunks, 1], THREADS)
            }
        };
        let dense = launch
            .addresses([self.partials.at, self.jacobian.first().map_or(0, |row| row.at)])
            .long(stride(&self.jacobian))
            .int(count)
            .addresses([firsts, lengths])
            .int(narrow(&self.jacobian));
        let mut commands: Vec<Command> = vec![dense.into()];
        if let Some(rows) = &self.rows {
            let behind = self.partials.at + 8 * (chunks * count * count) as Address;
            commands.push(rows.gram(behind, union).into());
        }
        commands.push(finish(count, blocks + 1, [self.gram, self.partials], bounds).into());
        commands
    }
}

/// Adds up the partial products of `sets` matrices of `count` rows; `bounds` (sets) are those of each one's partials.
pub(super) fn finish(count: usize, sets: usize, [gram, partials]: [Tensor; 2], bounds: Address) -> Launch {
    let warps = THREADS as usize / 32;
    Launch::new("gram_finish", [(count * count).div_ceil(warps), sets, 1], THREADS)
        .addresses([gram.at, partials.at, bounds])
        .int(count)
}

/// Squared norms of some stretches of one row.
pub struct Squares {
    pub values: Tensor,
    pub segments: Vec<Range<usize>>,
    /// (segments) f64
    pub out: Tensor,
}

impl Op for Squares {
    fn name(&self) -> &'static str {
        "squares"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.values], [self.out])
    }

    fn host(&self, memory: &HostMemory) {
        let values: &[f32] = memory.read(self.values);
        for (segment, out) in self.segments.iter().zip(memory.write::<f64>(self.out)) {
            *out = values[segment.clone()].iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        }
    }

    /// Bounds of each.
    fn tables(&self) -> Vec<Bytes> {
        vec![bytes_of(&self.segments.iter().map(|own| [own.start as u64, own.end as u64]).collect::<Vec<_>>())]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let launch = Launch::line("segment_squares", self.segments.len(), 256);
        vec![launch.addresses([self.out.at, self.values.at, tables[0]]).into()]
    }
}
