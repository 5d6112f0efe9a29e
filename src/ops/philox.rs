//! Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011): random numbers as a pure function
//! of what they are for, so that packing, threads and interruptions cannot change them.

/// What a random number is for; streams never overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    Init = 1,
    Shuffle = 2,
    WordDropout = 3,
    HiddenDropout = 4,
    Synthetic = 5,
    Phase = 6,
    TokenDropout = 7,
    AttentionDropout = 8,
    Masking = 9,
}

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Four independent 32-bit words for a counter and a key.
#[inline(always)]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c0);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c2);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// The seed whose streams are those of `seed` at a place of the network.
pub fn site_seed(seed: u64, site: u32) -> u64 {
    seed ^ u64::from(site.wrapping_add(1).wrapping_mul(0xC2B2_AE35)) << 32
}

/// A stream of numbers for one (round, task, example).
#[derive(Clone, Copy, Debug)]
pub struct Keyed {
    key: [u32; 2],
    counter: [u32; 3],
}

impl Keyed {
    pub fn new(seed: u64, stream: Stream, round: u32, task: u32, example: u32) -> Self {
        // The stream enters the key: its high word is spread so that small seeds and streams do not meet.
        let key = [seed as u32, (seed >> 32) as u32 ^ (stream as u32).wrapping_mul(0x85EB_CA6B)];
        Self { key, counter: [example, task, round] }
    }

    /// The same numbers' purpose at another place of the network, e.g. a layer.
    pub fn at_site(mut self, site: u32) -> Self {
        self.key[1] ^= (site_seed(0, site) >> 32) as u32;
        self
    }

    /// Words `4 * block` to `4 * block + 3`.
    #[inline(always)]
    pub fn block(&self, block: u32) -> [u32; 4] {
        philox4x32([block, self.counter[0], self.counter[1], self.counter[2]], self.key)
    }

    /// Word `position`.
    #[inline(always)]
    pub fn word(&self, position: u32) -> u32 {
        self.block(position / 4)[position as usize % 4]
    }

    /// Uniform in [0, 1) with 32 bits.
    pub fn uniform(&self, position: u32) -> f64 {
        f64::from(self.word(position)) / 4_294_967_296.0
    }

    /// Standard normal by the Box-Muller transform; `position` counts normals.
    pub fn normal(&self, position: u32) -> f64 {
        let words = self.block(position / 2);
        let pair = 2 * (position as usize % 2);
        let radius = (f64::from(words[pair]) + 1.0) / 4_294_967_296.0;
        let angle = f64::from(words[pair + 1]) / 4_294_967_296.0;
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }
}

/// The 32-bit threshold below which a word means "drop", for a probability in [0, 1).
pub fn drop_threshold(probability: f64) -> u32 {
    (probability * 4_294_967_296.0).min(4_294_967_295.0) as u32
}

/// A permutation of 0..len, a pure function of its key (Fisher-Yates).
pub fn permutation(len: usize, random: Keyed) -> Vec<u32> {
    let mut order: Vec<u32> = (0..len as u32).collect();
    for last in (1..len).rev() {
        let words = random.block(last as u32);
        let wide = u64::from(words[0]) << 32 | u64::from(words[1]);
        let pick = ((u128::from(wide) * (last as u128 + 1)) >> 64) as usize;
        order.swap(last, pick);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (kat_vectors, philox4x32 with 10 rounds).
    #[test]
    fn matches_the_published_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn streams_and_examples_differ() {
        let word = |stream, example| Keyed::new(42, stream, 0, 0, example).word(0);
        assert_ne!(word(Stream::Init, 0), word(Stream::Shuffle, 0));
        assert_ne!(word(Stream::Init, 0), word(Stream::Init, 1));
    }

    #[test]
    fn normals_have_unit_variance() {
        let random = Keyed::new(1, Stream::Init, 0, 0, 0);
        let draws: Vec<f64> = (0..20_000).map(|i| random.normal(i)).collect();
        let mean = draws.iter().sum::<f64>() / 20_000.0;
        let variance = draws.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / 20_000.0;
        // Standard errors: 1/sqrt(n) = 0.007 of the mean, sqrt(2/n) = 0.01 of the variance; four of each.
        assert!(mean.abs() < 0.028 && (variance - 1.0).abs() < 0.04, "{mean} {variance}");
    }

    #[test]
    fn permutations_hold_every_index_once() {
        let mut order = permutation(1000, Keyed::new(3, Stream::Shuffle, 0, 1, 0));
        assert_ne!(order[..4], [0, 1, 2, 3]);
        order.sort_unstable();
        assert!(order.iter().enumerate().all(|(i, &x)| i == x as usize));
    }
}
