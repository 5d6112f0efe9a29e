//! The event loop of a simulation.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::machine::{Drawn, Machine};
use super::report::{ClassReport, Quantiles, Report, Samples};
use super::rounds::Rounds;
use super::workload::{Arrival, Mode, SimTask, Workload};
use crate::schedule::Nanos;
use crate::schedule::access::{Blocks, Operation};
use crate::schedule::dispatcher::{After, Dispatcher, Job, Started};
use crate::schedule::executor::{Ended, Executor};
use crate::schedule::graph;
use crate::schedule::random::Random;
use crate::schedule::retry::Status;
use crate::schedule::task::Spec;

/// Most pieces a quantum is cut into.
const MOST_PIECES: u64 = 64;

/// One quantum as it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub task: usize,
    pub lane: usize,
    pub operation: Operation,
    pub release: Nanos,
    pub start: Nanos,
    pub end: Nanos,
    pub status: Status,
}

/// A quantum and when it began.
#[derive(Clone, Copy)]
struct InFlight {
    started: Started,
    since: Nanos,
}

/// One task in the making.
struct Progress {
    random: Random,
    /// Jobs that have become due, and of these, those not yet submitted.
    arrived: u64,
    backlog: VecDeque<Nanos>,
    submitted: bool,
    release: Nanos,
    first_start: Option<Nanos>,
    /// A quantum is computed in so many pieces, of which so many are done.
    pieces: u64,
    piece: u64,
    /// Made-up state of the task now, and as of its last commit.
    bytes: u64,
    saved: u64,
    service: Nanos,
    samples: Samples,
}

/// A simulation in progress.
pub struct Simulation<'a> {
    workload: &'a Workload,
    pub dispatcher: Dispatcher,
    tasks: Vec<Progress>,
    lanes: Vec<Option<InFlight>>,
    machine: Machine,
    /// Tasks with a job that becomes due: when, then in the order of becoming known.
    arrivals: BinaryHeap<Reverse<(Nanos, u64, u32)>>,
    sequence: u64,
    rounds: Rounds,
    weights: u64,
    latencies: Vec<Vec<Nanos>>,
    waits: Vec<Vec<Nanos>>,
    busy: Nanos,
    timeouts: u64,
    failed: Vec<usize>,
    shares: Option<f64>,
    /// Tasks that wait for each task.
    children: Vec<Vec<u32>>,
    spans: Option<Vec<Span>>,
}

/// Runs a workload to its end.
pub fn simulate(workload: &Workload) -> Result<Report, String> {
    Ok(Simulation::new(workload)?.run().0)
}

impl<'a> Simulation<'a> {
    pub fn new(workload: &'a Workload) -> Result<Self, String> {
        let parents: Vec<Vec<usize>> = workload.tasks.iter().map(|task| task.spec.parents.clone()).collect();
        let mut specs: Vec<Spec> = workload.tasks.iter().map(|task| task.spec.clone()).collect();
        if workload.mode == Mode::Synchronous {
            all_fit(workload)?;
            let weight = specs.iter().map(|spec| spec.weight).fold(0.0, f64::max);
            specs.push(Spec { priority: i64::MAX, weight, ..Spec::new("commit", workload.commit) });
        }
        let dispatcher = Dispatcher::new(workload.settings.clone(), specs, workload.blocks)?;
        let seed = workload.settings.seed;
        let progress = |number: usize| Progress {
            random: Random::new(seed, number as u64),
            arrived: 0,
            backlog: VecDeque::new(),
            submitted: false,
            release: 0,
            first_start: None,
            pieces: 1,
            piece: 0,
            bytes: number as u64,
            saved: number as u64,
            service: 0,
            samples: Samples { planned: workload.tasks[number].quanta, ..Samples::default() },
        };
        let jobs: Vec<usize> = workload
            .classes
            .iter()
            .enumerate()
            .map(|(class, _)| workload.tasks.iter().filter(|task| task.class == class).map(|task| task.quanta as usize).sum())
            .collect();
        let room = || jobs.iter().map(|&jobs| Vec::with_capacity(jobs)).collect();
        Ok(Self {
            workload,
            dispatcher,
            tasks: (0..workload.tasks.len()).map(progress).collect(),
            lanes: vec![None; workload.settings.lanes],
            machine: Machine::new(workload.settings.lanes),
            arrivals: BinaryHeap::new(),
            sequence: 0,
            rounds: Rounds::default(),
            weights: 0,
            latencies: room(),
            waits: room(),
            busy: 0,
            timeouts: 0,
            failed: Vec::new(),
            shares: None,
            children: graph::children(&parents),
            spans: None,
        })
    }

    /// Keeps every quantum for [`Simulation::run`]'s second answer.
    pub fn keep_spans(&mut self) {
        self.spans = Some(Vec::new());
    }

    pub fn run(mut self) -> (Report, Vec<Span>, Dispatcher) {
        self.begin();
        loop {
            self.deal();
            while let Some(started) = self.dispatcher.next(self.now()) {
                self.start(started);
            }
            let arrival = self.arrivals.peek().map(|&Reverse((at, ..))| at);
            let next = arrival.into_iter().chain(self.dispatcher.wakes_at()).min();
            let Some(ended) = self.machine.wait(next) else {
                if next.is_none() {
                    break;
                }
                self.arrive_all();
                continue;
            };
            self.end(ended);
            while let Some(ended) = self.machine.wait(Some(self.now())) {
                self.end(ended);
            }
            self.arrive_all();
        }
        self.report()
    }

    fn now(&self) -> Nanos {
        self.machine.now()
    }

    /// Everything that has become due.
    fn arrive_all(&mut self) {
        let now = self.now();
        while let Some(&Reverse((at, _, task))) = self.arrivals.peek().filter(|Reverse((at, ..))| *at <= now) {
            self.arrivals.pop();
            self.arrive(task as usize, at);
        }
    }

    fn begin(&mut self) {
        for task in 0..self.tasks.len() {
            if self.workload.tasks[task].spec.parents.is_empty() {
                self.open(task);
            }
        }
    }

    /// The task's jobs become due from now on. Rounds deal their own.
    fn open(&mut self, task: usize) {
        if self.workload.mode == Mode::Synchronous {
            return;
        }
        match self.first_arrival(task) {
            Some(at) => self.schedule(at.max(self.now()), task),
            None => self.finish(task),
        }
    }

    fn schedule(&mut self, at: Nanos, task: usize) {
        self.arrivals.push(Reverse((at, self.sequence, task as u32)));
        self.sequence += 1;
    }

    fn first_arrival(&mut self, task: usize) -> Option<Nanos> {
        match &self.workload.tasks[task].arrival {
            Arrival::Closed { .. } => Some(self.now()),
            Arrival::Poisson { gap } | Arrival::Bursty { gap, .. } => Some(self.now() + self.gap(task, *gap)),
            Arrival::Periodic { offset, .. } => Some(self.now() + *offset),
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
                Arrival::Poisson { gap } | Arrival::Bursty { gap, .. } => Some(at + self.gap(task, *gap)),
                Arrival::Periodic { period, .. } => Some(at + period),
                Arrival::Trace(times) => times.get(self.tasks[task].arrived as usize).copied(),
            };
            if let Some(next) = next {
                self.schedule(next.max(at), task);
            }
        }
        self.submit_next(task);
    }

    /// Submits the oldest due job, if the task is free.
    fn submit_next(&mut self, task: usize) {
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

    fn submit(&mut self, task: usize) {
        let operation = self.operation(task);
        let blocks = self.workload.tasks[task].blocks;
        let job = self.job(task, operation, blocks);
        self.tasks[task].submitted = true;
        self.dispatcher.submit(task, job, self.machine.now());
    }

    fn job(&self, task: usize, operation: Operation, blocks: Blocks) -> Job {
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
    fn operation(&self, task: usize) -> Operation {
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

    fn is_commit_of_round(&self, task: usize) -> bool {
        task == self.tasks.len()
    }

    fn start(&mut self, started: Started) {
        let (cost, status) =
            if self.is_commit_of_round(started.task) { (self.workload.commit, Status::Ok) } else { self.begin_quantum(&started) };
        self.lanes[started.lane] = Some(InFlight { started, since: self.now() });
        self.machine.submit(started.lane, Drawn { cost, status });
    }

    /// What the quantum will take and come to.
    fn begin_quantum(&mut self, started: &Started) -> (Nanos, Status) {
        let own = &self.workload.tasks[started.task];
        if self.workload.mode == Mode::Synchronous && self.dispatcher.failures(started.task) > 0 {
            self.rounds.expect();
        }
        let now = self.now();
        let progress = &mut self.tasks[started.task];
        progress.first_start.get_or_insert(now);
        let mut cost = (own.cost.draw(&mut progress.random) / progress.pieces).max(1);
        if progress.random.chance(own.faults.stall) {
            cost = (cost as f64 * own.faults.stall_factor) as Nanos;
        }
        let status = draw_fault(own, &mut progress.random);
        if status == Status::NotFinite {
            progress.bytes = mix(progress.bytes, Nanos::MAX);
        }
        (cost, status)
    }

    fn end(&mut self, ended: Ended) {
        let Ended { lane, cost, status } = ended;
        let Some(InFlight { started, since }) = self.lanes[lane].take() else { return };
        let now = self.now();
        self.busy += cost;
        if let Some(spans) = &mut self.spans {
            let (task, operation, release) = (started.task, started.job.operation, started.job.release);
            spans.push(Span { task, lane, operation, release, start: since, end: now, status });
        }
        let (task, after) = self.dispatcher.complete(lane, cost, status, self.now());
        if self.is_commit_of_round(task) {
            self.committed_round();
            return;
        }
        self.tasks[task].service += cost;
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
                crate::schedule::access::OnStale::Refuse => {
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
    fn commit(&mut self, task: usize, sample: u64) {
        let progress = &mut self.tasks[task];
        progress.bytes = mix(progress.bytes, sample);
        progress.saved = progress.bytes;
        progress.samples.committed += 1;
        progress.samples.digest = progress.saved;
    }

    fn observe(&mut self, task: usize) {
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
                self.schedule(self.now() + think, task);
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

    fn finish(&mut self, task: usize) {
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
        if self.shares.is_some() || self.workload.settings.policy != crate::schedule::Policy::Weighted {
            return;
        }
        let service: f64 = self.tasks.iter().map(|task| task.service as f64).sum();
        let weights: f64 = self.workload.tasks.iter().map(|task| task.spec.weight).sum();
        let error = |(progress, task): (&Progress, &SimTask)| {
            (progress.service as f64 / service.max(1.0) - task.spec.weight / weights).abs()
        };
        self.shares = self.tasks.iter().zip(&self.workload.tasks).map(error).max_by(f64::total_cmp);
    }

    /// Synchronous: begins the next round, or its commit, when it is time.
    fn deal(&mut self) {
        if self.workload.mode != Mode::Synchronous {
            return;
        }
        while self.rounds.is_empty() && self.has_work() {
            let round = self.rounds.number;
            for task in 0..self.tasks.len() {
                if self.may_take_part(task) && round.is_multiple_of(self.workload.tasks[task].every) {
                    self.tasks[task].release = self.machine.now();
                    self.tasks[task].first_start = None;
                    self.tasks[task].piece = 0;
                    self.rounds.expect();
                    self.submit(task);
                }
            }
            if self.rounds.is_empty() {
                self.rounds.committed();
            }
        }
        if self.rounds.commit_is_due() {
            let blocks = self.workload.tasks.iter().fold(0, |all, task| all | task.blocks);
            let job = Job { operation: Operation::Commit, blocks, release: self.now(), cost: self.workload.commit, bytes: 0 };
            self.dispatcher.submit(self.tasks.len(), job, self.now());
        }
    }

    fn has_work(&self) -> bool {
        (0..self.tasks.len()).any(|task| self.may_take_part(task))
    }

    fn may_take_part(&self, task: usize) -> bool {
        !self.tasks[task].submitted && !self.dispatcher.state(task).is_final() && !self.dispatcher.is_waiting(task)
    }

    fn committed_round(&mut self) {
        for (task, sample) in self.rounds.committed() {
            self.weights = mix(mix(self.weights, task as u64), sample);
            self.commit(task, sample);
            self.tasks[task].submitted = false;
            if self.tasks[task].samples.committed >= self.workload.tasks[task].quanta {
                self.finish(task);
            }
        }
    }

    fn report(mut self) -> (Report, Vec<Span>, Dispatcher) {
        let classes = self.latencies.iter_mut().zip(&mut self.waits).map(|(latencies, waits)| ClassReport {
            jobs: latencies.len() as u64,
            latency: Quantiles::of(latencies),
            wait: Quantiles::of(waits),
        });
        let time = (self.machine.now() * self.lanes.len() as u64).max(1) as f64;
        let (bytes_at_end, peak_bytes) = self.dispatcher.bytes();
        let report = Report {
            makespan: self.machine.now(),
            counts: self.dispatcher.counts,
            classes: classes.collect(),
            busy_share: self.busy as f64 / time,
            share_error: self.shares,
            peak_bytes,
            bytes_at_end,
            timeouts: self.timeouts,
            failed: self.failed,
            samples: self.tasks.iter().map(|task| task.samples).collect(),
            weights: self.weights,
            event_hash: self.dispatcher.log.hash(),
        };
        (report, self.spans.unwrap_or_default(), self.dispatcher)
    }
}

/// In a synchronous round every task is there until the commit.
fn all_fit(workload: &Workload) -> Result<(), String> {
    let specs = || workload.tasks.iter().map(|task| &task.spec);
    let kept: u64 = specs().map(|spec| spec.persistent).sum();
    let scratch = specs().map(|spec| spec.scratch).max().unwrap_or(0);
    let (device, needed) = (workload.settings.device, workload.settings.shared + kept + scratch);
    if device == 0 || needed <= device {
        return Ok(());
    }
    Err(format!(
        "a synchronous round needs {needed} bytes ({} shared, {kept} kept by all tasks, {scratch} for the largest quantum), the \
         device's budget is {device}: {} too few; time_sliced tasks take turns",
        workload.settings.shared,
        needed - device
    ))
}

fn draw_fault(own: &SimTask, random: &mut Random) -> Status {
    let faults = &own.faults;
    if random.chance(faults.out_of_memory) {
        Status::OutOfMemory
    } else if random.chance(faults.not_finite) {
        Status::NotFinite
    } else if random.chance(faults.crash) {
        Status::Crashed
    } else {
        Status::Ok
    }
}

/// One step of a hash that stands in for parameters.
fn mix(state: u64, value: u64) -> u64 {
    (state ^ value.wrapping_mul(0x9E37_79B9_7F4A_7C15)).rotate_left(23).wrapping_mul(0xD6E8_FEB8_6659_FD93)
}
