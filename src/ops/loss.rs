//! Losses of one segment's logits, with their gradients.
//!
//! Each returns the SUM of the losses of the observed targets (f64, in row order) and writes dlogits = scale * d(sum)/dlogits.
//! A missing target is NaN: it adds nothing and gets a zero gradient.

use super::launch::heads as kernel;
use super::vocabulary_loss::vocabulary_cross_entropy;
use crate::device::driver::Address;
use crate::device::host::HostMemory;
use crate::device::launch::Command;
use crate::device::tape::{Op, Operands};
use crate::device::tensor::Tensor;

/// dlogits (n x classes) of softmax cross-entropy against class indices (n), of whose probability `smoothing` is spread
/// evenly over all classes (Szegedy et al., CVPR 2016).
pub fn cross_entropy(dlogits: &mut [f32], logits: &[f32], targets: &[u32], classes: usize, smoothing: f64, scale: f32) -> f64 {
    let even = smoothing / classes as f64;
    let mut total = 0.0;
    for ((dlogits, logits), &target) in dlogits.chunks_exact_mut(classes).zip(logits.chunks_exact(classes)).zip(targets) {
        let peak = logits.iter().fold(f64::NEG_INFINITY, |peak, &x| peak.max(f64::from(x)));
        let sum: f64 = logits.iter().map(|&x| (f64::from(x) - peak).exp()).sum();
        let log_sum = peak + sum.ln();
        total += log_sum - (1.0 - smoothing) * f64::from(logits[target as usize]);
        if smoothing > 0.0 {
            total -= even * logits.iter().map(|&x| f64::from(x)).sum::<f64>();
        }
        for (class, (d, &x)) in dlogits.iter_mut().zip(logits).enumerate() {
            let probability = (f64::from(x) - peak).exp() / sum;
            let wanted = if class == target as usize { 1.0 - smoothing + even } else { even };
            *d = ((probability - wanted) as f32) * scale;
        }
    }
    total
}

/// dlogits of binary cross-entropy on logits against 0/1 targets of the same shape; NaN targets are masked.
pub fn binary_cross_entropy(dlogits: &mut [f32], logits: &[f32], targets: &[f32], scale: f32) -> f64 {
    masked(dlogits, logits, targets, scale, |x, y| {
        let loss = x.max(0.0) - x * y + (-x.abs()).exp().ln_1p();
        (loss, 1.0 / (1.0 + (-x).exp()) - y)
    })
}

/// dlogits of the squared error (x - y)^2; NaN targets are masked.
pub fn squared_error(dlogits: &mut [f32], logits: &[f32], targets: &[f32], scale: f32) -> f64 {
    masked(dlogits, logits, targets, scale, |x, y| ((x - y) * (x - y), 2.0 * (x - y)))
}

fn masked(dlogits: &mut [f32], logits: &[f32], targets: &[f32], scale: f32, loss: impl Fn(f64, f64) -> (f64, f64)) -> f64 {
    let mut total = 0.0;
    for ((d, &x), &y) in dlogits.iter_mut().zip(logits).zip(targets) {
        if y.is_nan() {
            *d = 0.0;
            continue;
        }
        let (value, slope) = loss(f64::from(x), f64::from(y));
        total += value;
        *d = slope as f32 * scale;
    }
    total
}

/// What some rows of logits are held against.
#[derive(Clone, Copy, Debug)]
pub enum Targets<'a> {
    /// (rows) class index; smoothed by this share.
    Class(&'a [u32], f64),
    /// (rows) index of a word out of a whole vocabulary.
    Word(&'a [u32]),
    /// (rows x outputs) 0 or 1, NaN where missing.
    Label(&'a [f32]),
    /// (rows x outputs), NaN where missing.
    Value(&'a [f32]),
}

/// One task's logits.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    pub targets: Targets<'a>,
    pub outputs: usize,
    /// Factor on d(sum of losses).
    pub scale: f32,
}

impl Part<'_> {
    /// Logits of the part.
    pub fn len(&self) -> usize {
        match self.targets {
            Targets::Class(classes, _) | Targets::Word(classes) => classes.len() * self.outputs,
            Targets::Label(values) | Targets::Value(values) => values.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sum of the losses of the observed targets; writes their scaled gradient.
    pub fn loss(&self, dlogits: &mut [f32], logits: &[f32]) -> f64 {
        match self.targets {
            Targets::Class(classes, smoothing) => cross_entropy(dlogits, logits, classes, self.outputs, smoothing, self.scale),
            Targets::Word(words) => vocabulary_cross_entropy(dlogits, logits, words, self.outputs, self.scale),
            Targets::Label(labels) => binary_cross_entropy(dlogits, logits, labels, self.scale),
            Targets::Value(values) => squared_error(dlogits, logits, values, self.scale),
        }
    }
}

/// The losses on a device.
#[derive(Clone, Copy, Debug)]
pub struct LossesOnDevice {
    pub segments: kernel::Segments,
    pub targets: Address,
    /// (n) f64
    pub row_losses: Address,
    /// (tasks) f64
    pub sums: Address,
    /// (segments) u32: 1 where the sum is added to.
    pub add: Address,
    pub smoothing: f64,
}

/// Sums of losses of each part (f64, over observed targets), and the scaled gradients of the logits.
pub struct Losses<'a> {
    /// (parts) f64; none on a device, which adds them up by task.
    pub sums: Tensor,
    /// Part after part.
    pub dlogits: Tensor,
    pub logits: Tensor,
    pub parts: Vec<Part<'a>>,
    pub device: Option<LossesOnDevice>,
}

impl Op for Losses<'_> {
    fn name(&self) -> &'static str {
        "losses"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.logits], [self.dlogits, self.sums])
    }

    fn host(&self, memory: &HostMemory) {
        let (mut dlogits, mut logits): (&mut [f32], &[f32]) = (memory.write(self.dlogits), memory.read(self.logits));
        for (part, sum) in self.parts.iter().zip(memory.write::<f64>(self.sums)) {
            let (own, rest) = std::mem::take(&mut dlogits).split_at_mut(part.len());
            let (known, tail) = logits.split_at(part.len());
            *sum = part.loss(own, known);
            (dlogits, logits) = (rest, tail);
        }
    }

    fn device(&self) -> Vec<Command> {
        let Some(own) = self.device else { return Vec::new() };
        let LossesOnDevice { segments, targets, row_losses, sums, add, smoothing } = own;
        let rows = kernel::loss_rows(self.dlogits.at, row_losses, self.logits.at, targets, segments, smoothing, 0);
        vec![rows.into(), kernel::loss_sums(sums, row_losses, segments, add).into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Central differences in f32 steps; the losses are smooth, so an error of h^2 + eps / h, here about 1e-4, is expected.
    fn check(logits: &[f32], loss: impl Fn(&mut [f32], &[f32]) -> f64) {
        let mut gradient = vec![0.0; logits.len()];
        loss(&mut gradient, logits);
        let mut scratch = vec![0.0; logits.len()];
        for i in 0..logits.len() {
            let h = 1.0 / 128.0;
            let mut moved = logits.to_vec();
            moved[i] += h;
            let up = loss(&mut scratch, &moved);
            moved[i] -= 2.0 * h;
            let down = loss(&mut scratch, &moved);
            let slope = (up - down) / (2.0 * f64::from(h));
            assert!((slope - f64::from(gradient[i])).abs() < 2e-4, "logit {i}: {slope} against {}", gradient[i]);
        }
    }

    #[test]
    fn gradients_match_differences() {
        let logits = [0.3, -1.2, 2.0, 0.1, 0.0, -0.7];
        check(&logits, |d, x| cross_entropy(d, x, &[2, 0], 3, 0.0, 1.0));
        check(&logits, |d, x| cross_entropy(d, x, &[2, 0], 3, 0.2, 1.0));
        let targets = [1.0, 0.0, 1.0, f32::NAN, 0.0, 1.0];
        check(&logits, |d, x| binary_cross_entropy(d, x, &targets, 1.0));
        check(&logits, |d, x| squared_error(d, x, &targets, 1.0));
    }

    #[test]
    fn huge_logits_stay_finite() {
        let mut d = [0.0; 2];
        assert_eq!(cross_entropy(&mut d, &[1e30, -1e30], &[0], 2, 0.0, 1.0), 0.0);
        assert_eq!(d, [0.0, 0.0]);
        assert!(binary_cross_entropy(&mut d, &[1e30, -1e30], &[0.0, 1.0], 1.0).is_finite());
    }

    #[test]
    fn a_uniform_guess_costs_the_log_of_the_classes() {
        let mut d = [0.0; 4];
        assert!((cross_entropy(&mut d, &[0.0; 4], &[3], 4, 0.0, 0.5) - 4.0f64.ln()).abs() < 1e-12);
        assert_eq!(d, [0.125, 0.125, 0.125, -0.375]);
    }
}
