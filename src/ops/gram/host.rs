//! Gram matrices on the host.
//!
//! f32 products run in 8 lanes and are summed in f64 every 256 columns, so a lane adds at most `FOLD / LANES` = 32 numbers
//! in f32: the error stays below 1e-6 of the entry for rows that are nearly parallel, whatever their scales.

use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

use crate::ops::storage::Rows;

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

/// A block's columns, cut into parts of at most [`BLOCK`].
fn pieces(block: usize, range: &Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
    let Range { start, end } = *range;
    (start..end).step_by(BLOCK).map(move |from| (block, from..(from + BLOCK).min(end)))
}

/// gram (count x count) gains a symmetric matrix of which only the upper triangle is given.
pub fn add_symmetric(gram: &mut [f64], upper: &[f64], count: usize) {
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
