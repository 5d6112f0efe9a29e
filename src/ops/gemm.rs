//! Matrix products through the `gemm` crate, shaped so that a row's result does not depend on the rows around it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gemm::Parallelism;
use rayon::prelude::*;

/// See [`time_in_products`].
static NANOSECONDS: AtomicU64 = AtomicU64::new(0);

/// What this process's threads spent in matrix products so far, added up; a product on all threads counts for each of them.
pub fn time_in_products() -> Duration {
    Duration::from_nanos(NANOSECONDS.load(Ordering::Relaxed))
}

/// A matrix seen through element strides.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// (rows x columns), row-major and dense.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert!(data.len() >= rows * columns, "a {rows} x {columns} matrix needs {} values, has {}", rows * columns, data.len());
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// (rows x columns), each row dense, `stride` values from one row's start to the next.
    pub fn strided(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        let needed = if rows == 0 { 0 } else { (rows - 1) * stride + columns };
        assert!(data.len() >= needed && stride >= columns, "rows {stride} apart, {rows} x {columns}, in {} values", data.len());
        Self { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// The same values, rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }
}

/// Whether a product replaces or adds to what stands in its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Replace,
    Add,
}

/// out (m x n, row-major) = a (m x k) b (k x n), or added to it, on all threads of the current rayon pool.
pub fn matmul(out: &mut [f32], a: View, b: View, write: Write) {
    multiply(out, a, b, write, Parallelism::Rayon(0));
}

/// [`matmul`] on the calling thread alone, for callers that are parallel themselves.
pub fn matmul_single(out: &mut [f32], a: View, b: View, write: Write) {
    multiply(out, a, b, write, Parallelism::None);
}

/// out (rows x n) = a (rows x k) b (k x n) where each row's bytes depend on that row and on `b` alone.
///
/// The crate takes other paths, which add in another order, for one row, for outputs of up to 16 x 16 values, and (from
/// k = 513 on) for up to 64 x 64; few rows are therefore computed among zero rows.
pub fn matmul_rows(out: &mut [f32], a: View, b: View) {
    assert!(a.column_stride == 1 && a.row_stride == a.columns, "matmul_rows wants dense rows");
    let enough = (256 / b.columns.max(1) + 1).max(if b.columns <= 64 { 65 } else { 2 });
    // Rows do not depend on each other, so threads take stretches of them: less waiting than inside one product.
    let stretch = a.rows.div_ceil(4 * rayon::current_num_threads()).max(enough).next_multiple_of(8);
    let outs = out[..a.rows * b.columns].par_chunks_mut(stretch * b.columns);
    outs.zip(a.data[..a.rows * a.columns].par_chunks(stretch * a.columns)).with_max_len(1).for_each(|(out, data)| {
        few_rows(out, View::new(data, data.len() / a.columns, a.columns), b, enough);
    });
}

fn few_rows(out: &mut [f32], a: View, b: View, enough: usize) {
    if a.rows >= enough {
        return matmul_single(out, a, b, Write::Replace);
    }
    let mut padded = vec![0.0; enough * a.columns];
    padded[..a.rows * a.columns].copy_from_slice(&a.data[..a.rows * a.columns]);
    let mut wide = vec![0.0; enough * b.columns];
    matmul_single(&mut wide, View::new(&padded, enough, a.columns), b, Write::Replace);
    out[..a.rows * b.columns].copy_from_slice(&wide[..a.rows * b.columns]);
}

fn multiply(out: &mut [f32], a: View, b: View, write: Write, parallelism: Parallelism) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "inner dimensions of a matrix product");
    assert!(out.len() >= m * n, "a matrix product's output is too small");
    if k == 0 {
        if write == Write::Replace {
            out[..m * n].fill(0.0);
        }
        return;
    }
    let clock = Instant::now();
    // SAFETY: the views' constructors and the asserts above bound every index i * row_stride + j * column_stride of the
    // three matrices by their slices; `out` is uniquely borrowed and row-major.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            write == Write::Add,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
    let threads = if matches!(parallelism, Parallelism::None) { 1 } else { rayon::current_num_threads() as u64 };
    NANOSECONDS.fetch_add(threads * clock.elapsed().as_nanos() as u64, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::philox::{Keyed, Stream};

    pub fn noise(len: usize, id: u32) -> Vec<f32> {
        let random = Keyed::new(9, Stream::Init, 0, 0, id);
        (0..len as u32).map(|i| random.normal(i) as f32).collect()
    }

    /// 8-row reference in f64; entries of a length-k product of unit normals are off by at most about sqrt(k) * k^0.5 eps.
    #[test]
    fn agrees_with_f64() {
        let (m, n, k) = (8, 33, 100);
        let (a, b) = (noise(m * k, 0), noise(k * n, 1));
        let mut out = vec![0.0; m * n];
        matmul(&mut out, View::new(&a, m, k), View::new(&b, k, n), Write::Replace);
        for i in 0..m {
            for j in 0..n {
                let exact: f64 = (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum();
                assert!((f64::from(out[i * n + j]) - exact).abs() < 100.0 * f64::from(f32::EPSILON), "{i} {j}");
            }
        }
    }

    /// Rows of y = x w^T: alone, in any group, on one thread or many, the same bytes.
    #[test]
    fn a_row_does_not_depend_on_its_neighbours_or_threads() {
        for (k, n) in [(768, 768), (100, 768), (768, 96), (2048, 64), (768, 8), (30, 17), (600, 130), (768, 1), (64, 2), (700, 3)]
        {
            let rows = 301;
            let (x, w) = (noise(rows * k, 2), noise(n * k, 3));
            let weight = || View::new(&w, n, k).transposed();
            let mut all = vec![0.0; rows * n];
            matmul_rows(&mut all, View::new(&x, rows, k), weight());
            for (start, len) in [(0, 1), (300, 1), (0, 2), (7, 3), (100, 13), (5, 64), (5, 128), (100, 201)] {
                let mut part = vec![0.0; len * n];
                matmul_rows(&mut part, View::new(&x[start * k..], len, k), weight());
                assert_eq!(part, all[start * n..(start + len) * n], "rows {start}+{len} of ({k}, {n})");
            }
            let dense = View::new(&w, k, n);
            matmul_rows(&mut all, View::new(&x, rows, k), dense);
            let mut one = vec![0.0; n];
            matmul_rows(&mut one, View::new(&x[9 * k..], 1, k), dense);
            assert_eq!(one, all[9 * n..10 * n], "row 9 of ({k}, {n}), dense");
        }
    }

    #[test]
    fn threads_do_not_change_a_product() {
        let (m, n, k) = (768, 768, 37);
        let (a, b) = (noise(k * m, 4), noise(k * n, 5));
        let product = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = vec![0.0; m * n];
            pool.install(|| matmul(&mut out, View::new(&a, k, m).transposed(), View::new(&b, k, n), Write::Replace));
            out
        };
        assert_eq!(product(1), product(2));
        assert_eq!(product(1), product(3));
    }

    #[test]
    fn adding_keeps_what_was_there() {
        let mut out = vec![1.0; 4];
        matmul(&mut out, View::new(&[1.0, 2.0], 2, 1), View::new(&[3.0, 4.0], 1, 2), Write::Add);
        assert_eq!(out, [4.0, 5.0, 7.0, 9.0]);
    }
}
