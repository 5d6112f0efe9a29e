//! What becomes of a quantum that is over: its sample, its task, and those that wait for it.

use super::{InFlight, MOST_PIECES, MOST_SPANS, Progress, Simulation, Span, mix};
use crate::schedule::access::{OnStale, Operation};
use crate::schedule::dispatcher::{After, Job, Started};
use crate::schedule::executor::{Ended, Executor};
use crate::simulate::machine::Drawn;
use crate::simulate::workload::{Arrival, Mode, SimTask};

impl<E: Executor<Work = Drawn>> Simulation<'_, E> {
    pub(super) fn end(&mut self, ended: Ended) {
        let Ended { lane, cost, status } = ended;
        let Some(InFlight { started, since }) = self.lanes[lane].take() else { return };
        let now = self.now();
        self.busy = self.busy.saturating_add(cost);
        if let Some(spans) = self.spans.as_mut().filter(|spans| spans.len() < MOST_SPANS) {
            let Started { task, job: Job { operation, release, .. }, waited_for, .. } = started;
            spans.push(Span { task, lane, operation, release, start: since, end: now, status, waited_for });
        }
        let (task, after) = self.dispatcher.complete(lane, cost, status, self.now());
        if self.is_commit_of_round(task) {
            self.committed_round();
            return;
        }
        let service = &mut self.tasks[task].service;
        *service = service.saturating_add(cost);
        match after {
            After::Free { straggler } => self.free(task, started.job.operation, straggler),
            After::Again { halve, .. } => {
                if halve {
                    self.cut(task);
                    let job = self.job(task, started.job.operation, 0);
                    self.dispatcher.resize(task, job.bytes, job.cost);
                }
                self.leave_round();
            }
            After::Restore => self.restore(task),
        }
    }

    fn leave_round(&mut self) {
        if self.workload.mode == Mode::Synchronous {
            self.rounds.leave_out();
        }
    }

    /// Halves the pieces of a quantum from here on; the one under way starts over.
    fn cut(&mut self, task: usize) {
        let progress = &mut self.tasks[task];
        progress.pieces = (2 * progress.pieces).min(MOST_PIECES);
        progress.piece = 0;
    }

    fn free(&mut self, task: usize, ran: Operation, straggler: bool) {
        let wanted = self.operation(task);
        let progress = &mut self.tasks[task];
        progress.submitted = false;
        if wanted == Operation::Commit && ran != Operation::Commit {
            // Its gradient had missed too many commits.
            match self.workload.settings.on_stale {
                OnStale::Refuse => {
                    progress.samples.dropped += 1;
                    return self.sample_over(task);
                }
                _ => return self.submit(task),
            }
        }
        progress.piece += 1;
        let whole = progress.piece >= progress.pieces;
        if straggler && self.workload.settings.split {
            self.dispatcher.counts.halved += 1;
            let progress = &mut self.tasks[task];
            progress.pieces = (2 * progress.pieces).min(MOST_PIECES);
            progress.piece *= 2;
        }
        if !whole {
            return self.submit(task);
        }
        let sample = self.tasks[task].samples.committed + self.tasks[task].samples.dropped;
        if self.workload.mode == Mode::Synchronous {
            self.rounds.arrived(task, sample);
            self.observe(task);
        } else {
            if ran == Operation::Commit {
                self.weights = mix(mix(self.weights, task as u64), sample);
            }
            self.commit(task, sample);
            self.observe(task);
            self.sample_over(task);
        }
    }

    /// The sample is part of the parameters now.
    pub(super) fn commit(&mut self, task: usize, sample: u64) {
        let progress = &mut self.tasks[task];
        progress.bytes = mix(progress.bytes, sample);
        progress.saved = progress.bytes;
        progress.samples.committed += 1;
        progress.samples.digest = progress.saved;
    }

    pub(super) fn observe(&mut self, task: usize) {
        let own = &self.workload.tasks[task];
        let progress = &self.tasks[task];
        let latency = self.now() - progress.release;
        self.latencies[own.class].push(latency);
        self.waits[own.class].push(progress.first_start.unwrap_or(self.machine.now()) - progress.release);
        self.timeouts += u64::from(own.timeout > 0 && latency > own.timeout);
    }

    fn sample_over(&mut self, task: usize) {
        let own = &self.workload.tasks[task];
        let done = self.tasks[task].samples.committed + self.tasks[task].samples.dropped;
        let exhausted = matches!(&own.arrival, Arrival::Trace(times) if done as usize >= times.len());
        if done >= own.quanta || exhausted {
            return self.finish(task);
        }
        if let Arrival::Closed { think } = own.arrival {
            if think == 0 {
                self.tasks[task].arrived += 1;
                self.tasks[task].backlog.push_back(self.machine.now());
            } else {
                self.schedule(self.now().saturating_add(think), task);
            }
        }
        self.submit_next(task);
    }

    fn restore(&mut self, task: usize) {
        let progress = &mut self.tasks[task];
        progress.bytes = progress.saved;
        progress.piece = 0;
        progress.submitted = false;
        self.leave_round();
        let failed = self.dispatcher.restored(task, self.now());
        if failed.is_empty() {
            return self.submit(task);
        }
        for &task in &failed {
            let samples = &mut self.tasks[task].samples;
            samples.dropped = samples.planned - samples.committed;
            self.tasks[task].backlog.clear();
            self.tasks[task].arrived = self.workload.tasks[task].quanta;
        }
        self.note_shares();
        self.failed.extend(failed);
    }

    pub(super) fn finish(&mut self, task: usize) {
        self.note_shares();
        self.dispatcher.finish(task, self.now());
        for child in std::mem::take(&mut self.children[task]) {
            if !self.dispatcher.is_waiting(child as usize) && !self.dispatcher.state(child as usize).is_final() {
                self.open(child as usize);
            }
        }
    }

    /// Shares count while everybody has work: up to the first end.
    fn note_shares(&mut self) {
        if self.shares.is_some() || !self.workload.settings.policy.by_weight {
            return;
        }
        let service: f64 = self.tasks.iter().map(|task| task.service as f64).sum();
        let weights: f64 = self.workload.tasks.iter().map(|task| task.spec.weight).sum();
        let error = |(progress, task): (&Progress, &SimTask)| {
            (progress.service as f64 / service.max(1.0) - task.spec.weight / weights).abs()
        };
        self.shares = self.tasks.iter().zip(&self.workload.tasks).map(error).max_by(f64::total_cmp);
    }
}
