//! The dispatcher's own time, and how far measured shares of time are from the weights.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use super::rounds::Rounds;
use crate::schedule::access::Operation;
use crate::schedule::dispatcher::{Dispatcher, Job, Settings, Started};
use crate::schedule::executor::Executor;
use crate::schedule::retry::Status;
use crate::schedule::task::Spec;
use crate::schedule::{Nanos, Policy, policy};
use crate::train::lanes::AtWork;

/// Weights of the tasks that share the time; the first is the urgent one where priorities count.
pub const WEIGHTS: [f64; 5] = [1.0, 1.0, 2.0, 3.0, 4.0];
/// Quanta of the dispatcher alone.
const EMPTY_QUANTA: usize = 200_000;
/// Planned time of a quantum; what it really took is charged when it ends.
pub const PLANNED: Nanos = 5_000_000;

/// The CPU as one lane, and what is measured of it.
pub struct Bench<'l, 'w, 'a> {
    pub lane: &'l mut AtWork<'w, 'a, Rounds>,
    /// Of every quantum.
    pub times: Vec<Duration>,
    /// Spent in the dispatcher.
    pub overhead: Duration,
}

impl Bench<'_, '_, '_> {
    /// Runs what the dispatcher has started to its end; returns its time.
    pub fn run(&mut self, started: &Started) -> Result<Nanos> {
        let task = started.task;
        self.lane.submit(started.lane, Box::new(move |rounds| rounds.run(task)));
        let ended = self.lane.wait(None).ok_or_else(|| anyhow!("a quantum got lost"))?;
        ensure!(ended.status == Status::Ok, "a round came to nothing: {:?}", ended.status);
        self.times.push(Duration::from_nanos(ended.cost));
        Ok(ended.cost)
    }

    /// Something asked of the dispatcher, its time counted.
    fn ask<R>(&mut self, question: impl FnOnce(Nanos) -> R) -> R {
        let now = self.lane.now();
        let clock = Instant::now();
        let answer = question(now);
        self.overhead += clock.elapsed();
        answer
    }
}

pub fn dispatcher(policy: &'static Policy, specs: Vec<Spec>) -> Result<Dispatcher> {
    Dispatcher::new(Settings { policy, ..Settings::default() }, specs, 1).map_err(anyhow::Error::msg)
}

pub fn job(release: Nanos) -> Job {
    Job { operation: Operation::Commit, blocks: 1, release, cost: PLANNED, bytes: 0 }
}

pub struct Shares {
    /// Dispatcher's microseconds a quantum: between real quanta, and with nothing between.
    pub overhead: [f64; 2],
    /// Largest gap between a task's share of the time and that of its weight, in points.
    pub error: f64,
}

/// Tasks with weights that always have work.
pub fn shares(bench: &mut Bench, quanta: usize) -> Result<Shares> {
    let spec = |(task, &weight): (usize, &f64)| Spec { weight, ..Spec::new(format!("task{task}"), PLANNED) };
    let specs: Vec<Spec> = WEIGHTS.iter().enumerate().map(spec).collect();
    let mut real = dispatcher(&policy::weighted::POLICY, specs.clone())?;
    let mut served = [0u64; WEIGHTS.len()];
    bench.overhead = Duration::ZERO;
    (0..WEIGHTS.len()).for_each(|task| real.submit(task, job(0), 0));
    for _ in 0..quanta {
        let started = bench.ask(|now| real.next(now)).expect("all have work");
        let cost = bench.run(&started)?;
        served[started.task] += cost;
        bench.ask(|now| {
            real.complete(started.lane, cost, Status::Ok, now);
            real.submit(started.task, job(now), now);
        });
    }
    let between = bench.overhead.as_secs_f64() * 1e6 / quanta as f64;
    let (total, weights) = (served.iter().sum::<u64>() as f64, WEIGHTS.iter().sum::<f64>());
    let gap = |(time, weight): (&u64, &f64)| 100.0 * (*time as f64 / total - weight / weights).abs();
    let error = served.iter().zip(&WEIGHTS).map(gap).fold(0.0, f64::max);
    Ok(Shares { overhead: [between, empty_quanta(dispatcher(&policy::weighted::POLICY, specs)?)], error })
}

/// Microseconds of the dispatcher for quanta that take no time.
fn empty_quanta(mut dispatcher: Dispatcher) -> f64 {
    (0..WEIGHTS.len()).for_each(|task| dispatcher.submit(task, job(0), 0));
    let clock = Instant::now();
    let mut now = 0;
    for _ in 0..EMPTY_QUANTA {
        let started = dispatcher.next(now).expect("all have work");
        now += PLANNED;
        dispatcher.complete(started.lane, PLANNED, Status::Ok, now);
        dispatcher.submit(started.task, job(now), now);
    }
    clock.elapsed().as_secs_f64() * 1e6 / EMPTY_QUANTA as f64
}
