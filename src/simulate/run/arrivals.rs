//! Jobs become due and are submitted.

use std::cmp::Reverse;

use super::Simulation;
use crate::schedule::Nanos;
use crate::schedule::access::{Blocks, Operation};
use crate::schedule::dispatcher::Job;
use crate::schedule::executor::Executor;
use crate::simulate::machine::Drawn;
use crate::simulate::workload::{Arrival, Mode};

impl<E: Executor<Work = Drawn>> Simulation<'_, E> {
    /// Everything that has become due.
    pub(super) fn arrive_all(&mut self) {
        let now = self.now();
        while let Some(&Reverse((at, _, task))) = self.arrivals.peek().filter(|Reverse((at, ..))| *at <= now) {
            self.arrivals.pop();
            self.arrive(task as usize, at);
        }
    }

    /// The task's jobs become due from now on. Rounds deal their own.
    pub(super) fn open(&mut self, task: usize) {
        if self.workload.mode == Mode::Synchronous {
            return self.wait_for_round(task);
        }
        match self.first_arrival(task) {
            Some(at) => self.schedule(at.max(self.now()), task),
            None => self.finish(task),
        }
    }

    pub(super) fn schedule(&mut self, at: Nanos, task: usize) {
        self.arrivals.push(Reverse((at, self.sequence, task as u32)));
        self.sequence += 1;
    }

    fn first_arrival(&mut self, task: usize) -> Option<Nanos> {
        match &self.workload.tasks[task].arrival {
            Arrival::Closed { .. } => Some(self.now()),
            Arrival::Poisson { gap } | Arrival::Bursty { gap, .. } => Some(self.now().saturating_add(self.gap(task, *gap))),
            Arrival::Periodic { offset, .. } => Some(self.now().saturating_add(*offset)),
            Arrival::Trace(times) => times.first().copied(),
        }
    }

    fn gap(&mut self, task: usize, mean: Nanos) -> Nanos {
        (self.tasks[task].random.exponential() * mean as f64) as Nanos
    }

    /// Jobs become due at `at`.
    fn arrive(&mut self, task: usize, at: Nanos) {
        let own = &self.workload.tasks[task];
        let left = own.quanta - self.tasks[task].arrived;
        let count = if let Arrival::Bursty { size, .. } = own.arrival { size.min(left) } else { 1.min(left) };
        let progress = &mut self.tasks[task];
        progress.arrived += count;
        progress.backlog.extend((0..count).map(|_| at));
        if progress.arrived < own.quanta {
            let next = match &own.arrival {
                Arrival::Closed { .. } => None,
                Arrival::Poisson { gap } | Arrival::Bursty { gap, .. } => Some(at.saturating_add(self.gap(task, *gap))),
                Arrival::Periodic { period, .. } => Some(at.saturating_add(*period)),
                Arrival::Trace(times) => times.get(self.tasks[task].arrived as usize).copied(),
            };
            if let Some(next) = next {
                self.schedule(next.max(at), task);
            }
        }
        self.submit_next(task);
    }

    /// Submits the oldest due job, if the task is free.
    pub(super) fn submit_next(&mut self, task: usize) {
        let progress = &mut self.tasks[task];
        if progress.submitted {
            return;
        }
        let Some(release) = progress.backlog.pop_front() else { return };
        progress.release = release;
        progress.first_start = None;
        progress.piece = 0;
        self.submit(task);
    }

    pub(super) fn submit(&mut self, task: usize) {
        let operation = self.operation(task);
        let blocks = self.workload.tasks[task].blocks;
        let job = self.job(task, operation, blocks);
        self.tasks[task].submitted = true;
        self.dispatcher.submit(task, job, self.machine.now());
    }

    pub(super) fn job(&self, task: usize, operation: Operation, blocks: Blocks) -> Job {
        let (own, progress) = (&self.workload.tasks[task], &self.tasks[task]);
        Job {
            operation,
            blocks,
            release: progress.release,
            cost: (own.cost.base / progress.pieces).max(1),
            bytes: own.spec.scratch / progress.pieces,
        }
    }

    /// Writes are spread evenly over a task's quanta; the first one reads unless all write.
    pub(super) fn operation(&self, task: usize) -> Operation {
        let own = &self.workload.tasks[task];
        if self.workload.mode == Mode::Synchronous {
            return Operation::Gradient;
        }
        let done = self.tasks[task].samples.committed + self.tasks[task].samples.dropped;
        let before = (done as f64 * own.write_share).floor();
        let writes = ((done + 1) as f64 * own.write_share).floor() > before;
        match (writes, own.write_share > 0.0) {
            (true, _) => Operation::Commit,
            (false, true) => Operation::Gradient,
            (false, false) => Operation::Evaluation,
        }
    }
}
