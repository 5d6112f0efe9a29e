//! Gram matrix of the private gradients: one pass over J gives every product of two rows.
//!
//! f32 products run in 16 lanes over short spans and are summed in f64, so a lane adds at most `SPAN / LANES` = 32 numbers
//! in f32: the error stays below 1e-6 of the entry for rows that are nearly parallel, whatever their scales.

use multiversion::multiversion;
use rayon::prelude::*;

use super::simd::{LANES, reduce};

/// Columns whose products stay in f32; a tile of rows of this length fits the first-level cache.
const SPAN: usize = 512;

/// Columns in one partial sum; fixed, so that threads cannot change the order of additions.
const BLOCK: usize = 32 * SPAN;

/// Rows of one register tile: TILE x TILE products from 2 TILE loads.
const TILE: usize = 2;

/// gram (T x T, row-major, symmetric) gains J_i . J_j over `rows` (T rows of equal length).
pub fn gram(gram: &mut [f64], rows: &[&[f32]]) {
    let count = rows.len();
    let Some(len) = rows.first().map(|row| row.len()) else { return };
    let partial: Vec<Vec<f64>> = (0..len.div_ceil(BLOCK))
        .into_par_iter()
        .map(|block| {
            let mut sums = vec![0.0; count * count];
            block_gram(&mut sums, rows, block * BLOCK, ((block + 1) * BLOCK).min(len));
            sums
        })
        .collect();
    for sums in partial {
        for i in 0..count {
            for j in i..count {
                gram[i * count + j] += sums[i * count + j];
                if i != j {
                    gram[j * count + i] += sums[i * count + j];
                }
            }
        }
    }
}

/// Upper triangle of the products of columns start..end.
#[multiversion(targets("x86_64+avx2+fma"))]
fn block_gram(sums: &mut [f64], rows: &[&[f32]], start: usize, end: usize) {
    let count = rows.len();
    for span in (start..end).step_by(SPAN) {
        let span = span..(span + SPAN).min(end);
        for i in (0..count).step_by(TILE) {
            for j in (i..count).step_by(TILE) {
                if i + TILE <= count && j + TILE <= count {
                    let tile = tile_products(
                        [&rows[i][span.clone()], &rows[i + 1][span.clone()]],
                        [&rows[j][span.clone()], &rows[j + 1][span.clone()]],
                    );
                    for (di, products) in tile.iter().enumerate() {
                        for (dj, product) in products.iter().enumerate() {
                            sums[(i + di) * count + j + dj] += product;
                        }
                    }
                } else {
                    edge_products(sums, rows, i, j, span.clone());
                }
            }
        }
    }
}

/// Products of each of two rows with each of two rows.
#[inline(always)]
fn tile_products(a: [&[f32]; TILE], b: [&[f32]; TILE]) -> [[f64; TILE]; TILE] {
    let len = a[0].len();
    let whole = len / LANES * LANES;
    let (mut s00, mut s01, mut s10, mut s11) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
    let (a0, a1, b0, b1) = (&a[0][..len], &a[1][..len], &b[0][..len], &b[1][..len]);
    for column in (0..whole).step_by(LANES) {
        let (a0, a1) = (&a0[column..column + LANES], &a1[column..column + LANES]);
        let (b0, b1) = (&b0[column..column + LANES], &b1[column..column + LANES]);
        for lane in 0..LANES {
            s00[lane] = a0[lane].mul_add(b0[lane], s00[lane]);
            s01[lane] = a0[lane].mul_add(b1[lane], s01[lane]);
            s10[lane] = a1[lane].mul_add(b0[lane], s10[lane]);
            s11[lane] = a1[lane].mul_add(b1[lane], s11[lane]);
        }
    }
    let mut out = [[reduce(&s00), reduce(&s01)], [reduce(&s10), reduce(&s11)]];
    for (i, a) in [a0, a1].iter().enumerate() {
        for (j, b) in [b0, b1].iter().enumerate() {
            for column in whole..len {
                out[i][j] += f64::from(a[column]) * f64::from(b[column]);
            }
        }
    }
    out
}

/// The pairs of a tile that hangs over the last row.
#[inline(always)]
fn edge_products(sums: &mut [f64], rows: &[&[f32]], i: usize, j: usize, span: std::ops::Range<usize>) {
    let count = rows.len();
    for a in i..(i + TILE).min(count) {
        for b in j.max(a)..(j + TILE).min(count) {
            let (x, y) = (&rows[a][span.clone()], &rows[b][span.clone()]);
            sums[a * count + b] += tile_products([x, x], [y, y])[0][0];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::philox::{Keyed, Stream};

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
}
