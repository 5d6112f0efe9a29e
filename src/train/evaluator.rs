//! A pass over a split, batch by batch, so that it can be interrupted and gone on with between rounds.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::config::schema::MetricKind;
use crate::data::{Corpus, Split, SplitName, Targets, TaskData};
use crate::model::network::Targets as BatchTargets;
use crate::train::batch::evaluation_batch;
use crate::train::evaluate::{Evaluation, Scores, TaskScores, mean_loss, task_scores};
use crate::train::metrics::{Undefined, argmax};
use crate::train::pairs::pair_scores;
use crate::train::predictor::Predictor;
use crate::train::tokens::evaluation_end;

/// An evaluation under way: the batches done so far.
pub struct Evaluator {
    split: SplitName,
    /// Examples in one batch.
    batch: usize,
    /// The task whose turn it is, and its first example not yet submitted.
    task: usize,
    start: usize,
    /// The oldest first.
    submitted: VecDeque<Submitted>,
    /// Of the task whose batch is collected next.
    tally: Tally,
    done: BTreeMap<String, TaskScores>,
    /// Spent so far.
    pub time: Duration,
}

/// A batch whose logits are being computed.
struct Submitted {
    task: usize,
    targets: BatchTargets,
    /// It has the last of the task's examples.
    last: bool,
}

/// What is known of a task so far.
#[derive(Default)]
struct Tally {
    /// (examples x outputs), of pairs the unit vectors of their texts; not kept of words, of which there are too many.
    logits: Vec<f32>,
    /// By example: sum of losses, and observed targets, or their classes' weights.
    losses: Vec<(f64, f64)>,
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
        let (submitted, tally, done, time) = (VecDeque::new(), Tally::default(), BTreeMap::new(), Duration::ZERO);
        let mut evaluator = Self { split, batch, task: 0, start: 0, submitted, tally, done, time };
        evaluator.advance(corpus);
        evaluator
    }

    /// Every batch was submitted; after [`Evaluator::step`], collected too.
    pub fn is_done(&self, corpus: &Corpus) -> bool {
        self.task == corpus.tasks.len()
    }

    /// Whether more than so many batches are left for certain.
    pub fn outlasts(&self, corpus: &Corpus, batches: u64) -> bool {
        let left = |(task, start): (&TaskData, usize)| task.split(self.split).map_or(0, |data| data.len() - start);
        let starts = std::iter::once(self.start).chain(std::iter::repeat(0));
        let left = corpus.tasks[self.task..].iter().zip(starts).map(left);
        left.map(|examples| examples.div_ceil(self.batch) as u64).sum::<u64>() > batches
    }

    /// Evaluates one batch, if there is one left. Where it is computed beside others, its outcome is waited for with the next one, or at
    /// once if it is the last.
    pub fn step(&mut self, predictor: &mut dyn Predictor, corpus: &Corpus) -> Result<()> {
        let clock = Instant::now();
        if let Some(data) = corpus.tasks.get(self.task).and_then(|task| task.split(self.split)) {
            self.submit(predictor, data)?;
            self.advance(corpus);
        }
        let most = if self.is_done(corpus) { 0 } else { predictor.most_under_way() };
        self.collect(predictor, corpus, most)?;
        self.time += clock.elapsed();
        Ok(())
    }

    /// The next batch of the task whose turn it is.
    fn submit(&mut self, predictor: &mut dyn Predictor, data: &Split) -> Result<()> {
        let (task, start) = (self.task, self.start);
        let end = evaluation_end(data, start, self.batch, predictor.token_room());
        let mut packed = evaluation_batch(&*predictor.network().spec.encoder, task, data, start..end);
        predictor.submit(&packed)?;
        let targets = packed.parts.swap_remove(0).targets;
        self.submitted.push_back(Submitted { task, targets, last: end == data.len() });
        self.start = end;
        Ok(())
    }

    /// Waits until at most so many batches are under way.
    pub fn collect(&mut self, predictor: &mut dyn Predictor, corpus: &Corpus, most: usize) -> Result<()> {
        while self.submitted.len() > most {
            let Some(Submitted { task, targets, last }) = self.submitted.pop_front() else { break };
            let data = &corpus.tasks[task];
            let split = data.split(self.split).expect("it was submitted");
            self.tally.add(predictor, task, split, &targets)?;
            if last {
                self.done.insert(data.name.clone(), std::mem::take(&mut self.tally).scores(data, split, self.batch));
            }
        }
        Ok(())
    }

    /// Goes on to the first task with examples that were not submitted.
    fn advance(&mut self, corpus: &Corpus) {
        while let Some(task) = corpus.tasks.get(self.task) {
            match task.split(self.split) {
                Some(data) if self.start < data.len() => return,
                Some(data) if data.is_empty() => {
                    self.done.insert(task.name.clone(), Tally::default().scores(task, data, self.batch));
                }
                _ => {}
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
    /// The oldest batch that was submitted, of `task`.
    fn add(&mut self, predictor: &mut dyn Predictor, task: usize, split: &Split, targets: &BatchTargets) -> Result<()> {
        let outputs = predictor.network().spec.heads[task].outputs;
        let rows = targets.rows(outputs);
        // The host's logits lie in the memory that it computes in.
        let logits = predictor.collect()?[..rows * outputs].to_vec();
        if split.targets == Targets::Pairs {
            self.logits.extend(logits);
            return Ok(());
        }
        let (network, mut room) = (predictor.network(), Vec::new());
        for (row, logits) in logits.chunks_exact(outputs).enumerate() {
            let target = row_targets(targets, row, outputs);
            if let (Targets::Words, BatchTargets::Class(word)) = (&split.targets, &target) {
                self.right += usize::from(argmax(logits) == word[0] as usize);
            }
            self.losses.push((network.row_loss(task, &target, logits, &mut room), network.spec.heads[task].observed(&target)));
        }
        if split.targets != Targets::Words {
            self.logits.extend(logits);
        }
        Ok(())
    }

    fn scores(self, task: &TaskData, split: &Split, batch: usize) -> TaskScores {
        match split.targets {
            Targets::Words => self.words(split),
            Targets::Pairs => pair_scores(task, split, &self.logits, batch),
            _ => task_scores(task, split, &self.logits, &self.losses),
        }
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
        BatchTargets::Pairs(_) => unreachable!("pairs are not scored row by row"),
    }
}
