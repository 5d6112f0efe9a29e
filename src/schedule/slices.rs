//! Time-sliced training: which one task commits in each round.
//!
//! The dispatcher decides over a planned clock, on which an example always takes the same time. So the order of the tasks follows
//! from the configuration alone, and a resumed run finds it again by going through the rounds that are done.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Nanos;
use super::access::Operation;
use super::dispatcher::{Dispatcher, Job, Settings};
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
}

pub struct Slices {
    dispatcher: Dispatcher,
    tasks: Vec<Slice>,
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
        Ok(Self { dispatcher, taken: vec![0; tasks.len()], tasks, due, cycle, now: 0 })
    }

    /// The task of the next round; none once all are done.
    pub fn next_task(&mut self) -> Option<usize> {
        loop {
            while let Some(&Reverse((at, task))) = self.due.peek().filter(|Reverse((at, _))| *at <= self.now) {
                self.due.pop();
                let cost = self.tasks[task].spec.cost;
                self.dispatcher.submit(
                    task,
                    Job { operation: Operation::Commit, blocks: 1, release: at, cost, bytes: 0 },
                    self.now,
                );
            }
            if let Some(started) = self.dispatcher.next(self.now) {
                self.run(started.task, started.lane, started.job);
                return Some(started.task);
            }
            // Nobody is ready: time passes until somebody is due.
            let &Reverse((at, _)) = self.due.peek()?;
            self.now = at;
        }
    }

    fn run(&mut self, task: usize, lane: usize, job: Job) {
        self.now += job.cost;
        self.dispatcher.complete(lane, job.cost, Status::Ok, self.now);
        self.taken[task] += 1;
        let own = &self.tasks[task];
        if own.rounds.is_some_and(|rounds| self.taken[task] >= rounds) {
            return self.dispatcher.finish(task, self.now);
        }
        let pause = if own.spec.period > 0 { own.spec.period } else { (own.every - 1) * self.cycle };
        let at = if pause == 0 { self.now } else { job.release + pause };
        self.due.push(Reverse((at, task)));
    }

    /// Goes past rounds that are done.
    pub fn skip(&mut self, rounds: u64) {
        for _ in 0..rounds {
            self.next_task();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Policy;

    fn slice(name: &str, cost: Nanos) -> Slice {
        Slice { spec: Spec::new(name, cost), every: 1, rounds: None }
    }

    fn order(policy: Policy, tasks: &[Slice], count: usize) -> Vec<usize> {
        let settings = Settings { policy, ..Settings::default() };
        let mut slices = Slices::new(settings, tasks.to_vec()).unwrap();
        std::iter::from_fn(|| slices.next_task()).take(count).collect()
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
    fn a_resumed_order_goes_on() {
        let tasks = [slice("a", 7), Slice { every: 2, ..slice("b", 5) }, Slice { rounds: Some(9), ..slice("c", 3) }];
        let whole = order(Policy::Weighted, &tasks, 60);
        let mut rest = Slices::new(Settings { policy: Policy::Weighted, ..Settings::default() }, tasks.to_vec()).unwrap();
        rest.skip(23);
        assert_eq!(std::iter::from_fn(|| rest.next_task()).take(37).collect::<Vec<_>>(), whole[23..]);
    }

    #[test]
    fn all_done_is_the_end() {
        let tasks = [Slice { rounds: Some(2), ..slice("a", 1) }, Slice { rounds: Some(1), ..slice("b", 1) }];
        assert_eq!(order(Policy::RoundRobin, &tasks, 9), [0, 1, 0]);
    }
}
