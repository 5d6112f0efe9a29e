//! `taskloom bench schedule`: what scheduling costs beside real rounds, and what it promises.
//!
//! Without options, promises are measured: the dispatcher's own time, shares by weight, an urgent task beside busy ones. With
//! `--contention` many tasks are ready at once; with `--workload` a file of `taskloom simulate` is run. Both are run on real lanes as
//! well as in the simulator, so that one sees how far the two agree.

mod contention;
mod promises;
mod real;
mod rounds;
mod shares;
mod urgent;
mod workload;

use std::path::PathBuf;

use anyhow::Result;
use serde_json::Value;

use super::count;

/// Times that the urgent task is measured alone and beside the others, in turn.
const TURNS: usize = 10;
/// Most tasks that are ready at once.
const MOST_TASKS: usize = 1000;

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("real").args(["contention", "workload"]))]
pub struct Args {
    /// Examples of a quantum, which is one round of one task
    #[arg(long, default_value_t = 96, value_parser = count::<1, 65_536>, conflicts_with = "workload")]
    batch: usize,
    /// Quanta of the tasks that share the time by weight, and of the busy ones without the urgent one
    #[arg(long, default_value_t = 1000, value_parser = count::<1, 1_000_000>, conflicts_with = "real")]
    quanta: usize,
    /// Requests of the urgent task, alone and beside the others; as many again of a single quantum each
    #[arg(long, default_value_t = 100, value_parser = count::<TURNS, 1_000_000>, conflicts_with = "real")]
    requests: usize,
    /// Quanta of one request
    #[arg(long, default_value_t = 20, value_parser = count::<1, 1_000_000>, conflicts_with = "real")]
    request: usize,
    /// Milliseconds from the end of a request to the next
    #[arg(long, default_value_t = 30.0, value_parser = pause, conflicts_with = "real")]
    pause_ms: f64,
    /// Instead: so many tasks ready at once, on the CPU or a device and in the simulator; several numbers are run one after the other
    #[arg(long, value_name = "TASKS", value_delimiter = ',', value_parser = count::<1, MOST_TASKS>)]
    contention: Vec<usize>,
    /// Jobs of each task, one quantum each
    #[arg(long, default_value_t = 20, value_parser = count::<1, 10_000>, requires = "contention")]
    jobs: usize,
    /// Latency from which a job counts as timed out
    #[arg(long, default_value_t = 500.0, value_parser = timeout, requires = "contention")]
    timeout_ms: f64,
    /// Instead: a workload file as `simulate` reads it, on the CPU or a device and in the simulator; ready ones are in configs/workloads
    #[arg(long, value_name = "FILE")]
    workload: Option<PathBuf>,
    /// Where to compute: auto (the CPU), cpu, cuda, cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu", requires = "real")]
    device: String,
    /// Begins no quantum after this time, neither there nor in the simulator
    #[arg(long, default_value_t = 10.0, value_parser = seconds, requires = "real")]
    seconds: f64,
    #[arg(long)]
    json: bool,
}

/// Whether quanta of a document of these are computed by the CPU's threads.
fn on_threads(document: &Value) -> bool {
    matches!(document["device"].as_str(), Some("cpu" | "auto") | None)
}

fn pause(text: &str) -> Result<f64, String> {
    let found = text.parse().ok().filter(|pause| (0.0..=60_000.0).contains(pause));
    found.ok_or_else(|| "expected milliseconds from 0 to 60000".to_owned())
}

fn timeout(text: &str) -> Result<f64, String> {
    let found = text.parse().ok().filter(|timeout| (0.001..=1e9).contains(timeout));
    found.ok_or_else(|| "expected milliseconds from 0.001 to 1000000000".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let found = text.parse().ok().filter(|seconds| (0.001..=86_400.0).contains(seconds));
    found.ok_or_else(|| "expected seconds from 0.001 to 86400".to_owned())
}

pub fn run(args: &Args) -> Result<()> {
    match &args.workload {
        Some(path) => workload::run(path, args),
        None if args.contention.is_empty() => promises::run(args),
        None => contention::run(args),
    }
}
