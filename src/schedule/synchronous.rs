//! Synchronous training: which tasks take part in each round, together.
//!
//! Every task that is scheduled to starts a quantum of its own; all of them end before the next round. One that backs off is absent, and
//! when it comes back it brings the part it missed.

use super::Nanos;
use super::access::Operation;
use super::dispatcher::{Dispatcher, Job, Settings};
use super::order::{self, Scheduled, Verdict};
use super::retry::Status;
use super::sampler::{TaskSampling, deal};
use super::task::{Spec, State};

/// Rounds in which all present tasks commit together.
#[derive(Clone)]
pub struct Synchronous {
    pub(super) dispatcher: Dispatcher,
    samplings: Vec<TaskSampling>,
    /// Planned time of one micro-batch of each task.
    costs: Vec<Nanos>,
    taken: Vec<u64>,
    /// Micro-batches of the job that a task has.
    parts: Vec<usize>,
    /// Lane and planned time of those that take part in this round.
    running: Vec<Option<(usize, Nanos)>>,
    /// Examples of a micro-batch, by task.
    sizes: Vec<u64>,
    round: u64,
    now: Nanos,
    /// Planned time of this round.
    length: Nanos,
}

impl Synchronous {
    /// The specs' `cost` is the planned time of one micro-batch. Refuses what [`Dispatcher::new`] refuses.
    pub fn new(settings: Settings, specs: &[Spec], samplings: Vec<TaskSampling>, micro_batch: u64) -> Result<Self, String> {
        let count = specs.len();
        let dispatcher = Dispatcher::new(Settings { lanes: count, ..settings }, specs.to_vec(), 1)?;
        let costs = specs.iter().map(|spec| spec.cost).collect();
        Ok(Self {
            dispatcher,
            samplings,
            costs,
            taken: vec![0; count],
            parts: vec![0; count],
            running: vec![None; count],
            sizes: vec![micro_batch; count],
            round: 0,
            now: 0,
            length: 0,
        })
    }

    pub(super) fn schedule(&mut self) -> Scheduled {
        self.now = self.now.saturating_add(std::mem::take(&mut self.length));
        let done: Vec<bool> = (0..self.samplings.len()).map(|task| self.dispatcher.state(task) == State::Done).collect();
        let scheduled = deal(&self.samplings, self.round, &done);
        self.round += 1;
        for (task, &part) in scheduled.iter().enumerate().filter(|(_, part)| **part > 0) {
            if self.dispatcher.is_idle(task) {
                self.parts[task] = part;
                let cost = self.costs[task].saturating_mul(part as u64);
                // No budget holds here: the examples of a micro-batch stand for its bytes, and say whether it can be halved.
                let bytes = self.sizes[task];
                let job = Job { operation: Operation::Gradient, blocks: 1, release: self.now, cost, bytes };
                self.dispatcher.submit(task, job, self.now);
            }
        }
        let mut present = self.start();
        if present.iter().all(|&part| part == 0) && scheduled.iter().any(|&part| part > 0) {
            // All that were scheduled to back off: planned time passes until one of them is back.
            self.now = self.dispatcher.wakes_at().unwrap_or(self.now).max(self.now);
            present = self.start();
        }
        Scheduled::together(present)
    }

    /// Starts whoever may run now.
    fn start(&mut self) -> Vec<usize> {
        let mut present = vec![0; self.samplings.len()];
        while let Some(started) = self.dispatcher.next(self.now) {
            self.running[started.task] = Some((started.lane, started.job.cost));
            present[started.task] = self.parts[started.task];
            self.length = self.length.saturating_add(started.job.cost);
        }
        present
    }

    pub(super) fn ended(&mut self, task: usize, status: Status) -> Verdict {
        let Some((lane, cost)) = self.running[task].take() else { return Verdict::Fine };
        let end = self.now.saturating_add(self.length);
        let (_, after) = self.dispatcher.complete(lane, cost, status, end);
        let verdict = order::verdict(&mut self.dispatcher, task, after, end);
        match verdict {
            Verdict::Fine => {
                self.taken[task] += 1;
                if self.samplings[task].is_done(self.taken[task]) {
                    self.dispatcher.finish(task, end);
                }
            }
            Verdict::Again { halve: true, .. } => {
                self.sizes[task] /= 2;
                self.dispatcher.resize(task, self.sizes[task], cost);
            }
            _ => {}
        }
        verdict
    }

    pub(super) fn finish(&mut self, task: usize) -> bool {
        order::finish(&mut self.dispatcher, task, self.now.saturating_add(self.length))
    }
}
