//! Cross-entropy over a whole vocabulary: many classes, so rows are shared out to threads and exponentials are f32.

use multiversion::multiversion;
use rayon::prelude::*;

use super::activation::exp;
use super::simd::{LANES, reduce};

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
        let expected = cross_entropy(&mut exact, &logits, &targets, CLASSES, 0.0, 0.5);
        assert!((loss - expected).abs() < 1e-5 * expected, "{loss} {expected}");
        assert!(ours.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
