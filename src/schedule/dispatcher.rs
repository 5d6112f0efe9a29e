//! The one owner of all scheduling state.
//!
//! A task has at most one job at a time. [`Dispatcher::submit`] makes it known, [`Dispatcher::next`] starts it on a free lane
//! when it is its turn, [`Dispatcher::complete`] ends it. A job that cannot start for want of memory or because of a
//! conflict keeps its turn: nobody overtakes it, so that nobody starves and a writer waits for running readers only.

mod ending;
mod parts;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Nanos;
use super::access::{Access, Conflict, OnStale, Operation};
use super::budget::Budget;
use super::graph;
use super::log::{Log, What};
use super::queue::{Candidate, Ready};
use super::random::Random;
use super::straggler::Watch;
use super::task::{Spec, State, normalised_weights};
use super::wait::WaitReason;
use parts::check;
pub use parts::{After, Counts, Job, Settings, Started};

#[derive(Clone, Debug)]
struct Task {
    state: State,
    /// Parents not done.
    waiting: u32,
    admitted: bool,
    in_line: bool,
    job: Option<Job>,
    /// Ready with this job number.
    ticket: Option<u64>,
    failures: u32,
    pass: u64,
    weight: u64,
    /// It has been counted that this job waits for another operation.
    blocked: bool,
    /// What refused its next quantum last.
    refused_for: Option<WaitReason>,
    watch: Watch,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    task: u32,
    charged: Nanos,
    /// By the server.
    served: bool,
}

#[derive(Clone)]
pub struct Dispatcher {
    pub settings: Settings,
    specs: Vec<Spec>,
    tasks: Vec<Task>,
    children: Vec<Vec<u32>>,
    ready: Ready,
    lanes: Vec<Option<Running>>,
    busy: usize,
    budget: Budget,
    access: Access,
    /// (tasks x blocks) versions each task's newest gradient was computed at.
    seen: Vec<u32>,
    blocks: usize,
    timers: BinaryHeap<Reverse<(Nanos, u32)>>,
    random: Random,
    tickets: u64,
    /// Tickets given out when all lanes were last seen busy.
    tickets_when_busy: u64,
    /// Weighted service of whoever ran last: where a waking task starts.
    pass: u64,
    heaviest: u64,
    pub counts: Counts,
    pub log: Log,
}

impl Dispatcher {
    /// `blocks` are told apart. Refuses cycles, budgets that are too small and deadlines that cannot be met, with the numbers.
    pub fn new(settings: Settings, specs: Vec<Spec>, blocks: usize) -> Result<Self, String> {
        check(&settings, &specs)?;
        let parents: Vec<Vec<usize>> = specs.iter().map(|spec| spec.parents.clone()).collect();
        let weights = normalised_weights(&specs.iter().map(|spec| spec.weight).collect::<Vec<_>>());
        let task = |(spec, &weight): (&Spec, &u64)| Task {
            state: State::Pending,
            waiting: spec.parents.len() as u32,
            admitted: false,
            in_line: false,
            job: None,
            ticket: None,
            failures: 0,
            pass: 0,
            weight,
            blocked: false,
            refused_for: None,
            watch: Watch::default(),
        };
        Ok(Self {
            tasks: specs.iter().zip(&weights).map(task).collect(),
            children: graph::children(&parents),
            ready: Ready::new(settings.policy, settings.server_share),
            lanes: vec![None; settings.lanes],
            busy: 0,
            budget: Budget::new(settings.device, settings.shared),
            access: Access::default(),
            seen: vec![0; specs.len() * blocks],
            blocks,
            timers: BinaryHeap::new(),
            random: Random::new(settings.seed, u64::MAX),
            tickets: 0,
            tickets_when_busy: 0,
            pass: 0,
            heaviest: weights.iter().copied().max().unwrap_or(1),
            counts: Counts::default(),
            log: Log::default(),
            settings,
            specs,
        })
    }

    pub fn state(&self, task: usize) -> State {
        self.tasks[task].state
    }

    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// Bytes reserved now, and the most so far.
    pub fn bytes(&self) -> (u64, u64) {
        (self.budget.reserved(), self.budget.peak())
    }

    /// Quanta in flight.
    pub fn in_flight(&self) -> usize {
        self.busy
    }

    /// Weighted service of a task, in nanoseconds of the heaviest.
    pub fn pass(&self, task: usize) -> u64 {
        self.tasks[task].pass
    }

    /// Failures in a row.
    pub fn failures(&self, task: usize) -> u32 {
        self.tasks[task].failures
    }

    /// Whether the task waits for parents.
    pub fn is_waiting(&self, task: usize) -> bool {
        self.tasks[task].waiting > 0
    }

    /// Whether a job of the task may be submitted.
    pub fn is_idle(&self, task: usize) -> bool {
        let own = &self.tasks[task];
        own.state == State::Pending && own.job.is_none()
    }

    /// Makes a job known. The task must be pending without one; a job of a final task is dropped.
    pub fn submit(&mut self, task: usize, job: Job, now: Nanos) {
        let own = &mut self.tasks[task];
        if own.state.is_final() {
            return;
        }
        assert!(own.job.is_none() && own.state == State::Pending, "task {task} has a job");
        own.job = Some(job);
        own.blocked = false;
        self.log.add(now, task as u32, What::Submit);
        if own.waiting == 0 {
            self.make_ready(task as u32, now);
        }
    }

    /// Changes the job a task waits with, after [`After::Again`] with `halve`.
    pub fn resize(&mut self, task: usize, bytes: u64, cost: Nanos) {
        if let Some(job) = &mut self.tasks[task].job {
            (job.bytes, job.cost) = (bytes, cost);
        }
    }

    /// Gives the tasks other weights. What each has been served counts no more: all go on from where the one that ran last is.
    pub fn reweight(&mut self, weights: &[f64]) {
        let weights = normalised_weights(weights);
        self.heaviest = weights.iter().copied().max().unwrap_or(1);
        for (task, weight) in self.tasks.iter_mut().zip(weights) {
            (task.weight, task.pass) = (weight, self.pass);
        }
        self.ready.clear();
        let mut waiting: Vec<(u64, u32)> =
            self.tasks.iter().enumerate().filter_map(|(number, task)| Some((task.ticket?, number as u32))).collect();
        waiting.sort_unstable();
        waiting.into_iter().for_each(|(ticket, task)| self.push(task, ticket));
    }

    fn make_ready(&mut self, task: u32, now: Nanos) {
        let own = &mut self.tasks[task as usize];
        if !own.admitted {
            if !own.in_line {
                own.in_line = true;
                self.budget.ask(task);
            }
            self.admit(now);
            if !self.tasks[task as usize].admitted {
                self.tasks[task as usize].refused_for = Some(WaitReason::Bytes);
            }
            return;
        }
        self.enqueue(task);
    }

    fn admit(&mut self, now: Nanos) {
        let specs = &self.specs;
        let needs = |task: u32| (specs[task as usize].persistent, specs[task as usize].scratch);
        let admitted: Vec<u32> = std::iter::from_fn(|| self.budget.admit(needs)).collect();
        for task in admitted {
            let own = &mut self.tasks[task as usize];
            own.admitted = true;
            own.in_line = false;
            self.log.add(now, task, What::Admit { bytes: self.specs[task as usize].persistent });
            self.enqueue(task);
        }
    }

    fn enqueue(&mut self, task: u32) {
        let own = &mut self.tasks[task as usize];
        if own.job.is_none() {
            return;
        }
        own.ticket = Some(self.tickets);
        own.pass = own.pass.max(self.pass);
        self.push(task, self.tickets);
        self.tickets += 1;
    }

    fn push(&mut self, task: u32, ticket: u64) {
        let (spec, own) = (&self.specs[task as usize], &self.tasks[task as usize]);
        let Some(job) = own.job else { return };
        let relative = spec.relative_deadline();
        let span = relative.map_or(0, |deadline| if spec.period == 0 { deadline } else { deadline.min(spec.period) });
        self.ready.push(&Candidate {
            task,
            ticket,
            deadline: relative.map(|deadline| job.release.saturating_add(deadline)),
            period: span,
            priority: spec.priority,
            pass: own.pass,
            cost: job.cost,
        });
    }

    /// Starts the next quantum, if a lane is free and somebody may run.
    pub fn next(&mut self, now: Nanos) -> Option<Started> {
        self.wake(now);
        if self.busy == self.lanes.len() {
            self.tickets_when_busy = self.tickets;
            return None;
        }
        loop {
            let tasks = &self.tasks;
            let current = |task: u32| {
                let own = &tasks[task as usize];
                own.ticket.map(|ticket| (ticket, own.job.map_or(0, |job| job.cost)))
            };
            let choice = self.ready.choose(now, current)?;
            let task = choice.task as usize;
            let job = self.tasks[task].job?;
            if let Some(conflict) = self.access.conflict(job.operation, job.blocks) {
                self.tasks[task].refused_for = Some(WaitReason::Block);
                self.count_conflict(task, conflict, now);
                return None;
            }
            if !self.budget.fits(job.bytes) {
                self.tasks[task].refused_for = Some(WaitReason::Bytes);
                return None;
            }
            if job.operation.writes() && !self.is_fresh(task, &job, now) {
                continue;
            }
            self.ready.take(choice, job.cost);
            return Some(self.start(task, job, choice.is_served(), now));
        }
    }

    fn count_conflict(&mut self, task: usize, conflict: Conflict, now: Nanos) {
        if std::mem::replace(&mut self.tasks[task].blocked, true) {
            return;
        }
        let what = match conflict {
            Conflict::WriteWrite => What::WriteWrite,
            Conflict::ReadWrite => What::ReadWrite,
        };
        match conflict {
            Conflict::WriteWrite => self.counts.write_write += 1,
            Conflict::ReadWrite => self.counts.read_write += 1,
        }
        self.log.add(now, task as u32, what);
    }

    /// Whether the gradient behind a commit may still be committed. If not, the job becomes a gradient again (or, where
    /// that is refused, one whose result the caller drops): the task keeps its turn.
    fn is_fresh(&mut self, task: usize, job: &Job, now: Nanos) -> bool {
        let seen = &self.seen[task * self.blocks..][..self.blocks];
        let staleness = self.access.staleness(job.blocks, seen);
        if staleness <= self.settings.max_staleness {
            return true;
        }
        self.counts.causal += 1;
        self.log.add(now, task as u32, What::Causal { staleness });
        if self.settings.on_stale == OnStale::Allow {
            return true;
        }
        if let Some(job) = &mut self.tasks[task].job {
            job.operation = Operation::Gradient;
        }
        false
    }

    fn start(&mut self, task: usize, job: Job, served: bool, now: Nanos) -> Started {
        let lane = self.lanes.iter().position(Option::is_none).expect("a lane is free");
        self.access.acquire(job.operation, job.blocks);
        if job.operation == Operation::Gradient {
            self.access.note(job.blocks, &mut self.seen[task * self.blocks..][..self.blocks]);
        }
        self.budget.reserve(job.bytes);
        let heaviest = self.heaviest;
        let own = &mut self.tasks[task];
        let was_busy = own.ticket.take().is_some_and(|ticket| ticket < self.tickets_when_busy);
        let waited_for = own.refused_for.take().unwrap_or(if was_busy { WaitReason::Lane } else { WaitReason::Turn });
        self.pass = self.pass.max(own.pass);
        own.pass = own.pass.saturating_add(charge(job.cost, own.weight, heaviest));
        self.lanes[lane] = Some(Running { task: task as u32, charged: job.cost, served });
        self.busy += 1;
        self.log.add(now, task as u32, What::Start { lane: lane as u32, bytes: job.bytes });
        self.go(task, State::Running, now);
        Started { task, lane, job, waited_for }
    }

    /// When a task that backs off comes back.
    pub fn wakes_at(&self) -> Option<Nanos> {
        self.timers.peek().map(|&Reverse((at, _))| at)
    }

    fn wake(&mut self, now: Nanos) {
        while let Some(&Reverse((at, task))) = self.timers.peek().filter(|&&Reverse((at, _))| at <= now) {
            self.timers.pop();
            self.go(task as usize, State::Pending, at.max(now));
            self.tasks[task as usize].refused_for = Some(WaitReason::Backoff);
            self.enqueue(task);
        }
    }

    fn go(&mut self, task: usize, to: State, now: Nanos) {
        let own = &mut self.tasks[task];
        let from = std::mem::replace(&mut own.state, to);
        assert!(from.allows(to), "task {task} cannot go from {} to {}", from.name(), to.name());
        self.log.add(now, task as u32, What::State { from, to });
    }
}

/// Service of `cost` counted by weight, in nanoseconds of the heaviest task.
fn charge(cost: Nanos, weight: u64, heaviest: u64) -> u64 {
    u64::try_from(u128::from(cost) * u128::from(heaviest) / u128::from(weight)).unwrap_or(u64::MAX)
}
