//! Conflict statistics of a round, all read off its Gram matrix.

/// How the present tasks' gradients point at each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflicts {
    /// (T) gradient norms.
    pub norms: Vec<f64>,
    /// (T x T) cosines; 0 where a gradient is zero.
    pub cosines: Vec<f64>,
    /// Pairs with a negative product.
    pub pairs: usize,
}

impl Conflicts {
    /// `gram` is (T x T).
    pub fn of(gram: &[f64], count: usize) -> Self {
        let norms: Vec<f64> = (0..count).map(|task| gram[task * count + task].max(0.0).sqrt()).collect();
        let mut cosines = vec![0.0; count * count];
        let mut pairs = 0;
        for i in 0..count {
            for j in 0..count {
                let scale = norms[i] * norms[j];
                if scale > 0.0 {
                    cosines[i * count + j] = gram[i * count + j] / scale;
                }
                pairs += usize::from(i < j && gram[i * count + j] < 0.0);
            }
        }
        Self { norms, cosines, pairs }
    }

    /// Share of all pairs that conflict; 0 for a single task.
    pub fn share(&self) -> f64 {
        let count = self.norms.len();
        if count < 2 { 0.0 } else { self.pairs as f64 / (count * (count - 1) / 2) as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_three_pairs_conflicts() {
        let conflicts = Conflicts::of(&[4.0, -2.0, 1.0, -2.0, 4.0, 0.0, 1.0, 0.0, 1.0], 3);
        assert_eq!(conflicts.pairs, 1);
        assert!((conflicts.share() - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(conflicts.norms, [2.0, 2.0, 1.0]);
        assert_eq!(conflicts.cosines[1], -0.5);
    }

    #[test]
    fn a_zero_gradient_has_no_direction() {
        let conflicts = Conflicts::of(&[0.0, 0.0, 0.0, 1.0], 2);
        assert_eq!((conflicts.pairs, conflicts.cosines[1]), (0, 0.0));
    }
}
