//! A pass over a split, batch by batch, so that it can be interrupted and gone on with between rounds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::config::schema::MetricKind;
use crate::data::{Corpus, Split, SplitName, Targets, TaskData};
use crate::model::network::{Batch, Targets as BatchTargets};
use crate::train::batch::evaluation_batch;
use crate::train::evaluate::{Evaluation, Scores, TaskScores, mean_loss, task_scores};
use crate::train::metrics::{Undefined, argmax};
use crate::train::round::Engine;
use crate::train::tokens::evaluation_end;

/// An evaluation under way: the batches done so far.
pub struct Evaluator {
    split: SplitName,
    /// Examples in one batch.
    batch: usize,
    /// The task whose turn it is, and its first example not yet seen.
    task: usize,
    start: usize,
    tally: Tally,
    done: BTreeMap<String, TaskScores>,
    /// Spent so far.
    pub time: Duration,
}

/// What is known of the task whose turn it is.
#[derive(Default)]
struct Tally {
    /// (examples x outputs); not kept of words, of which there are too many.
    logits: Vec<f32>,
    /// By example: sum of losses, and observed targets.
    losses: Vec<(f64, usize)>,
    /// Words guessed right.
    right: usize,
}

/// Evaluates every task that has the split; none of it if `stop` is raised meanwhile.
pub fn evaluate(engine: &mut Engine, corpus: &Corpus, split: SplitName, batch: usize, stop: &AtomicBool) -> Option<Evaluation> {
    let mut evaluator = Evaluator::new(corpus, split, batch);
    while !evaluator.is_done(corpus) {
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        evaluator.step(engine, corpus);
    }
    Some(evaluator.finish())
}

impl Evaluator {
    pub fn new(corpus: &Corpus, split: SplitName, batch: usize) -> Self {
        let (tally, done, time) = (Tally::default(), BTreeMap::new(), Duration::ZERO);
        let mut evaluator = Self { split, batch, task: 0, start: 0, tally, done, time };
        evaluator.settle(corpus);
        evaluator
    }

    pub fn is_done(&self, corpus: &Corpus) -> bool {
        self.task == corpus.tasks.len()
    }

    /// Evaluates one batch, if there is one left.
    pub fn step(&mut self, engine: &mut Engine, corpus: &Corpus) {
        let clock = Instant::now();
        if let Some(data) = corpus.tasks.get(self.task).and_then(|task| task.split(self.split)) {
            self.start = self.tally.add(engine, self.task, data, self.start, self.batch);
            self.settle(corpus);
        }
        self.time += clock.elapsed();
    }

    /// Sums up the tasks whose examples have all been seen, and goes on to the next.
    fn settle(&mut self, corpus: &Corpus) {
        while let Some(task) = corpus.tasks.get(self.task) {
            if let Some(data) = task.split(self.split) {
                if self.start < data.len() {
                    return;
                }
                self.done.insert(task.name.clone(), std::mem::take(&mut self.tally).scores(task, data));
            }
            self.task += 1;
            self.start = 0;
        }
    }

    /// The scores of all tasks that have been gone through.
    pub fn finish(self) -> Evaluation {
        Evaluation { split: self.split, tasks: self.done }
    }
}

impl Tally {
    /// One batch of `task` from example `start` on; returns where the next one begins.
    fn add(&mut self, engine: &mut Engine, task: usize, split: &Split, start: usize, batch: usize) -> usize {
        let end = evaluation_end(split, start, batch, engine.token_room(), engine.masked_room());
        let packed = evaluation_batch(&engine.network.spec.encoder, task, split, start..end);
        let outputs = engine.network.spec.heads[task].outputs;
        match (&split.targets, &packed.parts[0].targets) {
            (Targets::Words, BatchTargets::Class(words)) => self.add_words(engine, task, outputs, &packed, words),
            (_, targets) => {
                self.logits.extend_from_slice(&engine.predict(&packed)[..(end - start) * outputs]);
                self.losses.extend((0..end - start).map(|row| row_loss(engine, task, targets, row, outputs)));
            }
        }
        end
    }

    fn add_words(&mut self, engine: &mut Engine, task: usize, outputs: usize, packed: &Batch, words: &[u32]) {
        let rows = engine.predict(packed).chunks_exact(outputs).zip(words);
        self.right += rows.filter(|(row, word)| argmax(row) == **word as usize).count();
        let loss = |(row, &word): (usize, &u32)| (engine.row_loss(task, &BatchTargets::Class(vec![word]), row), 1);
        self.losses.extend(words.iter().enumerate().map(loss));
    }

    fn scores(self, task: &TaskData, split: &Split) -> TaskScores {
        if split.targets == Targets::Words {
            return self.words(split);
        }
        task_scores(task, split, &self.logits, &self.losses)
    }

    /// A masked language model: loss and accuracy over all masked words of the split, always the same ones.
    /// A loss that is not finite stands for logits that are not.
    fn words(self, split: &Split) -> TaskScores {
        let loss = mean_loss(self.losses.iter().copied());
        let accuracy = match loss {
            _ if self.losses.is_empty() => Err(Undefined::NoTargets),
            None => Err(Undefined::NotFinite),
            Some(_) => Ok(self.right as f64 / self.losses.len() as f64),
        };
        let all = Scores { examples: split.len(), loss, metrics: vec![(MetricKind::Accuracy, accuracy)] };
        TaskScores { all, slices: BTreeMap::new(), not_finite: Vec::new() }
    }
}

/// Sum of losses and observed targets of one row of the batch just predicted.
fn row_loss(engine: &mut Engine, task: usize, targets: &BatchTargets, row: usize, outputs: usize) -> (f64, usize) {
    let one = match targets {
        BatchTargets::Class(classes) => BatchTargets::Class(vec![classes[row]]),
        BatchTargets::Values(values) => BatchTargets::Values(values[row * outputs..(row + 1) * outputs].to_vec()),
    };
    (engine.row_loss(task, &one, row), one.observed())
}
