//! A pass over a split, batch by batch, so that it can be interrupted and gone on with between rounds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::config::schema::MetricKind;
use crate::data::{Corpus, Split, SplitName, Targets, TaskData};
use crate::model::network::Targets as BatchTargets;
use crate::train::batch::evaluation_batch;
use crate::train::evaluate::{Evaluation, Scores, TaskScores, mean_loss, task_scores};
use crate::train::metrics::{Undefined, argmax};
use crate::train::predictor::Predictor;
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

/// Evaluates every task that has the split.
pub fn evaluate(predictor: &mut dyn Predictor, corpus: &Corpus, split: SplitName, batch: usize) -> Result<Evaluation> {
    let mut evaluator = Evaluator::new(corpus, split, batch);
    while !evaluator.is_done(corpus) {
        evaluator.step(predictor, corpus)?;
    }
    Ok(evaluator.finish())
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
    pub fn step(&mut self, predictor: &mut dyn Predictor, corpus: &Corpus) -> Result<()> {
        let clock = Instant::now();
        if let Some(data) = corpus.tasks.get(self.task).and_then(|task| task.split(self.split)) {
            self.start = self.tally.add(predictor, self.task, data, self.start, self.batch)?;
            self.settle(corpus);
        }
        self.time += clock.elapsed();
        Ok(())
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
        Evaluation { split: self.split.as_str(), tasks: self.done }
    }
}

impl Tally {
    /// One batch of `task` from example `start` on; returns where the next one begins.
    fn add(&mut self, predictor: &mut dyn Predictor, task: usize, split: &Split, start: usize, batch: usize) -> Result<usize> {
        let end = evaluation_end(split, start, batch, predictor.token_room());
        let packed = evaluation_batch(&*predictor.network().spec.encoder, task, split, start..end);
        let outputs = predictor.network().spec.heads[task].outputs;
        let targets = &packed.parts[0].targets;
        let rows = targets.rows(outputs);
        // The host's logits lie in the memory that it computes in.
        let logits = predictor.predict(&packed)?[..rows * outputs].to_vec();
        let (network, mut room) = (predictor.network(), Vec::new());
        for (row, logits) in logits.chunks_exact(outputs).enumerate() {
            let target = row_targets(targets, row, outputs);
            if let (Targets::Words, BatchTargets::Class(word)) = (&split.targets, &target) {
                self.right += usize::from(argmax(logits) == word[0] as usize);
            }
            self.losses.push((network.row_loss(task, &target, logits, &mut room), target.observed()));
        }
        if split.targets != Targets::Words {
            self.logits.extend(logits);
        }
        Ok(end)
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
        TaskScores { all, outputs: Vec::new(), slices: BTreeMap::new(), not_finite: Vec::new() }
    }
}

/// Those of one row.
fn row_targets(targets: &BatchTargets, row: usize, outputs: usize) -> BatchTargets {
    match targets {
        BatchTargets::Class(classes) => BatchTargets::Class(vec![classes[row]]),
        BatchTargets::Values(values) => BatchTargets::Values(values[row * outputs..(row + 1) * outputs].to_vec()),
    }
}
