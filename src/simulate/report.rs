//! What a simulation came to.

use crate::schedule::Nanos;
use crate::schedule::dispatcher::Counts;

/// One simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Time of the last event.
    pub makespan: Nanos,
    pub counts: Counts,
    /// By class.
    pub classes: Vec<ClassReport>,
    /// Share of the lanes' time in which a quantum ran.
    pub busy_share: f64,
    /// Largest difference between a task's share of the service and its weight's share, while all had work; none if the
    /// policy has no weights.
    pub share_error: Option<f64>,
    pub peak_bytes: u64,
    /// Bytes reserved when all was over.
    pub bytes_at_end: u64,
    pub timeouts: u64,
    /// Quanta that were still to come when it was stopped; see [`super::Simulation::stop_at`].
    pub left: u64,
    pub failed: Vec<usize>,
    /// By task.
    pub samples: Vec<Samples>,
    /// Made-up parameters after all commits: equal if the same gradients were committed in the same order.
    pub weights: u64,
    pub event_hash: u64,
}

/// What became of a task's quanta: each is committed once or reported dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Samples {
    pub planned: u64,
    pub committed: u64,
    pub dropped: u64,
    /// Hash over the committed ones in order.
    pub digest: u64,
}

/// Times of one class, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClassReport {
    pub jobs: u64,
    /// From becoming due to completion.
    pub latency: Quantiles,
    /// From becoming due to the first start.
    pub wait: Quantiles,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quantiles {
    pub mean: f64,
    pub p50: Nanos,
    pub p95: Nanos,
    pub p99: Nanos,
    pub max: Nanos,
}

impl Quantiles {
    /// Nearest rank: the smallest value that is not exceeded by this share of all.
    pub fn of(values: &mut [Nanos]) -> Self {
        if values.is_empty() {
            return Self::default();
        }
        let mean = values.iter().map(|&value| value as f64).sum::<f64>() / values.len() as f64;
        let mut quantile = |percent: usize| {
            let rank = (values.len() * percent).div_ceil(100) - 1;
            *values.select_nth_unstable(rank).1
        };
        Self { mean, p50: quantile(50), p95: quantile(95), p99: quantile(99), max: quantile(100) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_nearest_rank() {
        let found = Quantiles::of(&mut (1..=200).rev().collect::<Vec<_>>());
        assert_eq!((found.p50, found.p95, found.p99, found.max, found.mean), (100, 190, 198, 200, 100.5));
        assert_eq!(Quantiles::of(&mut [7]).p50, 7);
    }
}
