//! Cross-entropy over a whole vocabulary: many classes, so rows are shared out to threads and exponentials are f32.

use multiversion::multiversion;
use rayon::prelude::*;

use super::activation::exp;
use super::simd::{LANES, reduce};
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::Tensor;

/// The target of a row that has none: its loss and gradient are zero.
pub const IGNORED: u32 = u32::MAX;

/// dlogits (n x classes) = scale * (softmax - target); returns the SUM of the n losses, added in row order.
pub fn vocabulary_cross_entropy(dlogits: &mut [f32], logits: &[f32], targets: &[u32], classes: usize, scale: f32) -> f64 {
    let rows = dlogits.par_chunks_exact_mut(classes).zip(logits.par_chunks_exact(classes)).zip(targets);
    let losses: Vec<f64> = rows.map(|((dlogits, logits), &target)| row(dlogits, logits, target as usize, scale)).collect();
    losses.iter().sum()
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn row(dlogits: &mut [f32], logits: &[f32], target: usize, scale: f32) -> f64 {
    let peak = logits.iter().fold(f32::NEG_INFINITY, |peak, &x| peak.max(x));
    let mut lanes = [0.0f32; LANES];
    // Blocks keep the f32 sums short: 30,000 terms are added as f64 sums of 16 x 64.
    let mut total = 0.0;
    for (dlogits, logits) in dlogits.chunks_mut(64 * LANES).zip(logits.chunks(64 * LANES)) {
        for (index, (d, &x)) in dlogits.iter_mut().zip(logits).enumerate() {
            *d = exp(x - peak);
            lanes[index % LANES] += *d;
        }
        total += reduce(&lanes);
        lanes = [0.0; LANES];
    }
    let factor = (f64::from(scale) / total) as f32;
    dlogits.iter_mut().for_each(|d| *d *= factor);
    dlogits[target] -= scale;
    total.ln() + f64::from(peak) - f64::from(logits[target])
}

/// As [`vocabulary_cross_entropy`], of some rows at a time: their logits become the gradient, where one is wanted.
pub struct VocabularyLoss<'a> {
    /// (n x classes) logits, then their gradient; on a device bf16.
    pub logits: Tensor,
    /// (n) f64
    pub row_losses: Tensor,
    /// (n) class indices, or [`IGNORED`].
    pub targets: &'a [u32],
    /// Factor on d(sum of losses).
    pub scale: f32,
    /// The gradient is wanted.
    pub backward: bool,
}

impl Op for VocabularyLoss<'_> {
    fn name(&self) -> &'static str {
        "vocabulary_loss"
    }

    fn operands(&self) -> Operands {
        Operands::new([], [self.logits, self.row_losses])
    }

    fn host(&self, memory: &HostMemory) {
        let (classes, logits, losses) = (self.logits.columns, memory.write(self.logits), memory.write(self.row_losses));
        let rows = logits.par_chunks_exact_mut(classes).zip(losses).zip(self.targets);
        rows.for_each(|((logits, loss), &target): ((&mut [f32], &mut f64), _)| {
            let mut gradient = vec![0.0; classes];
            *loss = if target == IGNORED { 0.0 } else { row(&mut gradient, logits, target as usize, self.scale) };
            if self.backward {
                logits.copy_from_slice(&gradient);
            }
        });
    }

    fn tables(&self) -> Vec<Bytes> {
        vec![bytes_of(self.targets), bytes_of(&[self.scale])]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let launch = Launch::line("vocabulary_loss_rows", self.logits.rows, 512)
            .addresses([self.logits.at, self.row_losses.at, tables[0], tables[1]])
            .int(self.logits.columns)
            .int(usize::from(self.backward));
        vec![launch.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::loss::cross_entropy;
    use crate::ops::philox::{Keyed, Stream};

    /// `cross_entropy` works in f64 and is itself held against differences.
    #[test]
    fn agrees_with_the_f64_loss() {
        const CLASSES: usize = 3001;
        let random = Keyed::new(2, Stream::Init, 0, 0, 0);
        let logits: Vec<f32> = (0..3 * CLASSES as u32).map(|i| 4.0 * random.normal(i) as f32).collect();
        let targets = [0, 17, 3000];
        let (mut ours, mut exact) = (vec![0.0; logits.len()], vec![0.0; logits.len()]);
        let loss = vocabulary_cross_entropy(&mut ours, &logits, &targets, CLASSES, 0.5);
        let expected = cross_entropy(&mut exact, &logits, &targets, CLASSES, (0.0, &[]), 0.5);
        assert!((loss - expected).abs() < 1e-5 * expected, "{loss} {expected}");
        assert!(ours.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}

#[cfg(test)]
mod cases {
    use super::*;
    use crate::machine::tensor::DType;
    use crate::ops::testing::{On, Place, coarse_noise, on_devices};

    /// Of no whole vectors, of one value, and of more than the threads of a block take at once; one row has no target.
    fn losses_of_words(on: On) {
        for classes in [1, 3, 40, 1003, 4101] {
            for backward in [true, false] {
                on.compare(|place: &mut Place| {
                    let logits: Vec<f32> = coarse_noise(5 * classes, 4).iter().map(|x| 4.0 * x).collect();
                    let mut targets = [0, 1002, 517, 1, 999].map(|target| target % classes as u32);
                    targets[3] = IGNORED;
                    let (logits, row_losses) = (place.narrow_in_place(&logits, classes), place.room(1, 5, DType::F64));
                    place.run(&VocabularyLoss { logits, row_losses, targets: &targets, scale: 0.5, backward });
                    // A loss near zero is what f32 sums leave of one.
                    vec![place.found("logits", logits), place.found("losses", row_losses).within(2e-6, 1e-7)]
                });
            }
        }
    }

    /// No comparison passes over what is not finite.
    fn a_logit_that_is_no_number_shows(on: On) {
        for wrong in [f32::NAN, f32::INFINITY] {
            let shows = on.run(|device| {
                let place = &mut Place::on(device);
                let mut logits = coarse_noise(40, 1);
                logits[20] = wrong;
                let (logits, row_losses) = (place.narrow_in_place(&logits, 40), place.room(1, 1, DType::F64));
                place.run(&VocabularyLoss { logits, row_losses, targets: &[3], scale: 1.0, backward: true });
                place.found("losses", row_losses).values[0].is_nan()
            });
            assert!(shows, "{wrong}");
        }
    }

    on_devices! { losses_of_words, a_logit_that_is_no_number_shows }
}
