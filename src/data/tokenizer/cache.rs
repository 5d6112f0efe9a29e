//! Ids of words seen before. Text is mostly repeated words, and a look-up costs a hundredth of a WordPiece run.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

/// Locks, so that worker threads rarely meet.
const SHARDS: usize = 64;
/// Words kept per shard; later ones are encoded anew each time.
const SHARD_WORDS: usize = 4_096;
/// Longer words hardly ever come back.
const MOST_BYTES: usize = 48;

type Shard = Mutex<HashMap<Box<str>, Box<[u32]>>>;

pub(super) struct WordCache {
    hasher: RandomState,
    shards: Vec<Shard>,
}

impl WordCache {
    pub(super) fn new() -> WordCache {
        WordCache { hasher: RandomState::new(), shards: (0..SHARDS).map(|_| Shard::default()).collect() }
    }

    /// Appends the ids of `word` to `out`, asking `encode` when the word is new.
    pub(super) fn encode<E>(
        &self,
        word: &str,
        out: &mut Vec<u32>,
        encode: impl FnOnce(&mut Vec<u32>) -> Result<(), E>,
    ) -> Result<(), E> {
        if word.len() > MOST_BYTES {
            return encode(out);
        }
        let shard = &self.shards[self.hasher.hash_one(word) as usize % SHARDS];
        // A panic elsewhere cannot leave a map half written: entries are inserted whole.
        if let Some(ids) = shard.lock().unwrap_or_else(PoisonError::into_inner).get(word) {
            out.extend_from_slice(ids);
            return Ok(());
        }
        let start = out.len();
        encode(out)?;
        let mut words = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if words.len() < SHARD_WORDS {
            words.insert(word.into(), out[start..].into());
        }
        Ok(())
    }
}
