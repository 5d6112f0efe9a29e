//! Linear layers on the host.

use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

use crate::ops::gemm::{View, Write, matmul, matmul_rows, matmul_single};

/// out (n x outputs) = x (n x inputs) W^T, W (outputs x inputs); the bias is added by the activation that follows.
pub fn linear_forward(out: &mut [f32], x: &[f32], weight: &[f32], inputs: usize, outputs: usize) {
    let rows = out.len() / outputs;
    matmul_rows(out, View::new(x, rows, inputs), View::new(weight, outputs, inputs).transposed());
}

/// dx (n x inputs) = dout (n x outputs) W.
pub fn linear_input_backward(dx: &mut [f32], dout: &[f32], weight: &[f32], inputs: usize, outputs: usize) {
    let rows = dx.len() / inputs;
    matmul_rows(dx, View::new(dout, rows, outputs), View::new(weight, outputs, inputs));
}

/// Where the gradient of one segment's rows goes.
pub struct WeightGradient<'a> {
    /// Packed rows of the segment.
    pub rows: Range<usize>,
    /// (outputs x inputs)
    pub weight: &'a mut [f32],
    /// (outputs)
    pub bias: &'a mut [f32],
    pub write: Write,
}

/// For each segment s: dW_s (+)= dout_s^T x_s, db_s (+)= column sums of dout_s. Each segment's product is its own, so what
/// it is packed with cannot change it.
pub fn linear_weight_backward(segments: &mut [WeightGradient], dout: &[f32], x: &[f32], inputs: usize, outputs: usize) {
    let parallel_inside = segments.len() < rayon::current_num_threads();
    let run = |segment: &mut WeightGradient| {
        let count = segment.rows.len();
        let dout = &dout[segment.rows.start * outputs..segment.rows.end * outputs];
        let x = &x[segment.rows.start * inputs..segment.rows.end * inputs];
        let product = if parallel_inside { matmul } else { matmul_single };
        product(segment.weight, View::new(dout, count, outputs).transposed(), View::new(x, count, inputs), segment.write);
        if segment.write == Write::Replace {
            segment.bias.fill(0.0);
        }
        add_rows(segment.bias, dout);
    };
    if parallel_inside {
        segments.iter_mut().for_each(run);
    } else {
        segments.par_iter_mut().with_max_len(1).for_each(run);
    }
}

/// sums (outputs) += every row of dout.
#[multiversion(targets("x86_64+avx2+fma"))]
fn add_rows(sums: &mut [f32], dout: &[f32]) {
    for row in dout.chunks_exact(sums.len()) {
        for (sum, d) in sums.iter_mut().zip(row) {
            *sum += d;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three rows, two segments:   x = | 1 2 |  dout = | 1 |   segment 0: rows 0, 1;  segment 1: row 2
    ///                                 | 3 4 |         | 2 |
    ///                                 | 5 6 |         | 3 |
    #[test]
    fn weight_gradients_stay_in_their_segment() {
        let (x, dout) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 3.0]);
        let (mut w0, mut b0, mut w1, mut b1) = ([0.0; 2], [0.0; 1], [1.0; 2], [1.0; 1]);
        let mut segments = [
            WeightGradient { rows: 0..2, weight: &mut w0, bias: &mut b0, write: Write::Replace },
            WeightGradient { rows: 2..3, weight: &mut w1, bias: &mut b1, write: Write::Add },
        ];
        linear_weight_backward(&mut segments, &dout, &x, 2, 1);
        assert_eq!((w0, b0), ([7.0, 10.0], [3.0]));
        assert_eq!((w1, b1), ([16.0, 19.0], [4.0]));
    }

    #[test]
    fn input_gradient_is_dout_times_w() {
        let mut dx = [0.0; 16];
        linear_input_backward(&mut dx, &[1.0, 2.0], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 8, 1);
        assert_eq!(dx[..8], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(dx[15], 16.0);
    }
}
