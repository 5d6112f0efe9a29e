//! Whose turn each round of a training run is, and what follows when a task's part of it fails.
//!
//! The order follows from the configuration and from what is recorded of the run: failures, finished tasks and, where the
//! scheduler's clock is measured, what each round took. A resumed run finds it again by going through the rounds that are done.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Nanos;
use super::dispatcher::{After, Counts, Dispatcher};
use super::feedback::Reweighted;
use super::retry::Status;
use super::synchronous::Synchronous;
use super::task::State;
use super::time_sliced::TimeSliced;

/// The order of a run.
#[derive(Clone)]
pub enum Order {
    /// All present tasks commit together.
    Synchronous(Synchronous),
    /// Each round belongs to one task.
    TimeSliced(TimeSliced),
}

/// Rounds whose gradients are computed at the same version of the encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduled {
    /// (tasks) micro-batches that each brings; 0: absent.
    pub micro_batches: Vec<usize>,
    /// The tasks of each round's commit, in the order of the commits. Empty: nobody takes part.
    pub commits: Vec<Vec<usize>>,
}

impl Scheduled {
    /// One round that all of them commit together.
    pub fn together(micro_batches: Vec<usize>) -> Self {
        let present = (0..micro_batches.len()).filter(|&task| micro_batches[task] > 0).collect();
        Self { micro_batches, commits: vec![present] }
    }
}

/// What is recorded of rounds that are done, for [`Order::replay`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Record<'a> {
    pub incidents: &'a [Incident],
    /// (Rounds done before, task) of those that reached their target.
    pub finished: &'a [(u64, usize)],
    /// What each round took, in microseconds, where that is measured.
    pub took: &'a [u32],
}

/// What follows from how a task's part of a round ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    /// The same examples again after a pause of planned time; with `halve`, in micro-batches of half the size.
    Again {
        halve: bool,
        wait: Nanos,
    },
    /// Back to the last commit, then the same examples again.
    RolledBack,
    /// Given up: this task, and all that depend on it.
    Failed(Vec<usize>),
}

/// A part of a round that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    pub round: u64,
    pub task: usize,
    pub status: Status,
}

impl Order {
    /// Who takes part in what comes next: one round, or up to `most` whose gradients do not wait for each other's commits.
    pub fn schedule(&mut self, most: u64) -> Scheduled {
        match self {
            Order::Synchronous(rounds) => rounds.schedule(),
            Order::TimeSliced(slices) => slices.schedule(most),
        }
    }

    /// Ends the part of a task that was scheduled to; `took`: what its round took, where the clock is measured. All are ended, in the order
    /// of the commits, before anything else is scheduled.
    pub fn ended(&mut self, task: usize, status: Status, took: Option<Nanos>) -> Verdict {
        match self {
            Order::Synchronous(rounds) => rounds.ended(task, status),
            Order::TimeSliced(slices) => slices.ended(task, status, took),
        }
    }

    /// Goes on after `scheduled`, of up to `most` rounds, as if nobody had failed and every round had taken what it is taken to.
    pub fn next_if_done(&mut self, scheduled: &Scheduled, most: u64) -> Scheduled {
        for &task in scheduled.commits.iter().flatten() {
            self.ended(task, Status::Ok, None);
        }
        self.schedule(most)
    }

    /// The change of weights that followed from the last rounds, if one did.
    pub fn take_reweighted(&mut self) -> Option<Reweighted> {
        match self {
            Order::Synchronous(_) => None,
            Order::TimeSliced(slices) => slices.take_reweighted(),
        }
    }

    pub fn counts(&self) -> Counts {
        self.dispatcher().counts
    }

    /// The task has reached its target: it has nothing more to do, and its children may start. False if it is backing off;
    /// ask again later.
    pub fn finish(&mut self, task: usize) -> bool {
        match self {
            Order::Synchronous(rounds) => rounds.finish(task),
            Order::TimeSliced(slices) => slices.finish(task),
        }
    }

    pub fn state(&self, task: usize) -> State {
        self.dispatcher().state(task)
    }

    /// Whether the task waits for parents.
    pub fn is_waiting(&self, task: usize) -> bool {
        self.dispatcher().is_waiting(task)
    }

    /// Failures in a row.
    pub fn failures(&self, task: usize) -> u32 {
        self.dispatcher().failures(task)
    }

    /// Nobody will take part in any later round.
    pub fn is_over(&self) -> bool {
        let dispatcher = self.dispatcher();
        (0..dispatcher.specs().len()).all(|task| dispatcher.state(task).is_final())
    }

    fn dispatcher(&self) -> &Dispatcher {
        match self {
            Order::Synchronous(rounds) => &rounds.dispatcher,
            Order::TimeSliced(slices) => &slices.dispatcher,
        }
    }

    /// Goes past rounds that are done; how many the last step of them was. `each` sees who takes part from which round on.
    pub fn replay(&mut self, rounds: u64, record: Record, each: &mut dyn FnMut(u64, &Scheduled)) -> u64 {
        let incidents = record.incidents.iter();
        let failed: BTreeMap<(u64, usize), Status> =
            incidents.map(|incident| ((incident.round, incident.task), incident.status)).collect();
        let (mut round, mut step) = (0, 1);
        loop {
            for &(_, task) in record.finished.iter().filter(|(before, _)| *before == round) {
                self.finish(task);
            }
            if round >= rounds {
                return step;
            }
            let scheduled = self.schedule(rounds - round);
            each(round, &scheduled);
            for (number, tasks) in (round..).zip(&scheduled.commits) {
                let took = record.took.get(number as usize).map(|&micros| 1000 * Nanos::from(micros));
                for &task in tasks {
                    self.ended(task, failed.get(&(number, task)).copied().unwrap_or(Status::Ok), took);
                }
            }
            self.take_reweighted();
            step = scheduled.commits.len().max(1) as u64;
            round += step;
        }
    }
}

/// Carries out what a dispatcher asks for after a quantum.
pub(super) fn verdict(dispatcher: &mut Dispatcher, task: usize, after: After, now: Nanos) -> Verdict {
    match after {
        After::Free { .. } => Verdict::Fine,
        After::Again { halve, wait, .. } => Verdict::Again { halve, wait },
        After::Restore => {
            let failed = dispatcher.restored(task, now);
            if failed.is_empty() { Verdict::RolledBack } else { Verdict::Failed(failed) }
        }
    }
}

/// Finishes a task that is at rest.
pub(super) fn finish(dispatcher: &mut Dispatcher, task: usize, now: Nanos) -> bool {
    let rests = dispatcher.state(task) == State::Pending;
    if rests {
        dispatcher.finish(task, now);
    }
    rests
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::dispatcher::Settings;
    use crate::schedule::retry::Retry;
    use crate::schedule::sampler::TaskSampling;
    use crate::schedule::task::Spec;
    use crate::schedule::time_sliced::Slice;

    const RETRY: Retry = Retry { max: 2, base: 25, cap: 100 };

    fn orders() -> [Order; 2] {
        let settings = Settings { retry: RETRY, ..Settings::default() };
        let spec = |name: &str, parents: Vec<usize>| Spec { parents, ..Spec::new(name, 10) };
        let specs = [spec("a", vec![]), spec("b", vec![]), spec("c", vec![1])];
        let sampling =
            |spec: &Spec| TaskSampling { rate: 1.0, phase: 0.0, period: 1, rounds: None, parents: spec.parents.clone() };
        let samplings = specs.iter().map(sampling).collect();
        let slices = specs.iter().map(|spec| Slice { spec: spec.clone(), every: 1, rounds: None, micro_batch: 8 }).collect();
        [
            Order::Synchronous(Synchronous::new(settings.clone(), &specs, samplings, 8).unwrap()),
            Order::TimeSliced(TimeSliced::new(settings, slices).unwrap()),
        ]
    }

    #[test]
    fn what_is_foreseen_comes_where_nobody_fails() {
        for mut order in orders() {
            let mut foreseen = None;
            for round in 0..20 {
                let scheduled = order.schedule(2);
                assert!(foreseen.is_none_or(|foreseen| foreseen == scheduled), "round {round}");
                foreseen = Some(order.clone().next_if_done(&scheduled, 2));
                scheduled
                    .commits
                    .iter()
                    .flatten()
                    .for_each(|&task| assert_eq!(order.ended(task, Status::Ok, None), Verdict::Fine));
            }
        }
    }

    /// Runs `rounds` rounds in which `fails` says how each part ends; what was scheduled, and what followed for task 1.
    fn run(order: &mut Order, rounds: u64, mut fails: impl FnMut(usize) -> Status) -> (Vec<Vec<usize>>, Vec<Verdict>) {
        let (mut scheduled, mut verdicts) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let now = order.schedule(1).micro_batches;
            for task in (0..now.len()).filter(|&task| now[task] > 0) {
                let verdict = order.ended(task, fails(task), None);
                if task == 1 {
                    verdicts.push(verdict);
                }
            }
            scheduled.push(now);
        }
        (scheduled, verdicts)
    }

    #[test]
    fn a_task_without_end_fails_with_its_children_and_the_others_go_on() {
        for mut order in orders() {
            let (scheduled, verdicts) = run(&mut order, 30, |task| if task == 1 { Status::NotFinite } else { Status::Ok });
            assert_eq!(verdicts, [Verdict::RolledBack, Verdict::RolledBack, Verdict::Failed(vec![1, 2])]);
            assert!(scheduled[20..].iter().all(|scheduled| *scheduled == [1, 0, 0]));
            assert_eq!([0, 1, 2].map(|task| order.state(task)), [State::Pending, State::Failed, State::Failed]);
            assert!(!order.is_over());
        }
    }

    #[test]
    fn who_backs_off_is_absent_and_comes_back() {
        for mut order in orders() {
            let mut left = 1;
            let (scheduled, verdicts) = run(&mut order, 12, |task| {
                let fails = task == 1 && left > 0;
                left -= i32::from(fails);
                if fails { Status::Crashed } else { Status::Ok }
            });
            assert!(matches!(verdicts[0], Verdict::Again { halve: false, wait: 25..=27 }), "{verdicts:?}");
            assert!(verdicts[1..].iter().all(|verdict| *verdict == Verdict::Fine) && verdicts.len() > 3);
            let first = scheduled.iter().position(|scheduled| scheduled[1] > 0).unwrap();
            assert!(scheduled[first + 1..first + 3].iter().all(|scheduled| scheduled[1] == 0), "{scheduled:?}");
            assert_eq!(order.failures(1), 0);
        }
    }

    #[test]
    fn memory_is_tried_again_at_once_then_in_halves() {
        for mut order in orders() {
            let mut left = 2;
            let (_, verdicts) = run(&mut order, 9, |task| {
                let fails = task == 1 && left > 0;
                left -= i32::from(fails);
                if fails { Status::OutOfMemory } else { Status::Ok }
            });
            let again = |halve| Verdict::Again { halve, wait: 0 };
            assert_eq!(verdicts[..3], [again(false), again(true), Verdict::Fine]);
        }
    }

    #[test]
    fn a_replayed_order_goes_on_alike() {
        for (mut whole, mut rest) in orders().into_iter().zip(orders()) {
            let mut incidents = Vec::new();
            let mut scheduled = Vec::new();
            for round in 0..40 {
                if round == 30 {
                    assert!(whole.finish(0));
                }
                let now = whole.schedule(1).micro_batches;
                for task in (0..now.len()).filter(|&task| now[task] > 0) {
                    let status = match (task, round % 7) {
                        (1, 3) => Status::Crashed,
                        (0, 5) => Status::NotFinite,
                        _ => Status::Ok,
                    };
                    if status != Status::Ok {
                        incidents.push(Incident { round, task, status });
                    }
                    whole.ended(task, status, None);
                }
                scheduled.push(now);
            }
            rest.replay(33, Record { incidents: &incidents, finished: &[(30, 0)], took: &[] }, &mut |_, _| {});
            let later = run(&mut rest, 4, |task| if task == 9 { Status::Crashed } else { Status::Ok });
            // Round 38 is the next in which somebody fails.
            assert_eq!(later.0, scheduled[33..37]);
        }
    }
}
