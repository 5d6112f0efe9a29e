//! What follows a failure: wait, shrink, go back, or give up.

use serde::{Deserialize, Serialize};

use super::Nanos;
use super::random::Random;

/// How often and after how long a task is tried again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// Failures in a row before the task has failed.
    pub max: u32,
    /// Wait after the first failure; doubles with each further one.
    pub base: Nanos,
    /// Longest wait, jitter left out.
    pub cap: Nanos,
}

impl Default for Retry {
    fn default() -> Self {
        Self { max: 3, base: 5_000_000_000, cap: 60_000_000_000 }
    }
}

/// How a quantum ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Ok,
    /// An allocation failed.
    OutOfMemory,
    /// A loss or gradient is not finite.
    NotFinite,
    /// Whoever computed or read for it died.
    Crashed,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::OutOfMemory => "out_of_memory",
            Status::NotFinite => "not_finite",
            Status::Crashed => "crashed",
        }
    }
}

/// The answer to a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Free what is cached, then try the same again.
    Trim,
    /// Try again with half the micro-batch and twice the accumulation.
    Halve,
    /// Try the same again.
    Again,
    /// Back to the last commit; then try again.
    Restore,
    /// Back to the last commit, and no more tries.
    GiveUp,
}

impl Retry {
    /// What to do about failure number `failures` in a row. Memory: trim, then halve while that can be done, then restore.
    pub fn remedy(&self, status: Status, failures: u32, can_halve: bool) -> Remedy {
        if failures > self.max {
            return Remedy::GiveUp;
        }
        match status {
            Status::Ok | Status::Crashed => Remedy::Again,
            Status::NotFinite => Remedy::Restore,
            Status::OutOfMemory if failures == 1 => Remedy::Trim,
            Status::OutOfMemory if can_halve => Remedy::Halve,
            Status::OutOfMemory => Remedy::Restore,
        }
    }

    /// min(cap, base * 2^(failures - 1)), lengthened by up to a tenth so that tasks that failed together do not return together.
    pub fn wait(&self, failures: u32, random: &mut Random) -> Nanos {
        let doubled = self.base.saturating_mul(1u64.checked_shl(failures.saturating_sub(1)).unwrap_or(u64::MAX));
        let wait = doubled.min(self.cap);
        wait.saturating_add((wait as f64 * 0.1 * random.uniform()) as Nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap() {
        let retry = Retry { max: 9, base: 100, cap: 1000 };
        let mut random = Random::new(1, 1);
        for (failures, least) in [(1, 100), (2, 200), (4, 800), (5, 1000), (200, 1000)] {
            let wait = retry.wait(failures, &mut random);
            assert!((least..=least + least / 10).contains(&wait), "{failures}: {wait}");
        }
    }

    #[test]
    fn memory_has_a_ladder() {
        let retry = Retry { max: 3, ..Retry::default() };
        let step = |failures, can_halve| retry.remedy(Status::OutOfMemory, failures, can_halve);
        let ladder = [step(1, true), step(2, true), step(3, false), step(4, true)];
        assert_eq!(ladder, [Remedy::Trim, Remedy::Halve, Remedy::Restore, Remedy::GiveUp]);
    }
}
