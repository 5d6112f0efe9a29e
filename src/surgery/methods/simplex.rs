//! The probability simplex {w : w >= 0, sum w = 1}.

/// Euclidean projection onto the simplex (Held, Wolfe & Crowder 1974): subtract one threshold, cut at zero.
pub fn project(point: &[f64]) -> Vec<f64> {
    let mut sorted = point.to_vec();
    sorted.sort_by(|left, right| right.total_cmp(left));
    let mut sum = 0.0;
    let mut threshold = 0.0;
    for (position, value) in sorted.iter().enumerate() {
        sum += value;
        let candidate = (sum - 1.0) / (position + 1) as f64;
        if *value <= candidate {
            break;
        }
        threshold = candidate;
    }
    point.iter().map(|value| (value - threshold).max(0.0)).collect()
}

/// exp(x_i) / sum exp(x), without overflow.
pub fn softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let total: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|value| value / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_of_the_simplex_stay() {
        assert_eq!(project(&[0.25, 0.75]), [0.25, 0.75]);
        assert_eq!(project(&[5.0]), [1.0]);
    }

    #[test]
    fn far_points_reach_the_nearest_face() {
        assert_eq!(project(&[2.0, 0.0, -1.0]), [1.0, 0.0, 0.0]);
        assert_eq!(project(&[1.0, 1.0, -1.0]), [0.5, 0.5, 0.0]);
    }

    #[test]
    fn softmax_of_huge_logits_is_finite() {
        assert_eq!(softmax(&[1e308, 1e308]), [0.5, 0.5]);
    }
}
