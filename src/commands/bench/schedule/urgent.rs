//! Requests of an urgent task beside tasks that always have work, against the same requests alone, and what the busy tasks keep.

use anyhow::Result;

use super::shares::{Bench, PLANNED, WEIGHTS, dispatcher, job};
use super::{Args, TURNS};
use crate::schedule::executor::Executor;
use crate::schedule::retry::Status;
use crate::schedule::task::Spec;
use crate::schedule::{Nanos, policy};

/// What was measured of the urgent task and of those beside it.
#[derive(Default)]
pub struct Urgent {
    /// Requests of many quanta.
    pub whole: Latencies,
    /// Requests of one quantum.
    pub single: Latencies,
    /// Busy tasks without the urgent one.
    busy_alone: Rate,
    /// Busy tasks beside it, its own quanta counted out.
    busy_beside: Rate,
}

/// Milliseconds from a request's arrival to its end.
#[derive(Default)]
pub struct Latencies {
    pub alone: Vec<f64>,
    pub beside: Vec<f64>,
}

/// Quanta in some time.
#[derive(Default)]
struct Rate {
    quanta: usize,
    time: Nanos,
}

impl Rate {
    fn per_second(&self) -> f64 {
        self.quanta as f64 * 1e9 / self.time.max(1) as f64
    }
}

impl Urgent {
    /// Share of their throughput that the busy tasks keep in the time the urgent one leaves to them.
    pub fn background_share(&self) -> f64 {
        self.busy_beside.per_second() / self.busy_alone.per_second()
    }
}

/// Alone and beside the busy tasks in turn, so that what else the machine does hits both.
pub fn urgent(bench: &mut Bench, args: &Args) -> Result<Urgent> {
    let mut found = Urgent::default();
    for _ in 0..TURNS {
        let Urgent { whole, single, busy_alone, busy_beside } = &mut found;
        for (quanta, latencies) in [(args.request, whole), (1, single)] {
            latencies.alone.extend(requests(bench, args, quanta, None)?);
            latencies.beside.extend(requests(bench, args, quanta, Some(busy_beside))?);
        }
        busy(bench, args.quanta.div_ceil(TURNS), busy_alone)?;
    }
    Ok(found)
}

fn specs() -> Vec<Spec> {
    let spec = |task: usize| Spec { priority: i64::from(task == 0), ..Spec::new(format!("task{task}"), PLANNED) };
    (0..WEIGHTS.len()).map(spec).collect()
}

/// The busy tasks without the urgent one.
fn busy(bench: &mut Bench, quanta: usize, rate: &mut Rate) -> Result<()> {
    let mut dispatcher = dispatcher(&policy::priority::POLICY, specs())?;
    let begun = bench.lane.now();
    (1..WEIGHTS.len()).for_each(|task| dispatcher.submit(task, job(begun), begun));
    for _ in 0..quanta {
        let started = dispatcher.next(bench.lane.now()).expect("all have work");
        let cost = bench.run(&started)?;
        let now = bench.lane.now();
        dispatcher.complete(started.lane, cost, Status::Ok, now);
        dispatcher.submit(started.task, job(now), now);
    }
    rate.quanta += quanta;
    rate.time += bench.lane.now() - begun;
    Ok(())
}

/// Milliseconds that requests of the urgent task took from their arrival to their end. Each comes a pause after the one before,
/// and is so many quanta one after the other; beside tasks that always have work, whose rate is added to `busy`, or alone.
fn requests(bench: &mut Bench, args: &Args, quanta: usize, mut busy: Option<&mut Rate>) -> Result<Vec<f64>> {
    let mut dispatcher = dispatcher(&policy::priority::POLICY, specs())?;
    let begun = bench.lane.now();
    if busy.is_some() {
        (1..WEIGHTS.len()).for_each(|task| dispatcher.submit(task, job(begun), begun));
    }
    let pause = (args.pause_ms * 1e6) as Nanos;
    let mut arrival = begun + pause;
    let (mut left, mut took, mut urgent) = (0, Vec::new(), 0);
    while took.len() < args.requests / TURNS {
        if left == 0 && bench.lane.now() >= arrival {
            left = quanta;
            dispatcher.submit(0, job(arrival), bench.lane.now());
        }
        let now = bench.lane.now();
        let Some(started) = dispatcher.next(now) else {
            bench.lane.wait(Some(arrival));
            continue;
        };
        let cost = bench.run(&started)?;
        let now = bench.lane.now();
        dispatcher.complete(started.lane, cost, Status::Ok, now);
        if started.task > 0 {
            dispatcher.submit(started.task, job(now), now);
            busy.iter_mut().for_each(|rate| rate.quanta += 1);
            continue;
        }
        urgent += cost;
        left -= 1;
        if left > 0 {
            dispatcher.submit(0, job(now), now);
        } else {
            took.push((now - arrival) as f64 / 1e6);
            arrival = now + pause;
        }
    }
    let time = bench.lane.now() - begun - urgent;
    busy.into_iter().for_each(|rate| rate.time += time);
    Ok(took)
}
