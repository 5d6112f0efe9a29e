//! Quanta that take far longer than their task's others.

use serde::{Deserialize, Serialize};

/// Latest quanta looked at.
const WINDOW: usize = 32;
/// Quanta after which the 95th percentile is worth something, and after which it is taken again.
const REFRESH: u32 = 16;

/// Watches the times of one task's quanta.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    times: [u32; WINDOW],
    seen: u32,
    p95: u32,
    strikes: u32,
}

impl Default for Watch {
    fn default() -> Self {
        Self { times: [0; WINDOW], seen: 0, p95: u32::MAX, strikes: 0 }
    }
}

impl Watch {
    /// Nothing was added yet.
    pub fn is_new(&self) -> bool {
        *self == Self::default()
    }

    /// Adds a quantum that took `nanos`; true when it is the second in a row beyond three times the 95th percentile.
    pub fn add(&mut self, nanos: u64) -> bool {
        // Microseconds, so that an hour fits; a quantum under one counts as one.
        let time = u32::try_from(nanos / 1000).unwrap_or(u32::MAX).max(1);
        let slow = u64::from(time) > 3 * u64::from(self.p95);
        self.strikes = if slow { self.strikes + 1 } else { 0 };
        if self.strikes == 2 {
            // The shrunken quanta have times of their own.
            *self = Self::default();
            return true;
        }
        if !slow {
            self.times[self.seen as usize % WINDOW] = time;
            self.seen += 1;
            if self.seen.is_multiple_of(REFRESH) {
                let mut times = self.times;
                let known = &mut times[..WINDOW.min(self.seen as usize)];
                let rank = (known.len() * 95).div_ceil(100) - 1;
                self.p95 = *known.select_nth_unstable(rank).1;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_slow_quanta_in_a_row_are_a_straggler() {
        let mut watch = Watch::default();
        assert!((0..40).all(|i| !watch.add(1_000_000 + i * 1000)));
        assert!(!watch.add(4_000_000));
        assert!(!watch.add(1_000_000));
        assert!(!watch.add(4_000_000));
        assert!(watch.add(4_000_000));
        assert!(!watch.add(4_000_000), "it starts anew");
    }

    #[test]
    fn a_few_quanta_say_nothing() {
        let mut watch = Watch::default();
        assert!((0..15).all(|_| !watch.add(1_000_000)));
        assert!((0..5).all(|_| !watch.add(9_000_000)));
    }
}
