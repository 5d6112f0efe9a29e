//! Layer normalization on the host.

use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

use crate::ops::gemm::Write;
use crate::ops::simd::{LANES, reduce};
use crate::ops::token_dropout::TokenDropout;

/// Rows of one parallel job.
const ROWS: usize = 8;
/// Columns of one parallel job of the parameter gradients.
const COLUMNS: usize = 128;

/// Gain and shift (width each), and what is added to the variance.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    pub gain: &'a [f32],
    pub shift: &'a [f32],
    pub eps: f32,
}

/// What stands between a linear layer and its normalization.
#[derive(Clone, Copy)]
pub struct Residual<'a> {
    /// (width) of the linear layer.
    pub bias: &'a [f32],
    /// (n x width)
    pub residual: &'a [f32],
    pub dropout: Option<TokenDropout<'a>>,
}

/// out (n x width) = (x - mean) / sqrt(variance + eps) * gain + shift; stats (n x 2) keeps each row's mean and 1 / deviation.
pub fn layer_norm_forward(out: &mut [f32], stats: &mut [f32], x: &[f32], norm: Norm) {
    let width = norm.gain.len();
    let rows = out.par_chunks_mut(ROWS * width).zip(stats.par_chunks_mut(ROWS * 2)).zip(x.par_chunks(ROWS * width));
    rows.for_each(|((out, stats), x)| norm_rows(out, stats, x, norm));
}

/// sum (n x width) becomes dropout(sum + bias) + residual, and `out` its normalization, as [`layer_norm_forward`].
pub fn residual_norm_forward(out: &mut [f32], stats: &mut [f32], sum: &mut [f32], before: Residual, norm: Norm) {
    let width = norm.gain.len();
    let rows = out.par_chunks_mut(ROWS * width).zip(stats.par_chunks_mut(ROWS * 2)).zip(sum.par_chunks_mut(ROWS * width));
    rows.enumerate().for_each(|(job, ((out, stats), sum))| {
        for (row, sum) in sum.chunks_exact_mut(width).enumerate() {
            let row = job * ROWS + row;
            sum.iter_mut().zip(before.bias).for_each(|(sum, bias)| *sum += bias);
            if let Some(dropout) = &before.dropout {
                dropout.apply(row, sum);
            }
            let residual = &before.residual[row * width..][..width];
            sum.iter_mut().zip(residual).for_each(|(sum, residual)| *sum += residual);
        }
        norm_rows(out, stats, sum, norm);
    });
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn norm_rows(out: &mut [f32], stats: &mut [f32], x: &[f32], norm: Norm) {
    let width = norm.gain.len();
    for ((out, stats), x) in out.chunks_exact_mut(width).zip(stats.chunks_exact_mut(2)).zip(x.chunks_exact(width)) {
        let mean = (sum_of(x, |x| x) / width as f64) as f32;
        let variance = sum_of(x, |x| (x - mean) * (x - mean)) / width as f64;
        let scale = (1.0 / (variance + f64::from(norm.eps)).sqrt()) as f32;
        stats.copy_from_slice(&[mean, scale]);
        for (((out, &x), &gain), &shift) in out.iter_mut().zip(x).zip(norm.gain).zip(norm.shift) {
            *out = ((x - mean) * scale).mul_add(gain, shift);
        }
    }
}

#[inline(always)]
fn sum_of(values: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0.0f32; LANES];
    let chunks = values.chunks_exact(LANES);
    for (lane, &value) in chunks.remainder().iter().enumerate() {
        lanes[lane] = f(value);
    }
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += f(chunk[lane]);
        }
    }
    reduce(&lanes)
}

/// dx (n x width) = scale * (g - mean(g) - xhat * mean(g * xhat)) with g = dout * gain and xhat = (x - mean) * scale.
pub fn layer_norm_backward(dx: &mut [f32], dout: &[f32], x: &[f32], stats: &[f32], gain: &[f32]) {
    let chunk = ROWS * gain.len();
    let rows = dx.par_chunks_mut(chunk).zip(dout.par_chunks(chunk)).zip(x.par_chunks(chunk)).zip(stats.par_chunks(2 * ROWS));
    rows.for_each(|(((dx, dout), x), stats)| backward_rows(dx, dout, x, stats, gain));
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn backward_rows(dx: &mut [f32], dout: &[f32], x: &[f32], stats: &[f32], gain: &[f32]) {
    let width = gain.len();
    let rows = dx.chunks_exact_mut(width).zip(dout.chunks_exact(width)).zip(x.chunks_exact(width));
    for (((dx, dout), x), stats) in rows.zip(stats.chunks_exact(2)) {
        let (mean, scale) = (stats[0], stats[1]);
        let (mut sums, mut products) = ([0.0f32; LANES], [0.0f32; LANES]);
        let mut add = |lane: usize, index: usize| {
            let g = dout[index] * gain[index];
            sums[lane] += g;
            products[lane] = g.mul_add((x[index] - mean) * scale, products[lane]);
        };
        let whole = width - width % LANES;
        for start in (0..whole).step_by(LANES) {
            (0..LANES).for_each(|lane| add(lane, start + lane));
        }
        (whole..width).for_each(|index| add(index - whole, index));
        let sum = (reduce(&sums) / width as f64) as f32;
        let product = (reduce(&products) / width as f64) as f32;
        for (((dx, &d), &x), &gain) in dx.iter_mut().zip(dout).zip(x).zip(gain) {
            let normed = (x - mean) * scale;
            *dx = scale * (d.mul_add(gain, -sum) - normed * product);
        }
    }
}

/// Where one segment's gradients of gain and shift (width each) go.
pub struct NormGradient<'a> {
    /// Packed rows of the segment.
    pub rows: Range<usize>,
    pub gain: &'a mut [f32],
    pub shift: &'a mut [f32],
    pub write: Write,
}

/// dgain_s (+)= sum over the rows of segment s of dout * xhat, dshift_s (+)= sum of dout, in row order.
pub fn layer_norm_weight_backward(segments: &mut [NormGradient], dout: &[f32], x: &[f32], stats: &[f32]) {
    segments.par_iter_mut().for_each(|segment| {
        let width = segment.gain.len();
        if segment.write == Write::Replace {
            segment.gain.fill(0.0);
            segment.shift.fill(0.0);
        }
        let rows = segment.rows.clone();
        let columns = segment.gain.par_chunks_mut(COLUMNS).zip(segment.shift.par_chunks_mut(COLUMNS)).enumerate();
        columns.for_each(|(block, (gain, shift))| add_rows(gain, shift, dout, x, stats, rows.clone(), width, block * COLUMNS));
    });
}

#[multiversion(targets("x86_64+avx2+fma"))]
#[allow(clippy::too_many_arguments, reason = "one flat loop that the compiler sees whole")]
fn add_rows(
    gain: &mut [f32],
    shift: &mut [f32],
    dout: &[f32],
    x: &[f32],
    stats: &[f32],
    rows: Range<usize>,
    width: usize,
    first: usize,
) {
    for row in rows {
        let (mean, scale) = (stats[2 * row], stats[2 * row + 1]);
        let (dout, x) = (&dout[row * width + first..][..gain.len()], &x[row * width + first..][..gain.len()]);
        for (((gain, shift), &d), &x) in gain.iter_mut().zip(shift.iter_mut()).zip(dout).zip(x) {
            *gain = d.mul_add((x - mean) * scale, *gain);
            *shift += d;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::philox::{Keyed, Stream};

    const WIDTH: usize = 37;
    const N: usize = 5;

    fn noise(len: usize, id: u32) -> Vec<f32> {
        let random = Keyed::new(4, Stream::Init, 0, 0, id);
        (0..len as u32).map(|i| random.normal(i) as f32).collect()
    }

    /// Sum of probe * norm(x) in f64.
    fn objective(x: &[f64], gain: &[f64], shift: &[f64], probe: &[f32]) -> f64 {
        let mut total = 0.0;
        for (x, probe) in x.chunks_exact(WIDTH).zip(probe.chunks_exact(WIDTH)) {
            let mean = x.iter().sum::<f64>() / WIDTH as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / WIDTH as f64;
            for i in 0..WIDTH {
                total += f64::from(probe[i]) * ((x[i] - mean) / (variance + 1e-12).sqrt() * gain[i] + shift[i]);
            }
        }
        total
    }

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|&x| f64::from(x)).collect()
    }

    /// Central differences of an f64 function, each within h^2 of the slope.
    fn differences(at: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        const H: f64 = 1e-5;
        let slope = |i: usize| {
            let moved = |by: f64| {
                let mut moved = at.to_vec();
                moved[i] += by;
                f(&moved)
            };
            (moved(H) - moved(-H)) / (2.0 * H)
        };
        (0..at.len()).map(slope).collect()
    }

    /// f32 sums of 37 terms of size 1, scaled by up to about 3.
    fn close(ours: &[f32], exact: &[f64]) {
        for (i, (a, b)) in ours.iter().zip(exact).enumerate() {
            assert!((f64::from(*a) - b).abs() < 1e-5 * b.abs().max(1.0), "{i}: {a} against {b}");
        }
    }

    #[test]
    fn gradients_match_differences_in_f64() {
        let (x, gain, shift, probe) = (noise(N * WIDTH, 0), noise(WIDTH, 1), noise(WIDTH, 2), noise(N * WIDTH, 3));
        let (mut out, mut stats, mut dx) = (vec![0.0; N * WIDTH], vec![0.0; 2 * N], vec![0.0; N * WIDTH]);
        layer_norm_forward(&mut out, &mut stats, &x, Norm { gain: &gain, shift: &shift, eps: 1e-12 });
        layer_norm_backward(&mut dx, &probe, &x, &stats, &gain);
        let (wx, wg, ws) = (wide(&x), wide(&gain), wide(&shift));
        close(&dx, &differences(&wx, |x| objective(x, &wg, &ws, &probe)));
        let (mut dgain, mut dshift) = (vec![9.0; WIDTH], vec![9.0; WIDTH]);
        let segment = NormGradient { rows: 0..N, gain: &mut dgain, shift: &mut dshift, write: Write::Replace };
        layer_norm_weight_backward(&mut [segment], &probe, &x, &stats);
        close(&dgain, &differences(&wg, |g| objective(&wx, g, &ws, &probe)));
        close(&dshift, &differences(&ws, |s| objective(&wx, &wg, s, &probe)));
    }

    #[test]
    fn segments_add_up_and_stay_apart() {
        let (x, dout) = (noise(N * WIDTH, 0), noise(N * WIDTH, 3));
        let (mut out, mut stats) = (vec![0.0; N * WIDTH], vec![0.0; 2 * N]);
        let ones = vec![1.0; WIDTH];
        layer_norm_forward(&mut out, &mut stats, &x, Norm { gain: &ones, shift: &ones, eps: 1e-12 });
        let run = |ranges: &[(Range<usize>, Write)]| {
            let (mut gain, mut shift) = (vec![0.0; WIDTH], vec![0.0; WIDTH]);
            for (rows, write) in ranges {
                let segment = NormGradient { rows: rows.clone(), gain: &mut gain, shift: &mut shift, write: *write };
                layer_norm_weight_backward(&mut [segment], &dout, &x, &stats);
            }
            (gain, shift)
        };
        assert_eq!(run(&[(0..N, Write::Replace)]), run(&[(0..2, Write::Replace), (2..N, Write::Add)]));
    }

    #[test]
    fn the_residual_is_added_before() {
        let (mut sum, residual, bias) = (noise(N * WIDTH, 5), noise(N * WIDTH, 6), noise(WIDTH, 7));
        let ones = vec![1.0; WIDTH];
        let norm = Norm { gain: &ones, shift: &bias, eps: 1e-12 };
        let by_hand: Vec<f32> = sum.iter().enumerate().map(|(i, x)| x + bias[i % WIDTH] + residual[i]).collect();
        let (mut a, mut b) = (vec![0.0; N * WIDTH], vec![0.0; N * WIDTH]);
        let (mut stats, mut same) = (vec![0.0; 2 * N], vec![0.0; 2 * N]);
        residual_norm_forward(&mut a, &mut stats, &mut sum, Residual { bias: &bias, residual: &residual, dropout: None }, norm);
        layer_norm_forward(&mut b, &mut same, &by_hand, norm);
        assert_eq!((sum, a, stats), (by_hand, b, same));
    }
}
