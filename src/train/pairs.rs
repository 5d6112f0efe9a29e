//! Scores of pairs of texts on a split, from the unit vectors of all of them.

use multiversion::multiversion;
use rayon::prelude::*;

use crate::config::metrics_of;
use crate::config::schema::MetricKind;
use crate::data::{Split, TaskData};
use crate::ops::simd::dot;
use crate::train::evaluate::{Scores, TaskScores, mean_loss};
use crate::train::metrics::{Measured, Undefined};

/// Anchors that each positive is compared with while it is at hand.
const BLOCK: usize = 16;

/// What is known of one pair.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pair {
    /// Against the pairs of its batch.
    loss: f64,
    cosine: f64,
    /// No other positive of the split is nearer to its anchor, and none before it as near.
    is_nearest: bool,
    is_finite: bool,
}

/// Scores of a split whose texts have these unit vectors (2 pairs x width), anchor and positive in turn. A pair's loss is against
/// `batch` pairs that follow each other.
pub(super) fn pair_scores(task: &TaskData, split: &Split, units: &[f32], batch: usize) -> TaskScores {
    let pairs = compare(units, task.outputs, batch, task.settings.temperature);
    let of = |pairs: Vec<Pair>| Scores {
        examples: pairs.len(),
        loss: mean_loss(pairs.iter().map(|pair| (pair.loss, 1.0))),
        metrics: metrics_of(&task.settings).iter().map(|&kind| (kind, metric(&pairs, kind))).collect(),
    };
    let of_slice = |only: &Vec<bool>| of(pairs.iter().zip(only).filter(|(_, only)| **only).map(|(pair, _)| *pair).collect());
    let not_finite = (0..).zip(&pairs).filter(|(_, pair)| !pair.is_finite).map(|(example, _)| example).collect();
    TaskScores {
        slices: split.slices.iter().map(|(name, only)| (name.clone(), of_slice(only))).collect(),
        all: of(pairs),
        outputs: Vec::new(),
        not_finite,
    }
}

fn metric(pairs: &[Pair], kind: MetricKind) -> Measured {
    if pairs.is_empty() {
        return Err(Undefined::NoTargets);
    }
    if pairs.iter().any(|pair| !pair.is_finite) {
        return Err(Undefined::NotFinite);
    }
    let value = |pair: &Pair| if kind == MetricKind::Cosine { pair.cosine } else { f64::from(u8::from(pair.is_nearest)) };
    Ok(pairs.iter().map(value).sum::<f64>() / pairs.len() as f64)
}

fn compare(units: &[f32], width: usize, batch: usize, temperature: f64) -> Vec<Pair> {
    let anchors = units.par_chunks(2 * width * BLOCK).enumerate();
    anchors.flat_map_iter(|(block, own)| compare_block(own, block * BLOCK, units, [width, batch], temperature)).collect()
}

/// The pairs `own`, of which the first has the number `first`, against all.
#[multiversion(targets("x86_64+avx2+fma"))]
fn compare_block(own: &[f32], first: usize, units: &[f32], [width, batch]: [usize; 2], temperature: f64) -> Vec<Pair> {
    let anchors: Vec<&[f32]> = own.chunks(2 * width).map(|pair| &pair[..width]).collect();
    let mut nearest = vec![(f64::NEG_INFINITY, usize::MAX); anchors.len()];
    let mut scores: Vec<Vec<f64>> = vec![Vec::with_capacity(batch); anchors.len()];
    for (number, pair) in units.chunks(2 * width).enumerate() {
        for (at, anchor) in anchors.iter().enumerate() {
            let cosine = f64::from(dot(anchor, &pair[width..]));
            if cosine > nearest[at].0 {
                nearest[at] = (cosine, number);
            }
            if number / batch == (first + at) / batch {
                scores[at].push(cosine / temperature);
            }
        }
    }
    let found = |(at, scores): (usize, &Vec<f64>)| {
        let (number, right) = (first + at, scores[(first + at) % batch]);
        let peak = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - peak).exp()).sum();
        Pair {
            loss: peak + sum.ln() - right,
            cosine: right * temperature,
            is_nearest: nearest[at].1 == number,
            is_finite: own[2 * at * width..][..2 * width].iter().all(|x| x.is_finite()),
        }
    };
    scores.iter().enumerate().map(found).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directions in the plane, in degrees.
    fn units(degrees: &[f64]) -> Vec<f32> {
        degrees.iter().flat_map(|degrees| [degrees.to_radians().cos() as f32, degrees.to_radians().sin() as f32]).collect()
    }

    #[test]
    fn the_nearest_positive_is_looked_for_in_the_whole_split_and_the_loss_in_a_batch() {
        // The second anchor is nearer to the third's positive, which is in another batch.
        let pairs = compare(&units(&[0.0, 0.0, 90.0, 120.0, 180.0, 100.0]), 2, 2, 0.5);
        assert_eq!(pairs.iter().map(|pair| pair.is_nearest).collect::<Vec<bool>>(), [true, false, false]);
        let cosine = |degrees: f64| degrees.to_radians().cos();
        let loss = |right: f64, wrong: f64| (1.0 + ((cosine(wrong) - cosine(right)) / 0.5).exp()).ln();
        for (pair, expected) in pairs.iter().zip([loss(0.0, 120.0), loss(30.0, 90.0), 0.0]) {
            assert!((pair.loss - expected).abs() < 1e-6, "{pair:?} {expected}");
        }
        assert!((pairs[2].cosine - cosine(80.0)).abs() < 1e-6);
    }

    #[test]
    fn of_positives_that_are_as_near_the_first_counts() {
        let pairs = compare(&units(&[0.0, 10.0, 0.0, 10.0]), 2, 8, 0.5);
        assert_eq!(pairs.iter().map(|pair| pair.is_nearest).collect::<Vec<bool>>(), [true, false]);
    }

    /// Whatever lies before and behind a block.
    #[test]
    fn blocks_of_anchors_are_compared_with_all() {
        let degrees: Vec<f64> = (0..80).map(|at| f64::from(at / 2 * 9)).collect();
        let pairs = compare(&units(&degrees), 2, 7, 0.1);
        assert!(pairs.len() == 40 && pairs.iter().all(|pair| pair.is_nearest && (pair.cosine - 1.0).abs() < 1e-6));
    }

    #[test]
    fn what_is_not_finite_is_no_score() {
        let mut units = units(&[0.0, 10.0, 90.0, 90.0]);
        units[2] = f32::NAN;
        let pairs = compare(&units, 2, 8, 0.5);
        assert_eq!(pairs.iter().map(|pair| pair.is_finite).collect::<Vec<bool>>(), [false, true]);
        assert_eq!(metric(&pairs, MetricKind::Accuracy), Err(Undefined::NotFinite));
        assert_eq!(metric(&pairs[1..], MetricKind::Accuracy), Ok(1.0));
        assert_eq!(metric(&[], MetricKind::Cosine), Err(Undefined::NoTargets));
    }
}
