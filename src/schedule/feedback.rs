//! Weights that follow the load: a task that took much of the time, or whose rounds waited long, gets less of what comes.

use super::Nanos;

/// How weights follow the load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Feedback {
    /// Rounds between two changes.
    pub every: u64,
    /// What the time a task took counts, and what the time its rounds waited.
    pub load: f64,
    pub latency: f64,
    /// Bounds of a weight, of 100.
    pub min: f64,
    pub max: f64,
}

/// What was seen of a task since the last change.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    pub rounds: u64,
    /// Time that its rounds took, and time that they waited for their turn.
    pub busy: Nanos,
    pub waited: Nanos,
}

impl Seen {
    fn mean_wait(&self) -> f64 {
        self.waited as f64 / self.rounds.max(1) as f64
    }
}

/// A change of all weights, and what it was made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Reweighted {
    /// (tasks)
    pub weights: Vec<f64>,
    pub seen: Vec<Seen>,
}

impl Feedback {
    /// (tasks) 100 (1 - (load x time taken + latency x mean wait)) within the bounds, both relative to the task with the most.
    pub fn weights(&self, seen: &[Seen]) -> Vec<f64> {
        let most = |value: fn(&Seen) -> f64| seen.iter().map(value).fold(f64::MIN_POSITIVE, f64::max);
        let (busy, wait) = (most(|seen| seen.busy as f64), most(Seen::mean_wait));
        let weight = |seen: &Seen| {
            let used = self.load * seen.busy as f64 / busy + self.latency * seen.mean_wait() / wait;
            (100.0 * (1.0 - used)).clamp(self.min, self.max)
        };
        seen.iter().map(weight).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_most_gets_least() {
        let feedback = Feedback { every: 50, load: 0.6, latency: 0.4, min: 1.0, max: 100.0 };
        let seen = |rounds, busy, waited| Seen { rounds, busy, waited };
        let weights = feedback.weights(&[seen(10, 100, 1000), seen(10, 50, 500), seen(0, 0, 0)]);
        // The first has the most of both: 100 (1 - 1), raised to the least; the second half of both.
        assert_eq!(weights, [1.0, 50.0, 100.0]);
        assert_eq!(feedback.weights(&[Seen::default(); 2]), [100.0; 2]);
        let kept = Feedback { min: 20.0, max: 60.0, ..feedback };
        assert_eq!(kept.weights(&[seen(1, 9, 9), seen(1, 0, 0)]), [20.0, 60.0]);
    }
}
