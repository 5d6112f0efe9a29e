//! Conflict statistics, all read off the Gram matrix of each round.

use super::blocks::Blocks;
use super::gram::RoundGram;

/// How the present tasks' gradients point at each other in one round.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflicts {
    /// (T) gradient norms.
    pub norms: Vec<f64>,
    /// (T x T) cosines; 0 where a gradient is zero.
    pub cosines: Vec<f64>,
    /// Pairs with a negative product.
    pub pairs: usize,
    /// (T) length by which surgery changed the task's part of the update, |w_t - w| |g_t| with w the weight without
    /// surgery; negative where the task got less than that. Empty until [`Conflicts::settle`].
    pub yielded: Vec<f64>,
}

/// The conflicts of a round, in the whole encoder and in each of its blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundConflicts {
    pub whole: Conflicts,
    /// (B); empty where the encoder is one block.
    pub blocks: Vec<Conflicts>,
}

impl RoundConflicts {
    pub fn of(gram: &RoundGram, count: usize) -> Self {
        let parts = if gram.blocks.len() > 1 { &gram.blocks[..] } else { &[] };
        Self { whole: Conflicts::of(&gram.total(), count), blocks: parts.iter().map(|gram| Conflicts::of(gram, count)).collect() }
    }

    /// As [`Conflicts::settle`], with one set of weights for each part.
    pub fn settle(&mut self, blocks: &Blocks, weights: &[Vec<f64>], factors: &[f64], plain: f64) {
        for (block, conflicts) in self.blocks.iter_mut().enumerate() {
            conflicts.settle(&weights[blocks.set_of(block)], factors, plain);
        }
        match weights {
            [one] => self.whole.settle(one, factors, plain),
            // The parts are orthogonal: lengths add up in squares, and the larger sum of squares gives the sign.
            _ => {
                let signed =
                    |task: usize| self.blocks.iter().map(|block| block.yielded[task] * block.yielded[task].abs()).sum::<f64>();
                let length = |task: usize| self.blocks.iter().map(|block| block.yielded[task].powi(2)).sum::<f64>().sqrt();
                self.whole.yielded = (0..factors.len()).map(|task| length(task).copysign(signed(task))).collect();
            }
        }
    }
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
        Self { norms, cosines, pairs, yielded: Vec::new() }
    }

    /// Takes in what surgery decided: weights of gradients that were scaled by `factors`, and the `plain` weight.
    pub fn settle(&mut self, weights: &[f64], factors: &[f64], plain: f64) {
        let changes = weights.iter().zip(factors).zip(&self.norms);
        self.yielded = changes.map(|((weight, factor), norm)| (weight - plain) * factor * norm).collect();
    }

    /// Share of all pairs that conflict; 0 for a single task.
    pub fn share(&self) -> f64 {
        let count = self.norms.len();
        if count < 2 { 0.0 } else { self.pairs as f64 / (count * (count - 1) / 2) as f64 }
    }

    /// (T x T) magnitude similarity 2 |g_i| |g_j| / (|g_i|^2 + |g_j|^2): 1 for equal lengths (Yu et al., definition 2);
    /// 0 where both are zero.
    pub fn similarities(&self) -> Vec<f64> {
        let similarity = |a: f64, b: f64| if a == 0.0 && b == 0.0 { 0.0 } else { 2.0 * a * b / (a * a + b * b) };
        self.norms.iter().flat_map(|&a| self.norms.iter().map(move |&b| similarity(a, b))).collect()
    }

    /// Pairs that meet the part of the tragic triad which needs no curvature: cosine <= -similarity (Yu et al., theorem 2).
    pub fn tragic_pairs(&self) -> usize {
        let count = self.norms.len();
        let similarities = self.similarities();
        let tragic =
            |i: usize, j: usize| self.cosines[i * count + j] < 0.0 && self.cosines[i * count + j] <= -similarities[i * count + j];
        (0..count).map(|i| (i + 1..count).filter(|&j| tragic(i, j)).count()).sum()
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
        assert_eq!(conflicts.similarities(), [0.0, 0.0, 0.0, 1.0]);
    }

    /// Lengths 1 and 10: similarity 20 / 101; opposed by a cosine of -0.5 they meet the triad's condition, by -0.1 not.
    #[test]
    fn tragic_pairs_differ_in_length_and_direction() {
        assert_eq!(Conflicts::of(&[1.0, -5.0, -5.0, 100.0], 2).tragic_pairs(), 1);
        assert_eq!(Conflicts::of(&[1.0, -1.0, -1.0, 100.0], 2).tragic_pairs(), 0);
        assert_eq!(Conflicts::of(&[1.0, -0.5, -0.5, 1.0], 2).tragic_pairs(), 0);
    }

    #[test]
    fn blocks_yield_apart() {
        let blocks = Blocks { names: vec!["a".into(), "b".into()], ranges: vec![0..1, 1..2], table: None, apart: true };
        let gram = RoundGram { blocks: vec![vec![9.0], vec![16.0]], cross: Vec::new(), added: None };
        let mut conflicts = RoundConflicts::of(&gram, 1);
        conflicts.settle(&blocks, &[vec![0.0], vec![2.0]], &[1.0], 1.0);
        assert_eq!([conflicts.blocks[0].yielded[0], conflicts.blocks[1].yielded[0]], [-3.0, 4.0]);
        assert_eq!((conflicts.whole.norms[0], conflicts.whole.yielded[0]), (5.0, 5.0));
    }

    #[test]
    fn who_yielded_is_seen_in_the_weights() {
        let mut conflicts = Conflicts::of(&[4.0, -1.0, -1.0, 1.0], 2);
        conflicts.settle(&[0.5, 1.25], &[1.0, 2.0], 1.0);
        assert_eq!(conflicts.yielded, [-1.0, 0.5]);
    }
}
