//! A workload of `taskloom simulate` on the lanes of the CPU or of a device, beside its simulation.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::real::{measured, on_device, on_host, simulated};
use super::{Args, on_threads};
use crate::commands::bench::prepared::{Passes, Prepared, Shape};
use crate::commands::bench::{number, print, report};
use crate::commands::simulate::build;
use crate::config::schema::EncoderKind;
use crate::config::workload;
use crate::machine::Device;
use crate::machine::driver::Driver;
use crate::model::network::Batch;
use crate::schedule::Nanos;
use crate::schedule::retry::Status;
use crate::simulate::{Drawn, Mode, Report, SimTask, Workload};
use crate::train::lanes::Lanes;

/// Micro-batches far shorter than a millisecond, so that a quantum ends close to the time that was drawn. Which of a few tasks they
/// belong to makes no difference.
const MICRO_BATCHES: Shape = Shape {
    encoder: EncoderKind::Linear,
    hidden: 64,
    tasks: 4,
    batch: 8,
    layers: 1,
    seq: 1,
    recompute: false,
    device: "cpu",
    method: "sum",
    lanes: 1,
    rounds: 1,
};
/// Most lanes.
const MOST_LANES: usize = 64;
/// Longest that a quantum may take: one that has begun is computed to its end.
const MOST_SECONDS: f64 = 60.0;

pub fn run(path: &Path, args: &Args) -> Result<()> {
    let workload = build(&workload::load(path, &[])?, None);
    let name = path.display().to_string();
    let document = side_by_side(&name, &workload, args).with_context(|| name.clone())?;
    print(args.json, &document, text)
}

fn side_by_side(name: &str, workload: &Workload, args: &Args) -> Result<Value> {
    check(workload)?;
    let until = (args.seconds * 1e9) as Nanos;
    let virtual_run = simulated(workload, until)?;
    let (real, times) = match Device::option(&args.device)? {
        Some(driver) => computed_on_device(driver, workload, until).with_context(|| format!("--device {}", args.device))?,
        None => computed_on_host(workload, until)?,
    };
    let more = json!({
        "workload": name,
        "tasks": workload.tasks.len(),
        "policy": workload.settings.policy.name,
        "mode": workload.mode.name(),
        "lanes": workload.settings.lanes,
        "seconds": args.seconds,
        "device": args.device,
        "threads": rayon::current_num_threads(),
        "measured": side(workload, &real),
        "simulated": side(workload, &virtual_run),
    });
    Ok(report("workload", &times, more))
}

/// Refuses what lanes cannot run in reasonable time.
fn check(workload: &Workload) -> Result<()> {
    let lanes = workload.settings.lanes;
    ensure!(lanes <= MOST_LANES, "schedule.lanes is {lanes}; at most {MOST_LANES} can be run: lower it");
    let longest = |task: &SimTask| {
        let stall = if task.faults.stall > 0.0 { task.faults.stall_factor.max(1.0) } else { 1.0 };
        task.cost.most() as f64 * stall / 1e9
    };
    for task in &workload.tasks {
        ensure!(
            longest(task) <= MOST_SECONDS,
            "a quantum of task {} may take {:.3} s; at most {MOST_SECONDS} s can be run: lower its cost_ms or factors",
            task.spec.name,
            longest(task)
        );
    }
    let commit = workload.commit as f64 / 1e9;
    ensure!(
        workload.mode == Mode::TimeSliced || commit <= MOST_SECONDS,
        "schedule.commit_ms are {commit:.3} s; at most {MOST_SECONDS} s can be run: lower it"
    );
    Ok(())
}

/// The workload on the CPU's lanes, each with memory of its own; the milliseconds of every quantum, too.
fn computed_on_host(workload: &Workload, until: Nanos) -> Result<(Report, Vec<f64>)> {
    let prepared = Prepared::new(&MICRO_BATCHES)?;
    let batches: Vec<Batch> = (0..MICRO_BATCHES.tasks).map(|task| prepared.batch(0, task..task + 1)).collect();
    let lanes = workload.settings.lanes;
    let mut arenas = (0..lanes).map(|_| prepared.passes(&batches)).collect::<Result<Vec<_>>>()?;
    // The first passes touch memory for the first time.
    arenas.iter_mut().for_each(|passes| (0..batches.len()).for_each(|task| passes.run(task)));
    Lanes::new(lanes)?.at_work(&mut arenas, |lanes| measured(workload, on_host(lanes, as_drawn), until))
}

/// The workload on a device's lanes, each with an arena and streams of its own; the milliseconds of every quantum, too.
fn computed_on_device(driver: Box<dyn Driver>, workload: &Workload, until: Nanos) -> Result<(Report, Vec<f64>)> {
    let prepared = Prepared::new(&MICRO_BATCHES)?;
    let mut lanes = prepared.device_lanes(driver, &prepared.batch(0, 0..1), workload.settings.lanes)?;
    let measured = on_device(&mut lanes, workload).and_then(|own| measured(workload, own, until));
    lanes.check()?;
    measured
}

/// Micro-batches, one at least, until the drawn time has passed; then the drawn end.
fn as_drawn(passes: &mut Passes, drawn: Drawn) -> Status {
    let clock = Instant::now();
    loop {
        passes.run(drawn.task);
        if clock.elapsed() >= Duration::from_nanos(drawn.cost) {
            return drawn.status;
        }
    }
}

fn side(workload: &Workload, report: &Report) -> Value {
    let classes: Map<String, Value> = workload
        .classes
        .iter()
        .zip(&report.classes)
        .map(|(name, class)| {
            let times = json!({
                "jobs": class.jobs,
                "latency_mean_ms": class.latency.mean / 1e6,
                "latency_p99_ms": class.latency.p99 as f64 / 1e6,
            });
            (name.clone(), times)
        })
        .collect();
    json!({
        "quanta": report.counts.quanta,
        "quanta_left": report.left,
        "makespan_ms": report.makespan as f64 / 1e6,
        "quanta_per_second": report.counts.quanta as f64 * 1e9 / report.makespan.max(1) as f64,
        "busy_share": report.busy_share,
        "deadline_misses": report.counts.deadline_misses,
        "timeouts": report.timeouts,
        "classes": classes,
    })
}

fn text(report: &Value) -> String {
    let sides = [&report["measured"], &report["simulated"]];
    let row = |name: &str, decimals: usize, of: &dyn Fn(&Value) -> f64| {
        let [real, virtual_run] = sides.map(of);
        format!("{name:<30} {real:>12.decimals$} {virtual_run:>12.decimals$}")
    };
    let mut lines = vec![
        format!(
            "{}: {} tasks, {}, {}, lanes {} on {}, threads {}",
            report["workload"].as_str().unwrap_or_default(),
            report["tasks"],
            report["mode"].as_str().unwrap_or_default(),
            report["policy"].as_str().unwrap_or_default(),
            report["lanes"],
            report["device"].as_str().unwrap_or_default(),
            report["threads"]
        ),
        format!("\n{:<30} {:>12} {:>12}", "", "measured", "simulated"),
        row("quanta", 0, &|side| number(&side["quanta"])),
        row("quanta a second", 1, &|side| number(&side["quanta_per_second"])),
        row("lanes busy, %", 1, &|side| 100.0 * number(&side["busy_share"])),
        row("deadline misses", 0, &|side| number(&side["deadline_misses"])),
        row("timeouts", 0, &|side| number(&side["timeouts"])),
    ];
    for class in sides[0]["classes"].as_object().into_iter().flat_map(Map::keys) {
        lines.push(row(&format!("{class}, jobs"), 0, &|side| number(&side["classes"][class]["jobs"])));
        for (what, key) in [("mean ms", "latency_mean_ms"), ("p99 ms", "latency_p99_ms")] {
            lines.push(row(&format!("{class}, {what}"), 2, &|side| number(&side["classes"][class][key])));
        }
    }
    if sides.iter().any(|side| number(&side["quanta_left"]) > 0.0) {
        let [real, virtual_run] = sides.map(|side| &side["quanta_left"]);
        let seconds = &report["seconds"];
        lines.push(format!("\nstopped after {seconds} s: {real} quanta left, {virtual_run} in the simulator (--seconds)"));
    }
    if on_threads(report) && number(&report["lanes"]) > number(&report["threads"]) {
        lines.push(
            "\nlanes share threads here: a quantum also waits for its turn on one, which the simulator does not know".to_owned(),
        );
    }
    lines.join("\n")
}
