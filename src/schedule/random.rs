//! Seeded random numbers of the scheduler: jitter, and the synthetic costs and faults of a simulation.

use crate::random;

/// A generator for one of several streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Random(random::Random);

impl Random {
    /// Streams of one seed do not overlap in any way that shows.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut random = random::Random(seed ^ stream.wrapping_mul(0xD134_2543_DE82_EF95));
        random.next();
        Self(random)
    }

    /// In [0, 1).
    pub fn uniform(&mut self) -> f64 {
        self.0.uniform()
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.uniform() < probability
    }

    /// Exponential with mean 1: the gaps of a Poisson process.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.uniform()).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_right() {
        let mut random = Random::new(1, 2);
        let count = 20_000;
        let (mut uniform, mut exponential) = (0.0, 0.0);
        for _ in 0..count {
            uniform += random.uniform() / f64::from(count);
            exponential += random.exponential() / f64::from(count);
        }
        // Five standard errors: 0.289 / sqrt(n) and 1 / sqrt(n).
        assert!((uniform - 0.5).abs() < 5.0 * 0.289 / f64::from(count).sqrt(), "{uniform}");
        assert!((exponential - 1.0).abs() < 5.0 / f64::from(count).sqrt(), "{exponential}");
    }

    #[test]
    fn streams_differ() {
        assert_ne!(Random::new(1, 0).uniform(), Random::new(1, 1).uniform());
        assert_ne!(Random::new(1, 0).uniform(), Random::new(2, 0).uniform());
    }
}
