//! Numbers for making inputs: the same for the same seed, on every machine.

use taskloom::random;

pub struct Random(random::Random);

impl Random {
    /// Of input `number` of a target.
    pub fn new(target: &str, number: u64) -> Self {
        Self(random::Random(target.bytes().fold(number, |seed, byte| random::mix(seed ^ u64::from(byte)))))
    }

    pub fn next(&mut self) -> u64 {
        self.0.next()
    }

    /// Below `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0.below(bound)
    }

    /// Once in so many times.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    /// Small mostly, at times large: the exponent is uniform.
    pub fn size(&mut self, most: usize) -> usize {
        let bits = self.below(usize::BITS as usize - most.leading_zeros() as usize + 1);
        self.below(1 << bits).min(most)
    }
}
