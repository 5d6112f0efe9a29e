//! Bias and activation on the rows of a linear layer, forward and backward.

use multiversion::multiversion;
use rayon::prelude::*;

use crate::choices::choices;
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::{Op, Operands};
use crate::machine::tensor::{Tensor, pitch};

choices! {
    /// Elementwise function after a linear layer.
    pub enum Activation {
        None = "none",
        Relu = "relu",
        /// x Phi(x) with the exact normal distribution function (Hendrycks & Gimpel 2016), not the tanh approximation.
        Gelu = "gelu",
        Tanh = "tanh",
    }
}

/// Rows handled by one parallel job.
const ROWS: usize = 16;

/// pre (n x width) += bias (width); out (n x width) = f(pre). With [`Activation::None`] `out` is not written: use `pre`.
pub fn bias_activation_forward(out: &mut [f32], pre: &mut [f32], bias: &[f32], activation: Activation) {
    let width = bias.len();
    if activation == Activation::None {
        pre.par_chunks_mut(ROWS * width).for_each(|pre| forward_rows(&mut [], pre, bias, activation));
        return;
    }
    let rows = out.par_chunks_mut(ROWS * width).zip(pre.par_chunks_mut(ROWS * width));
    rows.for_each(|(out, pre)| forward_rows(out, pre, bias, activation));
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn forward_rows(out: &mut [f32], pre: &mut [f32], bias: &[f32], activation: Activation) {
    add_bias(pre, bias);
    match activation {
        Activation::None => {}
        Activation::Relu => map(out, pre, |x| x.max(0.0)),
        Activation::Gelu => map(out, pre, |x| x * normal_cdf(x)),
        Activation::Tanh => map(out, pre, tanh),
    }
}

/// dpre (n x width) = dout * f'(pre), in place of dout.
pub fn activation_backward(dout: &mut [f32], pre: &[f32], width: usize, activation: Activation) {
    if activation == Activation::None {
        return;
    }
    let rows = dout.par_chunks_mut(ROWS * width).zip(pre.par_chunks(ROWS * width));
    rows.for_each(|(dout, pre)| backward_rows(dout, pre, activation));
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn backward_rows(dout: &mut [f32], pre: &[f32], activation: Activation) {
    match activation {
        Activation::None => {}
        Activation::Relu => scale(dout, pre, |x| if x > 0.0 { 1.0 } else { 0.0 }),
        Activation::Gelu => scale(dout, pre, |x| x.mul_add(normal_pdf(x), normal_cdf(x))),
        Activation::Tanh => scale(dout, pre, |x| {
            let t = tanh(x);
            1.0 - t * t
        }),
    }
}

#[inline(always)]
fn add_bias(pre: &mut [f32], bias: &[f32]) {
    for row in pre.chunks_exact_mut(bias.len()) {
        for (x, b) in row.iter_mut().zip(bias) {
            *x += b;
        }
    }
}

#[inline(always)]
fn map(out: &mut [f32], pre: &[f32], f: impl Fn(f32) -> f32) {
    for (o, &x) in out.iter_mut().zip(pre) {
        *o = f(x);
    }
}

#[inline(always)]
fn scale(dout: &mut [f32], pre: &[f32], derivative: impl Fn(f32) -> f32) {
    for (d, &x) in dout.iter_mut().zip(pre) {
        *d *= derivative(x);
    }
}

/// e^x without branches, so that loops over it vectorize: 2^n by exponent bits times a degree-6 polynomial of the rest
/// (Taylor on |r| <= ln(2)/2, relative error below 2e-7). Inputs are clamped to where e^x is a normal f32.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = 1.0 / 720.0f32;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p.mul_add(r, coefficient);
    }
    p * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// Phi(x) = erfc(-x / sqrt 2) / 2, with erfc's exponential-of-polynomial form (relative error 1.2e-7; Chebyshev fit as
/// tabulated in Press et al., Numerical Recipes, section 6.2).
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    #[allow(clippy::excessive_precision, reason = "the coefficients as published")]
    const FIT: [f32; 10] = [
        0.170_872_77,
        -0.822_152_23,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ];
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / 0.5f32.mul_add(z, 1.0);
    let mut p = FIT[0];
    for coefficient in &FIT[1..] {
        p = p.mul_add(t, *coefficient);
    }
    let half_erfc = 0.5 * t * exp((-z).mul_add(z, p));
    if x < 0.0 { half_erfc } else { 1.0 - half_erfc }
}

#[inline(always)]
fn normal_pdf(x: f32) -> f32 {
    0.398_942_3 * exp(-0.5 * x * x)
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    // Near zero 1 - 2/(e^2x + 1) cancels; the odd series is exact to rounding there.
    let series = x * (x * x).mul_add((x * x).mul_add(2.0 / 15.0, -1.0 / 3.0), 1.0);
    let ratio = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if x.abs() < 0.05 { series } else { ratio }
}

/// dout (n x width) *= f'(pre)
pub struct ActivationBackward {
    pub dout: Tensor,
    pub pre: Tensor,
    pub activation: Activation,
}

impl Op for ActivationBackward {
    fn name(&self) -> &'static str {
        "activation_backward"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.pre], [self.dout])
    }

    fn host(&self, memory: &HostMemory) {
        activation_backward(memory.write(self.dout), memory.read(self.pre), self.dout.columns, self.activation);
    }

    fn device(&self, _: &Card, _: &[Address]) -> Vec<Command> {
        let vectors = self.dout.rows * pitch(self.dout.columns) / VECTOR;
        let launch = Launch::elements("activation_backward_bf16", vectors)
            .addresses([self.dout.at, self.pre.at])
            .long(vectors as u64)
            .signed(self.activation as i32);
        vec![launch.into()]
    }
}

/// out (rows x columns) bf16 = x (rows x columns, without gaps) f32, on a device.
pub fn convert_to_bf16(out: Address, x: Address, rows: usize, columns: usize) -> Launch {
    let vectors = rows * pitch(columns) / VECTOR;
    Launch::elements("convert_to_bf16", vectors).addresses([out, x]).int(rows).int(columns)
}

/// Neighbouring values of a thread.
const VECTOR: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    /// Phi in f64 by its power series (alternating, fine for |x| <= 6 in f64).
    fn phi(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= x * x / (2.0 * f64::from(n) + 1.0);
            sum += term;
        }
        0.5 + sum * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
    }

    fn grid() -> impl Iterator<Item = f32> {
        (-600..=600).map(|i| i as f32 * 0.01)
    }

    #[test]
    fn exp_is_within_four_units_in_the_last_place() {
        for i in -8_600..=8_700 {
            let x = i as f32 * 0.01;
            let relative = f64::from(exp(x)) / f64::from(x).exp() - 1.0;
            assert!(relative.abs() < 4.0 * f64::from(f32::EPSILON), "{x}: {relative}");
        }
    }

    #[test]
    fn gelu_and_its_slope_match_f64() {
        for x in grid() {
            let mut pre = [x];
            let mut out = [0.0];
            bias_activation_forward(&mut out, &mut pre, &[0.0], Activation::Gelu);
            let wide = f64::from(x);
            assert!((f64::from(out[0]) - wide * phi(wide)).abs() < 1e-6, "gelu({x}) = {}", out[0]);
            let mut slope = [1.0];
            activation_backward(&mut slope, &pre, 1, Activation::Gelu);
            let density = (-0.5 * wide * wide).exp() / std::f64::consts::TAU.sqrt();
            assert!((f64::from(slope[0]) - (phi(wide) + wide * density)).abs() < 1e-6, "gelu'({x}) = {}", slope[0]);
        }
    }

    #[test]
    fn tanh_matches_f64() {
        for x in grid() {
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 4e-7, "{x}");
        }
    }

    #[test]
    fn relu_and_bias() {
        let mut pre = [-1.0, 2.0, -3.0, 4.0];
        let mut out = [9.0; 4];
        bias_activation_forward(&mut out, &mut pre, &[0.5, -3.0], Activation::Relu);
        assert_eq!(out, [0.0, 0.0, 0.0, 1.0]);
        let mut dout = [1.0; 4];
        activation_backward(&mut dout, &pre, 2, Activation::Relu);
        assert_eq!(dout, [0.0, 0.0, 0.0, 1.0]);
    }
}

#[cfg(test)]
mod cases {
    use super::*;
    use crate::machine::tensor::DType;
    use crate::ops::testing::{Found, On, Place, coarse_noise, noise, on_devices};

    fn activations_backward(on: On) {
        let (rows, width) = (7, 29);
        let (pre, dout) = (coarse_noise(rows * width, 2), coarse_noise(rows * width, 3));
        for activation in [Activation::None, Activation::Relu, Activation::Gelu, Activation::Tanh] {
            on.compare(|place: &mut Place| {
                let (dout, pre) = (place.narrow_in_place(&dout, width), place.narrow_in_place(&pre, width));
                place.run(&ActivationBackward { dout, pre, activation });
                vec![place.found("dpre", dout)]
            });
        }
    }

    /// The copy of values in bf16, beside values that it rounds to: ties go to the even one.
    fn conversion_rounds_to_nearest_even(on: On) {
        let x: Vec<f32> = noise(75, 5).into_iter().chain([0.0, 1e30, 1.003_906_3, 1.011_718_8, -1e-30]).collect();
        for [rows, columns] in [[5, 16], [16, 5]] {
            let found: Vec<Found> = on.run(|device| {
                let (from, to) = (device.upload(&x), device.room::<u16>(rows * pitch(columns)));
                device.launch(&convert_to_bf16(to, from, rows, columns));
                let place = &mut Place::on(device);
                vec![place.found("copy", Tensor::padded(to, rows, columns, DType::Bf16))]
            });
            let expected: Vec<f64> = x.iter().map(|&x| half::bf16::from_f32(x).to_f64()).collect();
            assert_eq!(found[0].values, expected);
        }
    }

    on_devices! {
        activations_backward,
        conversion_rounds_to_nearest_even,
    }
}
