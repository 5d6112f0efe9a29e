//! `taskloom bench schedule`: what scheduling costs beside real rounds on the CPU, and what it promises.
//!
//! A quantum is one whole round of one task (forward, backward, commit) through the linear encoder. Three things are measured:
//! the dispatcher's own time a quantum; how far measured shares of time are from the weights; and how long requests of an urgent
//! task take beside tasks that always have work, against the same requests alone.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use serde_json::{Value, json};

use super::prepared::{Encoder, Prepared, Shape};
use super::{count, median, millis, number, print, quantile, report};
use crate::model::network::Batch;
use crate::schedule::access::Operation;
use crate::schedule::dispatcher::{Dispatcher, Job, Settings, Started};
use crate::schedule::executor::Executor;
use crate::schedule::retry::Status;
use crate::schedule::task::Spec;
use crate::schedule::{Nanos, Policy, policy};
use crate::train::lanes::{AtWork, Lanes};

/// Weights of the tasks that share the time; the first is the urgent one where priorities count.
const WEIGHTS: [f64; 5] = [1.0, 1.0, 2.0, 3.0, 4.0];
/// Quanta of the dispatcher alone.
const EMPTY_QUANTA: usize = 200_000;
/// Times that the urgent task is measured alone and beside the others, in turn.
const TURNS: usize = 10;
/// Planned time of a quantum; what it really took is charged when it ends.
const PLANNED: Nanos = 5_000_000;

#[derive(clap::Args)]
pub struct Args {
    /// Examples of a quantum, which is one round of one task
    #[arg(long, default_value_t = 96, value_parser = count::<1, 65_536>)]
    batch: usize,
    /// Quanta of the tasks that share the time by weight
    #[arg(long, default_value_t = 1000, value_parser = count::<1, 1_000_000>)]
    quanta: usize,
    /// Requests of the urgent task, alone and beside the others
    #[arg(long, default_value_t = 100, value_parser = count::<TURNS, 1_000_000>)]
    requests: usize,
    /// Quanta of one request
    #[arg(long, default_value_t = 20, value_parser = count::<1, 1_000_000>)]
    request: usize,
    /// Milliseconds from the end of a request to the next
    #[arg(long, default_value_t = 30.0, value_parser = pause)]
    pause_ms: f64,
    #[arg(long)]
    json: bool,
}

fn pause(text: &str) -> Result<f64, String> {
    let found = text.parse().ok().filter(|pause| (0.0..=60_000.0).contains(pause));
    found.ok_or_else(|| "expected milliseconds from 0 to 60000".to_owned())
}

pub fn run(args: &Args) -> Result<()> {
    let report = Lanes::alone(&mut Rounds::new(args.batch)?, |lane| -> Result<Value> {
        let mut bench = Bench { lane, times: Vec::new(), overhead: Duration::ZERO };
        let shares = shares(&mut bench, args.quanta)?;
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            alone.extend(requests(&mut bench, args, false)?);
            beside.extend(requests(&mut bench, args, true)?);
        }
        Ok(document(args, &bench.times, &shares, &alone, &beside))
    });
    print(args.json, &report?, text)
}

/// What the lane computes with.
struct Rounds {
    run: Prepared,
    /// A batch of each task.
    batches: Vec<Batch>,
    round: u64,
}

impl Rounds {
    fn new(batch: usize) -> Result<Self> {
        let run = Prepared::new(&Shape {
            encoder: Encoder::Linear,
            tasks: WEIGHTS.len(),
            batch,
            layers: 1,
            seq: 1,
            recompute: false,
            device: "cpu",
            method: "pcgrad",
            lanes: 1,
            rounds: 1,
        })?;
        let batches = (0..WEIGHTS.len()).map(|task| run.batch(0, task..task + 1)).collect();
        let mut rounds = Self { run, batches, round: 0 };
        // The first rounds touch memory for the first time.
        for task in 0..WEIGHTS.len() {
            ensure!(rounds.run(task) == Status::Ok, "a round of task{task} came to nothing");
        }
        Ok(rounds)
    }

    fn run(&mut self, task: usize) -> Status {
        let outcome = self.run.run_round(&self.batches[task], &[task], self.round);
        self.round += 1;
        outcome.map_or(Status::NotFinite, |_| Status::Ok)
    }
}

/// The CPU as one lane, and what is measured of it.
struct Bench<'l, 'w, 'a> {
    lane: &'l mut AtWork<'w, 'a, Rounds>,
    /// Of every quantum.
    times: Vec<Duration>,
    /// Spent in the dispatcher.
    overhead: Duration,
}

impl Bench<'_, '_, '_> {
    /// Runs what the dispatcher has started to its end; returns its time.
    fn run(&mut self, started: &Started) -> Result<Nanos> {
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

fn dispatcher(policy: &'static Policy, specs: Vec<Spec>) -> Result<Dispatcher> {
    Dispatcher::new(Settings { policy, ..Settings::default() }, specs, 1).map_err(anyhow::Error::msg)
}

fn job(release: Nanos) -> Job {
    Job { operation: Operation::Commit, blocks: 1, release, cost: PLANNED, bytes: 0 }
}

struct Shares {
    /// Dispatcher's microseconds a quantum: between real quanta, and with nothing between.
    overhead: [f64; 2],
    /// Largest gap between a task's share of the time and that of its weight, in points.
    error: f64,
}

/// Tasks with weights that always have work.
fn shares(bench: &mut Bench, quanta: usize) -> Result<Shares> {
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

/// Milliseconds that requests of the urgent task took from their arrival to their end. Each comes a pause after the one before,
/// and is so many quanta one after the other; `beside` tasks that always have work, or alone.
fn requests(bench: &mut Bench, args: &Args, beside: bool) -> Result<Vec<f64>> {
    let spec = |task: usize| Spec { priority: i64::from(task == 0), ..Spec::new(format!("task{task}"), PLANNED) };
    let mut dispatcher = dispatcher(&policy::priority::POLICY, (0..WEIGHTS.len()).map(spec).collect())?;
    if beside {
        let now = bench.lane.now();
        (1..WEIGHTS.len()).for_each(|task| dispatcher.submit(task, job(now), now));
    }
    let pause = (args.pause_ms * 1e6) as Nanos;
    let mut arrival = bench.lane.now() + pause;
    let (mut left, mut took) = (0, Vec::new());
    while took.len() < args.requests / TURNS {
        if left == 0 && bench.lane.now() >= arrival {
            left = args.request;
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
            continue;
        }
        left -= 1;
        if left > 0 {
            dispatcher.submit(0, job(now), now);
        } else {
            took.push((now - arrival) as f64 / 1e6);
            arrival = now + pause;
        }
    }
    Ok(took)
}

fn document(args: &Args, times: &[Duration], shares: &Shares, alone: &[f64], beside: &[f64]) -> Value {
    let times: Vec<f64> = times.iter().copied().map(millis).collect();
    let [between, empty] = shares.overhead;
    let [slow, slow_alone] = [beside, alone].map(|times| quantile(times.iter().copied(), 0.99));
    let more = json!({
        "batch": args.batch,
        "quanta": args.quanta,
        "requests": alone.len(),
        "request": args.request,
        "pause_ms": args.pause_ms,
        "threads": rayon::current_num_threads(),
        "overhead_us": between,
        "overhead_empty_us": empty,
        "overhead_share": between / 1e3 / median(times.iter().copied()),
        "share_error_points": shares.error,
        "request_ms": median(beside.iter().copied()),
        "request_alone_ms": median(alone.iter().copied()),
        "request_p99_ms": slow,
        "request_p99_alone_ms": slow_alone,
        "request_p99_ratio": slow / slow_alone,
    });
    report("schedule", &times, more)
}

fn text(report: &Value) -> String {
    let number = |name: &str| number(&report[name]);
    format!(
        "quanta of {:.2} ms (median of {})\n\
         \x20 dispatcher    {:.2} us a quantum ({:.2} with nothing between), {:.3} % of it\n\
         \x20 shares        off by at most {:.2} points\n\
         \x20 urgent        p99 {:.1} ms beside others, {:.1} ms alone ({:.3} times), {} requests of {} quanta",
        number("ms"),
        report["runs"],
        number("overhead_us"),
        number("overhead_empty_us"),
        100.0 * number("overhead_share"),
        number("share_error_points"),
        number("request_p99_ms"),
        number("request_p99_alone_ms"),
        number("request_p99_ratio"),
        report["requests"],
        report["request"]
    )
}
