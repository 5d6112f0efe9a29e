//! Quanta that take far longer than their task's others, and micro-batches that follow a target time.

/// Latest quanta looked at.
const WINDOW: usize = 32;
/// Quanta after which the 95th percentile is worth something, and after which it is taken again.
const REFRESH: u32 = 16;

/// Watches the times of one task's quanta.
#[derive(Clone, Debug)]
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

/// A micro-batch that grows while quanta stay below the target time and shrinks when they exceed it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adaptive {
    pub target_ms: f64,
    pub grow: f64,
    pub shrink: f64,
    pub min: usize,
    pub max: usize,
}

impl Adaptive {
    /// Examples of the next micro-batch after one of `size` took `ms`. Between 0.8 and 1 of the target nothing changes, so
    /// that noise does not move it.
    pub fn next(&self, size: usize, ms: f64) -> usize {
        let next = if ms > self.target_ms {
            // At least one fewer.
            ((size as f64 * self.shrink).floor() as usize).min(size - 1)
        } else if ms < 0.8 * self.target_ms {
            ((size as f64 * self.grow).ceil() as usize).max(size + 1)
        } else {
            size
        };
        next.clamp(self.min, self.max)
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

    #[test]
    fn a_micro_batch_finds_its_target() {
        let rule = Adaptive { target_ms: 50.0, grow: 1.1, shrink: 0.9, min: 1, max: 256 };
        let settle = |ms_per_example: f64| (0..200).fold(32, |size, _| rule.next(size, size as f64 * ms_per_example));
        assert!((40..=50).contains(&settle(1.0)), "{}", settle(1.0));
        assert_eq!(settle(0.001), 256);
        assert_eq!(settle(1e6), 1);
    }
}
