//! `taskloom simulate`: the scheduler on synthetic tasks, or on what a run recorded.

mod replay;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value, json};

use crate::config::workload::{self, Task};
use crate::observe::timeline;
use crate::observe::trace::{Kind, Span, Trace};
use crate::output;
use crate::schedule::Nanos;
use crate::schedule::dispatcher::Settings;
use crate::schedule::retry::{Retry, Status};
use crate::schedule::task::Spec;
use crate::simulate::{self, Arrival, Cost, Faults, Mode, Quantiles, Report, SimTask, Simulation, Workload};

#[derive(clap::Args)]
pub struct Args {
    /// Workload file; ready ones are in configs/workloads
    #[arg(required_unless_present = "replay")]
    pub workload: Option<PathBuf>,
    /// Goes through the schedule of a run again, by the times, failures and targets that it recorded, and says whether the
    /// decisions are the same; with --svg also draws the run's trace
    #[arg(long, value_name = "RUN_DIR", conflicts_with_all = ["workload", "sets", "trace"])]
    pub replay: Option<PathBuf>,
    /// Set a key, e.g. --set schedule.policy=edf
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    #[arg(long)]
    pub json: bool,
    /// Receives every quantum, for chrome://tracing or ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Receives the timeline as a picture
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Milliseconds shown in it; 0 shows all
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    pub svg_ms: f64,
}

pub fn run(args: &Args) -> Result<()> {
    match (&args.replay, &args.workload) {
        (Some(run), _) => replay::run(run, args),
        (None, Some(workload)) => synthetic(args, workload),
        (None, None) => bail!("expected a workload file, or --replay RUN_DIR"),
    }
}

fn synthetic(args: &Args, path: &Path) -> Result<()> {
    let written = workload::load(path, &args.sets)?;
    let name = path.display();
    let workload = build(&written, None);
    let mut simulation = Simulation::new(&workload).map_err(|refusal| anyhow!("{name}: {refusal}"))?;
    let wants_spans = args.trace.is_some() || args.svg.is_some();
    if wants_spans {
        simulation.keep_spans();
    }
    let (report, spans, _) = simulation.run().map_err(|excess| anyhow!("{name}: {excess}"))?;
    let mut document = document(&workload, &report);
    if wants_spans {
        pictures(args, &workload, &spans)?;
        if report.counts.quanta > spans.len() as u64 {
            output::message(format_args!("the pictures show the first {} of {} quanta", spans.len(), report.counts.quanta));
        }
    }
    if let Some(sweep) = &written.sweep {
        let mut rows = Vec::new();
        for &concurrency in &sweep.concurrency {
            let workload = build(&written, Some(concurrency));
            rows.push(match simulate::simulate(&workload) {
                Ok(report) => sweep_row(&workload, &report),
                // So many tasks are too many: that is a finding, too.
                Err(refusal) => json!({ "concurrency": workload.tasks.len(), "refused": refusal }),
            });
        }
        document["sweep"] = Value::Array(rows);
    }
    if args.json {
        output::line(&document)?;
    } else {
        print_text(&document)?;
    }
    Ok(())
}

/// The tasks of a workload file; `concurrency` of them in all, if it says so.
pub(super) fn build(written: &workload::Workload, concurrency: Option<usize>) -> Workload {
    let schedule = &written.schedule;
    let counts = written.counts(concurrency);
    let firsts: Vec<usize> = counts.iter().scan(0, |next, count| Some(std::mem::replace(next, *next + count))).collect();
    let names: Vec<&String> = written.tasks.keys().collect();
    let mut tasks = Vec::new();
    for (class, (name, task)) in written.tasks.iter().enumerate() {
        let parents: Vec<usize> = task
            .depends_on
            .iter()
            .filter_map(|parent| names.iter().position(|name| *name == parent))
            .flat_map(|class| firsts[class]..firsts[class] + counts[class])
            .collect();
        for number in 0..counts[class] {
            let name = if counts[class] == 1 { name.clone() } else { format!("{name}-{}", number + 1) };
            tasks.push(sim_task(name, class, task, &parents, schedule.blocks));
        }
    }
    Workload {
        settings: settings(written),
        mode: if schedule.mode == "synchronous" { Mode::Synchronous } else { Mode::TimeSliced },
        commit: nanos(schedule.commit_ms).max(1),
        classes: names.into_iter().cloned().collect(),
        tasks,
        blocks: schedule.blocks,
    }
}

fn settings(written: &workload::Workload) -> Settings {
    let (schedule, memory) = (&written.schedule, &written.memory);
    Settings {
        policy: schedule.policy,
        lanes: schedule.lanes,
        server_share: schedule.server_share,
        device: memory.device,
        shared: memory.shared,
        max_staleness: schedule.max_staleness,
        on_stale: schedule.on_stale,
        retry: Retry { max: schedule.max_retries, base: nanos(schedule.retry_base_ms), cap: nanos(schedule.retry_cap_ms) },
        seed: schedule.seed,
        split: memory.split,
    }
}

fn sim_task(name: String, class: usize, task: &Task, parents: &[usize], blocks: usize) -> SimTask {
    let cost = Cost {
        base: nanos(task.cost_ms).max(1),
        spread: task.spread,
        tail_share: task.tail_share,
        tail_factor: task.tail_factor,
    };
    let all = if blocks == 64 { u64::MAX } else { (1 << blocks) - 1 };
    let gap = nanos(task.gap_ms).max(1);
    let period = task.period_ms.map_or(0, |period| nanos(period).max(1));
    SimTask {
        spec: Spec {
            name,
            weight: task.weight,
            priority: task.priority,
            period,
            deadline: task.deadline_ms.map_or(0, |deadline| nanos(deadline).max(1)),
            cost: cost.most(),
            persistent: task.persistent,
            scratch: task.scratch,
            budget: task.memory,
            parents: parents.to_vec(),
        },
        class,
        quanta: task.quanta,
        cost,
        arrival: match task.arrival {
            workload::Arrival::Poisson => Arrival::Poisson { gap },
            workload::Arrival::Bursty => Arrival::Bursty { gap, size: task.burst },
            workload::Arrival::Periodic => Arrival::Periodic { period, offset: nanos(task.offset_ms) },
            workload::Arrival::Trace => Arrival::Trace(task.at_ms.iter().map(|&at| nanos(at)).collect()),
            workload::Arrival::Closed => Arrival::Closed { think: nanos(task.think_ms) },
        },
        write_share: task.write_share,
        blocks: if task.blocks.is_empty() { all } else { task.blocks.iter().fold(0, |set, block| set | 1 << block) },
        faults: Faults {
            out_of_memory: task.faults.out_of_memory,
            not_finite: task.faults.not_finite,
            crash: task.faults.crash,
            stall: task.faults.stall,
            stall_factor: task.faults.stall_factor,
        },
        timeout: nanos(task.timeout_ms),
        every: task.period,
    }
}

fn nanos(millis: f64) -> Nanos {
    (millis * 1e6).round() as Nanos
}

fn millis(nanos: Nanos) -> f64 {
    nanos as f64 / 1e6
}

fn quantiles(found: &Quantiles) -> Value {
    json!({
        "mean": found.mean / 1e6,
        "p50": millis(found.p50),
        "p95": millis(found.p95),
        "p99": millis(found.p99),
        "max": millis(found.max),
    })
}

fn document(workload: &Workload, report: &Report) -> Value {
    let mut classes = Map::new();
    for (name, class) in workload.classes.iter().zip(&report.classes) {
        let value = json!({ "jobs": class.jobs, "latency_ms": quantiles(&class.latency), "wait_ms": quantiles(&class.wait) });
        classes.insert(name.clone(), value);
    }
    let counts = &report.counts;
    let sum = |of: fn(&simulate::Samples) -> u64| report.samples.iter().map(of).sum::<u64>();
    let names: Vec<&str> = report.failed.iter().map(|&task| workload.tasks[task].spec.name.as_str()).collect();
    json!({
        "policy": workload.settings.policy.name,
        "mode": workload.mode.name(),
        "lanes": workload.settings.lanes,
        "seed": workload.settings.seed,
        "tasks": workload.tasks.len(),
        "quanta": counts.quanta,
        "makespan_ms": millis(report.makespan),
        "quanta_per_second": counts.quanta as f64 / (report.makespan.max(1) as f64 / 1e9),
        "busy_share": report.busy_share,
        "share_error": report.share_error,
        "peak_bytes": report.peak_bytes,
        "budget_bytes": workload.settings.device,
        "deadline_misses": counts.deadline_misses,
        "timeouts": report.timeouts,
        "retries": counts.retries,
        "rollbacks": counts.rollbacks,
        "halved": counts.halved,
        "stragglers": counts.stragglers,
        "conflicts": { "write_write": counts.write_write, "read_write": counts.read_write, "causal": counts.causal },
        "samples": { "committed": sum(|samples| samples.committed), "dropped": sum(|samples| samples.dropped) },
        "failed": names,
        "classes": classes,
        "event_hash": format!("{:016x}", report.event_hash),
    })
}

/// One number of tasks: latencies over all classes by the slowest of them.
fn sweep_row(workload: &Workload, report: &Report) -> Value {
    let jobs: u64 = report.classes.iter().map(|class| class.jobs).sum();
    let mean = report.classes.iter().map(|class| class.latency.mean * class.jobs as f64).sum::<f64>() / jobs.max(1) as f64;
    let p99 = report.classes.iter().map(|class| class.latency.p99).max().unwrap_or(0);
    json!({
        "concurrency": workload.tasks.len(),
        "quanta_per_second": report.counts.quanta as f64 / (report.makespan.max(1) as f64 / 1e9),
        "mean_ms": mean / 1e6,
        "worst_class_p99_ms": millis(p99),
        "timeouts": report.timeouts,
        "event_hash": format!("{:016x}", report.event_hash),
    })
}

fn print_text(document: &Value) -> Result<()> {
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    output::line(format_args!(
        "{} tasks, {}, {}, {} lanes: {} quanta in {:.1} ms ({:.1} a second), lanes busy {:.1} %",
        document["tasks"],
        document["mode"].as_str().unwrap_or_default(),
        document["policy"].as_str().unwrap_or_default(),
        document["lanes"],
        document["quanta"],
        number(&document["makespan_ms"]),
        number(&document["quanta_per_second"]),
        100.0 * number(&document["busy_share"])
    ))?;
    output::line(format_args!(
        "\n{:<20} {:>9} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "class", "quanta", "mean ms", "p50", "p95", "p99", "wait p99"
    ))?;
    for (name, class) in document["classes"].as_object().into_iter().flatten() {
        let latency = &class["latency_ms"];
        let [mean, p50, p95, p99] = ["mean", "p50", "p95", "p99"].map(|key| number(&latency[key]));
        let wait = number(&class["wait_ms"]["p99"]);
        let jobs = number(&class["jobs"]);
        output::line(format_args!("{name:<20} {jobs:>9.0} {mean:>10.2} {p50:>10.2} {p95:>10.2} {p99:>10.2} {wait:>10.2}"))?;
    }
    if let Some(error) = document["share_error"].as_f64() {
        output::line(format_args!("\nlargest error of a share: {:.2} points", 100.0 * error))?;
    }
    let conflicts = &document["conflicts"];
    output::line(format_args!(
        "\ndeadline misses {}, timeouts {}, retries {}, rollbacks {}, halved {}, stragglers {}, dropped {}",
        document["deadline_misses"],
        document["timeouts"],
        document["retries"],
        document["rollbacks"],
        document["halved"],
        document["stragglers"],
        document["samples"]["dropped"]
    ))?;
    output::line(format_args!(
        "conflicts: write-write {}, read-write {}, causal {}; peak bytes {}; event log {}",
        conflicts["write_write"],
        conflicts["read_write"],
        conflicts["causal"],
        document["peak_bytes"],
        document["event_hash"].as_str().unwrap_or_default()
    ))?;
    let failed: Vec<&str> = document["failed"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !failed.is_empty() {
        output::line(format_args!("failed: {}", failed.join(", ")))?;
    }
    let sweep = document["sweep"].as_array();
    if sweep.is_some() {
        output::line(format_args!(
            "\n{:>12} {:>14} {:>12} {:>14} {:>10}",
            "concurrency", "quanta/s", "mean ms", "worst p99", "timeouts"
        ))?;
    }
    for row in sweep.into_iter().flatten() {
        let concurrency = number(&row["concurrency"]);
        if let Some(refusal) = row["refused"].as_str() {
            output::line(format_args!("{concurrency:>12} refused: {refusal}"))?;
            continue;
        }
        let keys = ["quanta_per_second", "mean_ms", "worst_class_p99_ms", "timeouts"];
        let [rate, mean, p99, timeouts] = keys.map(|key| number(&row[key]));
        output::line(format_args!("{concurrency:>12} {rate:>14.1} {mean:>12.2} {p99:>14.2} {timeouts:>10.0}"))?;
    }
    Ok(())
}

/// Writes the trace and the picture that were asked for.
fn pictures(args: &Args, workload: &Workload, spans: &[simulate::Span]) -> Result<()> {
    let mut names: Vec<String> = workload.tasks.iter().map(|task| task.spec.name.clone()).collect();
    names.push("commit".to_owned());
    let micros = |nanos: Nanos| nanos as f64 / 1e3;
    let span = |span: &simulate::Span| Span {
        kind: match (span.status, span.operation) {
            (Status::Ok, operation) => Kind::of(operation),
            _ => Kind::Failure,
        },
        task: Some(span.task),
        lane: span.lane,
        due: micros(span.release),
        start: micros(span.start),
        end: micros(span.end),
        waited_for: Some(span.waited_for),
        note: String::new(),
    };
    let spans: Vec<Span> = spans.iter().map(span).collect();
    if let Some(path) = &args.trace {
        let mut trace = Trace::create(path, &names, workload.settings.lanes)?;
        spans.iter().try_for_each(|span| trace.add(span))?;
        trace.finish()?;
    }
    if let Some(path) = &args.svg {
        write(path, &timeline::svg(&spans, &names, args.svg_ms))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
