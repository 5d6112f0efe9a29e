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

pub struct TimeSliced {
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

/// Rounds of a planned run that are gone through one by one.
const COUNTED: u64 = 1 << 18;

/// `amount` in the proportions of `shares`, to each at most what it has `left`; what one leaves the others take.
fn shared_out(mut amount: f64, shares: &[f64], left: &[f64]) -> Vec<f64> {
    let mut given = vec![0.0; shares.len()];
    let mut order: Vec<usize> = (0..shares.len()).filter(|&task| shares[task] > 0.0).collect();
    order.sort_by(|&a, &b| (left[a] / shares[a]).total_cmp(&(left[b] / shares[b])));
    let mut total: f64 = order.iter().map(|&task| shares[task]).sum();
    for task in order {
        given[task] = (amount * shares[task] / total).min(left[task]);
        amount -= given[task];
        total -= shares[task];
    }
    given
}

impl TimeSliced {
    /// Refuses what [`Dispatcher::new`] refuses.
    pub fn new(settings: Settings, tasks: Vec<Slice>) -> Result<Self, String> {
        let dispatcher = Dispatcher::new(settings, tasks.iter().map(|task| task.spec.clone()).collect(), 1)?;
        let cycle = tasks.iter().fold(0, |sum: Nanos, task| sum.saturating_add(task.spec.cost));
        let due = (0..tasks.len()).map(|task| Reverse((0, task))).collect();
        Ok(Self { dispatcher, running: None, taken: vec![0; tasks.len()], tasks, due, cycle, now: 0 })
    }

    /// (tasks) 1 for the task whose round is next; none once all are done.
    pub(super) fn deal(&mut self) -> Vec<usize> {
        let chosen = self.turn();
        (0..self.tasks.len()).map(|task| usize::from(chosen == Some(task))).collect()
    }

    /// The task whose round is next; none once all are done.
    fn turn(&mut self) -> Option<usize> {
        self.running = self.next();
        self.running.map(|started| started.task)
    }

    /// Rounds that each task gets of a run of `rounds`, if none fails. Exact up to [`COUNTED`] rounds; of a longer run the
    /// rest goes on in the proportions of the last half of them, each task up to its own end.
    pub fn count(mut self, rounds: u64) -> Vec<f64> {
        let counted = rounds.min(COUNTED);
        let mut half = vec![0; self.tasks.len()];
        for round in 0..counted {
            if round == counted / 2 {
                half.clone_from(&self.taken);
            }
            let Some(task) = self.turn() else { break };
            self.ended(task, Status::Ok);
        }
        let shares: Vec<f64> = self.taken.iter().zip(&half).map(|(all, half)| (all - half) as f64).collect();
        let to_its_end =
            |(task, &taken): (&Slice, &u64)| task.rounds.map_or(f64::INFINITY, |own| own.saturating_sub(taken) as f64);
        let left: Vec<f64> = self.tasks.iter().zip(&self.taken).map(to_its_end).collect();
        let more = shared_out((rounds - counted) as f64, &shares, &left);
        self.taken.iter().zip(more).map(|(&taken, more)| taken as f64 + more).collect()
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
        self.now = self.now.saturating_add(job.cost);
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
        let pause = if own.spec.period > 0 { own.spec.period } else { self.cycle.saturating_mul(own.every - 1) };
        let at = if pause == 0 { self.now } else { job.release.saturating_add(pause) };
        self.due.push(Reverse((at, task)));
    }

    pub(super) fn finish(&mut self, task: usize) -> bool {
        order::finish(&mut self.dispatcher, task, self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::policy::{self, Policy};

    fn slice(name: &str, cost: Nanos) -> Slice {
        Slice { spec: Spec::new(name, cost), every: 1, rounds: None, micro_batch: 8 }
    }

    fn order(policy: &'static Policy, tasks: &[Slice], count: usize) -> Vec<usize> {
        let settings = Settings { policy, ..Settings::default() };
        let mut slices = TimeSliced::new(settings, tasks.to_vec()).unwrap();
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
        let order = order(&policy::round_robin::POLICY, &tasks, 70);
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
        let order = order(&policy::weighted::POLICY, &tasks, 47);
        let first = order.iter().position(|&task| task == 1).unwrap();
        assert_eq!(order[..first].iter().filter(|&&task| task == 2).count(), 3);
        let later = &order[first..first + 32];
        assert_eq!(later.iter().filter(|&&task| task == 0).count(), 24);
    }

    #[test]
    fn the_rounds_of_a_run_are_counted_without_going_through_all_of_them() {
        let count = |rounds, ends: Option<u64>| {
            let tasks = [slice("a", 10), Slice { rounds: ends, ..slice("b", 10) }, Slice { rounds: Some(7), ..slice("c", 10) }];
            TimeSliced::new(Settings::default(), tasks.to_vec()).unwrap().count(rounds)
        };
        assert_eq!(count(20, None), [7.0, 7.0, 6.0]);
        let all = 1u64 << 40;
        let half = (all - 7) as f64 / 2.0;
        assert!(count(all, None).iter().zip([half, half, 7.0]).all(|(found, expected)| (found - expected).abs() <= 2.0));
        assert_eq!(count(all, Some(1 << 30)), [(all - (1 << 30) - 7) as f64, (1 << 30) as f64, 7.0]);
    }

    #[test]
    fn the_longest_times_do_not_overflow() {
        let tasks = [Slice { every: u64::MAX, ..slice("a", Nanos::MAX) }, slice("b", Nanos::MAX)];
        assert_eq!(order(&policy::round_robin::POLICY, &tasks, 6).len(), 6);
    }

    #[test]
    fn all_done_is_the_end() {
        let tasks = [Slice { rounds: Some(2), ..slice("a", 1) }, Slice { rounds: Some(1), ..slice("b", 1) }];
        assert_eq!(order(&policy::round_robin::POLICY, &tasks, 9), [0, 1, 0]);
    }
}
