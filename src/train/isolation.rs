//! A round from its examples to its commit, without the tasks that fail in it.

use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use anyhow::Result;

use crate::data::Corpus;
use crate::model::network::Batch;
use crate::observe::run_trace::{ComputedRounds, QuantumSpan};
use crate::schedule::retry::Status;
use crate::surgery::update::Rates;
use crate::train::ahead::Packed;
use crate::train::batch::{Purpose, Share, training_batch};
use crate::train::faults::InjectedFaults;
use crate::train::guard::what_happened;
use crate::train::quanta::Quantum;
use crate::train::round::{Anomaly, Commit, Committed, Outcome, Trainer};

/// A task's part of a round that came to nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// Run-wide index.
    pub task: usize,
    pub status: Status,
    /// E.g. "loss NaN on train examples 4, 8 (2 in all)".
    pub why: String,
}

/// A round that was committed.
pub struct Done {
    pub round: u64,
    /// Run-wide indices of its tasks, ascending.
    pub tasks: Vec<usize>,
    pub committed: Committed,
}

/// What came of a round, or of several that were computed together.
#[derive(Default)]
pub struct Attempt {
    /// The rounds that were committed.
    pub done: Vec<Done>,
    /// When they were computed, where that was measured.
    pub computed: Option<ComputedRounds>,
    pub failures: Vec<Failure>,
    /// Something was not finite, and whose it is cannot be told: gradients were only added up.
    pub anomaly: Option<Anomaly>,
}

impl Attempt {
    /// Everything was committed.
    pub fn is_whole(&self) -> bool {
        self.failures.is_empty() && self.anomaly.is_none()
    }

    /// Time of the slowest group that the task was in.
    pub fn slowest_group(&self, task: usize) -> Option<Duration> {
        let groups = self.computed.iter().flat_map(|computed| &computed.groups);
        groups.filter(|group| group.tasks.contains(&task)).map(|group| group.time).max()
    }
}

/// What a round goes by.
pub struct Work<'a> {
    pub corpus: &'a Corpus,
    /// Most tasks in a fused group.
    pub fuse: usize,
    /// Of the first round.
    pub purpose: Purpose,
    /// Of a round, where so many of those computed together were committed before it.
    pub rates: &'a dyn Fn(u64, u64) -> Rates,
    pub injected: &'a InjectedFaults,
    /// The batch of all shares, if it was packed before.
    pub packed: Cell<Option<Packed>>,
}

impl Work<'_> {
    /// Computes the rounds of `shares` and commits them one after another, each the tasks of one of `commits`. A task that fails is
    /// left out, and the others' rounds are computed again, as if it had been absent: none of its numbers is in the result. Errors: the
    /// device is lost.
    pub fn attempt(&self, trainer: &mut Trainer, mut shares: Vec<Share>, commits: &[Vec<usize>]) -> Result<Attempt> {
        let mut attempt = Attempt::default();
        self.injected.stall();
        shares.retain(|share| {
            let short = self.injected.takes_memory(share.task);
            if short {
                let why = "an allocation failed (made on purpose)".to_owned();
                attempt.failures.push(Failure { task: share.task, status: Status::OutOfMemory, why });
            }
            !short
        });
        while !shares.is_empty() {
            let failure = match self.pack(trainer, &shares) {
                Err(dead) => dead,
                Ok((_, present)) if present.is_empty() => break,
                Ok((batch, present)) => match self.compute(trainer, &batch, &present, commits)? {
                    Ok(outcomes) => {
                        attempt.computed = spans(&outcomes, &batch, &present);
                        for (Commit { round, present: own }, outcome) in outcomes {
                            let tasks = present[own].to_vec();
                            match outcome {
                                Ok(committed) => attempt.done.push(Done { round, tasks, committed }),
                                Err(anomaly) => attempt.failures.push(not_finite(&anomaly, tasks[0], &shares)),
                            }
                        }
                        break;
                    }
                    Err(anomaly) => {
                        let Some(task) = anomaly.task else {
                            attempt.anomaly = Some(anomaly);
                            break;
                        };
                        not_finite(&anomaly, task, &shares)
                    }
                },
            };
            shares.retain(|share| share.task != failure.task);
            attempt.failures.push(failure);
        }
        Ok(attempt)
    }

    fn compute(
        &self,
        trainer: &mut Trainer,
        batch: &Batch,
        present: &[usize],
        commits: &[Vec<usize>],
    ) -> Result<Result<Vec<(Commit, Outcome)>, Anomaly>> {
        let balancer = trainer.solver.balancer.state();
        let commits: Vec<Commit> =
            (self.purpose.round..).zip(commits).filter_map(|(round, own)| part(round, own, present)).collect();
        let outcomes = trainer.run_rounds(batch, present, &commits, self.rates)?;
        if outcomes.is_err() {
            // It had seen losses that now do not count.
            trainer.solver.balancer.restore(&balancer).expect("a balancer takes back its own state");
        }
        Ok(outcomes.map(|outcomes| commits.into_iter().zip(outcomes).collect()))
    }

    /// Reads and packs the examples. If that panics, each task is tried alone to find whose reader died.
    fn pack(&self, trainer: &mut Trainer, shares: &[Share]) -> std::result::Result<(Batch, Vec<usize>), Failure> {
        if let Some(Packed { batch, present, prepared, .. }) = self.packed.take() {
            trainer.prepare(Some(prepared));
            return Ok((batch, present));
        }
        trainer.prepare(None);
        let trainer = &*trainer;
        let read = |shares: &[Share]| {
            shares.iter().for_each(|share| self.injected.read(share.task));
            let encoder = &*trainer.model.network.spec.encoder;
            let (mut batch, present) = training_batch(self.corpus, encoder, self.fuse, shares, self.purpose);
            self.injected.poison(&mut batch);
            (batch, present)
        };
        // Reading changes nothing but its own batch, so that what a panic leaves behind is sound.
        let caught = |shares: &[Share]| catch_unwind(AssertUnwindSafe(|| read(shares)));
        caught(shares).map_err(|panic| {
            let dead = shares.iter().find_map(|share| Some((share.task, caught(std::slice::from_ref(share)).err()?)));
            let Some((task, panic)) = dead else { resume_unwind(panic) };
            Failure { task, status: Status::Crashed, why: format!("its reader died: {}", message(&*panic)) }
        })
    }
}

/// The commit of those of `tasks` that are present; none where nobody is. Together or alone, they lie side by side.
fn part(round: u64, tasks: &[usize], present: &[usize]) -> Option<Commit> {
    let mut own = (0..present.len()).filter(|&at| tasks.contains(&present[at]));
    let first = own.next()?;
    Some(Commit { round, present: first..own.next_back().unwrap_or(first) + 1 })
}

fn not_finite(anomaly: &Anomaly, task: usize, shares: &[Share]) -> Failure {
    let examples = shares.iter().find(|share| share.task == task).map_or(&[][..], |share| &share.examples);
    Failure { task, status: Status::NotFinite, why: what_happened(anomaly, examples) }
}

/// Whose quanta they were.
fn spans(outcomes: &[(Commit, Outcome)], batch: &Batch, present: &[usize]) -> Option<ComputedRounds> {
    let span = |tasks: Vec<usize>, &Quantum { lane, start, time }: &Quantum| QuantumSpan { tasks, lane, start, time };
    let group = |(group, quantum): (&Range<usize>, &Quantum)| {
        span(batch.parts[group.clone()].iter().map(|part| part.task).collect(), quantum)
    };
    let times = outcomes.iter().filter_map(|(commit, outcome)| Some((commit, outcome.as_ref().ok()?.times.as_ref()?)));
    // The first of them has all groups.
    let (_, first) = times.clone().next()?;
    Some(ComputedRounds {
        began: first.began,
        groups: batch.groups.iter().zip(&first.groups).map(group).collect(),
        commits: times.map(|(commit, times)| span(present[commit.present.clone()].to_vec(), &times.commit)).collect(),
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it did not say why")
}
