//! `taskloom bench step`: what one round costs on synthetic data, stage by stage, or on a device operation by operation.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use serde_json::{Map, Value, json};

use super::operations::{operations, operations_text};
use super::prepared::{HIDDEN, Prepared, Shape, Timed};
use super::{WARM_UP, choice, count, median, millis, number, print, repeat, report};
use crate::config::schema::EncoderKind;
use crate::ops::gemm::time_in_products;
use crate::surgery::methods::registry;
use crate::train::round::Stages;
use crate::train::{Counts, OpTime};

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, value_parser = choice::<EncoderKind>(), default_value = "linear")]
    encoder: EncoderKind,
    #[arg(long, default_value_t = 8, value_parser = count::<1, 512>)]
    tasks: usize,
    /// Examples of one task in a round
    #[arg(long, default_value_t = 256, value_parser = count::<1, 65_536>)]
    batch: usize,
    /// Layers of the transformer
    #[arg(long, default_value_t = 2, value_parser = count::<1, 96>)]
    layers: usize,
    /// Longest sequence of the transformer; lengths are uniform from a quarter of it
    #[arg(long, default_value_t = 64, value_parser = count::<3, 512>)]
    seq: usize,
    /// Keep only the transformer layers' inputs
    #[arg(long)]
    recompute: bool,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Surgery method
    #[arg(long, default_value = "pcgrad")]
    method: String,
    /// Groups computed at the same time on the CPU, each on its share of the threads
    #[arg(long, default_value_t = 1, value_parser = count::<1, 64>)]
    lanes: usize,
    /// Give a device one kernel after the other, and say how long each operation takes
    #[arg(long)]
    profile: bool,
    /// Rounds to time, after two to warm up
    #[arg(long, default_value_t = 20, value_parser = count::<1, 100_000>)]
    runs: usize,
    #[arg(long)]
    json: bool,
}

/// One round.
struct Round {
    time: Duration,
    stages: Stages,
    /// Between the device's first and last command, where there is a device.
    device: Option<Duration>,
    counts: Counts,
    /// With --profile, by name.
    ops: BTreeMap<&'static str, OpTime>,
    /// Share of all threads' time that is spent inside matrix products.
    products: f64,
}

pub fn run(args: &Args) -> Result<()> {
    registry::build(&args.method, &Map::new(), args.tasks).map_err(|fault| anyhow!("--method: {fault}"))?;
    ensure!(
        !args.profile || args.device.starts_with("cuda"),
        "--profile times the kernels of a card: add --device cuda (on the host perf does that, and the emulated device's times mean nothing)"
    );
    ensure!(args.lanes == 1 || args.device == "cpu", "--lanes are the CPU's: a device has streams of its own");
    let mut prepared = Prepared::new(&Shape {
        encoder: args.encoder,
        hidden: HIDDEN,
        tasks: args.tasks,
        batch: args.batch,
        layers: args.layers,
        seq: args.seq,
        recompute: args.recompute,
        device: &args.device,
        method: &args.method,
        lanes: args.lanes,
        rounds: WARM_UP + args.runs,
    })?;
    let bandwidth = args.profile.then(|| prepared.profile()).transpose()?;
    let rounds = prepared.with_rounds(|next| {
        repeat(args.runs, |run| {
            let products = time_in_products();
            let clock = Instant::now();
            let Timed { committed, counts, ops } = next(run as u64)?;
            let time = clock.elapsed();
            let threads = rayon::current_num_threads() as u32;
            Ok(Round {
                time,
                stages: committed.stages,
                device: committed.times.map(|times| times.commit.start + times.commit.time),
                counts,
                ops,
                products: (time_in_products() - products).div_duration_f64(time * threads),
            })
        })
    })?;
    let mut report = document(args, &prepared, &rounds)?;
    if let Some(bandwidth) = bandwidth {
        let ops: Vec<_> = rounds.into_iter().map(|round| round.ops).collect();
        report["copy_gbps"] = json!(bandwidth / 1e9);
        report["operations"] = operations(&ops, bandwidth);
    }
    print(args.json, &report, text)
}

fn document(args: &Args, prepared: &Prepared, rounds: &[Round]) -> Result<Value> {
    let times: Vec<f64> = rounds.iter().map(|round| millis(round.time)).collect();
    let part = |stage: fn(&Stages) -> Duration| median(rounds.iter().map(|round| millis(stage(&round.stages))));
    let parts = [
        part(|stages| stages.forward_backward),
        part(|stages| stages.gram),
        part(|stages| stages.solve),
        part(|stages| stages.update),
    ];
    let whole = median(times.iter().copied());
    let mut more = json!({
        "encoder": args.encoder.name(),
        "device": args.device,
        "tasks": args.tasks,
        "batch": args.batch,
        "method": args.method,
        "threads": rayon::current_num_threads(),
        "lanes": args.lanes,
        "examples_per_second": (args.tasks * args.batch) as f64 / whole * 1e3,
        "products_share": median(rounds.iter().map(|round| round.products)),
        "parts": {
            "forward_backward": parts[0],
            "gram": parts[1],
            "solve": parts[2],
            "update": parts[3],
            "other": (whole - parts.iter().sum::<f64>()).max(0.0),
        },
    });
    if args.encoder == EncoderKind::Transformer {
        more["layers"] = json!(args.layers);
        more["seq"] = json!(args.seq);
        more["tokens_per_second"] = json!(prepared.tokens() / whole * 1e3);
        more["planned_bytes"] = json!(prepared.planned_bytes()?);
    }
    if let Some(device) = rounds.iter().map(|round| round.device).collect::<Option<Vec<_>>>() {
        add_device(&mut more, rounds, &device);
    }
    Ok(report("step", &times, more))
}

/// What a device was asked for by a round, and what the host waited for, each the median.
fn add_device(more: &mut Value, rounds: &[Round], device: &[Duration]) {
    let count = |of: fn(&Counts) -> u64| median(rounds.iter().map(|round| of(&round.counts) as f64)) as u64;
    let time = |of: fn(&Counts) -> Duration| median(rounds.iter().map(|round| millis(of(&round.counts))));
    more["launches"] = json!(count(|counts| counts.launches));
    more["graph_launches"] = json!(count(|counts| counts.graph_launches));
    more["host_waits"] = json!(count(|counts| counts.host_waits));
    more["uploaded_bytes"] = json!(count(|counts| counts.uploaded_bytes));
    more["pack_ms"] = json!(time(|counts| counts.packing));
    more["launch_ms"] = json!(time(|counts| counts.launching));
    more["wait_ms"] = json!(time(|counts| counts.waiting));
    more["device_ms"] = json!(median(device.iter().copied().map(millis)));
    let whole: Duration = rounds.iter().map(|round| round.time).sum();
    more["device_busy"] = json!(device.iter().sum::<Duration>().div_duration_f64(whole));
}

fn text(report: &Value) -> String {
    let mut text = format!(
        "{} encoder, {} tasks x {} examples, {}: {:.2} ms a round ({:.0} examples/s)\n  {:<17} {:8.1} % of the threads' time",
        report["encoder"].as_str().unwrap_or_default(),
        report["tasks"],
        report["batch"],
        report["method"].as_str().unwrap_or_default(),
        number(&report["ms"]),
        number(&report["examples_per_second"]),
        "matrix products",
        100.0 * number(&report["products_share"])
    );
    for stage in ["forward_backward", "gram", "solve", "update", "other"] {
        text += &format!("\n  {stage:<17} {:8.2} ms", number(&report["parts"][stage]));
    }
    if report.get("device_ms").is_some() {
        let [device, pack, launch, wait] = ["device_ms", "pack_ms", "launch_ms", "wait_ms"].map(|key| number(&report[key]));
        text += &format!(
            "\n  the device {device:.2} ms, busy {:.0} % of the time; the host packs {pack:.2}, launches {launch:.2}, waits {wait:.2} ms",
            100.0 * number(&report["device_busy"])
        );
        text += &format!(
            "\n  {} kernels, {} graphs, {} waits, {} bytes uploaded a round",
            report["launches"], report["graph_launches"], report["host_waits"], report["uploaded_bytes"]
        );
    }
    text + &operations_text(report)
}
