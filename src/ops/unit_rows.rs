//! Rows scaled to length 1: the head of a task that compares texts.

use multiversion::multiversion;
use rayon::prelude::*;

use super::simd::{add_scaled, dot};
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::{Op, Operands};
use crate::machine::tensor::Tensor;

/// Rows that are shorter have no direction: they become zero, and so does their gradient (`kShortest` of kernels/unit_rows.cu).
const SHORTEST: f32 = 1e-12;

/// out (n x width) = x / |x|, row by row.
pub fn unit_rows_forward(out: &mut [f32], x: &[f32], width: usize) {
    out.par_chunks_exact_mut(width).zip(x.par_chunks_exact(width)).for_each(|(out, x)| forward_row(out, x));
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn forward_row(out: &mut [f32], x: &[f32]) {
    let factor = inverse_norm(x);
    out.iter_mut().zip(x).for_each(|(out, x)| *out = x * factor);
}

/// 1 / |x|; 0 where x has no direction, NaN where it is not finite.
#[inline(always)]
fn inverse_norm(x: &[f32]) -> f32 {
    let norm = dot(x, x).sqrt();
    if norm < SHORTEST { 0.0 } else { 1.0 / norm }
}

/// dx (n x width) = (dout - u <u, dout>) / |x| for u = x / |x|, row by row.
pub fn unit_rows_backward(dx: &mut [f32], dout: &[f32], x: &[f32], width: usize) {
    let rows = dout.par_chunks_exact(width).zip(x.par_chunks_exact(width));
    dx.par_chunks_exact_mut(width).zip(rows).for_each(|(dx, (dout, x))| backward_row(dx, dout, x));
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn backward_row(dx: &mut [f32], dout: &[f32], x: &[f32]) {
    let factor = inverse_norm(x);
    let along = dot(x, dout) * factor * factor;
    dx.copy_from_slice(dout);
    add_scaled(dx, -along, x);
    dx.iter_mut().for_each(|d| *d *= factor);
}

/// As [`unit_rows_forward`].
pub struct UnitRowsForward {
    /// (n x width) f32
    pub out: Tensor,
    /// (n x width)
    pub x: Tensor,
}

impl Op for UnitRowsForward {
    fn name(&self) -> &'static str {
        "unit_rows_forward"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.x], [self.out])
    }

    fn host(&self, memory: &HostMemory) {
        unit_rows_forward(memory.write(self.out), memory.read(self.x), self.x.columns);
    }

    fn device(&self, _: &Card, _: &[Address]) -> Vec<Command> {
        let Tensor { rows, columns, .. } = self.x;
        vec![by_rows("unit_rows_forward", rows).addresses([self.out.at, self.x.at]).int(rows).int(columns).into()]
    }
}

/// As [`unit_rows_backward`].
pub struct UnitRowsBackward {
    /// (n x width)
    pub dx: Tensor,
    /// (n x width) f32
    pub dout: Tensor,
    /// (n x width)
    pub x: Tensor,
}

impl Op for UnitRowsBackward {
    fn name(&self) -> &'static str {
        "unit_rows_backward"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.dout, self.x], [self.dx])
    }

    fn host(&self, memory: &HostMemory) {
        unit_rows_backward(memory.write(self.dx), memory.read(self.dout), memory.read(self.x), self.x.columns);
    }

    fn device(&self, _: &Card, _: &[Address]) -> Vec<Command> {
        let Tensor { rows, columns, .. } = self.x;
        let launch = by_rows("unit_rows_backward", rows).addresses([self.dx.at, self.dout.at, self.x.at]);
        vec![launch.int(rows).int(columns).into()]
    }
}

/// A warp for a row.
fn by_rows(kernel: &'static str, rows: usize) -> Launch {
    const WARPS: usize = 8;
    Launch::line(kernel, rows.div_ceil(WARPS), 32 * WARPS as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_length_one_and_those_without_direction_stay_zero() {
        let mut out = [9.0; 6];
        unit_rows_forward(&mut out, &[3.0, -4.0, 0.0, 0.0, 1e-3, 0.0], 2);
        assert_eq!(out, [0.6, -0.8, 0.0, 0.0, 1.0, 0.0]);
        let mut dx = [9.0; 4];
        unit_rows_backward(&mut dx, &[1.0, 2.0, 1.0, 2.0], &[0.0, 2.0, 0.0, 0.0], 2);
        assert_eq!(dx, [0.5, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn what_is_not_finite_shows() {
        for wrong in [f32::NAN, f32::INFINITY] {
            let mut out = [0.0; 2];
            unit_rows_forward(&mut out, &[wrong, 1.0], 2);
            assert!(out.iter().any(|x| x.is_nan()), "{wrong}");
        }
    }

    /// Central differences of <weights, x / |x|>, with steps of 2^-8: an error of h^2 + eps / h, here below 1e-4, is expected.
    #[test]
    fn gradients_match_differences() {
        let (x, weights) = ([0.5f32, -1.25, 2.0], [1.0f32, 0.5, -0.75]);
        let value = |x: &[f32]| {
            let mut out = [0.0; 3];
            unit_rows_forward(&mut out, x, 3);
            out.iter().zip(&weights).map(|(u, w)| f64::from(u * w)).sum::<f64>()
        };
        let mut dx = [0.0; 3];
        unit_rows_backward(&mut dx, &weights, &x, 3);
        for at in 0..3 {
            let h = 1.0 / 256.0;
            let [up, down] = [h, -h].map(|step| {
                let mut moved = x;
                moved[at] += step;
                value(&moved)
            });
            let slope = (up - down) / (2.0 * f64::from(h));
            assert!((slope - f64::from(dx[at])).abs() < 1e-4, "{at}: {slope} against {}", dx[at]);
        }
    }
}

#[cfg(test)]
mod cases {
    use super::*;
    use crate::machine::tensor::DType;
    use crate::ops::testing::{On, Place, coarse_noise, noise, on_devices};

    /// Rows of less than a warp, of no whole vectors and of BERT's width; one has no direction.
    fn unit_rows_and_their_gradient(on: On) {
        for (rows, width) in [(1, 3), (9, 41), (18, 768)] {
            on.compare(|place: &mut Place| {
                let mut values = coarse_noise(rows * width, 0);
                values[(rows - 1) * width..].fill(if rows > 1 { 0.0 } else { 0.5 });
                let x = place.narrow(&values, width);
                let out = place.room(rows, width, DType::F32);
                let dout = place.f32(&noise(rows * width, 1), width);
                let dx = place.room(rows, width, DType::Bf16);
                place.run(&UnitRowsForward { out, x });
                place.run(&UnitRowsBackward { dx, dout, x });
                vec![place.found("unit rows", out), place.found("dx", dx)]
            });
        }
    }

    on_devices! { unit_rows_and_their_gradient }
}
