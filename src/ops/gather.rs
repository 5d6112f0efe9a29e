//! Rows picked out of a packed matrix, and added back.

use multiversion::multiversion;
use rayon::prelude::*;

use super::simd::add_scaled;

/// Values added by one parallel job.
const CHUNK: usize = 1 << 14;

/// out (m x width) = the rows `index` (m) of x.
pub fn gather_rows(out: &mut [f32], x: &[f32], index: &[u32], width: usize) {
    out.par_chunks_mut(width).zip(index).with_min_len(8).for_each(|(out, &row)| {
        out.copy_from_slice(&x[row as usize * width..][..width]);
    });
}

/// out += x, elementwise.
pub fn add(out: &mut [f32], x: &[f32]) {
    out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(out, x)| add_slice(out, x));
}

/// The rows `index` (m) of out gain the rows of x (m x width), in order.
pub fn scatter_add_rows(out: &mut [f32], x: &[f32], index: &[u32], width: usize) {
    for (x, &row) in x.chunks_exact(width).zip(index) {
        add_slice(&mut out[row as usize * width..][..width], x);
    }
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn add_slice(out: &mut [f32], x: &[f32]) {
    add_scaled(out, 1.0, x);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_out_and_come_back() {
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut out = [0.0; 4];
        gather_rows(&mut out, &x, &[2, 0], 2);
        assert_eq!(out, [5.0, 6.0, 1.0, 2.0]);
        let mut back = x;
        scatter_add_rows(&mut back, &out, &[2, 0], 2);
        assert_eq!(back, [2.0, 4.0, 3.0, 4.0, 10.0, 12.0]);
        add(&mut back, &x);
        assert_eq!(back, [3.0, 6.0, 6.0, 8.0, 15.0, 18.0]);
    }
}
