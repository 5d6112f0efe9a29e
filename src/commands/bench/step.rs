//! `taskloom bench step`: what one round costs on synthetic data, stage by stage.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use serde_json::{Map, Value, json};

use super::prepared::{BATCHES, HIDDEN, Prepared, Shape};
use super::{WARM_UP, choice, count, median, millis, number, print, repeat, report};
use crate::config::schema::EncoderKind;
use crate::model::network::Batch;
use crate::ops::gemm::time_in_products;
use crate::surgery::methods::registry;
use crate::train::round::Stages;

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
    /// Share of all threads' time that is spent inside matrix products.
    products: f64,
}

pub fn run(args: &Args) -> Result<()> {
    registry::build(&args.method, &Map::new(), args.tasks).map_err(|fault| anyhow!("--method: {fault}"))?;
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
    let tasks: Vec<usize> = (0..args.tasks).collect();
    let batches: Vec<Batch> = (0..BATCHES).map(|number| prepared.batch(number, 0..args.tasks)).collect();
    let rounds = repeat(args.runs, |run| {
        let products = time_in_products();
        let clock = Instant::now();
        let stages = prepared.run_round(&batches[run % BATCHES], &tasks, run as u64)?.stages;
        let time = clock.elapsed();
        let threads = rayon::current_num_threads() as u32;
        Ok(Round { time, stages, products: (time_in_products() - products).div_duration_f64(time * threads) })
    })?;
    print(args.json, &document(args, &prepared, &rounds)?, text)
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
    Ok(report("step", &times, more))
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
    text
}
