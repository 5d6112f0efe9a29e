//! The event loop of a simulation: the same whether its quanta run on the virtual machine or on real lanes.

mod arrivals;
mod outcome;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};

use super::machine::{Drawn, Machine};
use super::report::{ClassReport, Quantiles, Report, Samples};
use super::rounds::Rounds;
use super::workload::{Arrival, Mode, SimTask, Workload};
use crate::schedule::Nanos;
use crate::schedule::access::Operation;
use crate::schedule::dispatcher::{Dispatcher, Job, Started};
use crate::schedule::executor::Executor;
use crate::schedule::graph;
use crate::schedule::random::Random;
use crate::schedule::retry::Status;
use crate::schedule::task::Spec;
use crate::schedule::wait::WaitReason;

/// Most pieces a quantum is cut into.
const MOST_PIECES: u64 = 64;

/// Most quanta that are kept for pictures: a trace of so many has some 200 MB.
pub const MOST_SPANS: usize = 500_000;

/// Most quanta that a simulation runs, those that fail counted.
const MOST_RUN: u64 = 10_000_000;

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
    /// From its release on.
    pub waited_for: WaitReason,
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

/// A simulation in progress on an executor.
pub struct Simulation<'a, E = Machine> {
    workload: &'a Workload,
    pub dispatcher: Dispatcher,
    tasks: Vec<Progress>,
    lanes: Vec<Option<InFlight>>,
    machine: E,
    /// When the last quantum may begin.
    until: Nanos,
    /// Tasks with a job that becomes due: when, then in the order of becoming known.
    arrivals: BinaryHeap<Reverse<(Nanos, u64, u32)>>,
    sequence: u64,
    rounds: Rounds,
    /// Synchronous: tasks without a job, by the next round they are present in.
    present: BTreeSet<(u64, usize)>,
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
    Ok(Simulation::new(workload)?.run()?.0)
}

impl<'a> Simulation<'a> {
    /// Over the virtual clock.
    ///
    /// # Errors
    /// As [`Simulation::on`].
    pub fn new(workload: &'a Workload) -> Result<Self, String> {
        Self::on(workload, Machine::new(workload.settings.lanes))
    }
}

impl<'a, E: Executor<Work = Drawn>> Simulation<'a, E> {
    /// On an executor with the workload's lanes, whose clock has just begun.
    ///
    /// # Errors
    /// What [`Dispatcher::new`] refuses, and a synchronous round that does not fit the memory.
    pub fn on(workload: &'a Workload, machine: E) -> Result<Self, String> {
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
        let by_class = || vec![Vec::new(); workload.classes.len()];
        Ok(Self {
            workload,
            dispatcher,
            tasks: (0..workload.tasks.len()).map(progress).collect(),
            lanes: vec![None; workload.settings.lanes],
            machine,
            until: Nanos::MAX,
            arrivals: BinaryHeap::new(),
            sequence: 0,
            rounds: Rounds::default(),
            present: BTreeSet::new(),
            weights: 0,
            latencies: by_class(),
            waits: by_class(),
            busy: 0,
            timeouts: 0,
            failed: Vec::new(),
            shares: None,
            children: graph::children(&parents),
            spans: None,
        })
    }

    /// Keeps the quanta, the first [`MOST_SPANS`] of them, for [`Simulation::run`]'s second answer.
    pub fn keep_spans(&mut self) {
        self.spans = Some(Vec::new());
    }

    /// Begins no quantum from this time on: what runs then still ends, the rest is left.
    pub fn stop_at(&mut self, until: Nanos) {
        self.until = until;
    }

    /// To the end; an error where it takes too many quanta, or more time than the clock holds.
    pub fn run(mut self) -> Result<(Report, Vec<Span>, Dispatcher), String> {
        self.begin();
        loop {
            if self.dispatcher.counts.quanta > MOST_RUN {
                return Err(format!("not over after {MOST_RUN} quanta, those that failed counted: lower `quanta` or `faults`"));
            }
            if self.now() == Nanos::MAX {
                return Err("takes longer than 584 years, the range of the clock in nanoseconds".to_owned());
            }
            let next = if self.now() < self.until { self.start_all() } else { None };
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
        Ok(self.report())
    }

    /// Starts whoever may run now; returns when somebody else becomes ready, if it is known.
    fn start_all(&mut self) -> Option<Nanos> {
        self.deal();
        while let Some(started) = self.dispatcher.next(self.now()) {
            self.start(started);
        }
        let arrival = self.arrivals.peek().map(|&Reverse((at, ..))| at);
        arrival.into_iter().chain(self.dispatcher.wakes_at()).min().map(|next| next.min(self.until))
    }

    fn now(&self) -> Nanos {
        self.machine.now()
    }

    fn begin(&mut self) {
        for task in 0..self.tasks.len() {
            if self.workload.tasks[task].spec.parents.is_empty() {
                self.open(task);
            }
        }
    }

    fn is_commit_of_round(&self, task: usize) -> bool {
        task == self.tasks.len()
    }

    fn start(&mut self, started: Started) {
        let (cost, status) =
            if self.is_commit_of_round(started.task) { (self.workload.commit, Status::Ok) } else { self.begin_quantum(&started) };
        self.lanes[started.lane] = Some(InFlight { started, since: self.now() });
        self.machine.submit(started.lane, Drawn { task: started.task, cost, status });
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

    /// Synchronous: begins the next round, or its commit, when it is time.
    fn deal(&mut self) {
        if self.workload.mode != Mode::Synchronous {
            return;
        }
        while self.rounds.is_empty()
            && let Some(&(round, _)) = self.present.first()
        {
            // Rounds in which nobody is present take no time.
            self.rounds.number = round;
            let later = self.present.split_off(&(round + 1, 0));
            for (_, task) in std::mem::replace(&mut self.present, later) {
                if self.dispatcher.state(task).is_final() {
                    continue;
                }
                self.tasks[task].release = self.machine.now();
                self.tasks[task].first_start = None;
                self.tasks[task].piece = 0;
                self.rounds.expect();
                self.submit(task);
            }
        }
        if self.rounds.commit_is_due() {
            let blocks = self.workload.tasks.iter().fold(0, |all, task| all | task.blocks);
            let job = Job { operation: Operation::Commit, blocks, release: self.now(), cost: self.workload.commit, bytes: 0 };
            self.dispatcher.submit(self.tasks.len(), job, self.now());
        }
    }

    /// Synchronous: the task waits for the next round it is present in.
    fn wait_for_round(&mut self, task: usize) {
        let every = self.workload.tasks[task].every;
        self.present.insert((self.rounds.number.next_multiple_of(every), task));
    }

    fn committed_round(&mut self) {
        for (task, sample) in self.rounds.committed() {
            self.weights = mix(mix(self.weights, task as u64), sample);
            self.commit(task, sample);
            self.tasks[task].submitted = false;
            if self.tasks[task].samples.committed >= self.workload.tasks[task].quanta {
                self.finish(task);
            } else {
                self.wait_for_round(task);
            }
        }
    }

    /// Quanta that are still to come of a task.
    fn left(&self, task: usize) -> u64 {
        let Samples { planned, committed, dropped, .. } = self.tasks[task].samples;
        match &self.workload.tasks[task].arrival {
            _ if self.dispatcher.state(task).is_final() => 0,
            Arrival::Trace(times) if self.workload.mode == Mode::TimeSliced => {
                planned.min(times.len() as u64) - committed - dropped
            }
            _ => planned - committed - dropped,
        }
    }

    fn report(mut self) -> (Report, Vec<Span>, Dispatcher) {
        let classes = self.latencies.iter_mut().zip(&mut self.waits).map(|(latencies, waits)| ClassReport {
            jobs: latencies.len() as u64,
            latency: Quantiles::of(latencies),
            wait: Quantiles::of(waits),
        });
        let time = self.machine.now().max(1) as f64 * self.lanes.len() as f64;
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
            left: (0..self.tasks.len()).map(|task| self.left(task)).sum(),
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
    let kept = specs().fold(0u64, |sum, spec| sum.saturating_add(spec.persistent));
    let scratch = specs().map(|spec| spec.scratch).max().unwrap_or(0);
    let (device, needed) = (workload.settings.device, workload.settings.shared.saturating_add(kept).saturating_add(scratch));
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
