//! Which tokens a masked language model predicts, and what it sees in their place (Devlin et al. 2019): 15 % of a text's
//! tokens; of these 80 % become [MASK], 10 % a random word, 10 % stay. A pure function of (seed, round, task, example).

use crate::ops::dropout::RowKey;
use crate::ops::philox::{Keyed, Stream};

/// What masks are drawn from.
#[derive(Clone, Copy, Debug)]
pub struct Masking {
    pub seed: u64,
    pub round: u32,
}

/// The same masks in every evaluation.
pub const EVALUATION: Masking = Masking { seed: 0, round: u32::MAX };

/// Tokens predicted of a text with this many.
pub fn masked_count(tokens: usize) -> usize {
    if tokens == 0 { 0 } else { ((tokens * 15 + 50) / 100).max(1) }
}

impl Masking {
    /// Places among a text's tokens that are predicted, ascending.
    pub fn places(&self, tokens: usize, key: &RowKey) -> Vec<usize> {
        let random = self.random(key);
        let mut drawn: Vec<(u32, usize)> = (0..tokens).map(|place| (random.word(place as u32), place)).collect();
        drawn.sort_unstable();
        let mut places: Vec<usize> = drawn[..masked_count(tokens)].iter().map(|(_, place)| *place).collect();
        places.sort_unstable();
        places
    }

    /// What stands at a predicted place instead of `id`.
    pub fn shown(&self, id: u32, place: usize, key: &RowKey, mask: u32, vocabulary: usize) -> u32 {
        let random = self.random(key).at_site(1);
        match random.uniform(2 * place as u32) {
            share if share < 0.8 => mask,
            share if share < 0.9 => random.word(2 * place as u32 + 1) % vocabulary as u32,
            _ => id,
        }
    }

    fn random(&self, key: &RowKey) -> Keyed {
        Keyed::new(self.seed, Stream::Masking, self.round, key.task, key.example)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_berts() {
        assert_eq!([0, 1, 3, 10, 100].map(masked_count), [0, 1, 1, 2, 15]);
        let masking = Masking { seed: 3, round: 4 };
        let key = |example| RowKey { task: 0, example };
        let places = masking.places(100, &key(0));
        assert!(places.len() == 15 && places.is_sorted() && places[14] < 100);
        assert_ne!(places, masking.places(100, &key(1)));
        let shown: Vec<u32> = (0..10_000).map(|place| masking.shown(7, place, &key(0), 1, 1000)).collect();
        let share = |id| shown.iter().filter(|&&seen| seen == id).count();
        // Standard deviation of each count at most sqrt(10^4 * 0.8 * 0.2) = 40.
        assert!(share(1).abs_diff(8000) < 200 && share(7).abs_diff(1000) < 150, "{} {}", share(1), share(7));
    }
}
