//! How a quantum ends: what is charged, what becomes of its task, and who may start for it.

use std::cmp::Reverse;

use super::{After, Dispatcher, Job, Running, charge};
use crate::schedule::Nanos;
use crate::schedule::access::Operation;
use crate::schedule::log::What;
use crate::schedule::retry::{Remedy, Status};
use crate::schedule::task::State;

impl Dispatcher {
    /// Ends the quantum on `lane` after `cost`. Panics if none runs there.
    pub fn complete(&mut self, lane: usize, cost: Nanos, status: Status, now: Nanos) -> (usize, After) {
        let Running { task, charged, served } = self.lanes[lane].take().expect("a quantum runs on the lane");
        let task = task as usize;
        self.busy -= 1;
        let job = self.tasks[task].job.expect("a running task has a job");
        self.access.release(job.operation, job.blocks, status == Status::Ok);
        if job.operation == Operation::Commit && status == Status::Ok {
            // Whoever wrote a version knows it.
            self.access.note(job.blocks, &mut self.seen[task * self.blocks..][..self.blocks]);
        }
        self.budget.release(job.bytes);
        self.correct(task, charged, cost);
        if served {
            self.ready.correct(charged, cost);
        }
        self.counts.quanta += 1;
        self.log.add(now, task as u32, What::End { lane: lane as u32 });
        let after = if status == Status::Ok { self.succeeded(task, &job, cost, now) } else { self.failed(task, status, now) };
        self.admit(now);
        (task, after)
    }

    /// Charges what the quantum took in place of what was planned.
    fn correct(&mut self, task: usize, charged: Nanos, cost: Nanos) {
        let heaviest = self.heaviest;
        let own = &mut self.tasks[task];
        let planned = charge(charged, own.weight, heaviest);
        own.pass = own.pass.saturating_sub(planned).saturating_add(charge(cost, own.weight, heaviest));
    }

    fn succeeded(&mut self, task: usize, job: &Job, cost: Nanos, now: Nanos) -> After {
        if self.specs[task].relative_deadline().is_some_and(|deadline| now > job.release.saturating_add(deadline)) {
            self.counts.deadline_misses += 1;
        }
        let own = &mut self.tasks[task];
        own.job = None;
        own.failures = 0;
        let straggler = own.watch.add(cost);
        self.counts.stragglers += u64::from(straggler);
        self.go(task, State::Pending, now);
        After::Free { straggler }
    }

    fn failed(&mut self, task: usize, status: Status, now: Nanos) -> After {
        let own = &mut self.tasks[task];
        own.failures += 1;
        let failures = own.failures;
        let can_halve = self.settings.split && own.job.is_some_and(|job| job.bytes > 1);
        let remedy = self.settings.retry.remedy(status, failures, can_halve);
        match remedy {
            Remedy::Restore | Remedy::GiveUp => {
                self.counts.rollbacks += 1;
                own.job = None;
                self.go(task, State::Rollback, now);
                After::Restore
            }
            Remedy::Trim | Remedy::Halve | Remedy::Again => {
                self.counts.retries += 1;
                self.counts.halved += u64::from(remedy == Remedy::Halve);
                // Memory that was freed is there at once; only what may pass by itself is waited for.
                let wait = if status == Status::OutOfMemory { 0 } else { self.settings.retry.wait(failures, &mut self.random) };
                self.go(task, State::Retrying, now);
                self.timers.push(Reverse((now.saturating_add(wait), task as u32)));
                After::Again { trim: remedy == Remedy::Trim, halve: remedy == Remedy::Halve, wait }
            }
        }
    }

    /// The gradient of `job`, which has ended, is committed now: its blocks have a new version. Commits of them that it missed.
    pub fn commit(&mut self, task: usize, job: &Job, now: Nanos) -> u32 {
        let seen = &mut self.seen[task * self.blocks..][..self.blocks];
        let staleness = self.access.staleness(job.blocks, seen);
        self.access.commit(job.blocks);
        self.access.note(job.blocks, seen);
        if staleness > 0 {
            self.counts.stale += 1;
            self.log.add(now, task as u32, What::Causal { staleness });
        }
        staleness
    }

    /// The caller has brought the task back to its last commit: it goes on, or has failed, and with it all that wait for it.
    /// Returns every task that has failed now.
    pub fn restored(&mut self, task: usize, now: Nanos) -> Vec<usize> {
        if self.tasks[task].failures <= self.settings.retry.max {
            self.go(task, State::Pending, now);
            return Vec::new();
        }
        let mut failed = Vec::new();
        let mut doomed = vec![task];
        while let Some(task) = doomed.pop() {
            if self.tasks[task].state.is_final() {
                continue;
            }
            self.go(task, State::Failed, now);
            self.leave(task, now);
            failed.push(task);
            doomed.extend(self.children[task].iter().map(|&child| child as usize));
        }
        self.admit(now);
        failed
    }

    /// A pending task has nothing more to do: its children may start.
    pub fn finish(&mut self, task: usize, now: Nanos) {
        self.go(task, State::Done, now);
        self.leave(task, now);
        for index in 0..self.children[task].len() {
            let child = self.children[task][index];
            let own = &mut self.tasks[child as usize];
            own.waiting -= 1;
            if own.waiting == 0 && own.state == State::Pending && own.job.is_some() {
                self.make_ready(child, now);
            }
        }
        self.admit(now);
    }

    /// Gives back all that a final task holds.
    fn leave(&mut self, task: usize, now: Nanos) {
        let own = &mut self.tasks[task];
        own.job = None;
        if own.ticket.take().is_some() {
            self.ready.withdraw();
        }
        if std::mem::take(&mut own.in_line) {
            self.budget.forget(task as u32);
        }
        if std::mem::take(&mut own.admitted) {
            let bytes = self.specs[task].persistent;
            self.budget.dismiss(bytes, self.specs[task].scratch);
            self.log.add(now, task as u32, What::Dismiss { bytes });
        }
    }
}
