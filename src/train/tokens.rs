//! From token stores to packed sequences: `[CLS] text [SEP]`, or `[CLS] first [SEP] second [SEP]`.

use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;

use crate::data::{Inputs, Split, Targets, TokenStates, TokenStore};
use crate::model::network::{Batch, Part, TokenRoom, group_rows};
use crate::model::transformer::{MappedStates, Pooling, Prefix, TokenBatch, TransformerSpec, padding};
use crate::ops::dropout::RowKey;
use crate::ops::token_dropout::TokenKey;
use crate::train::masking::{Masking, masked_count};

/// Tokens of a sequence with the special ones.
pub fn sequence_len(store: &TokenStore, row: usize) -> usize {
    let (all, first) = (store.token_count(row), store.first_count(row));
    all + if first < all { 3 } else { 2 }
}

/// Those of all sequences of an example.
pub fn tokens_of(split: &Split, example: usize) -> usize {
    match &split.inputs {
        Inputs::Tokens(store) => split.rows_of(example..example + 1).map(|row| sequence_len(store, row)).sum(),
        Inputs::Features(_) => 0,
    }
}

/// Ids of one sequence, and where its second text starts (its length without one).
pub(super) struct Sequence {
    pub ids: Vec<u32>,
    pub second: usize,
}

pub(super) fn sequence(store: &TokenStore, example: usize, spec: &TransformerSpec) -> Sequence {
    let mut ids = Vec::with_capacity(sequence_len(store, example));
    ids.push(spec.cls);
    let first = store.read(example, &mut ids);
    ids.insert(1 + first, spec.sep);
    let second = first + 2;
    if ids.len() > second {
        ids.push(spec.sep);
    }
    Sequence { ids, second }
}

impl Sequence {
    /// Places of a text's own tokens, the special ones left out.
    fn own_places(&self) -> Vec<usize> {
        let separator = self.second - 1;
        (1..self.ids.len() - 1).filter(|place| *place != separator).collect()
    }
}

/// Tokens of an example that a masked language model predicts.
pub fn masked_of(split: &Split, example: usize) -> usize {
    match &split.inputs {
        Inputs::Tokens(store) => masked_count(store.token_count(example)),
        Inputs::Features(_) => 0,
    }
}

/// The words at an example's masked places.
pub fn masked_words(split: &Split, key: &RowKey, masking: Masking) -> Vec<u32> {
    let Inputs::Tokens(store) = &split.inputs else { return Vec::new() };
    let mut words = Vec::with_capacity(store.token_count(key.example as usize));
    store.read(key.example as usize, &mut words);
    masking.places(words.len(), key).into_iter().map(|place| words[place]).collect()
}

/// Hides the words at an example's masked places; returns the places in the sequence.
fn hide(sequence: &mut Sequence, spec: &TransformerSpec, key: &RowKey, masking: Masking) -> Vec<usize> {
    let own = sequence.own_places();
    let places: Vec<usize> = masking.places(own.len(), key).into_iter().map(|place| own[place]).collect();
    for &place in &places {
        let mask = spec.mask.expect("a plan with a masked language model has a mask");
        sequence.ids[place] = masking.shown(sequence.ids[place], place, key, mask, spec.vocabulary);
    }
    places
}

/// Appends the sequences of all of the batch's rows, each group `padded` to a bucket of tokens if wanted.
pub fn pack<'a>(
    batch: &mut Batch,
    spec: &TransformerSpec,
    split: impl Fn(usize) -> &'a Split + Sync,
    masking: Masking,
    padded: bool,
) {
    let one = |key: &RowKey| {
        let split = split(key.task as usize);
        let Inputs::Tokens(store) = &split.inputs else { return (Sequence { ids: Vec::new(), second: 0 }, Vec::new()) };
        let mut sequence = sequence(store, key.example as usize, spec);
        let masked = match split.targets {
            Targets::Words => hide(&mut sequence, spec, key, masking),
            _ => Vec::new(),
        };
        (sequence, masked)
    };
    let sequences: Vec<(Sequence, Vec<usize>)> = batch.keys.par_iter().map(one).collect();
    batch.bags.clear();
    let Batch { bags, tokens, .. } = batch;
    let mut push = |tokens: &mut TokenBatch, id: u32, kind: u32, key: TokenKey| {
        bags.rows.push(id);
        bags.finish_example(1.0);
        tokens.positions.push(key.position);
        tokens.types.push(kind);
        tokens.keys.push(key);
    };
    let is_words = |part: &Part| split(part.task).targets == Targets::Words;
    // By the last example of each group, whether words are read one by one beside texts that are read as a whole.
    let of_group = |group: &Range<usize>| {
        let parts = &batch.parts[group.clone()];
        let words = parts.iter().filter(|part| is_words(part)).count();
        let reads_some = spec.pooling == Pooling::Mean && words > 0 && words < parts.len();
        (parts.last().map_or(0, |part| part.rows.end), reads_some)
    };
    let (groups, mut start): (BTreeMap<usize, bool>, _) = (batch.groups.iter().map(of_group).collect(), 0);
    for (number, ((Sequence { ids, second }, masked), key)) in sequences.into_iter().zip(&batch.keys).enumerate() {
        let first = tokens.keys.len();
        tokens.masked.extend(masked.iter().map(|place| (first + place) as u32));
        for (position, id) in ids.into_iter().enumerate() {
            let key = TokenKey { task: key.task, example: key.example, position: position as u32 };
            push(tokens, id, u32::from(position >= second), key);
        }
        tokens.finish_example(tokens.keys.len());
        if let Some(&reads_some) = groups.get(&(number + 1)).filter(|_| padded) {
            let end = tokens.keys.len() + padding(tokens.keys.len() - start, reads_some);
            (tokens.keys.len()..end).for_each(|_| push(tokens, 0, 0, TokenKey { task: 0, example: 0, position: 0 }));
            tokens.finish_group(end);
            start = end;
        }
    }
    batch.tokens.prefix = prefix(batch, split);
}

/// Where the tokens of all of the batch's rows lie as a device fetches them: as [`pack`] has them, each group padded to a bucket.
pub fn lay_out<'a>(batch: &mut Batch, split: impl Fn(usize) -> &'a Split) {
    let Batch { keys, parts, groups, tokens, .. } = batch;
    let mut start = 0;
    for group in groups {
        let mut end = start;
        for key in &keys[group_rows(&parts[group.clone()])] {
            if let Inputs::Tokens(store) = &split(key.task as usize).inputs {
                end += sequence_len(store, key.example as usize);
            }
            tokens.finish_example(end);
        }
        // Nothing is read word by word, which the host would draw.
        start = end + padding(end - start, false);
        tokens.finish_group(start);
    }
}

/// What is kept of the frozen prefix for all of the batch's rows: for all splits of a run or for none. A split that evaluation alone
/// reads may be without.
fn prefix<'a>(batch: &Batch, split: impl Fn(usize) -> &'a Split) -> Prefix {
    let states = |key: &RowKey| match &split(key.task as usize).inputs {
        Inputs::Tokens(store) => store.states(),
        Inputs::Features(_) => None,
    };
    let Some(all) = batch.keys.iter().map(states).collect::<Option<Vec<_>>>() else { return Prefix::Unknown };
    let mapped = |(states, key): (&&TokenStates, &RowKey)| {
        let range = states.of(key.example as usize);
        states.file().map(|file| MappedStates { file: file.clone(), range })
    };
    if let Some(mapped) = all.iter().zip(&batch.keys).map(mapped).collect() {
        return Prefix::Mapped(mapped);
    }
    let mut rows: Vec<u32> = Vec::with_capacity(batch.bags.rows.len());
    for (example, (states, key)) in all.iter().zip(&batch.keys).enumerate() {
        rows.extend(states.of(key.example as usize).map(|row| row as u32));
        rows.resize(batch.tokens.padded(&(example..example + 1)).end, 0);
    }
    Prefix::OnDevice(rows)
}

/// Where an evaluation batch from `start` on ends: at most `most` examples, and (where given) `room` tokens, of which at most
/// `masked` are predicted by a language model.
pub fn evaluation_end(split: &Split, start: usize, most: usize, room: Option<TokenRoom>) -> usize {
    let end = (start + most).min(split.len());
    let (Inputs::Tokens(_), Some(room)) = (&split.inputs, room) else { return end };
    let words = split.targets == Targets::Words;
    let (mut tokens, mut hidden) = (0, 0);
    let fits = |example: &usize| {
        tokens += tokens_of(split, *example);
        hidden += if words { masked_of(split, *example) } else { 0 };
        tokens <= room.tokens && hidden <= room.masked
    };
    (start + (start..end).take_while(fits).count()).max(start + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::network::Targets as BatchTargets;
    use crate::model::spec::{HeadKind, HeadSpec};
    use crate::model::transformer::TokenGroup;
    use crate::ops::vocabulary_loss::IGNORED;
    use crate::train::masking::EVALUATION;

    fn room(tokens: usize, masked: usize) -> Option<TokenRoom> {
        Some(TokenRoom { tokens, masked })
    }

    fn split() -> Split {
        let store = TokenStore::from_rows(&[(vec![10, 11], 2), (vec![20, 21, 22], 1), (vec![], 0)]);
        Split { inputs: Inputs::Tokens(store), targets: Targets::Class(vec![0; 3]), unscaled: None, slices: Default::default() }
    }

    #[test]
    fn pairs_get_segments_and_separators() {
        let mut batch = Batch { keys: (0..3).map(|example| RowKey { task: 0, example }).collect(), ..Batch::default() };
        let split = split();
        pack(&mut batch, &TransformerSpec::small(), |_| &split, EVALUATION, false);
        assert_eq!(batch.bags.rows, [1, 10, 11, 2, 1, 20, 2, 21, 22, 2, 1, 2]);
        assert_eq!(batch.tokens.types, [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0]);
        assert_eq!(batch.tokens.positions, [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0, 1]);
        assert_eq!([0, 1, 2].map(|example| batch.tokens.tokens(&(example..example + 1))), [0..4, 4..10, 10..12]);
        let Inputs::Tokens(store) = &split.inputs else { panic!("tokens") };
        assert_eq!([0, 1, 2].map(|example| sequence_len(store, example)), [4, 6, 2]);
    }

    #[test]
    fn masked_words_are_hidden_and_known() {
        let (mut split, spec) = (split(), TransformerSpec { mask: Some(3), ..TransformerSpec::small() });
        split.targets = Targets::Words;
        let mut batch = Batch { keys: (0..3).map(|example| RowKey { task: 0, example }).collect(), ..Batch::default() };
        pack(&mut batch, &spec, |_| &split, EVALUATION, false);
        // One word of each text with words.
        assert_eq!(batch.tokens.masked.len(), 2);
        let plain = [1, 10, 11, 2, 1, 20, 2, 21, 22, 2, 1, 2];
        for (example, &place) in batch.tokens.masked.iter().enumerate() {
            let word = masked_words(&split, &batch.keys[example], EVALUATION);
            assert_eq!(word, [plain[place as usize]]);
            assert!(word[0] >= 10, "special tokens are never masked");
        }
        assert_eq!(evaluation_end(&split, 0, 8, room(99, 1)), 1);
    }

    /// A part that predicts words in so many texts, beside one that is read whole: sizes are multiples, and what is read beside the masked
    /// words has no word.
    fn a_group_is_padded(texts: usize, pooling: Pooling) {
        let text = |row: usize| ((0..20 + row as u32 % 7).map(|word| 10 + word).collect(), 0);
        let inputs = Inputs::Tokens(TokenStore::from_rows(&(0..texts).map(text).collect::<Vec<_>>()));
        let (words, plain) = (Split { inputs, targets: Targets::Words, unscaled: None, slices: Default::default() }, split());
        let spec = TransformerSpec { mask: Some(3), pooling, ..TransformerSpec::small() };
        let keys: Vec<RowKey> = [(0, texts as u32), (1, 3)]
            .into_iter()
            .flat_map(|(task, rows)| (0..rows).map(move |example| RowKey { task, example }))
            .collect();
        let known = keys[..texts].iter().flat_map(|key| masked_words(&words, key, EVALUATION)).collect();
        let part = |task, rows, targets| Part { task, present: task, batch: 0, rows, targets, scale: 1.0, first: true };
        let parts =
            vec![part(0, 0..texts, BatchTargets::Class(known)), part(1, texts..texts + 3, BatchTargets::Class(vec![0; 3]))];
        let mut batch = Batch { keys, parts, groups: std::iter::once(0..2).collect(), ..Batch::default() };
        pack(&mut batch, &spec, |task| if task == 0 { &words } else { &plain }, EVALUATION, true);
        let head = |kind| HeadSpec { task: String::new(), kind, outputs: 2, class_weights: None, temperature: 1.0 };
        let heads = [head(HeadKind::Mlm), head(HeadKind::Classification)];
        let group = TokenGroup::new(&batch, &batch.parts, &heads, spec.pooling);
        let (masked, own_tokens) = (batch.tokens.masked.len(), group.part_tokens[0].len());
        let padded = [group.tokens.len(), if pooling == Pooling::Mean { group.queries.len() } else { 0 }];
        assert!(padded.iter().all(|rows| rows.is_multiple_of(128)), "{padded:?}");
        assert_eq!(group.words.len(), masked.next_multiple_of(128).min(own_tokens));
        assert_eq!([group.part_heads[0].len(), group.part_heads[1].len()], [group.words.len(), 3]);
        let BatchTargets::Class(known) = &batch.parts[0].targets else { panic!("words") };
        assert!(group.words.iter().filter(|&&word| word != IGNORED).eq(known) && known.len() == masked);
        let found = group.queries.iter().zip(&group.words).filter(|(_, word)| **word != IGNORED).map(|(token, _)| token);
        assert!(found.eq(&batch.tokens.masked), "words stand at their places");
        assert!(group.queries.is_sorted_by(|a, b| a < b), "nobody is read twice");
    }

    /// Few texts are read as a whole, too.
    #[test]
    fn groups_are_padded_to_multiples() {
        for texts in [1, 4, 7, 40, 90] {
            [Pooling::Mean, Pooling::Cls].into_iter().for_each(|pooling| a_group_is_padded(texts, pooling));
        }
    }

    #[test]
    fn both_texts_of_a_pair_that_is_compared_fit_the_room() {
        let inputs = Inputs::Tokens(TokenStore::from_pairs(&[(vec![10, 11, 12], 1), (vec![20], 1), (vec![], 0)]));
        let split = Split { inputs, targets: Targets::Pairs, unscaled: None, slices: Default::default() };
        assert_eq!([0, 1, 2].map(|example| tokens_of(&split, example)), [7, 5, 4]);
        assert_eq!([11, 12, 16].map(|tokens| evaluation_end(&split, 0, 8, room(tokens, 0))), [1, 2, 3]);
        let mut batch = Batch { keys: (0..6).map(|example| RowKey { task: 0, example }).collect(), ..Batch::default() };
        pack(&mut batch, &TransformerSpec::small(), |_| &split, EVALUATION, false);
        assert_eq!(batch.bags.rows, [1, 10, 2, 1, 11, 12, 2, 1, 20, 2, 1, 2, 1, 2, 1, 2]);
        assert!(batch.tokens.types.iter().all(|kind| *kind == 0), "each is a first text");
    }

    #[test]
    fn evaluation_batches_fit_the_room() {
        let split = split();
        assert_eq!(evaluation_end(&split, 0, 8, None), 3);
        assert_eq!(evaluation_end(&split, 0, 8, room(10, 0)), 2);
        assert_eq!(evaluation_end(&split, 0, 8, room(9, 0)), 1);
        assert_eq!(evaluation_end(&split, 1, 8, room(8, 0)), 3);
        assert_eq!(evaluation_end(&split, 2, 1, room(99, 0)), 3);
    }
}
