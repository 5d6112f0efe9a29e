//! From example numbers to a packed batch.

use rayon::prelude::*;

use crate::data::{Corpus, Inputs, Split, Targets as DataTargets, TaskData};
use crate::model::encoders::{Encoder, Input};
use crate::model::network::{Batch, Part, Targets};
use crate::ops::dropout::{Randomness, RowKey};
use crate::ops::embedding_bag::Bags;
use crate::ops::philox::{Keyed, Stream, drop_threshold};
use crate::schedule::fuse::groups;
use crate::train::masking::{EVALUATION, Masking};
use crate::train::shapes::example_bag;
use crate::train::tokens;

/// The examples a task brings to a round, in drawing order.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    /// Run-wide index of the task.
    pub task: usize,
    pub examples: Vec<u32>,
    /// Examples of one micro-batch of it.
    pub micro_batch: usize,
}

/// What a round's batch is packed for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Purpose {
    pub seed: u64,
    pub round: u64,
    /// Independent batches, 1 or 2, among which a task's examples are divided.
    pub batches: usize,
    /// A device fetches the inputs, and they are left out.
    pub fetched: bool,
    /// Groups of tokens are padded.
    pub padded: bool,
}

/// Packs the shares of a round, at most `fuse` tasks in a group (0: all); tasks whose targets are all missing, or of
/// classes without weight, are left out.
/// Returns the batch and the present tasks.
pub fn training_batch(
    corpus: &Corpus,
    encoder: &dyn Encoder,
    fuse: usize,
    shares: &[Share],
    purpose: Purpose,
) -> (Batch, Vec<usize>) {
    let masking = Masking { seed: purpose.seed, round: purpose.round as u32 };
    let observed = |share: &&Share| observed(&corpus.tasks[share.task], &share.examples) > 0.0;
    let shares: Vec<&Share> = shares.iter().filter(observed).collect();
    let present: Vec<usize> = shares.iter().map(|share| share.task).collect();
    let turns: Vec<Vec<Turn>> =
        shares.iter().map(|share| turns(share.examples.len(), share.micro_batch, purpose.batches)).collect();
    let micro_batches: Vec<usize> = turns.iter().map(Vec::len).collect();
    let mut packing = Packing::default();
    for group in groups(&micro_batches, fuse) {
        let start = packing.batch.parts.len();
        for slot in group {
            let share = shares[slot.task];
            let data = &corpus.tasks[share.task];
            let total = self::observed(data, &share.examples);
            let turn = &turns[slot.task][slot.turn];
            let examples = &share.examples[turn.examples.clone()];
            packing.add(
                &data.train,
                examples,
                Part {
                    task: share.task,
                    present: slot.task,
                    rows: 0..0,
                    targets: targets(&data.train, share.task, examples, masking),
                    scale: (data.settings.weight / total) as f32,
                    batch: turn.batch,
                    first: turn.first,
                },
            );
        }
        packing.batch.groups.push(start..packing.batch.parts.len());
    }
    let random = Randomness { seed: purpose.seed, round: purpose.round as u32 };
    if purpose.fetched {
        if let Input::Tokens(_) = encoder.reads() {
            tokens::lay_out(&mut packing.batch, |task| &corpus.tasks[task].train);
        }
        return (packing.batch, present);
    }
    let batch = packing.finish(encoder, |task| &corpus.tasks[task].train, Some(random), masking, purpose.padded);
    (batch, present)
}

/// Packs examples `start..end` of one task's split for evaluation.
pub fn evaluation_batch(encoder: &dyn Encoder, task: usize, split: &Split, range: std::ops::Range<usize>) -> Batch {
    let examples: Vec<u32> = range.map(|example| example as u32).collect();
    let mut packing = Packing::default();
    let part = Part {
        task,
        present: 0,
        batch: 0,
        rows: 0..0,
        targets: targets(split, task, &examples, EVALUATION),
        scale: 0.0,
        first: true,
    };
    packing.add(split, &examples, part);
    packing.batch.groups.push(0..1);
    packing.finish(encoder, |_| split, None, EVALUATION, false)
}

/// Targets that some training examples have, or the weights of their classes.
fn observed(data: &TaskData, examples: &[u32]) -> f64 {
    let split = &data.train;
    let count = match (&split.targets, &data.class_weights) {
        (DataTargets::Class(classes), Some(weights)) => {
            let weight = |&example: &u32| f64::from(weights[classes[example as usize] as usize]);
            return examples.iter().map(weight).sum();
        }
        (DataTargets::Class(_), None) => examples.len(),
        (DataTargets::Values { dim, values }, _) => {
            let row = |&example: &u32| &values[example as usize * dim..(example as usize + 1) * dim];
            examples.iter().flat_map(row).filter(|value| !value.is_nan()).count()
        }
        (DataTargets::Pairs, _) => examples.len(),
        (DataTargets::Words, _) => examples.iter().map(|&example| tokens::masked_of(split, example as usize)).sum(),
    };
    count as f64
}

fn targets(split: &Split, task: usize, examples: &[u32], masking: Masking) -> Targets {
    match &split.targets {
        DataTargets::Words => {
            let key = |&example: &u32| RowKey { task: task as u32, example };
            Targets::Class(examples.iter().flat_map(|example| tokens::masked_words(split, &key(example), masking)).collect())
        }
        DataTargets::Pairs => Targets::Pairs(examples.len()),
        DataTargets::Class(classes) => Targets::Class(examples.iter().map(|&example| classes[example as usize]).collect()),
        DataTargets::Values { dim, values } => {
            let row = |&example: &u32| values[example as usize * dim..(example as usize + 1) * dim].iter().copied();
            Targets::Values(examples.iter().flat_map(row).collect())
        }
    }
}

/// One micro-batch of a task's share.
#[derive(Debug, PartialEq)]
struct Turn {
    batch: usize,
    examples: std::ops::Range<usize>,
    /// The first of its batch.
    first: bool,
}

/// Divides `count` examples among the batches as evenly as they go, and each batch into micro-batches.
fn turns(count: usize, micro_batch: usize, batches: usize) -> Vec<Turn> {
    let mut turns = Vec::new();
    for batch in 0..batches {
        let [start, end] = [batch, batch + 1].map(|batch| (batch * count).div_ceil(batches));
        for from in (start..end).step_by(micro_batch) {
            turns.push(Turn { batch, examples: from..(from + micro_batch).min(end), first: from == start });
        }
    }
    turns
}

#[derive(Default)]
struct Packing {
    batch: Batch,
}

impl Packing {
    /// Keys are by rows of the split, of which an example may have several.
    fn add(&mut self, split: &Split, examples: &[u32], part: Part) {
        let (start, task, each) = (self.batch.keys.len(), part.task as u32, split.rows_of_example() as u32);
        let rows = examples.iter().flat_map(|example| example * each..(example + 1) * each);
        self.batch.keys.extend(rows.map(|row| RowKey { task, example: row }));
        self.batch.parts.push(Part { rows: start..self.batch.keys.len(), ..part });
    }

    /// Fetches the inputs of all rows; n-grams are dropped with `random`, groups of tokens `padded` if wanted.
    fn finish<'a>(
        mut self,
        encoder: &dyn Encoder,
        split: impl Fn(usize) -> &'a Split + Sync,
        random: Option<Randomness>,
        masking: Masking,
        padded: bool,
    ) -> Batch {
        let batch = &mut self.batch;
        match encoder.reads() {
            Input::Features(columns) => {
                let columns = columns.max(1);
                batch.features = vec![0.0; batch.keys.len() * columns];
                batch.features.par_chunks_mut(columns).zip(&batch.keys).with_min_len(16).for_each(|(row, key)| {
                    if let Inputs::Features(store) = &split(key.task as usize).inputs {
                        store.read(key.example as usize, row);
                    }
                });
            }
            Input::Bags(spec) => {
                let all = |key: &RowKey| match &split(key.task as usize).inputs {
                    Inputs::Tokens(store) => example_bag(store, key.example as usize, spec),
                    Inputs::Features(_) => Vec::new(),
                };
                let bags: Vec<Vec<u32>> = batch.keys.par_iter().map(all).collect();
                let dropout = random.filter(|_| spec.word_dropout > 0.0).map(|random| (random, spec.word_dropout));
                batch.bags.clear();
                for (rows, key) in bags.iter().zip(&batch.keys) {
                    push_bag(&mut batch.bags, rows, *key, dropout);
                }
            }
            Input::Tokens(spec) => tokens::pack(batch, spec, split, masking, padded),
        }
        self.batch
    }
}

/// Appends an example's rows; the scale is 1 / sqrt(distinct n-grams). With `dropout` n-gram j is dropped, with this probability,
/// by (seed, round, task, example, j), and the scale makes up for what dropping takes.
fn push_bag(bags: &mut Bags, rows: &[u32], key: RowKey, dropout: Option<(Randomness, f64)>) {
    let mut scale = 1.0 / (rows.len().max(1) as f64).sqrt();
    match dropout {
        None => bags.rows.extend_from_slice(rows),
        Some((Randomness { seed, round }, probability)) => {
            let random = Keyed::new(seed, Stream::WordDropout, round, key.task, key.example);
            let threshold = drop_threshold(probability);
            for (block, rows) in rows.chunks(4).enumerate() {
                let kept = rows.iter().zip(random.block(block as u32)).filter(|(_, word)| *word >= threshold);
                bags.rows.extend(kept.map(|(row, _)| *row));
            }
            scale /= 1.0 - probability;
        }
    }
    bags.finish_example(scale as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_dropout_follows_the_example_and_keeps_the_mean() {
        let rows: Vec<u32> = (0..4000).collect();
        let key = RowKey { task: 1, example: 9 };
        let words = Some((Randomness { seed: 1, round: 2 }, 0.25));
        let mut bags = Bags::default();
        bags.clear();
        push_bag(&mut bags, &rows, key, words);
        push_bag(&mut bags, &rows, key, words);
        assert_eq!(bags.example(0), bags.example(1));
        // 3000 expected, standard deviation sqrt(4000 * 0.25 * 0.75) = 27.
        assert!((2890..3110).contains(&bags.example(0).len()), "{}", bags.example(0).len());
        assert!((f64::from(bags.scales[0]) - 1.0 / 4000f64.sqrt() / 0.75).abs() < 1e-6);
    }

    #[test]
    fn two_batches_share_the_examples() {
        let turn = |batch, examples, first| Turn { batch, examples, first };
        assert_eq!(turns(5, 2, 1), [turn(0, 0..2, true), turn(0, 2..4, false), turn(0, 4..5, false)]);
        assert_eq!(turns(5, 2, 2), [turn(0, 0..2, true), turn(0, 2..3, false), turn(1, 3..5, true)]);
        assert_eq!(turns(1, 4, 2), [turn(0, 0..1, true)]);
    }

    #[test]
    fn an_empty_text_is_an_empty_bag() {
        let mut bags = Bags::default();
        bags.clear();
        push_bag(&mut bags, &[], RowKey { task: 0, example: 0 }, None);
        assert_eq!((bags.len(), bags.example(0).len()), (1, 0));
    }
}
