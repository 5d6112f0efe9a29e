//! SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): random numbers from one word of state. What training draws for its examples comes from
//! [`crate::ops::philox`] instead, which a kernel computes as well.

/// What the state moves on by: the golden ratio.
pub const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Each input bit moves each output bit with even odds.
#[inline(always)]
pub fn finalize(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The number that a generator in this state gives next.
#[inline(always)]
pub fn mix(state: u64) -> u64 {
    finalize(state.wrapping_add(GOLDEN))
}

/// Uniform in [0, 1), on the 2^53 grid.
#[inline(always)]
pub fn uniform(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// A generator in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Random(pub u64);

impl Random {
    #[allow(clippy::should_implement_trait, reason = "it never ends, and is no iterator")]
    pub fn next(&mut self) -> u64 {
        let next = mix(self.0);
        self.0 = self.0.wrapping_add(GOLDEN);
        next
    }

    /// Below `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.next() % bound as u64) as usize }
    }

    /// In [0, 1).
    pub fn uniform(&mut self) -> f64 {
        uniform(self.next())
    }

    /// 0..count, shuffled.
    pub fn order(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, self.below(last + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of the authors' generator for the seed 1234567.
    #[test]
    fn numbers_are_those_of_the_paper() {
        let mut random = Random(1_234_567);
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([(); 3].map(|()| random.next()), expected);
    }

    #[test]
    fn an_order_has_every_number_once() {
        let mut order = Random(3).order(50);
        assert_ne!(order, (0..50).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..50).collect::<Vec<_>>());
    }
}
