//! Largest shapes of a run, known from its configuration and data before anything is allocated.

use rayon::prelude::*;

use crate::config::schema::{self, Config, ScheduleMode};
use crate::data::{Corpus, Inputs, Split, TaskData, TokenStore, ngram_rows};
use crate::machine::Device;
use crate::machine::tensor::pitch;
use crate::model::encoders::Input;
use crate::model::encoders::bag::Bag;
use crate::model::network::{DataLimits, Limits};
use crate::model::spec::{HeadKind, HeadSpec, ModelSpec};
use crate::model::transformer::{Pooling, TokenLimits, TransformerSpec, padding};
use crate::ops::buckets;
use crate::schedule::sampler::TaskSampling;
use crate::surgery::methods::registry;
use crate::train::prefix::tokens_on_device;
use crate::train::tokens::{masked_of, tokens_of};

/// Most tasks in a fused group (0: no limit) of a run with `tasks`: enough groups for all lanes, unless `train.fuse` says it.
pub fn fuse(config: &Config, tasks: usize) -> usize {
    let Config { train, schedule, .. } = config;
    if train.fuse == 0 && schedule.lanes > 1 { tasks.div_ceil(schedule.lanes) } else { train.fuse }
}

/// The largest shapes, and how many embedding rows the run can touch.
pub fn limits(config: &Config, corpus: &Corpus, spec: &ModelSpec, samplings: &[TaskSampling]) -> (Limits, usize) {
    let (rows, mut tokens) = (HeadRows::new(config, corpus), TokenLimits::default());
    let shapes = match spec.encoder.reads() {
        Input::Features(_) => TableShapes::default(),
        Input::Bags(bag) => bag_shapes(config, corpus, bag, samplings),
        Input::Tokens(transformer) => {
            tokens = token_limits(config, corpus, transformer, samplings, &rows);
            let known = config.encoder.from.is_some() || spec.reads_whole_table();
            token_rows(config, corpus, transformer, samplings, known)
        }
    };
    let capacity = shapes.rows;
    let examples = corpus.tasks.iter().map(|task| task.train.rows()).sum();
    let data = DataLimits { examples, entries: shapes.all };
    (Limits { tokens, data, ..batch_limits(config, corpus, spec, samplings, shapes, &rows) }, capacity)
}

/// Examples of the largest micro-batch that a task may have.
pub fn largest_micro_batch(config: &Config, task: &schema::Task) -> usize {
    task.adaptive.map_or(config.train.micro_batch, |adaptive| adaptive.max)
}

fn sizes(config: &Config, corpus: &Corpus) -> Vec<usize> {
    corpus.tasks.iter().map(|task| largest_micro_batch(config, &task.settings)).collect()
}

/// Most tasks in one round, and in one fused group.
fn together(config: &Config, samplings: &[TaskSampling]) -> [usize; 2] {
    let present = match config.schedule.mode {
        ScheduleMode::Synchronous => samplings.len(),
        ScheduleMode::TimeSliced => samplings.len().min(config.schedule.begun()),
    };
    let fuse = fuse(config, present);
    [present, if fuse == 0 { present } else { fuse.min(present) }]
}

fn batch_limits(
    config: &Config,
    corpus: &Corpus,
    spec: &ModelSpec,
    samplings: &[TaskSampling],
    shapes: TableShapes,
    rows: &HeadRows,
) -> Limits {
    let sliced = config.schedule.mode == ScheduleMode::TimeSliced;
    let [present, fused] = together(config, samplings);
    let logits = |(head, rows): (&HeadSpec, &usize)| head.outputs * rows;
    let mut trained: Vec<usize> = spec.heads.iter().zip(&rows.trained).map(logits).collect();
    trained.sort_unstable_by(|a, b| b.cmp(a));
    let evaluated = spec.heads.iter().zip(&rows.evaluated).map(logits).max().unwrap_or(0);
    let logits_at_once = spec.mlm_head().map(|_| logits_at_once(spec, rows, fused));
    let largest = shapes.per_round.iter().max().map(|&most| vec![most; present]).unwrap_or_default();
    let (sizes, each) = (sizes(config, corpus), corpus.tasks.iter().map(|task| task.settings.head.rows()));
    let largest_rows = each.clone().max().unwrap_or(1);
    let groups = sizes.iter().zip(each.clone()).map(|(size, each)| size * each);
    let rounds = samplings.iter().zip(&sizes).map(|(sampling, &size)| examples(config, sampling, size));
    let rounds = rounds.zip(each).map(|(examples, each)| examples.saturating_mul(each));
    let pairs = sizes.iter().zip(&corpus.tasks).filter(|(_, task)| task.settings.head == schema::HeadKind::Similarity);
    Limits {
        group_rows: HeadRows::largest(groups, fused).max(config.eval.batch * largest_rows),
        round_rows: HeadRows::largest(rounds, present),
        group_logits: trained[..fused].iter().sum::<usize>().max(evaluated),
        pairs: pairs.map(|(size, _)| *size).max().unwrap_or(0),
        logits_at_once,
        present,
        bag_rows: if sliced { largest } else { shapes.per_round },
        bag_entries: shapes.entries,
        task_rows: shapes.per_task,
        tokens: Default::default(),
        data: Default::default(),
    }
}

/// Of the largest group or evaluation batch, but for those over a vocabulary: of these what an evaluation of few rows has.
fn logits_at_once(spec: &ModelSpec, rows: &HeadRows, fused: usize) -> usize {
    /// Rows that an evaluation computes at once, unless it has fewer or a single example has more.
    const EVALUATED: usize = 256;
    let heads = || spec.heads.iter().zip(rows.trained.iter().zip(&rows.evaluated));
    let trained = heads().map(|(head, (rows, _))| if head.kind == HeadKind::Mlm { 0 } else { head.outputs * rows });
    let evaluated = heads().map(|(head, (trained, evaluated))| match head.kind {
        HeadKind::Mlm => pitch(head.outputs) * EVALUATED.min(*trained).max(*evaluated),
        _ => head.outputs * evaluated,
    });
    HeadRows::largest(trained, fused).max(evaluated.max().unwrap_or(0))
}

/// Rows of logits by task: of the largest micro-batch, and of the largest evaluation batch.
struct HeadRows {
    trained: Vec<usize>,
    evaluated: Vec<usize>,
    /// There is a language model.
    has_words: bool,
}

impl HeadRows {
    /// Rows of the encoder, or for a language model masked tokens; of those a single example is all that must fit an evaluation.
    pub fn new(config: &Config, corpus: &Corpus) -> Self {
        let (mut trained, mut evaluated) = (Vec::new(), Vec::new());
        for task in &corpus.tasks {
            if task.settings.head != schema::HeadKind::Mlm {
                trained.push(largest_micro_batch(config, &task.settings) * task.settings.head.rows());
                evaluated.push(config.eval.batch * task.settings.head.rows());
                continue;
            }
            let masked = |split: &Split| (0..split.len()).map(|example| masked_of(split, example)).collect::<Vec<_>>();
            let mut train = masked(&task.train);
            train.sort_unstable_by(|a, b| b.cmp(a));
            let most = largest_draw(&train, largest_micro_batch(config, &task.settings));
            trained.push(if on_device(config) { buckets::rows(most) } else { most });
            evaluated.push([&task.dev, &task.test].into_iter().flatten().flat_map(masked).chain(train).max().unwrap_or(0));
        }
        let has_words = corpus.tasks.iter().any(|task| task.settings.head == schema::HeadKind::Mlm);
        Self { trained, evaluated, has_words }
    }

    /// The rows of the `count` largest tasks together.
    fn largest(rows: impl Iterator<Item = usize>, count: usize) -> usize {
        let mut rows: Vec<usize> = rows.collect();
        rows.sort_unstable_by(|a, b| b.cmp(a));
        rows.into_iter().take(count).fold(0, usize::saturating_add)
    }
}

/// Masked tokens whose logits a device computes at once: enough for the decoder's products to fill a large card.
const WORDS_AT_ONCE: usize = 1024;

/// Largest shapes of a transformer's batches.
fn token_limits(
    config: &Config,
    corpus: &Corpus,
    spec: &TransformerSpec,
    samplings: &[TaskSampling],
    rows: &HeadRows,
) -> TokenLimits {
    let [present, fused] = together(config, samplings);
    let (mut groups, mut rounds, mut longest) = (Vec::new(), Vec::new(), 0);
    for (task, sampling) in corpus.tasks.iter().zip(samplings) {
        let mut lengths = sequence_lengths(&task.train);
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let size = largest_micro_batch(config, &task.settings);
        groups.push(largest_draw(&lengths, size));
        rounds.push(largest_round(config, sampling, size, &lengths));
        let others = [&task.dev, &task.test].into_iter().flatten().flat_map(sequence_lengths);
        longest = others.chain(lengths).max().unwrap_or(0).max(longest);
    }
    groups.sort_unstable_by(|a, b| b.cmp(a));
    let mut round_tokens = HeadRows::largest(rounds.into_iter(), present);
    let mut group_tokens = groups[..fused].iter().sum::<usize>().max(longest);
    if on_device(config) {
        // A device's groups are padded, of which a round has one for each micro-batch at worst: twice where words are read beside whole texts.
        let reads_some = spec.pooling == Pooling::Mean && rows.has_words;
        group_tokens += padding(group_tokens, reads_some);
        let most = corpus.tasks.iter().zip(samplings).map(|(task, sampling)| micro_batches(config, sampling, task));
        let groups = HeadRows::largest(most, present) * (1 + usize::from(reads_some));
        round_tokens += buckets::multiple(group_tokens) * groups;
    }
    let head_rows = HeadRows::largest(rows.trained.iter().copied(), fused).max(rows.evaluated.iter().copied().max().unwrap_or(0));
    let words = corpus.tasks.iter().map(|task| task.settings.head == schema::HeadKind::Mlm);
    let of_words = |rows: &[usize]| words.clone().zip(rows.to_vec()).filter(|(words, _)| *words).map(|(_, rows)| rows);
    let masked = HeadRows::largest(of_words(&rows.trained), fused).max(of_words(&rows.evaluated).max().unwrap_or(0));
    let group_queries = if spec.pooling == Pooling::Mean { group_tokens } else { head_rows.min(group_tokens) };
    let kept = if config.encoder.cache_frozen && on_device(config) { tokens_on_device(corpus) } else { 0 };
    let words_at_once = masked.min(WORDS_AT_ONCE);
    TokenLimits { group_tokens, group_queries, head_rows, masked, words_at_once, round_tokens, kept }
}

/// Whether groups are padded.
pub fn on_device(config: &Config) -> bool {
    Device::parse(&config.run.device).is_ok_and(|device| device != Device::Cpu)
}

/// Most micro-batches of a task in one round: one more where its examples are divided between two batches, and one for each example where
/// injected faults may ask for smaller ones.
fn micro_batches(config: &Config, sampling: &TaskSampling, task: &TaskData) -> usize {
    let second = registry::find(&config.surgery.method).is_ok_and(|method| method.needs.second_batch);
    let smallest = if config.faults.is_empty() { 1 } else { largest_micro_batch(config, &task.settings) };
    examples(config, sampling, smallest) + usize::from(second)
}

/// Examples that a task can bring to one round.
fn examples(config: &Config, sampling: &TaskSampling, micro_batch: usize) -> usize {
    sampling.most().saturating_mul(config.train.accumulate).saturating_mul(micro_batch)
}

/// Most that a round of one task can bring, by its examples' sizes (descending).
fn largest_round(config: &Config, sampling: &TaskSampling, micro_batch: usize, sizes: &[usize]) -> usize {
    largest_draw(sizes, examples(config, sampling, micro_batch))
}

/// Most that `count` examples in a row can bring. Each pass over the data is in an order of its own, so the largest examples may
/// end one pass and begin the next, half of what lies outside the whole passes each.
fn largest_draw(sizes: &[usize], count: usize) -> usize {
    if sizes.is_empty() {
        return 0;
    }
    let top = |count: usize| sizes[..count].iter().sum::<usize>();
    // Either no end is longer than a pass, or one example at least is left for each.
    let (fewest, most) = (count.div_ceil(sizes.len()).saturating_sub(2), count.saturating_sub(2) / sizes.len());
    let draw = |whole: usize| {
        let ends = count - whole * sizes.len();
        whole.saturating_mul(top(sizes.len())).saturating_add(top(ends / 2) + top(ends.div_ceil(2)))
    };
    (fewest..=most).map(draw).max().unwrap_or(0)
}

/// Tokens of each example.
fn sequence_lengths(split: &Split) -> Vec<usize> {
    match &split.inputs {
        Inputs::Tokens(_) => (0..split.len()).map(|example| tokens_of(split, example)).collect(),
        Inputs::Features(_) => Vec::new(),
    }
}

/// Word rows of a transformer; the table has to hold all of them where they are `known` from the start.
fn token_rows(config: &Config, corpus: &Corpus, spec: &TransformerSpec, samplings: &[TaskSampling], known: bool) -> TableShapes {
    let trained = !spec.embeddings_frozen();
    let mut touched = vec![known; spec.vocabulary];
    let mut per_round = Vec::new();
    for (task, sampling) in corpus.tasks.iter().zip(samplings).filter(|_| trained) {
        let mut lengths = sequence_lengths(&task.train);
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let words = task.settings.head == schema::HeadKind::Mlm;
        let size = largest_micro_batch(config, &task.settings);
        per_round.push(if words {
            spec.vocabulary
        } else {
            largest_round(config, sampling, size, &lengths).min(spec.vocabulary)
        });
        if let (Inputs::Tokens(store), false) = (&task.train.inputs, known) {
            let mut ids = vec![spec.cls, spec.sep];
            for example in 0..store.len() {
                store.read(example, &mut ids);
                ids.drain(..).for_each(|id| touched[id as usize] = true);
            }
        }
    }
    let rows = touched.iter().filter(|touched| **touched).count();
    let all = corpus.tasks.iter().flat_map(|task| sequence_lengths(&task.train)).sum();
    TableShapes { per_task: vec![rows; per_round.len()], per_round, rows, entries: 0, all }
}

/// Embedding rows that a run touches.
#[derive(Default)]
struct TableShapes {
    /// At most in one round, by task.
    per_round: Vec<usize>,
    /// In the whole run, by task.
    per_task: Vec<usize>,
    /// In the whole run.
    rows: usize,
    /// N-grams of all examples of the largest round, and n-grams or tokens of all training examples.
    entries: usize,
    all: usize,
}

fn bag_shapes(config: &Config, corpus: &Corpus, spec: &Bag, samplings: &[TaskSampling]) -> TableShapes {
    let mut shapes = TableShapes::default();
    // The last task, counted from 1, that was seen to touch a row.
    let mut touched = vec![0u32; spec.rows];
    for (number, (task, sampling)) in (1..).zip(corpus.tasks.iter().zip(samplings)) {
        let (mut sizes, own) = mark_rows(&task.train, spec, number, &mut touched);
        shapes.all += sizes.iter().sum::<usize>();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        let whole = largest_round(config, sampling, largest_micro_batch(config, &task.settings), &sizes);
        shapes.entries = shapes.entries.saturating_add(whole);
        shapes.per_round.push(whole.min(own));
        shapes.per_task.push(own);
    }
    shapes.entries = shapes.entries.max(evaluated_entries(config, corpus, spec));
    shapes.rows = touched.iter().filter(|task| **task > 0).count();
    shapes
}

/// At least the n-grams of the largest evaluation batch: as many as its longest example could have, for each example.
fn evaluated_entries(config: &Config, corpus: &Corpus, spec: &Bag) -> usize {
    let splits = corpus.tasks.iter().flat_map(|task| [&task.dev, &task.test]).flatten();
    let longest = splits.filter_map(|split| match &split.inputs {
        Inputs::Tokens(store) => (0..store.len()).map(|row| store.token_count(row) * split.rows_of_example()).max(),
        Inputs::Features(_) => None,
    });
    longest.max().unwrap_or(0).saturating_mul(spec.ngrams).saturating_mul(config.eval.batch)
}

/// Marks the rows of a split's examples with the task's number; their bag sizes, and the rows newly marked.
fn mark_rows(split: &Split, spec: &Bag, number: u32, touched: &mut [u32]) -> (Vec<usize>, usize) {
    const CHUNK: usize = 4096;
    let Inputs::Tokens(store) = &split.inputs else { return (Vec::new(), 0) };
    let mut sizes = vec![0; split.len()];
    let mut own = 0;
    for start in (0..store.len()).step_by(CHUNK) {
        let end = (start + CHUNK).min(store.len());
        let bags: Vec<Vec<u32>> = (start..end).into_par_iter().map(|row| example_bag(store, row, spec)).collect();
        for (row, rows) in (start..).zip(bags) {
            sizes[row / split.rows_of_example()] += rows.len();
            for row in rows {
                own += usize::from(std::mem::replace(&mut touched[row as usize], number) != number);
            }
        }
    }
    (sizes, own)
}

/// The table rows of one of a split's rows, ascending.
pub fn example_bag(store: &TokenStore, example: usize, spec: &Bag) -> Vec<u32> {
    let mut tokens = Vec::with_capacity(store.token_count(example));
    let first = store.read(example, &mut tokens);
    let mut rows = Vec::new();
    ngram_rows(&tokens, first, spec.vocabulary, spec.ngrams, spec.buckets, &mut rows);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_examples_may_meet_where_two_passes_do() {
        assert_eq!(largest_draw(&[], 3), 0);
        assert_eq!(largest_draw(&[5], 3), 15);
        assert_eq!(largest_draw(&[5, 1, 1, 1], 1), 5);
        assert_eq!(largest_draw(&[5, 1, 1, 1], 2), 10);
        assert_eq!(largest_draw(&[5, 1], 3), 11);
        assert_eq!(largest_draw(&[5, 1], 5), 17);
    }

    fn orders(sizes: &[usize]) -> Vec<Vec<usize>> {
        if sizes.is_empty() {
            return vec![Vec::new()];
        }
        let first = |at: usize| {
            let rest = [&sizes[..at], &sizes[at + 1..]].concat();
            orders(&rest).into_iter().map(move |order| [&sizes[at..=at], &order].concat())
        };
        (0..sizes.len()).flat_map(first).collect()
    }

    /// Held against every order of three passes.
    #[test]
    fn no_draw_brings_more() {
        let sizes = [9, 9, 1, 0];
        let orders = orders(&sizes);
        for count in 1..=8 {
            let mut most = 0;
            for passes in 0..orders.len().pow(3) {
                let order = |pass: u32| &orders[passes / orders.len().pow(pass) % orders.len()];
                let drawn = [0, 1, 2].map(order).map(Vec::as_slice).concat();
                most = drawn.windows(count).map(|window| window.iter().sum()).max().unwrap_or(0).max(most);
            }
            assert_eq!(largest_draw(&sizes, count), most, "{count}");
        }
    }
}
