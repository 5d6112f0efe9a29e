//! Time-sliced training: which one task commits in each round.
//!
//! The dispatcher decides over a planned clock, on which an example always takes the same time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Nanos;
use super::access::Operation;
use super::dispatcher::{Dispatcher, Job, Settings, Started};
use super::order::{self, Verdict};
use super::retry::Status;
use super::task::Spec;

/// A task of a time-sliced run.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// Its `cost` is the planned time of one of its rounds; a deadline task is due every `period`, any other at once.
    pub spec: Spec,
    /// Best-effort: takes a turn in every so many cycles of all tasks.
    pub every: u64,
    /// Rounds after which it is done.
    pub rounds: Option<u64>,
    /// Examples of a micro-batch.
    pub micro_batch: u64,
}

pub struct Slices {
    pub(super) dispatcher: Dispatcher,
    tasks: Vec<Slice>,
    /// The round in progress.
    running: Option<Started>,
    taken: Vec<u64>,
    /// When tasks that are not due yet will be.
    due: BinaryHeap<Reverse<(Nanos, usize)>>,
    /// Planned time of one round of every task.
    cycle: Nanos,
    now: Nanos,
}

impl Slices {
    /// Refuses what [`Dispatcher::new`] refuses.
    pub fn new(settings: Settings, tasks: Vec<Slice>) -> Result<Self, String> {
        let dispatcher = Dispatcher::new(settings, tasks.iter().map(|task| task.spec.clone()).collect(), 1)?;
        let cycle = tasks.iter().map(|task| task.spec.cost).sum();
        let due = (0..tasks.len()).map(|task| Reverse((0, task))).collect();
        Ok(Self { dispatcher, running: None, taken: vec![0; tasks.len()], tasks, due, cycle, now: 0 })
    }

    /// (tasks) 1 for the task whose round is next; none once all are done.
    pub(super) fn deal(&mut self) -> Vec<usize> {
        self.running = self.next();
        let chosen = self.running.map(|started| started.task);
        (0..self.tasks.len()).map(|task| usize::from(chosen == Some(task))).collect()
    }

    fn next(&mut self) -> Option<Started> {
        loop {
            while let Some(&Reverse((at, task))) = self.due.peek().filter(|Reverse((at, _))| *at <= self.now) {
                self.due.pop();
                let Slice { spec, micro_batch, .. } = &self.tasks[task];
                // No budget holds here: the examples of a micro-batch stand for its bytes, and say whether it can be halved.
                let (cost, bytes) = (spec.cost, *micro_batch);
                let job = Job { operation: Operation::Commit, blocks: 1, release: at, cost, bytes };
                self.dispatcher.submit(task, job, self.now);
            }
            if let Some(started) = self.dispatcher.next(self.now) {
                return Some(started);
            }
            // Nobody is ready: time passes until somebody is due, or back from a failure.
            let due = self.due.peek().map(|&Reverse((at, _))| at);
            self.now = due.into_iter().chain(self.dispatcher.wakes_at()).min()?;
        }
    }

    pub(super) fn ended(&mut self, task: usize, status: Status) -> Verdict {
        let Some(Started { lane, job, .. }) = self.running.take().filter(|started| started.task == task) else {
            return Verdict::Fine;
        };
        self.now += job.cost;
        let (_, after) = self.dispatcher.complete(lane, job.cost, status, self.now);
        let verdict = order::verdict(&mut self.dispatcher, task, after, self.now);
        match verdict {
            Verdict::Fine => self.committed(task, &job),
            Verdict::RolledBack => self.due.push(Reverse((self.now, task))),
            Verdict::Again { halve: true, .. } => {
                let size = &mut self.tasks[task].micro_batch;
                *size /= 2;
                self.dispatcher.resize(task, *size, job.cost);
            }
            Verdict::Again { .. } | Verdict::Failed(_) => {}
        }
        verdict
    }

    fn committed(&mut self, task: usize, job: &Job) {
        self.taken[task] += 1;
        let own = &self.tasks[task];
        if own.rounds.is_some_and(|rounds| self.taken[task] >= rounds) {
            return self.dispatcher.finish(task, self.now);
        }
        let pause = if own.spec.period > 0 { own.spec.period } else { (own.every - 1) * self.cycle };
        let at = if pause == 0 { self.now } else { job.release + pause };
        self.due.push(Reverse((at, task)));
    }

    pub(super) fn finish(&mut self, task: usize) -> bool {
        order::finish(&mut self.dispatcher, task, self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Policy;

    fn slice(name: &str, cost: Nanos) -> Slice {
        Slice { spec: Spec::new(name, cost), every: 1, rounds: None, micro_batch: 8 }
    }

    fn order(policy: Policy, tasks: &[Slice], count: usize) -> Vec<usize> {
        let settings = Settings { policy, ..Settings::default() };
        let mut slices = Slices::new(settings, tasks.to_vec()).unwrap();
        let next = || {
            let task = slices.deal().into_iter().position(|dealt| dealt > 0)?;
            slices.ended(task, Status::Ok);
            Some(task)
        };
        std::iter::from_fn(next).take(count).collect()
    }

    #[test]
    fn a_period_skips_cycles() {
        let tasks = [slice("a", 10), Slice { every: 3, ..slice("b", 10) }, slice("c", 10)];
        let order = order(Policy::RoundRobin, &tasks, 70);
        let turns = |task| order.iter().filter(|&&other| other == task).count();
        // One turn in three cycles of 30; the others share the rest.
        assert!((10..=13).contains(&turns(1)), "{order:?}");
        assert!(turns(0).abs_diff(turns(2)) <= 1);
    }

    #[test]
    fn weights_share_and_parents_come_first() {
        let mut tasks = [slice("a", 10), slice("b", 10), Slice { rounds: Some(3), ..slice("c", 10) }];
        tasks[0].spec.weight = 3.0;
        tasks[1].spec.parents = vec![2];
        let order = order(Policy::Weighted, &tasks, 47);
        let first = order.iter().position(|&task| task == 1).unwrap();
        assert_eq!(order[..first].iter().filter(|&&task| task == 2).count(), 3);
        let later = &order[first..first + 32];
        assert_eq!(later.iter().filter(|&&task| task == 0).count(), 24);
    }

    #[test]
    fn all_done_is_the_end() {
        let tasks = [Slice { rounds: Some(2), ..slice("a", 1) }, Slice { rounds: Some(1), ..slice("b", 1) }];
        assert_eq!(order(Policy::RoundRobin, &tasks, 9), [0, 1, 0]);
    }
}
