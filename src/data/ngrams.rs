//! Hashed bag of n-grams: which rows of the embedding table an example touches.
//!
//! With a vocabulary of V ids the table is V rows of unigrams and `buckets` rows of longer n-grams; without one it is
//! `buckets` rows for all. The hash is fixed forever: trained tables depend on it.

use crate::random::{GOLDEN, finalize, mix};

/// Starts of the hash: n-grams of the second text of a pair are other rows than those of the first.
const FIRST_TEXT: u64 = 0;
const SECOND_TEXT: u64 = 0x5851_f42d_4c95_7f2d;

/// Replaces `out` by the distinct rows of an example, ascending.
///
/// `tokens[..first_len]` is the first text, the rest the second; n-grams never cross from one to the other. Unigrams
/// are shared by both texts; longer n-grams, up to `ngrams` (1 to 3), are hashed apart. `buckets` must not be 0 unless
/// there is a vocabulary and `ngrams` is 1.
pub fn ngram_rows(tokens: &[u32], first_len: usize, vocab: Option<usize>, ngrams: usize, buckets: usize, out: &mut Vec<u32>) {
    out.clear();
    let buckets = buckets as u64;
    match vocab {
        Some(_) => out.extend_from_slice(tokens),
        None => out.extend(tokens.iter().map(|token| (hash(&[*token], FIRST_TEXT) % buckets) as u32)),
    }
    let base = vocab.unwrap_or(0) as u32;
    let (first, second) = tokens.split_at(first_len.min(tokens.len()));
    for (text, salt) in [(first, FIRST_TEXT), (second, SECOND_TEXT)] {
        for n in 2..=ngrams {
            out.extend(text.windows(n).map(|gram| base + (hash(gram, salt) % buckets) as u32));
        }
    }
    out.sort_unstable();
    out.dedup();
}

/// Order matters, and so does the length: (a), (a, b) and (b, a) differ.
fn hash(gram: &[u32], salt: u64) -> u64 {
    let start = salt ^ (gram.len() as u64).wrapping_mul(GOLDEN);
    gram.iter().fold(finalize(start), |state, &token| mix(state ^ u64::from(token)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(tokens: &[u32], first_len: usize, vocab: Option<usize>, ngrams: usize) -> Vec<u32> {
        let mut out = vec![99];
        ngram_rows(tokens, first_len, vocab, ngrams, 1_000, &mut out);
        out
    }

    #[test]
    fn unigrams_are_the_vocabulary_s_rows() {
        assert_eq!(rows(&[5, 3, 5], 3, Some(10), 1), [3, 5]);
        assert_eq!(rows(&[], 0, Some(10), 3), [0_u32; 0]);
    }

    #[test]
    fn longer_grams_stand_behind_the_vocabulary() {
        let all = rows(&[1, 2, 3], 3, Some(10), 3);
        assert_eq!(all.len(), 3 + 2 + 1);
        assert_eq!(all[..3], [1, 2, 3]);
        assert!(all[3..].iter().all(|row| (10..1_010).contains(row)));
        assert!(all.is_sorted());
    }

    #[test]
    fn grams_do_not_cross_texts_and_second_texts_have_their_own() {
        let bigrams = |tokens: &[u32], first_len| rows(tokens, first_len, Some(10), 2).split_off(2);
        assert_eq!(bigrams(&[1, 2], 1), [0_u32; 0]);
        assert_ne!(bigrams(&[1, 2], 2), bigrams(&[1, 2], 0));
        assert_eq!(rows(&[1], 1, Some(10), 1), rows(&[1], 0, Some(10), 1));
        assert_eq!(rows(&[1], 1, None, 1), rows(&[1], 0, None, 1));
    }

    #[test]
    fn order_of_a_gram_counts() {
        assert_ne!(hash(&[1, 2], 0), hash(&[2, 1], 0));
        assert_ne!(hash(&[0], 0), hash(&[0, 0], 0));
    }

    /// Computed apart from this code, from the definition.
    #[test]
    fn golden_values() {
        assert_eq!(hash(&[1], FIRST_TEXT), 0x08b4_fda8_c892_b50e);
        assert_eq!(hash(&[1, 2], FIRST_TEXT), 0xda38_26a4_7a61_577a);
        assert_eq!(hash(&[1, 2], SECOND_TEXT), 0xf310_9405_05e4_928e);
        assert_eq!(hash(&[1, 2, 3], FIRST_TEXT), 0xc80b_70fc_e3e2_6b92);
    }

    #[test]
    fn buckets_fill_evenly() {
        let mut counts = [0_u32; 64];
        for token in 0..64_000 {
            counts[(hash(&[token, token + 1], 0) % 64) as usize] += 1;
        }
        // 1000 expected in each, standard deviation 31.4: six of them.
        assert!(counts.iter().all(|count| count.abs_diff(1_000) < 189), "{counts:?}");
    }
}
