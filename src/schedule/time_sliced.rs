//! Time-sliced training: which one task commits in each round.
//!
//! The dispatcher decides over a clock that moves with the rounds: by what each was planned to take, or by what it took. Up to
//! `lanes` rounds are begun before the first of them ends: their gradients are then computed side by side, and committed in the order of
//! their turns.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Nanos;
use super::access::Operation;
use super::dispatcher::{Dispatcher, Job, Settings, Started};
use super::feedback::{Feedback, Reweighted, Seen};
use super::order::{self, Scheduled, Verdict};
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

#[derive(Clone)]
pub struct TimeSliced {
    pub(super) dispatcher: Dispatcher,
    tasks: Vec<Slice>,
    /// Rounds in progress, in the order of their turns.
    running: Vec<Started>,
    taken: Vec<u64>,
    /// When tasks that are not due yet will be.
    due: BinaryHeap<Reverse<(Nanos, usize)>>,
    /// What a round of each task is taken to need: as planned, then as measured lately.
    costs: Vec<Nanos>,
    now: Nanos,
    feedback: Option<Feedback>,
    /// Since the weights were changed last.
    seen: Vec<Seen>,
    rounds: u64,
    reweighted: Option<Reweighted>,
}

/// Of a measured time, how much it counts beside those before it.
const NEWS: u64 = 4;

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
        let due = (0..tasks.len()).map(|task| Reverse((0, task))).collect();
        let count = tasks.len();
        Ok(Self {
            dispatcher,
            running: Vec::new(),
            taken: vec![0; count],
            costs: tasks.iter().map(|task| task.spec.cost).collect(),
            tasks,
            due,
            now: 0,
            feedback: None,
            seen: vec![Seen::default(); count],
            rounds: 0,
            reweighted: None,
        })
    }

    /// With weights that follow the load.
    pub fn with_feedback(mut self, feedback: Option<Feedback>) -> Self {
        self.feedback = feedback;
        self
    }

    /// The rounds that are next, at most `most` (one at least) and as many as there are lanes.
    pub(super) fn schedule(&mut self, most: u64) -> Scheduled {
        self.running = self.next().into_iter().collect();
        while !self.running.is_empty() && (self.running.len() as u64) < most {
            // One that is not ready now has its turn later.
            let Some(started) = self.dispatcher.next(self.now) else { break };
            self.running.push(started);
        }
        let mut micro_batches = vec![0; self.tasks.len()];
        self.running.iter().for_each(|started| micro_batches[started.task] = 1);
        Scheduled { micro_batches, commits: self.running.iter().map(|started| vec![started.task]).collect() }
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
            let Some(&[task]) = self.schedule(1).commits.first().map(Vec::as_slice) else { break };
            self.ended(task, Status::Ok, None);
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
                // No budget holds here: the examples of a micro-batch stand for its bytes, and say whether it can be halved.
                let (cost, bytes) = (self.costs[task], self.tasks[task].micro_batch);
                let job = Job { operation: Operation::Gradient, blocks: 1, release: at, cost, bytes };
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

    /// The task's round has ended; `took`: what it needed, where that is measured.
    pub(super) fn ended(&mut self, task: usize, status: Status, took: Option<Nanos>) -> Verdict {
        let Some(at) = self.running.iter().position(|started| started.task == task) else { return Verdict::Fine };
        let Started { lane, job, .. } = self.running.remove(at);
        let cost = took.unwrap_or(job.cost);
        self.note(task, &job, took);
        self.now = self.now.saturating_add(cost);
        let (_, after) = self.dispatcher.complete(lane, cost, status, self.now);
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
        self.give_feedback();
        verdict
    }

    /// What a round of the task took and waited.
    fn note(&mut self, task: usize, job: &Job, took: Option<Nanos>) {
        let cost = &mut self.costs[task];
        *cost = took.map_or(*cost, |took| (*cost - *cost / NEWS).saturating_add(took / NEWS).max(1));
        let seen = &mut self.seen[task];
        seen.rounds += 1;
        seen.busy = seen.busy.saturating_add(took.unwrap_or(job.cost));
        seen.waited = seen.waited.saturating_add(self.now.saturating_sub(job.release));
        self.rounds += 1;
    }

    /// Changes the weights where it is time, once no round is in progress that was chosen by the old ones.
    fn give_feedback(&mut self) {
        let Some(feedback) = self.feedback else { return };
        if self.rounds < feedback.every || !self.running.is_empty() {
            return;
        }
        self.rounds = 0;
        let seen = std::mem::replace(&mut self.seen, vec![Seen::default(); self.tasks.len()]);
        let weights = feedback.weights(&seen);
        self.dispatcher.reweight(&weights);
        self.reweighted = Some(Reweighted { weights, seen });
    }

    /// The change of weights that the last rounds brought about, if they did.
    pub(super) fn take_reweighted(&mut self) -> Option<Reweighted> {
        self.reweighted.take()
    }

    fn committed(&mut self, task: usize, job: &Job) {
        self.dispatcher.commit(task, job, self.now);
        self.taken[task] += 1;
        let own = &self.tasks[task];
        if own.rounds.is_some_and(|rounds| self.taken[task] >= rounds) {
            return self.dispatcher.finish(task, self.now);
        }
        let cycle = || self.costs.iter().fold(0, |sum: Nanos, &cost| sum.saturating_add(cost));
        let pause = match own.spec.period {
            0 if own.every == 1 => 0,
            0 => cycle().saturating_mul(own.every - 1),
            period => period,
        };
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
            let task = *slices.schedule(1).commits.first()?.first()?;
            slices.ended(task, Status::Ok, None);
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

    /// Tasks of equal weight whose rounds take unlike times get equal times.
    #[test]
    fn measured_time_is_what_is_shared() {
        let settings = Settings { policy: &policy::weighted::POLICY, ..Settings::default() };
        let mut slices = TimeSliced::new(settings, vec![slice("a", 10), slice("b", 10), slice("c", 10)]).unwrap();
        let (times, mut served) = ([70, 10, 25], [0; 3]);
        for _ in 0..500 {
            let task = slices.schedule(1).commits[0][0];
            slices.ended(task, Status::Ok, Some(times[task]));
            served[task] += times[task];
        }
        assert!(served.iter().all(|time| served[0].abs_diff(*time) <= 2 * 70), "{served:?}");
    }

    /// Three lanes: three rounds at one version, so that the second has missed one commit and the third two.
    #[test]
    fn rounds_begun_together_are_committed_in_turn() {
        let settings = Settings { lanes: 3, ..Settings::default() };
        let mut slices = TimeSliced::new(settings, ["a", "b", "c", "d"].map(|name| slice(name, 10)).to_vec()).unwrap();
        for turns in [[0, 1, 2], [3, 0, 1], [2, 3, 0]] {
            let scheduled = slices.schedule(9);
            assert_eq!(scheduled.commits, turns.map(|task| vec![task]));
            assert_eq!(scheduled.micro_batches.iter().sum::<usize>(), 3);
            turns.into_iter().for_each(|task| assert_eq!(slices.ended(task, Status::Ok, None), Verdict::Fine));
        }
        assert_eq!(slices.dispatcher.counts.stale, 6);
        assert_eq!(slices.schedule(2).commits.len(), 2);
    }

    #[test]
    fn weights_follow_the_load() {
        let settings = Settings { policy: &policy::weighted::POLICY, ..Settings::default() };
        let feedback = Feedback { every: 20, load: 1.0, latency: 0.0, min: 10.0, max: 100.0 };
        let slices = TimeSliced::new(
            settings,
            vec![Slice { spec: Spec { weight: 3.0, ..Spec::new("a", 10) }, ..slice("a", 10) }, slice("b", 10)],
        );
        let mut slices = slices.unwrap().with_feedback(Some(feedback));
        for round in 0..20 {
            assert!(slices.take_reweighted().is_none(), "{round}");
            let task = slices.schedule(1).commits[0][0];
            slices.ended(task, Status::Ok, None);
        }
        let Reweighted { weights, seen } = slices.take_reweighted().expect("after 20 rounds");
        assert_eq!(seen.iter().map(|seen| seen.rounds).collect::<Vec<_>>(), [15, 5]);
        assert_eq!(weights[0], 10.0);
        assert!((weights[1] - 100.0 * (1.0 - 5.0 / 15.0)).abs() < 1e-9);
    }

    #[test]
    fn all_done_is_the_end() {
        let tasks = [Slice { rounds: Some(2), ..slice("a", 1) }, Slice { rounds: Some(1), ..slice("b", 1) }];
        assert_eq!(order(&policy::round_robin::POLICY, &tasks, 9), [0, 1, 0]);
    }
}
