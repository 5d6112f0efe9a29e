//! Many tasks that are ready at once: what each job waits and takes, on the CPU or a device and in the simulator.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::real::{measured, on_host, simulated};
use super::rounds::{Rounds, Size};
use super::{Args, on_threads};
use crate::commands::bench::prepared::MOST_EXAMPLES;
use crate::commands::bench::{number, report};
use crate::output;
use crate::schedule::Nanos;
use crate::schedule::dispatcher::Settings;
use crate::schedule::task::Spec;
use crate::simulate::{Arrival, Cost, Drawn, Faults, Mode, Report, SimTask, Workload};
use crate::train::lanes::Lanes;

/// Width of the encoder: rounds short enough that hundreds of tasks take seconds.
const HIDDEN: usize = 256;
/// Planned time of a quantum; the order does not depend on it.
const PLANNED: Nanos = 1_000_000;

pub fn run(args: &Args) -> Result<()> {
    let most = args.contention.iter().copied().max().unwrap_or(1);
    ensure!(
        most * args.batch <= MOST_EXAMPLES,
        "--contention {most} x --batch {} are {} examples; at most {MOST_EXAMPLES}: lower one of them",
        args.batch,
        most * args.batch
    );
    // A round of one task has nothing to project, so that the sum of gradients is enough.
    let size = Size { tasks: most, batch: args.batch, hidden: HIDDEN, method: "sum", device: &args.device };
    let mut rounds = Rounds::new(&size)?;
    for (number, &tasks) in args.contention.iter().enumerate() {
        let document = contend(args, tasks, &mut rounds)?;
        if args.json {
            output::line(&document)?;
        } else {
            print_text(&document, number == 0)?;
        }
    }
    Ok(())
}

/// So many tasks at once.
fn contend(args: &Args, tasks: usize, rounds: &mut Rounds) -> Result<Value> {
    let until = (args.seconds * 1e9) as Nanos;
    let planned = workload(args, tasks, PLANNED);
    let one_round = |rounds: &mut Rounds, drawn: Drawn| rounds.run(drawn.task);
    let (real, times) = Lanes::alone(rounds, |lanes| measured(&planned, on_host(lanes, one_round), until))?;
    rounds.check()?;
    let mean = times.iter().sum::<f64>() / times.len().max(1) as f64;
    let virtual_run = simulated(&workload(args, tasks, ((mean * 1e6) as Nanos).max(1)), until)?;
    let more = json!({
        "tasks": tasks,
        "jobs_per_task": args.jobs,
        "batch": args.batch,
        "hidden": HIDDEN,
        "device": args.device,
        "timeout_ms": args.timeout_ms,
        "seconds": args.seconds,
        "threads": rayon::current_num_threads(),
        "quantum_ms": mean,
        "measured": side(&real),
        "simulated": side(&virtual_run),
    });
    Ok(report("contention", &times, more))
}

/// Equal tasks that have their next job ready as soon as the last one ends, one quantum each.
fn workload(args: &Args, tasks: usize, cost: Nanos) -> Workload {
    let task = |number: usize| SimTask {
        spec: Spec::new(format!("task{number}"), cost),
        class: 0,
        quanta: args.jobs as u64,
        cost: Cost::fixed(cost),
        arrival: Arrival::Closed { think: 0 },
        write_share: 1.0,
        blocks: 1,
        faults: Faults::default(),
        timeout: (args.timeout_ms * 1e6) as Nanos,
        every: 1,
    };
    Workload {
        // A job is one quantum, also where one takes longer than the others.
        settings: Settings { split: false, ..Settings::default() },
        mode: Mode::TimeSliced,
        commit: 1,
        classes: vec!["tasks".to_owned()],
        tasks: (0..tasks).map(task).collect(),
        blocks: 1,
    }
}

fn side(report: &Report) -> Value {
    let class = &report.classes[0];
    json!({
        "jobs": class.jobs,
        "jobs_left": report.left,
        "latency_mean_ms": class.latency.mean / 1e6,
        "latency_p50_ms": class.latency.p50 as f64 / 1e6,
        "latency_p99_ms": class.latency.p99 as f64 / 1e6,
        "wait_mean_ms": class.wait.mean / 1e6,
        "wait_p99_ms": class.wait.p99 as f64 / 1e6,
        "timeouts": report.timeouts,
        "jobs_per_second": class.jobs as f64 * 1e9 / report.makespan.max(1) as f64,
    })
}

/// What the lane consists of.
fn lane(document: &Value) -> String {
    match document["device"].as_str() {
        Some(device) if !on_threads(document) => device.to_owned(),
        _ => format!("{} threads", document["threads"]),
    }
}

fn print_text(document: &Value, is_first: bool) -> Result<()> {
    if is_first {
        output::line(format_args!(
            "one lane of {}, quanta of one round of {} examples, {} jobs a task; times in ms, timeouts from {} ms\n\n\
             {:>6} {:<10} {:>8} {:>9} {:>9} {:>9} {:>10} {:>9} {:>9} {:>8}",
            lane(document),
            document["batch"],
            document["jobs_per_task"],
            document["timeout_ms"],
            "tasks",
            "",
            "jobs",
            "mean",
            "p50",
            "p99",
            "wait mean",
            "wait p99",
            "timeouts",
            "jobs/s"
        ))?;
    }
    for side in ["measured", "simulated"] {
        let found = &document[side];
        let keys = ["latency_mean_ms", "latency_p50_ms", "latency_p99_ms", "wait_mean_ms", "wait_p99_ms"];
        let [mean, p50, p99, wait, wait_p99] = keys.map(|key| number(&found[key]));
        let tasks = if side == "measured" { document["tasks"].to_string() } else { String::new() };
        output::line(format_args!(
            "{tasks:>6} {side:<10} {:>8.0} {mean:>9.2} {p50:>9.2} {p99:>9.2} {wait:>10.2} {wait_p99:>9.2} {:>9.0} {:>8.1}",
            number(&found["jobs"]),
            number(&found["timeouts"]),
            number(&found["jobs_per_second"])
        ))?;
    }
    let left = number(&document["measured"]["jobs_left"]);
    if left > 0.0 {
        output::line(format_args!("       stopped after {} s: {left:.0} jobs left (--seconds)", document["seconds"]))?;
    }
    Ok(())
}
