//! Losses of one segment's logits, with their gradients.
//!
//! Each returns the SUM of the losses of the observed targets (f64, in row order) and writes dlogits = scale * d(sum)/dlogits.
//! A missing target is NaN: it adds nothing and gets a zero gradient.

use bytemuck::{Pod, Zeroable};

use super::vocabulary_loss::vocabulary_cross_entropy;
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::Tensor;

/// dlogits (n x classes) of softmax cross-entropy against class indices (n), of whose probability `smoothing` is spread
/// evenly over all classes (Szegedy et al., CVPR 2016). `weights` (classes, or none for 1 each) multiply the terms of their
/// classes, as PyTorch's `CrossEntropyLoss(weight=..., reduction="sum")`.
pub fn cross_entropy(
    dlogits: &mut [f32],
    logits: &[f32],
    targets: &[u32],
    classes: usize,
    (smoothing, weights): (f64, &[f32]),
    scale: f32,
) -> f64 {
    let even = smoothing / classes as f64;
    let weight = |class: usize| weights.get(class).map_or(1.0, |&weight| f64::from(weight));
    let spread = even * weights.iter().map(|&weight| f64::from(weight)).sum::<f64>();
    let mut total = 0.0;
    for ((dlogits, logits), &target) in dlogits.chunks_exact_mut(classes).zip(logits.chunks_exact(classes)).zip(targets) {
        let peak = logits.iter().fold(f64::NEG_INFINITY, |peak, &x| peak.max(f64::from(x)));
        let sum: f64 = logits.iter().map(|&x| (f64::from(x) - peak).exp()).sum();
        let log_sum = peak + sum.ln();
        let target = target as usize;
        let own = (1.0 - smoothing) * weight(target);
        let all = if weights.is_empty() { 1.0 } else { own + spread };
        total += all * log_sum - own * f64::from(logits[target]);
        if smoothing > 0.0 {
            total -= even * logits.iter().enumerate().map(|(class, &x)| weight(class) * f64::from(x)).sum::<f64>();
        }
        for (class, (d, &x)) in dlogits.iter_mut().zip(logits).enumerate() {
            let probability = (f64::from(x) - peak).exp() / sum;
            let wanted = even * weight(class) + if class == target { own } else { 0.0 };
            *d = ((all * probability - wanted) as f32) * scale;
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
    /// (rows) class index; smoothed by this share; (outputs) weights of the classes, or none.
    Class(&'a [u32], f64, &'a [f32]),
    /// (rows) index of a word out of a whole vocabulary; a device has [`VocabularyLoss`] for them.
    ///
    /// [`VocabularyLoss`]: super::vocabulary_loss::VocabularyLoss
    Word(&'a [u32]),
    /// So many rows whose losses are known, and how many of the logits are theirs.
    Known { rows: usize, logits: usize },
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
    /// Its sum's number.
    pub sum: usize,
    /// The sum begins with this part, and does not gain it.
    pub first: bool,
}

impl Part<'_> {
    /// Logits of the part.
    pub fn len(&self) -> usize {
        match self.targets {
            Targets::Class(classes, ..) | Targets::Word(classes) => classes.len() * self.outputs,
            Targets::Label(values) | Targets::Value(values) => values.len(),
            Targets::Known { logits, .. } => logits,
        }
    }

    /// Rows of losses.
    pub fn rows(&self) -> usize {
        match self.targets {
            Targets::Known { rows, .. } => rows,
            _ => self.len() / self.outputs,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sum of the losses of the observed targets; writes their scaled gradient.
    pub fn loss(&self, dlogits: &mut [f32], logits: &[f32]) -> f64 {
        match self.targets {
            Targets::Class(classes, smoothing, weights) => {
                cross_entropy(dlogits, logits, classes, self.outputs, (smoothing, weights), self.scale)
            }
            Targets::Word(words) => vocabulary_cross_entropy(dlogits, logits, words, self.outputs, self.scale),
            Targets::Label(labels) => binary_cross_entropy(dlogits, logits, labels, self.scale),
            Targets::Value(values) => squared_error(dlogits, logits, values, self.scale),
            Targets::Known { .. } => unreachable!("losses that are known are not computed again"),
        }
    }
}

/// Losses by their number in kernels/loss.cu.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Loss {
    CrossEntropy = 0,
    BinaryCrossEntropy = 1,
    SquaredError = 2,
    Known = 3,
}

/// One task's logits and targets, as `LossSegment` of kernels/loss.cu.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct LossSegment {
    /// Rows of logits, from `start` to `end`.
    start: u32,
    end: u32,
    outputs: u32,
    /// A [`Loss`].
    loss: u32,
    /// Which sum.
    task: u32,
    scale: f32,
    logits: u64,
    /// Where its targets begin: u32 classes (rows) or f32 values (rows x outputs), counted in 4 bytes.
    targets: u64,
    /// Where the weights of its classes begin among the targets: f32 (outputs); or [`UNWEIGHTED`].
    weights: u64,
}

const UNWEIGHTED: u64 = u64::MAX;

/// Sums of losses of each part (f64, over observed targets), and the scaled gradients of the logits.
pub struct Losses<'a> {
    /// f64, of which each part has its own.
    pub sums: Tensor,
    /// Part after part.
    pub dlogits: Tensor,
    pub logits: Tensor,
    /// (rows) f64, those that are known among them; a device's kernels pass the others on. None on the host where none is known.
    pub row_losses: Tensor,
    pub parts: Vec<Part<'a>>,
}

impl Losses<'_> {
    /// The parts' segments, and their targets end to end.
    fn segments(&self) -> (Vec<LossSegment>, Vec<u32>) {
        let (mut segments, mut targets) = (Vec::with_capacity(self.parts.len()), Vec::new());
        let (mut start, mut logits) = (0, 0);
        for part in &self.parts {
            let end = start + part.rows() as u32;
            let (loss, own, class_weights): (Loss, &[u32], &[f32]) = match part.targets {
                Targets::Class(classes, _, weights) => (Loss::CrossEntropy, classes, weights),
                Targets::Word(_) => unreachable!("a device computes losses of words some rows at a time"),
                Targets::Known { .. } => (Loss::Known, &[], &[]),
                Targets::Label(labels) => (Loss::BinaryCrossEntropy, bytemuck::cast_slice(labels), &[]),
                Targets::Value(values) => (Loss::SquaredError, bytemuck::cast_slice(values), &[]),
            };
            let weights = (targets.len() + own.len()) as u64;
            segments.push(LossSegment {
                start,
                end,
                outputs: part.outputs as u32,
                loss: loss as u32,
                task: part.sum as u32,
                scale: part.scale,
                logits,
                targets: targets.len() as u64,
                weights: if class_weights.is_empty() { UNWEIGHTED } else { weights },
            });
            targets.extend(own);
            targets.extend(bytemuck::cast_slice::<_, u32>(class_weights));
            logits += part.len() as u64;
            start = end;
        }
        (segments, targets)
    }
}

impl Op for Losses<'_> {
    fn name(&self) -> &'static str {
        "losses"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.logits], [self.dlogits, self.sums, self.row_losses])
    }

    fn host(&self, memory: &HostMemory) {
        let (mut dlogits, mut logits): (&mut [f32], &[f32]) = (memory.write(self.dlogits), memory.read(self.logits));
        let (sums, row_losses): (&mut [f64], &[f64]) = (memory.write(self.sums), memory.write(self.row_losses));
        let mut row = 0;
        for part in &self.parts {
            let (own, rest) = std::mem::take(&mut dlogits).split_at_mut(part.len());
            let (known, tail) = logits.split_at(part.len());
            let loss = match part.targets {
                Targets::Known { rows, .. } => row_losses[row..row + rows].iter().sum(),
                _ => part.loss(own, known),
            };
            sums[part.sum] = if part.first { loss } else { sums[part.sum] + loss };
            (dlogits, logits) = (rest, tail);
            row += part.rows();
        }
    }

    fn tables(&self) -> Vec<Bytes> {
        let (segments, targets) = self.segments();
        let add: Vec<u32> = self.parts.iter().map(|part| u32::from(!part.first)).collect();
        vec![bytes_of(&segments), bytes_of(&targets), bytes_of(&add)]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let &[segments, targets, add] = tables else { unreachable!("three tables") };
        let rows: usize = self.parts.iter().map(Part::rows).sum();
        let count = self.parts.len();
        // One share for all classification tasks of a run.
        let smoothing = self.parts.iter().find_map(|part| match part.targets {
            Targets::Class(_, smoothing, _) => Some(smoothing),
            _ => None,
        });
        let by_rows = Launch::line("loss_rows", rows.div_ceil(8), 256)
            .addresses([self.dlogits.at, self.row_losses.at, self.logits.at, targets, segments])
            .int(count)
            .int(rows)
            .double(smoothing.unwrap_or(0.0))
            .addresses([0]);
        let sums = Launch::line("loss_sums", count, 256).addresses([self.sums.at, self.row_losses.at, segments, add]);
        vec![by_rows.into(), sums.into()]
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
        for weights in [&[][..], &[0.5, 0.0, 3.0]] {
            check(&logits, |d, x| cross_entropy(d, x, &[2, 0], 3, (0.0, weights), 1.0));
            check(&logits, |d, x| cross_entropy(d, x, &[2, 0], 3, (0.2, weights), 1.0));
        }
        let targets = [1.0, 0.0, 1.0, f32::NAN, 0.0, 1.0];
        check(&logits, |d, x| binary_cross_entropy(d, x, &targets, 1.0));
        check(&logits, |d, x| squared_error(d, x, &targets, 1.0));
    }

    #[test]
    fn huge_logits_stay_finite() {
        let mut d = [0.0; 2];
        assert_eq!(cross_entropy(&mut d, &[1e30, -1e30], &[0], 2, (0.0, &[]), 1.0), 0.0);
        assert_eq!(d, [0.0, 0.0]);
        assert!(binary_cross_entropy(&mut d, &[1e30, -1e30], &[0.0, 1.0], 1.0).is_finite());
    }

    #[test]
    fn a_uniform_guess_costs_the_log_of_the_classes() {
        let mut d = [0.0; 4];
        assert!((cross_entropy(&mut d, &[0.0; 4], &[3], 4, (0.0, &[]), 0.5) - 4.0f64.ln()).abs() < 1e-12);
        assert_eq!(d, [0.125, 0.125, 0.125, -0.375]);
    }
}

#[cfg(test)]
mod cases {
    use super::*;
    use crate::machine::tensor::DType;
    use crate::ops::testing::{On, Place, noise, on_devices};

    /// Three tasks; the sums of the first and the last gain an earlier micro-batch's.
    fn losses_of_every_kind(on: On) {
        let classes = [2u32, 0, 1, 1, 2];
        let mut values = noise(9, 5);
        values[3] = f32::NAN;
        let labels: Vec<f32> = (0..160).map(|i| if i % 7 == 0 { f32::NAN } else { (i % 2) as f32 }).collect();
        on.compare(|place: &mut Place| {
            let parts = vec![
                Part { targets: Targets::Class(&classes, 0.1, &[]), outputs: 3, scale: 0.5, sum: 2, first: false },
                Part { targets: Targets::Value(&values), outputs: 1, scale: 0.25, sum: 0, first: true },
                Part { targets: Targets::Label(&labels), outputs: 40, scale: 2.0, sum: 1, first: false },
            ];
            let count = parts.iter().map(Part::len).sum();
            let (sums, dlogits) = (place.f64(&[10.0; 3]), place.room(1, count, DType::F32));
            let (logits, row_losses) = (place.f32(&noise(count, 4), count), place.scratch(18, DType::F64));
            place.run(&Losses { sums, dlogits, logits, row_losses, parts });
            vec![place.found("dlogits", dlogits), place.found("sums", sums).within(1e-12, 0.0)]
        });
    }

    /// Tasks with weights of their classes, one of them 0, beside one without.
    fn losses_of_weighted_classes(on: On) {
        let classes = [2u32, 0, 1, 1, 2];
        let many: Vec<f32> = noise(40, 7).iter().map(|x| x.abs()).collect();
        for smoothing in [0.0, 0.1] {
            on.compare(|place: &mut Place| {
                let weighted = Targets::Class(&classes, smoothing, &[0.25, 0.0, 4.0]);
                let parts = vec![
                    Part { targets: weighted, outputs: 3, scale: 0.5, sum: 0, first: true },
                    Part { targets: Targets::Class(&classes, smoothing, &[]), outputs: 3, scale: 0.5, sum: 1, first: true },
                    Part { targets: Targets::Class(&[39, 3], smoothing, &many), outputs: 40, scale: 2.0, sum: 2, first: false },
                ];
                let count = parts.iter().map(Part::len).sum();
                let (sums, dlogits) = (place.f64(&[10.0; 3]), place.room(1, count, DType::F32));
                let (logits, row_losses) = (place.f32(&noise(count, 4), count), place.scratch(12, DType::F64));
                place.run(&Losses { sums, dlogits, logits, row_losses, parts });
                vec![place.found("dlogits", dlogits), place.found("sums", sums).within(1e-12, 0.0)]
            });
        }
    }

    /// Losses that are known, between tasks of other kinds.
    fn known_losses_are_added_up(on: On) {
        on.compare(|place: &mut Place| {
            let parts = vec![
                Part { targets: Targets::Value(&[0.5]), outputs: 1, scale: 0.25, sum: 0, first: true },
                Part { targets: Targets::Known { rows: 5, logits: 0 }, outputs: 1003, scale: 0.5, sum: 2, first: false },
                Part { targets: Targets::Known { rows: 2, logits: 4 }, outputs: 2, scale: 0.5, sum: 3, first: true },
                Part { targets: Targets::Class(&[2, 0], 0.0, &[]), outputs: 3, scale: 1.0, sum: 1, first: true },
            ];
            // Whoever knows losses has left their gradients.
            let (sums, dlogits) = (place.f64(&[10.0; 4]), place.f32(&noise(11, 5), 11));
            let known = [0.0, 1.0, 2.5, 3.0, 4.0, 5.0, 6.0, 0.5, 0.0, 0.0];
            let (logits, row_losses) = (place.f32(&noise(11, 4), 11), place.f64(&known));
            place.run(&Losses { sums, dlogits, logits, row_losses, parts });
            vec![place.found("dlogits", dlogits), place.found("sums", sums).within(1e-12, 0.0)]
        });
    }

    on_devices! { losses_of_every_kind, losses_of_weighted_classes, known_losses_are_added_up }
}
