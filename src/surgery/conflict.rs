//! Conflict statistics, all read off the Gram matrix of each round.

use serde_json::{Value, json};

use super::methods::state::{Saved, pack_all};

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

/// Weight of a new cosine in the moving mean.
const FRESH: f64 = 0.05;

/// What the conflicts of a run came to: every round counts, whether it is reported or not.
pub struct Ledger {
    tasks: usize,
    /// (tasks x tasks) moving means of the cosines, 0 before the first.
    cosines: Vec<f64>,
    /// (tasks x tasks) rounds in which both were present, and in which they conflicted.
    rounds: Vec<f64>,
    conflicts: Vec<f64>,
}

/// Two tasks and how they got on.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    pub tasks: [usize; 2],
    /// Moving mean.
    pub cosine: f64,
    /// Share of their common rounds with a negative product.
    pub share: f64,
    pub rounds: u64,
}

/// As [`Pair`], with names.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedPair {
    pub tasks: [String; 2],
    pub cosine: f64,
    pub share: f64,
    pub rounds: u64,
}

impl Pair {
    pub fn named(&self, names: &[&str]) -> NamedPair {
        let tasks = self.tasks.map(|task| names[task].to_owned());
        NamedPair { tasks, cosine: self.cosine, share: self.share, rounds: self.rounds }
    }
}

impl Ledger {
    pub fn new(tasks: usize) -> Self {
        let zeros = vec![0.0; tasks * tasks];
        Self { tasks, cosines: zeros.clone(), rounds: zeros.clone(), conflicts: zeros }
    }

    /// Adds a round of the present `tasks` (run-wide indices).
    pub fn add(&mut self, conflicts: &Conflicts, tasks: &[usize]) {
        for (i, &one) in tasks.iter().enumerate() {
            for (j, &other) in tasks.iter().enumerate() {
                let (cell, cosine) = (one * self.tasks + other, conflicts.cosines[i * tasks.len() + j]);
                let share = if self.rounds[cell] == 0.0 { 1.0 } else { FRESH };
                self.cosines[cell] += share * (cosine - self.cosines[cell]);
                self.rounds[cell] += 1.0;
                self.conflicts[cell] += f64::from(cosine < 0.0);
            }
        }
    }

    /// (T x T) moving means of these tasks' cosines.
    pub fn cosines(&self, tasks: &[usize]) -> Vec<f64> {
        tasks.iter().flat_map(|one| tasks.iter().map(move |other| self.cosines[one * self.tasks + other])).collect()
    }

    /// At most `most` pairs that have conflicted, the most opposed first.
    pub fn worst(&self, most: usize) -> Vec<Pair> {
        let pairs = (0..self.tasks).flat_map(|i| (i + 1..self.tasks).map(move |j| [i, j]));
        let mut found: Vec<Pair> = pairs.filter_map(|tasks| self.pair(tasks)).collect();
        found.sort_by(|a, b| a.cosine.total_cmp(&b.cosine));
        found.truncate(most);
        found
    }

    fn pair(&self, tasks: [usize; 2]) -> Option<Pair> {
        let cell = tasks[0] * self.tasks + tasks[1];
        let (rounds, conflicts) = (self.rounds[cell], self.conflicts[cell]);
        let pair = || Pair { tasks, cosine: self.cosines[cell], share: conflicts / rounds, rounds: rounds as u64 };
        (conflicts > 0.0).then(pair)
    }

    /// For the checkpoint.
    pub fn state(&self) -> Value {
        json!({ "cosines": pack_all(&self.cosines), "rounds": pack_all(&self.rounds), "conflicts": pack_all(&self.conflicts) })
    }

    /// Takes back what [`Ledger::state`] gave.
    pub fn restore(&mut self, state: &Value) -> Result<(), String> {
        let saved = Saved::open("conflicts", state)?;
        let values = |name| saved.values(name, self.tasks * self.tasks);
        (self.cosines, self.rounds, self.conflicts) = (values("cosines")?, values("rounds")?, values("conflicts")?);
        Ok(())
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
    fn who_yielded_is_seen_in_the_weights() {
        let mut conflicts = Conflicts::of(&[4.0, -1.0, -1.0, 1.0], 2);
        conflicts.settle(&[0.5, 1.25], &[1.0, 2.0], 1.0);
        assert_eq!(conflicts.yielded, [-1.0, 0.5]);
    }

    #[test]
    fn the_ledger_counts_only_common_rounds() {
        let mut ledger = Ledger::new(3);
        ledger.add(&Conflicts::of(&[1.0, -0.5, -0.5, 1.0], 2), &[0, 2]);
        ledger.add(&Conflicts::of(&[1.0, 0.5, 0.5, 1.0], 2), &[0, 2]);
        ledger.add(&Conflicts::of(&[1.0, 0.5, 0.5, 1.0], 2), &[0, 1]);
        let worst = ledger.worst(5);
        assert_eq!(worst.len(), 1);
        assert_eq!((worst[0].tasks, worst[0].share, worst[0].rounds), ([0, 2], 0.5, 2));
        assert!((worst[0].cosine + 0.45).abs() < 1e-12);
        let mut copy = Ledger::new(3);
        copy.restore(&ledger.state()).unwrap();
        assert_eq!(copy.worst(5), worst);
    }
}
