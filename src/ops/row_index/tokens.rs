//! A batch's tokens, fetched on a device that holds the sequences of all examples.

use super::host;
use super::{FetchPart, KeyBits, RowLists};
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch, Work};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::Tensor;

/// The sequences of a run's training examples, end to end, all u32.
#[derive(Clone, Copy, Debug)]
pub struct TokenData {
    /// (tokens) words, with the special ones.
    pub ids: Tensor,
    /// (examples + 1)
    pub offsets: Tensor,
    /// (examples) where in its sequence the second text begins: its length without one.
    pub seconds: Tensor,
}

/// Packed tokens on a device, all u32: of a round, or of a group.
#[derive(Clone, Copy, Debug)]
pub struct TokensAt {
    /// (n) words; 0 of what pads a group, as all its other numbers.
    pub ids: Tensor,
    /// (n) place in the sequence.
    pub positions: Tensor,
    /// (n) 0 for the first text, 1 for the second of a pair.
    pub types: Tensor,
    /// (n x 3) who each token is, for everything random.
    pub keys: Tensor,
    /// (rows of the table) where each word's row lies.
    pub slots: Tensor,
}

impl TokensAt {
    /// Some neighbours.
    pub fn range(self, tokens: std::ops::Range<usize>) -> Self {
        let [ids, positions, types] = [self.ids, self.positions, self.types].map(|list| list.range(tokens.clone()));
        Self { ids, positions, types, keys: self.keys.rows(tokens), slots: self.slots }
    }
}

/// Fetches the tokens of a batch's examples, and makes items to sort of those that pad nothing.
pub struct FetchTokens<'a> {
    pub to: TokensAt,
    pub lists: RowLists,
    pub data: TokenData,
    /// (examples) each one's number within its task.
    pub examples: &'a [u32],
    /// (examples + 1) where each one's tokens begin, and behind what pads the last group.
    pub bounds: &'a [u32],
    /// Ascending, the first from example 0 on.
    pub parts: &'a [FetchPart],
    /// Tokens that pad nothing.
    pub entries: usize,
    pub bits: KeyBits,
}

impl Op for FetchTokens<'_> {
    fn name(&self) -> &'static str {
        "fetch_tokens"
    }

    fn operands(&self) -> Operands {
        let TokensAt { ids, positions, types, keys, .. } = self.to;
        let TokenData { ids: data, offsets, seconds } = self.data;
        Operands::new([data, offsets, seconds], [ids, positions, types, keys, self.lists.items[0], self.lists.counts])
    }

    fn work(&self) -> Work {
        Work::default()
    }

    fn host(&self, memory: &HostMemory) {
        host::fetch_tokens(self, memory);
    }

    /// Examples, bounds, parts, and how many tokens there are.
    fn tables(&self) -> Vec<Bytes> {
        vec![bytes_of(self.examples), bytes_of(self.bounds), bytes_of(self.parts), bytes_of(&[self.entries as u32])]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let &[examples, bounds, parts, entries] = tables else { unreachable!("four tables") };
        let TokensAt { ids, positions, types, keys, .. } = self.to;
        let TokenData { ids: data, offsets, seconds } = self.data;
        let lists = [ids, positions, types, keys, self.lists.items[0], self.lists.counts, data, offsets, seconds];
        let launch = Launch::line("token_entries", self.examples.len().div_ceil(8), 256)
            .addresses(lists.map(|list| list.at))
            .addresses([examples, bounds, parts])
            .int(self.parts.len())
            .int(self.examples.len())
            .addresses([entries])
            .int(self.bits.bits as usize);
        vec![launch.into()]
    }
}
