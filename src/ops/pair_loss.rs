//! The loss of pairs of texts whose negatives are the other pairs of their micro-batch, over unit vectors.
//!
//! For n anchors a and their positives p: the cross-entropy of <a_i, p_j> / temperature over j, where i is right. With unit
//! vectors that is InfoNCE (van den Oord et al., arXiv 1807.03748) over cosines, and sentence-transformers'
//! `MultipleNegativesRankingLoss` with scale = 1 / temperature.

use multiversion::multiversion;
use rayon::prelude::*;

use super::simd::{add_scaled, dot};
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::Tensor;

/// One anchor against all positives.
struct Row<'a> {
    /// (2n x width), anchor and positive in turn.
    units: &'a [f32],
    width: usize,
    pair: usize,
}

/// Loss of an anchor; its scores (n) become their own gradient, times `scale`.
#[multiversion(targets("x86_64+avx2+fma"))]
fn anchor_loss(scores: &mut [f32], Row { units, width, pair }: Row, temperature: f32, scale: f32) -> f64 {
    let anchor = &units[2 * pair * width..][..width];
    for (score, positive) in scores.iter_mut().zip(units[width..].chunks(2 * width)) {
        *score = dot(anchor, &positive[..width]) / temperature;
    }
    let peak = scores.iter().fold(f64::NEG_INFINITY, |peak, &x| peak.max(f64::from(x)));
    let sum: f64 = scores.iter().map(|&x| (f64::from(x) - peak).exp()).sum();
    let loss = peak + sum.ln() - f64::from(scores[pair]);
    for (other, score) in scores.iter_mut().enumerate() {
        let probability = (f64::from(*score) - peak).exp() / sum;
        *score = (probability - f64::from(u8::from(other == pair))) as f32 * (scale / temperature);
    }
    loss
}

/// Gradient of one unit vector, from those of all scores.
#[multiversion(targets("x86_64+avx2+fma"))]
fn unit_gradient(dunit: &mut [f32], units: &[f32], dscores: &[f32], row: usize) {
    let (pairs, width, own) = (dscores.len().isqrt(), dunit.len(), row / 2);
    dunit.fill(0.0);
    for other in 0..pairs {
        let (factor, from) = if row.is_multiple_of(2) {
            (dscores[own * pairs + other], 2 * other + 1)
        } else {
            (dscores[other * pairs + own], 2 * other)
        };
        add_scaled(dunit, factor, &units[from * width..][..width]);
    }
}

/// Losses of all pairs of one micro-batch, and the gradients of their unit vectors.
pub struct PairLoss {
    /// (2n x width) f32: anchor and positive of each pair in turn.
    pub units: Tensor,
    /// As the units: their gradients.
    pub dunits: Tensor,
    /// (n x n) f32 for use inside.
    pub scores: Tensor,
    /// (2n) f64: a pair's loss in its anchor's row, zero in its positive's.
    pub row_losses: Tensor,
    pub temperature: f32,
    /// Factor on d(sum of losses).
    pub scale: f32,
}

impl Op for PairLoss {
    fn name(&self) -> &'static str {
        "pair_loss"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.units], [self.dunits, self.scores, self.row_losses])
    }

    fn host(&self, memory: &HostMemory) {
        let (units, width, pairs): (&[f32], _, _) = (memory.read(self.units), self.units.columns, self.units.rows / 2);
        let scores: &mut [f32] = memory.write(self.scores);
        let losses = memory.write::<f64>(self.row_losses).par_chunks_exact_mut(2);
        scores.par_chunks_exact_mut(pairs).zip(losses).enumerate().for_each(|(pair, (scores, losses))| {
            losses[0] = anchor_loss(scores, Row { units, width, pair }, self.temperature, self.scale);
            losses[1] = 0.0;
        });
        let rows = memory.write::<f32>(self.dunits).par_chunks_exact_mut(width).enumerate();
        rows.for_each(|(row, dunit)| unit_gradient(dunit, units, scores, row));
    }

    fn tables(&self) -> Vec<Bytes> {
        vec![bytes_of(&[self.temperature, self.scale])]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let (pairs, width) = (self.units.rows / 2, self.units.columns);
        let rows = Launch::line("pair_loss_rows", pairs, 256)
            .addresses([self.scores.at, self.row_losses.at, self.units.at, tables[0]])
            .int(pairs)
            .int(width);
        let units = Launch::new("pair_loss_units", [2 * pairs, width.div_ceil(256), 1], 256)
            .addresses([self.dunits.at, self.scores.at, self.units.at])
            .int(pairs)
            .int(width);
        vec![rows.into(), units.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::noise;

    const WIDTH: usize = 5;

    /// Sum of losses, and the gradient of the unit vectors.
    fn losses(units: &[f32], temperature: f32, scale: f32) -> (f64, Vec<f32>) {
        let pairs = units.len() / WIDTH / 2;
        let (mut dunits, mut scores, mut row_losses) =
            (vec![0.0f32; units.len()], vec![0.0f32; pairs * pairs], vec![0.0; 2 * pairs]);
        let mut memory = HostMemory::new();
        let loss = PairLoss {
            units: memory.lend(units).as_rows(2 * pairs, WIDTH),
            dunits: memory.lend_mut(&mut dunits).as_rows(2 * pairs, WIDTH),
            scores: memory.lend_mut(&mut scores).as_rows(pairs, pairs),
            row_losses: memory.lend_mut(&mut row_losses),
            temperature,
            scale,
        };
        loss.host(&memory.of(&loss));
        drop(memory);
        (row_losses.iter().sum(), dunits)
    }

    /// Central differences in steps of 2^-7; at this temperature an error of 2e-3 is expected of slopes around 2.
    #[test]
    fn gradients_match_differences() {
        let units = noise(6 * WIDTH, 3);
        let (_, gradient) = losses(&units, 0.5, 1.0);
        for at in 0..units.len() {
            let h = 1.0 / 128.0;
            let [up, down] = [h, -h].map(|step| {
                let mut moved = units.clone();
                moved[at] += step;
                losses(&moved, 0.5, 1.0).0
            });
            let slope = (up - down) / (2.0 * f64::from(h));
            assert!((slope - f64::from(gradient[at])).abs() < 2e-3, "{at}: {slope} against {}", gradient[at]);
        }
    }

    #[test]
    fn a_lone_pair_has_nothing_to_be_told_from() {
        let (loss, gradient) = losses(&noise(2 * WIDTH, 1), 0.05, 1.0);
        assert_eq!((loss, gradient), (0.0, vec![0.0; 2 * WIDTH]));
    }

    #[test]
    fn vectors_that_are_all_the_same_cost_the_log_of_the_pairs() {
        let (loss, gradient) = losses(&[1.0; 8 * WIDTH], 0.05, 0.25);
        assert!((loss - 4.0 * 4.0f64.ln()).abs() < 1e-12);
        assert!(gradient.iter().all(|d| d.abs() < 1e-6), "{gradient:?}");
    }
}

#[cfg(test)]
mod cases {
    use super::*;
    use crate::machine::tensor::DType;
    use crate::ops::testing::{On, Place, noise, on_devices};

    /// One pair, as many as a block has warps and more, more than it has threads; widths of less than a warp and of BERT.
    fn losses_of_pairs(on: On) {
        for (pairs, width) in [(1, 8), (2, 3), (9, 41), (40, 768), (259, 17)] {
            on.compare(|place: &mut Place| {
                let values: Vec<f32> = noise(2 * pairs * width, 2).iter().map(|x| x / (width as f32).sqrt()).collect();
                let units = place.f32(&values, width);
                let (dunits, scores) = (place.room(2 * pairs, width, DType::F32), place.room(pairs, pairs, DType::F32));
                let row_losses = place.room(1, 2 * pairs, DType::F64);
                place.run(&PairLoss { units, dunits, scores, row_losses, temperature: 0.1, scale: 0.5 });
                // A score of 10 in f32 is off by 1e-6, and so is a loss near zero.
                vec![place.found("dunits", dunits), place.found("losses", row_losses).within(2e-6, 1e-6)]
            });
        }
    }

    /// No comparison passes over what is not finite.
    fn a_vector_that_is_no_number_shows(on: On) {
        let shows = on.run(|device| {
            let place = &mut Place::on(device);
            let mut values = noise(4 * 8, 1);
            values[9] = f32::NAN;
            let units = place.f32(&values, 8);
            let (dunits, scores) = (place.room(4, 8, DType::F32), place.room(2, 2, DType::F32));
            let row_losses = place.room(1, 4, DType::F64);
            place.run(&PairLoss { units, dunits, scores, row_losses, temperature: 0.05, scale: 1.0 });
            let losses = place.found("losses", row_losses).values;
            losses[0].is_nan() && losses[2].is_nan()
        });
        assert!(shows);
    }

    on_devices! { losses_of_pairs, a_vector_that_is_no_number_shows }
}
