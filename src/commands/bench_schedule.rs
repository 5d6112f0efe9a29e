//! `taskloom bench schedule`: what scheduling costs beside real rounds on the CPU, and what it promises.
//!
//! A quantum is one whole round of one task (forward, backward, commit) through the linear encoder. Three things are measured:
//! the dispatcher's own time a quantum; how far measured shares of time are from the weights; and how long requests of an urgent
//! task take beside tasks that always have work, against the same requests alone.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use super::bench;
use crate::cli::{BenchEncoder, BenchSchedule, BenchStep};
use crate::device::memory::{Memory, peak_resident};
use crate::model::network::{Batch, Part};
use crate::output;
use crate::schedule::access::Operation;
use crate::schedule::dispatcher::{Dispatcher, Job, Settings, Started};
use crate::schedule::executor::Executor;
use crate::schedule::retry::Status;
use crate::schedule::task::Spec;
use crate::schedule::{Nanos, Policy};
use crate::train::lanes::{AtWork, Lanes};
use crate::train::round::Engine;

/// Weights of the tasks that share the time; the first is the urgent one where priorities count.
const WEIGHTS: [f64; 5] = [1.0, 1.0, 2.0, 3.0, 4.0];
/// Quanta of the dispatcher alone.
const EMPTY_QUANTA: usize = 200_000;
/// Times that the urgent task is measured alone and beside the others, in turn.
const TURNS: usize = 10;
/// Planned time of a quantum; what it really took is charged when it ends.
const PLANNED: Nanos = 5_000_000;

pub fn run(options: &BenchSchedule) -> Result<()> {
    if options.batch == 0 || options.quanta == 0 || options.request == 0 || options.requests < TURNS {
        bail!("--batch, --quanta and --request must be at least 1, --requests at least {TURNS}");
    }
    let report = Lanes::alone(&mut Rounds::new(options)?, |lane| -> Result<Value> {
        let mut bench = Bench { lane, times: Vec::new(), overhead: Duration::ZERO };
        let shares = shares(&mut bench, options.quanta)?;
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            alone.extend(requests(&mut bench, options, false)?);
            beside.extend(requests(&mut bench, options, true)?);
        }
        Ok(report(options, &bench.times, &shares, alone, beside))
    });
    print(options, &report?)
}

/// What the lane computes with.
struct Rounds {
    engine: Engine,
    /// A batch of each task.
    batches: Vec<Batch>,
    round: u64,
}

impl Rounds {
    fn new(options: &BenchSchedule) -> Result<Self> {
        let step = BenchStep {
            encoder: BenchEncoder::Linear,
            tasks: WEIGHTS.len(),
            batch: options.batch,
            layers: 1,
            seq: 1,
            recompute: false,
            device: "cpu".to_owned(),
            method: "pcgrad".to_owned(),
            lanes: 1,
            runs: 1,
            json: options.json,
        };
        let whole = bench::batch(&step, 0);
        let batches = (0..WEIGHTS.len()).map(|task| of_task(&whole, task, options.batch)).collect();
        let (engine, _, _) = bench::engine(&step, &[whole], &mut Memory::unlimited())?;
        let mut rounds = Self { engine, batches, round: 0 };
        // The first rounds touch memory for the first time.
        for task in 0..WEIGHTS.len() {
            ensure!(rounds.run(task) == Status::Ok, "a round of task{task} came to nothing");
        }
        Ok(rounds)
    }

    fn run(&mut self, task: usize) -> Status {
        let rates = bench::rates(self.round);
        let outcome = self.engine.run_round(&self.batches[task], &[task], self.round, &rates);
        self.round += 1;
        if outcome.is_ok_and(|outcome| outcome.is_ok()) { Status::Ok } else { Status::NotFinite }
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

/// The rows of one task as a batch of its own.
fn of_task(whole: &Batch, task: usize, rows: usize) -> Batch {
    let own = &whole.parts[task];
    let width = whole.features.len() / whole.keys.len();
    let part = Part { task, present: 0, batch: 0, rows: 0..rows, targets: own.targets.clone(), scale: own.scale, first: true };
    Batch {
        parts: vec![part],
        groups: std::iter::once(0..1).collect(),
        keys: whole.keys[own.rows.clone()].to_vec(),
        features: whole.features[own.rows.start * width..own.rows.end * width].to_vec(),
        ..Batch::default()
    }
}

fn dispatcher(policy: Policy, specs: Vec<Spec>) -> Result<Dispatcher> {
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
    let mut real = dispatcher(Policy::Weighted, specs.clone())?;
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
    Ok(Shares { overhead: [between, empty_quanta(dispatcher(Policy::Weighted, specs)?)], error })
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
fn requests(bench: &mut Bench, options: &BenchSchedule, beside: bool) -> Result<Vec<f64>> {
    let spec = |task: usize| Spec { priority: i64::from(task == 0), ..Spec::new(format!("task{task}"), PLANNED) };
    let mut dispatcher = dispatcher(Policy::Priority, (0..WEIGHTS.len()).map(spec).collect())?;
    if beside {
        let now = bench.lane.now();
        (1..WEIGHTS.len()).for_each(|task| dispatcher.submit(task, job(now), now));
    }
    let pause = (options.pause_ms * 1e6) as Nanos;
    let mut arrival = bench.lane.now() + pause;
    let (mut left, mut took) = (0, Vec::new());
    while took.len() < options.requests / TURNS {
        if left == 0 && bench.lane.now() >= arrival {
            left = options.request;
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

fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}

fn report(options: &BenchSchedule, times: &[Duration], shares: &Shares, mut alone: Vec<f64>, mut beside: Vec<f64>) -> Value {
    let mut times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    let [between, empty] = shares.overhead;
    let median = quantile(&mut times, 0.5);
    let [slow, slow_alone] = [&mut beside, &mut alone].map(|times| quantile(times, 0.99));
    json!({
        "name": "schedule",
        "batch": options.batch,
        "quanta": options.quanta,
        "requests": alone.len(),
        "request": options.request,
        "pause_ms": options.pause_ms,
        "threads": rayon::current_num_threads(),
        "ms": median,
        "ms_p10": quantile(&mut times, 0.1),
        "ms_p90": quantile(&mut times, 0.9),
        "runs": times.len(),
        "overhead_us": between,
        "overhead_empty_us": empty,
        "overhead_share": between / 1e3 / median,
        "share_error_points": shares.error,
        "request_ms": quantile(&mut beside, 0.5),
        "request_alone_ms": quantile(&mut alone, 0.5),
        "request_p99_ms": slow,
        "request_p99_alone_ms": slow_alone,
        "request_p99_ratio": slow / slow_alone,
        "peak_bytes": peak_resident(),
    })
}

fn print(options: &BenchSchedule, report: &Value) -> Result<()> {
    if options.json {
        return output::line(report);
    }
    let number = |name: &str| report[name].as_f64().unwrap_or_default();
    output::line(format_args!("quanta of {:.2} ms (median of {})", number("ms"), report["runs"]))?;
    output::line(format_args!(
        "  dispatcher    {:.2} us a quantum ({:.2} with nothing between), {:.3} % of it",
        number("overhead_us"),
        number("overhead_empty_us"),
        100.0 * number("overhead_share")
    ))?;
    output::line(format_args!("  shares        off by at most {:.2} points", number("share_error_points")))?;
    output::line(format_args!(
        "  urgent        p99 {:.1} ms beside others, {:.1} ms alone ({:.3} times), {} requests of {} quanta",
        number("request_p99_ms"),
        number("request_p99_alone_ms"),
        number("request_p99_ratio"),
        report["requests"],
        options.request
    ))?;
    Ok(())
}
