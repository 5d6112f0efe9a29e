//! Gram matrix of the private gradients: one pass over J gives every product of two rows.
//!
//! f32 products run in 8 lanes and are summed in f64 every 256 columns, so a lane adds at most `FOLD / LANES` = 32 numbers
//! in f32: the error stays below 1e-6 of the entry for rows that are nearly parallel, whatever their scales.

use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

use super::chunks::Chunks;
use super::row_gradients::{RowGradients, row_gram};
use super::storage::Rows;
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::{DType, Tensor};

/// Independent partial sums of a product: one vector register.
const LANES: usize = 8;

/// Columns whose products stay in f32.
const FOLD: usize = 256;

/// Columns gone through tile by tile: this many of 64 rows fit the second-level cache.
const SPAN: usize = 4 * FOLD;

/// Columns in one partial sum; fixed, so that threads cannot change the order of additions.
const BLOCK: usize = 16 * SPAN;

/// Rows times rows of one register tile: twelve accumulators keep both multipliers busy and leave registers for the factors.
const TALL: usize = 3;
const WIDE: usize = 4;

/// Running products of two rows, to be added up.
type Sum = [f64; 4];

/// gram (T x T, row-major, symmetric) gains J_i . J_j over `rows` (T rows of equal length).
pub fn gram(gram: &mut Vec<f64>, rows: &[&[f32]]) {
    gram_of(gram, &rows.into());
}

/// As [`gram()`], for rows kept in any way.
pub fn gram_of(gram: &mut Vec<f64>, rows: &Rows) {
    block_grams(std::slice::from_mut(gram), rows, &[0..rows.width(); 1]);
}

/// grams[b] (T x T each, row-major, symmetric) gains J_i . J_j over the columns `blocks[b]`, all blocks in one pass.
pub fn block_grams(grams: &mut [Vec<f64>], rows: &Rows, blocks: &[Range<usize>]) {
    let count = rows.count();
    let pieces: Vec<(usize, Range<usize>)> = blocks.iter().enumerate().flat_map(|(block, range)| pieces(block, range)).collect();
    let partial: Vec<Vec<f64>> = pieces
        .par_iter()
        .map_init(Vec::new, |room, (_, columns)| {
            let mut sums = vec![Sum::default(); count * count];
            for start in columns.clone().step_by(SPAN) {
                let span = start..(start + SPAN).min(columns.end);
                rows.each_f32(span, room, |rows, at, columns| span_gram(&mut sums, rows, at..at + columns.len()));
            }
            sums.iter().map(|sum| (sum[0] + sum[1]) + (sum[2] + sum[3])).collect()
        })
        .collect();
    for ((block, _), sums) in pieces.iter().zip(partial) {
        add_symmetric(&mut grams[*block], &sums, count);
    }
}

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
    /// Touched embedding rows, and the block that they are of.
    pub rows: Option<(RowGradients<'a>, usize)>,
    /// ((blocks + 1) x T T) f64, the last of all blocks together.
    pub gram: Tensor,
    pub scratch: GramScratch,
}

/// Most tasks of a round on a device: the kernels count the cells of a T x T matrix in 32 bits.
pub const MOST_TASKS: usize = 46_340;

/// What kernels write on the way to Gram matrices; none on the host.
#[derive(Clone, Copy, Debug)]
pub struct GramScratch {
    /// (partial sums x T T) f64
    pub partials: Tensor,
    /// ((blocks + 1) x T T) f64
    pub cosines: Tensor,
    /// (blocks + 1) u32
    pub conflicts: Tensor,
}

impl GramScratch {
    pub const NONE: Self = Self { partials: Tensor::NONE, cosines: Tensor::NONE, conflicts: Tensor::NONE };
}

impl GramMatrices<'_> {
    fn count(&self) -> usize {
        if self.jacobian.is_empty() { self.rows.as_ref().map_or(0, |(rows, _)| rows.tasks.len()) } else { self.jacobian.len() }
    }

    fn cut(&self) -> Cut {
        let with_rows = self.rows.as_ref().map(|(_, block)| *block);
        if self.jacobian.is_empty() {
            Cut::new(&vec![0..0; self.blocks.len()], with_rows)
        } else {
            Cut::new(self.blocks, with_rows)
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
    /// Of these blocks, of which one has embedding rows, or none.
    pub fn new(blocks: &[Range<usize>], with_rows: Option<usize>) -> Self {
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        order.sort_by_key(|block| Some(*block) == with_rows);
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
        let GramScratch { partials, cosines, conflicts } = self.scratch;
        let mut operands = Operands::new([], [self.gram, partials, cosines, conflicts]);
        operands.reads.extend(&self.jacobian);
        operands.reads.extend(self.rows.iter().flat_map(|(rows, _)| &rows.tasks));
        operands.reads.retain(|tensor| !tensor.is_none());
        operands
    }

    fn host(&self, memory: &HostMemory) {
        let cells = self.count().pow(2);
        let mut grams = vec![vec![0.0; cells]; self.blocks.len()];
        if !self.jacobian.is_empty() {
            block_grams(&mut grams, &jacobian_rows(memory, &self.jacobian, 0..self.jacobian[0].columns), self.blocks);
        }
        if let Some((rows, block)) = &self.rows {
            row_gram(&mut grams[*block], rows.union, &rows.read(memory));
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
        tables.push(bytes_of(&cut.bounds(self.rows.as_ref().map_or(0, |(rows, _)| rows.partials()))));
        tables.extend(self.rows.iter().flat_map(|(rows, _)| rows.tables()));
        tables
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let &[firsts, lengths, bounds, ref members @ ..] = tables else { unreachable!("three tables and more") };
        let (blocks, count) = (self.blocks.len(), self.count());
        let chunks = self.cut().chunks.len();
        let GramScratch { partials, cosines, conflicts } = self.scratch;
        let kernels = [(2, "gram_2"), (4, "gram_4"), (8, "gram_8"), (12, "gram_12"), (16, "gram_16")];
        let launch = match kernels.iter().find(|(most, _)| count <= *most) {
            Some((_, kernel)) => Launch::line(kernel, chunks, 256),
            None => {
                let groups = count.div_ceil(8);
                Launch::new("gram_tile", [groups * (groups + 1) / 2, chunks, 1], 256)
            }
        };
        let dense = launch
            .addresses([partials.at, self.jacobian.first().map_or(0, |row| row.at)])
            .long(stride(&self.jacobian))
            .int(count)
            .addresses([firsts, lengths])
            .int(narrow(&self.jacobian));
        let mut commands: Vec<Command> = vec![dense.into()];
        if let (Some((rows, _)), &[row_starts, members]) = (&self.rows, members) {
            let behind = partials.at + 8 * (chunks * count * count) as Address;
            commands.push(rows.gram(behind, [row_starts, members]).into());
        }
        let cells = (8 * blocks * count * count) as Address;
        let finish = |first: Address, conflicts: Address, bounds: Address, blocks: usize| {
            Launch::line("gram_finish", blocks, 1024)
                .addresses([self.gram.at + first, cosines.at + first, conflicts, partials.at, bounds])
                .int(count)
        };
        commands.push(finish(0, conflicts.at, bounds, blocks).into());
        let behind = 4 * blocks as Address;
        commands.push(finish(cells, conflicts.at + behind, bounds + 2 * behind, 1).into());
        commands
    }
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

/// A block's columns, cut into parts of at most [`BLOCK`].
fn pieces(block: usize, range: &Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
    let Range { start, end } = *range;
    (start..end).step_by(BLOCK).map(move |from| (block, from..(from + BLOCK).min(end)))
}

/// gram (count x count) gains a symmetric matrix of which only the upper triangle is given.
pub(super) fn add_symmetric(gram: &mut [f64], upper: &[f64], count: usize) {
    for i in 0..count {
        for j in i..count {
            gram[i * count + j] += upper[i * count + j];
            if i != j {
                gram[j * count + i] += upper[i * count + j];
            }
        }
    }
}

/// Upper triangle of the products of some columns; what lies below the diagonal is left undefined.
fn span_gram(sums: &mut [Sum], rows: &[&[f32]], span: Range<usize>) {
    let count = rows.len();
    for i in (0..count).step_by(TALL) {
        for j in (i..count).step_by(WIDE) {
            // A tile that hangs over the last row repeats it, and the repetitions are dropped.
            let a: [usize; TALL] = std::array::from_fn(|k| (i + k).min(count - 1));
            let b: [usize; WIDE] = std::array::from_fn(|k| (j + k).min(count - 1));
            for fold in span.clone().step_by(FOLD) {
                let columns = fold..(fold + FOLD).min(span.end);
                let tile = tile_products(a.map(|row| &rows[row][columns.clone()]), b.map(|row| &rows[row][columns.clone()]));
                add_tile(&mut sums[i * count..], count, j, &tile);
                add_rest(sums, rows, i, j, columns);
            }
        }
    }
}

/// Products of each of some rows with each of some others, over as many columns as fill the lanes.
///
/// A function of its own, with one vector of each row taken out at a time: the form that compiles to plain vector code.
#[multiversion(targets("x86_64+avx2+fma"))]
fn tile_products(a: [&[f32]; TALL], b: [&[f32]; WIDE]) -> [[[f32; LANES]; WIDE]; TALL] {
    let vectors = a[0].len() / LANES;
    let (a, b) = (a.map(|row| &row.as_chunks::<LANES>().0[..vectors]), b.map(|row| &row.as_chunks::<LANES>().0[..vectors]));
    let mut sums = [[[0.0f32; LANES]; WIDE]; TALL];
    for vector in 0..vectors {
        let left: [[f32; LANES]; TALL] = std::array::from_fn(|i| a[i][vector]);
        for j in 0..WIDE {
            let right = b[j][vector];
            for i in 0..TALL {
                for lane in 0..LANES {
                    sums[i][j][lane] = left[i][lane].mul_add(right[lane], sums[i][j][lane]);
                }
            }
        }
    }
    sums
}

/// Adds the part of a tile that lies inside the matrix; `sums` begins with the tile's first row.
#[multiversion(targets("x86_64+avx2+fma"))]
fn add_tile(sums: &mut [Sum], count: usize, j: usize, tile: &[[[f32; LANES]; WIDE]; TALL]) {
    for (row, products) in sums.chunks_mut(count).zip(tile) {
        for (sum, lanes) in row[j..].iter_mut().zip(products) {
            for quarter in 0..4 {
                sum[quarter] += f64::from(lanes[quarter]) + f64::from(lanes[quarter + 4]);
            }
        }
    }
}

/// The columns that do not fill the lanes.
#[inline(always)]
fn add_rest(sums: &mut [Sum], rows: &[&[f32]], i: usize, j: usize, columns: Range<usize>) {
    let count = rows.len();
    let rest = columns.start + columns.len() / LANES * LANES..columns.end;
    if rest.is_empty() {
        return;
    }
    for a in i..(i + TALL).min(count) {
        for b in j..(j + WIDE).min(count) {
            let products = rows[a][rest.clone()].iter().zip(&rows[b][rest.clone()]);
            sums[a * count + b][0] += products.map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::philox::{Keyed, Stream};
    use crate::ops::storage::bf16;

    fn exact(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    }

    /// Rows nearly parallel, scales 1 and 1000 apart: every entry within 1e-6 of the f64 product.
    #[test]
    fn nearly_parallel_rows_of_different_scale() {
        for len in [1, 15, 511, 513, 20_000, 300_001] {
            let base = Keyed::new(1, Stream::Init, 0, 0, 0);
            let rows: Vec<Vec<f32>> = (0..5u32)
                .map(|t| {
                    let own = Keyed::new(1, Stream::Init, 0, 1, t);
                    let scale = 10f64.powi(t as i32 - 1);
                    (0..len).map(|i| (scale * (base.normal(i) + 1e-3 * own.normal(i))) as f32).collect()
                })
                .collect();
            let views: Vec<&[f32]> = rows.iter().map(|row| &row[..]).collect();
            let mut g = vec![0.0; 25];
            gram(&mut g, &views);
            for i in 0..5 {
                for j in 0..5 {
                    let expected = exact(&rows[i], &rows[j]);
                    assert!((g[i * 5 + j] / expected - 1.0).abs() < 1e-6, "{len}: {i} {j} {} {expected}", g[i * 5 + j]);
                }
            }
        }
    }

    #[test]
    fn blocks_come_out_of_one_pass() {
        let row = |t: u32| (0..40_000u32).map(|i| Keyed::new(3, Stream::Init, 0, 0, t).normal(i) as f32).collect::<Vec<f32>>();
        let rows: Vec<Vec<f32>> = (0..3).map(row).collect();
        let views: Vec<&[f32]> = rows.iter().map(|row| &row[..]).collect();
        let blocks = [0..17, 17..17, 17..20_000, 20_000..40_000];
        let mut grams = vec![vec![0.0; 9]; 4];
        block_grams(&mut grams, &views[..].into(), &blocks);
        for (found, range) in grams.iter().zip(blocks) {
            let own: Vec<&[f32]> = rows.iter().map(|row| &row[range.clone()]).collect();
            let mut expected = vec![0.0; 9];
            gram(&mut expected, &own);
            assert_eq!(*found, expected);
        }
    }

    #[test]
    fn threads_do_not_change_it() {
        let rows: Vec<Vec<f32>> =
            (0..4).map(|t| (0..100_000u32).map(|i| Keyed::new(2, Stream::Init, 0, 0, t).normal(i) as f32).collect()).collect();
        let views: Vec<&[f32]> = rows.iter().map(|row| &row[..]).collect();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut g = vec![0.0; 16];
            pool.install(|| gram(&mut g, &views));
            g
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn rounded_rows_give_the_products_of_their_values() {
        let narrow: Vec<Vec<bf16>> = (0..5)
            .map(|t| (0..30_001u32).map(|i| bf16::from_f64(Keyed::new(4, Stream::Init, 0, 0, t).normal(i))).collect())
            .collect();
        let wide: Vec<Vec<f32>> = narrow.iter().map(|row| row.iter().map(|x| x.to_f32()).collect()).collect();
        let (mut found, mut expected) = (vec![0.0; 25], vec![0.0; 25]);
        gram_of(&mut found, &Rows::Bf16(narrow.iter().map(Vec::as_slice).collect()));
        gram(&mut expected, &wide.iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert_eq!(found, expected);
    }
}

#[cfg(test)]
mod cases {
    use super::*;
    use crate::ops::testing::{On, Place, noise, on_devices, rounded};

    /// Rows nearly parallel, their scales up to 1000 apart.
    fn rows(tasks: usize, width: usize) -> Vec<f32> {
        let base = noise(width, 0);
        let row = |task: usize| {
            let (own, scale) = (noise(width, 1 + task as u32), 10f32.powi(task as i32 % 4 - 1));
            base.iter().zip(own).map(|(b, o)| scale * (b + 1e-3 * o)).collect::<Vec<_>>()
        };
        (0..tasks).flat_map(row).collect()
    }

    /// Two blocks of columns that begin and end anywhere; each product against the exact one, on the host as well.
    fn gram_matches(on: On, tasks: usize, width: usize, dtype: DType) {
        let values = rounded(rows(tasks, width), dtype);
        let (blocks, cells) = ([1..width / 3, width / 3..width], tasks * tasks);
        let exact = |block: &Range<usize>| {
            let rows: Vec<&[f32]> = values.chunks(width).map(|row| &row[block.clone()]).collect();
            let product =
                |cell: usize| rows[cell / tasks].iter().zip(rows[cell % tasks]).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            (0..cells).map(product).collect::<Vec<f64>>()
        };
        let expected: Vec<f64> = blocks.iter().flat_map(exact).collect();
        on.compare(|place: &mut Place| {
            let all = place.jacobian(&values, width, dtype);
            let jacobian: Vec<Tensor> = (0..tasks).map(|task| all.rows(task..task + 1)).collect();
            let scratch = place.gram_scratch(2, 2, cells);
            let gram = place.room(3, cells, DType::F64);
            place.run(&GramMatrices { jacobian, blocks: &blocks, rows: None, gram, scratch });
            let found = place.found("gram", gram);
            for (cell, (x, y)) in found.values.iter().zip(&expected).enumerate() {
                assert!((x / y - 1.0).abs() < 1e-6, "{tasks} tasks, {cell}: {x} for {y}");
            }
            vec![found]
        });
    }

    fn gram_of_two(on: On) {
        gram_matches(on, 2, 2_500, DType::F32);
        gram_matches(on, 2, 2_500, DType::Bf16);
    }

    fn gram_of_three(on: On) {
        gram_matches(on, 3, 10_001, DType::F32);
    }

    fn gram_of_five(on: On) {
        gram_matches(on, 5, 3_001, DType::F32);
        gram_matches(on, 5, 3_002, DType::Bf16);
    }

    fn gram_of_nine(on: On) {
        gram_matches(on, 9, 2_000, DType::F32);
    }

    fn gram_of_sixteen(on: On) {
        gram_matches(on, 16, 1_500, DType::F32);
        gram_matches(on, 16, 1_502, DType::Bf16);
    }

    fn gram_of_nineteen(on: On) {
        gram_matches(on, 19, 1_100, DType::F32);
        gram_matches(on, 19, 1_100, DType::Bf16);
    }

    fn squares_of_segments(on: On) {
        on.compare(|place: &mut Place| {
            let (values, out) = (place.f32(&noise(1_000, 12), 1_000), place.room(1, 3, DType::F64));
            place.run(&Squares { values, segments: vec![0..300, 300..300, 350..1_000], out });
            vec![place.found("squares", out).within(1e-12, 0.0)]
        });
    }

    on_devices! {
        gram_of_two,
        gram_of_three,
        gram_of_five,
        gram_of_nine,
        gram_of_sixteen,
        gram_of_nineteen,
        squares_of_segments,
    }
}
