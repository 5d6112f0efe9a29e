//! Packed tokens of a batch, and which of them a fused group's heads read.

use std::iter::{Peekable, Zip};
use std::ops::Range;
use std::slice::Iter;

use super::Pooling;
use super::prefix::Prefix;
use crate::model::network::{Batch, Part, Targets};
use crate::model::spec::{HeadKind, HeadSpec};
use crate::ops::buckets;
use crate::ops::dropout::RowKey;
use crate::ops::token_dropout::TokenKey;
use crate::ops::vocabulary_loss::IGNORED;

/// Tokens of all examples of a batch, end to end. Their ids are the batch's `bags.rows`, one a bag. Where a device fetches them, nothing but
/// where each example's are.
#[derive(Clone, Debug, Default)]
pub struct TokenBatch {
    /// (examples + 1) where each example's tokens begin, and behind all.
    bounds: Vec<u32>,
    /// (examples) where they end: before what pads a group, if the example is its last.
    ends: Vec<u32>,
    /// Groups are padded, if only with nothing.
    is_padded: bool,
    /// (n) place in the sequence.
    pub positions: Vec<u32>,
    /// (n) 0 for the first text, 1 for the second of a pair.
    pub types: Vec<u32>,
    /// (n) who each token is, for everything random.
    pub keys: Vec<TokenKey>,
    /// Packed numbers of the tokens that `mlm` heads predict, ascending.
    pub masked: Vec<u32>,
    /// What the frozen prefix makes of its texts, where it was computed before.
    pub prefix: Prefix,
}

impl TokenBatch {
    /// (examples + 1) where each example's tokens begin, and behind all.
    pub fn bounds(&self) -> &[u32] {
        &self.bounds
    }

    /// (examples + 1) tokens that pad groups before each example, and in all; of examples without tokens none.
    pub fn padding(&self) -> Vec<u32> {
        let ends = std::iter::once(&0).chain(&self.ends);
        let padded = self.bounds.iter().zip(ends).scan(0, |sum, (start, end)| {
            *sum += start - end;
            Some(*sum)
        });
        padded.collect()
    }

    /// Whether there are examples of tokens.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The next example ends before token `end`.
    pub fn finish_example(&mut self, end: usize) {
        if self.bounds.is_empty() {
            self.bounds.push(0);
        }
        self.ends.push(end as u32);
        self.bounds.push(end as u32);
    }

    /// Tokens up to `end` pad the group whose last example was finished last.
    pub fn finish_group(&mut self, end: usize) {
        self.is_padded = true;
        if let Some(last) = self.bounds.last_mut() {
            *last = end as u32;
        }
    }

    /// Packed tokens of some examples that follow each other in a group.
    pub fn tokens(&self, examples: &Range<usize>) -> Range<usize> {
        match examples.end.checked_sub(1).and_then(|last| self.ends.get(last)) {
            Some(&end) => self.bounds[examples.start] as usize..end as usize,
            None => 0..0,
        }
    }

    /// Those of a group of examples, with what pads it.
    pub fn padded(&self, examples: &Range<usize>) -> Range<usize> {
        match self.bounds.get(examples.end) {
            Some(&end) => self.bounds[examples.start] as usize..end as usize,
            None => 0..0,
        }
    }
}

/// Masked tokens of a part and their words, of those not read so far, and how many tokens are missing to a multiple of
/// its bucket where groups are padded.
struct Words<'a> {
    rest: Peekable<Zip<Iter<'a, u32>, Iter<'a, u32>>>,
    missing: usize,
}

impl<'a> Words<'a> {
    fn of(batch: &'a TokenBatch, part: &'a Part) -> Self {
        let first = batch.bounds.get(part.rows.start).copied().unwrap_or_default();
        let (first, words) = match &part.targets {
            Targets::Class(words) => (batch.masked.partition_point(|&token| token < first), &words[..]),
            Targets::Values(_) | Targets::Pairs(_) => (0, &[][..]),
        };
        let missing = if batch.is_padded { buckets::rows(words.len()) - words.len() } else { 0 };
        Self { rest: batch.masked[first..].iter().zip(words).peekable(), missing }
    }
}

/// Tokens of a sequence that pads a group: attention over it costs little.
const PAD: u32 = 64;

/// A fused group's rows, counted from its first token.
pub struct TokenGroup {
    /// Examples and packed tokens of the batch, with those that pad the group.
    pub examples: Range<usize>,
    pub tokens: Range<usize>,
    /// (sequences + 1) token bounds; what pads the group is in sequences of its own, which nobody reads.
    pub bounds: Vec<u32>,
    /// Tokens whose last layer somebody reads, ascending.
    pub queries: Vec<u32>,
    /// (queries) their keys, unless all tokens are read.
    pub query_keys: Vec<TokenKey>,
    /// (sequences + 1) bounds of each sequence's queries.
    pub query_bounds: Vec<u32>,
    /// (head rows + 1) bounds of the queries that a head row is the mean of.
    pub pool_bounds: Vec<u32>,
    /// By part: its tokens, its queries, its head rows, and those head rows that go through the pooler.
    pub part_tokens: Vec<Range<usize>>,
    pub part_queries: Vec<Range<usize>>,
    pub part_heads: Vec<Range<usize>>,
    pub part_pooled: Vec<Range<usize>>,
    /// (head rows of parts that predict words) the words; [`IGNORED`] of tokens that are read to pad a part.
    pub words: Vec<u32>,
}

/// Tokens that pad a group of so many. Where some are read and others are not under `mean`, there is one to read for each query that may be
/// missing to its bucket.
pub fn padding(tokens: usize, reads_some: bool) -> usize {
    let queries = if reads_some { buckets::multiple(tokens) } else { 0 };
    buckets::rows(tokens + queries) - tokens
}

impl TokenGroup {
    pub fn new(batch: &Batch, parts: &[Part], heads: &[HeadSpec], pooling: Pooling) -> Self {
        let (keys, batch) = (&batch.keys, &batch.tokens);
        let examples = parts.first().map_or(0, |part| part.rows.start)..parts.last().map_or(0, |part| part.rows.end);
        let tokens = batch.padded(&examples);
        let base = tokens.start as u32;
        let mut group = Self {
            examples,
            tokens,
            bounds: vec![0],
            queries: Vec::new(),
            query_keys: Vec::new(),
            query_bounds: vec![0],
            pool_bounds: vec![0],
            part_tokens: Vec::with_capacity(parts.len()),
            part_queries: Vec::with_capacity(parts.len()),
            part_heads: Vec::with_capacity(parts.len()),
            part_pooled: Vec::with_capacity(parts.len()),
            words: Vec::new(),
        };
        for part in parts {
            let masked = heads[part.task].kind == HeadKind::Mlm;
            let starts = [group.bounds[group.bounds.len() - 1] as usize, group.queries.len(), group.pool_bounds.len() - 1];
            let mut words = Words::of(batch, part);
            for example in part.rows.clone() {
                let own = batch.bounds[example] - base..batch.ends[example] - base;
                if masked {
                    group.read_words(base, own.clone(), &mut words);
                } else if pooling == Pooling::Mean {
                    group.queries.extend(own.clone());
                    group.pool_bounds.push(group.queries.len() as u32);
                } else {
                    group.read_each(own.clone().take(1));
                }
                group.bounds.push(own.end);
                group.query_bounds.push(group.queries.len() as u32);
            }
            let ends = [group.bounds[group.bounds.len() - 1] as usize, group.queries.len(), group.pool_bounds.len() - 1];
            group.part_tokens.push(starts[0]..ends[0]);
            group.part_queries.push(starts[1]..ends[1]);
            group.part_heads.push(starts[2]..ends[2]);
            group.part_pooled.push(if masked { starts[2]..starts[2] } else { starts[2]..ends[2] });
        }
        if batch.is_padded {
            group.pad(pooling);
        }
        if !group.reads_all() {
            group.query_keys = group.keys_of_queries(&keys[group.examples.clone()]);
        }
        group
    }

    /// By the `keys` of the group's examples; what pads the group has none of its own.
    fn keys_of_queries(&self, keys: &[RowKey]) -> Vec<TokenKey> {
        let sequences = self.query_bounds.windows(2).zip(&self.bounds).enumerate();
        let of_sequence = |(number, (queries, &start)): (usize, (&[u32], &u32))| {
            let own = keys.get(number).copied();
            self.queries[queries[0] as usize..queries[1] as usize].iter().map(move |&token| {
                own.map_or_else(TokenKey::default, |RowKey { task, example }| TokenKey { task, example, position: token - start })
            })
        };
        sequences.flat_map(of_sequence).collect()
    }

    /// Adds the sequences of what pads the group, as many whatever that is. Under `mean` so many of their tokens are read, for nothing,
    /// that queries fill a bucket as tokens do: all where all others are.
    fn pad(&mut self, pooling: Pooling) {
        let all = self.tokens.len() as u32;
        let mut start = self.bounds[self.bounds.len() - 1];
        let reads_all = self.queries.len() == start as usize;
        let queries = if reads_all { all as usize } else { buckets::rows(self.queries.len()) };
        let mut missing = if pooling == Pooling::Mean { ((queries - self.queries.len()) as u32).min(all - start) } else { 0 };
        // As many as the most that pads such a group, if only of no tokens.
        let most = buckets::multiple(all as usize) * if pooling == Pooling::Mean { 2 } else { 1 };
        for _ in 0..most / PAD as usize {
            let end = (start + PAD).min(all);
            let read = missing.min(end - start);
            self.queries.extend(start..start + read);
            missing -= read;
            self.bounds.push(end);
            self.query_bounds.push(self.queries.len() as u32);
            start = end;
        }
        assert_eq!(start, all, "sequences for what pads a group");
    }

    /// Head rows for the masked tokens of a sequence, and for others as long as some are missing.
    fn read_words(&mut self, base: u32, own: Range<u32>, words: &mut Words) {
        for token in own {
            let word = match words.rest.next_if(|(place, _)| **place == token + base) {
                Some((_, &word)) => word,
                None if words.missing > 0 => {
                    words.missing -= 1;
                    IGNORED
                }
                None => continue,
            };
            self.words.push(word);
            self.read_each(std::iter::once(token));
        }
    }

    /// A head row for each of these tokens.
    fn read_each(&mut self, tokens: impl Iterator<Item = u32>) {
        for token in tokens {
            self.queries.push(token);
            self.pool_bounds.push(self.queries.len() as u32);
        }
    }

    pub fn head_rows(&self) -> usize {
        self.pool_bounds.len() - 1
    }

    /// Every token is read, so queries and tokens are the same rows.
    pub fn reads_all(&self) -> bool {
        self.queries.len() == self.tokens.len()
    }
}
