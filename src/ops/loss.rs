//! Losses of one segment's logits, with their gradients.
//!
//! Each returns the SUM of the losses of the observed targets (f64, in row order) and writes dlogits = scale * d(sum)/dlogits.
//! A missing target is NaN: it adds nothing and gets a zero gradient.

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
