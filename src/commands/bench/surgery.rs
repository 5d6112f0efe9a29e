//! `taskloom bench surgery`: Gram matrix, solve and fused update on a synthetic Jacobian, beside what memory alone costs.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::{choice, count, median, number, print, repeat, report};
use crate::machine::memory::{Buffer, Memory, human_bytes, machine_memory};
use crate::ops::adamw::{Combine, Group, Rule, Step, combine_and_step, combine_rows};
use crate::ops::bandwidth;
use crate::ops::gram::gram_of;
use crate::ops::storage::{Rows, Storage, bf16};
use crate::random::Random;
use crate::surgery::methods::{Inputs, Method, registry};
use crate::surgery::request::MOST_ROWS;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = 8, value_parser = count::<1, MOST_ROWS>)]
    tasks: usize,
    /// Columns of the Jacobian
    #[arg(long, default_value_t = 10_000_000, value_parser = count::<1, 1_000_000_000_000>)]
    params: usize,
    /// Surgery method
    #[arg(long, default_value = "pcgrad")]
    method: String,
    /// Numbers of the Jacobian
    #[arg(long, value_parser = choice::<Storage>(), default_value = "f32")]
    storage: Storage,
    /// Runs to time, after two to warm up
    #[arg(long, default_value_t = 15, value_parser = count::<1, 100_000>)]
    runs: usize,
    #[arg(long)]
    json: bool,
}

/// Bytes of one number.
fn bytes_of(storage: Storage) -> usize {
    match storage {
        Storage::F32 => 4,
        Storage::Bf16 => 2,
    }
}

/// Milliseconds of one run.
#[derive(Default)]
struct Times {
    gram: f64,
    solve: f64,
    update: f64,
    /// d = w'J alone, as aggregation libraries do it.
    combine: f64,
    /// Reading J once.
    read: f64,
    /// Reading and writing parameters and moments once.
    rewrite: f64,
}

impl Times {
    fn total(&self) -> f64 {
        self.gram + self.solve + self.update
    }

    fn floor(&self) -> f64 {
        2.0 * self.read + self.rewrite
    }

    fn aggregate(&self) -> f64 {
        self.gram + self.solve + self.combine
    }
}

pub fn run(args: &Args) -> Result<()> {
    let (tasks, width) = (args.tasks, args.params);
    let mut method = registry::build(&args.method, &Map::new(), tasks).map_err(|fault| anyhow!("--method: {fault}"))?;
    let needs = method.needs();
    ensure!(
        !(needs.elementwise || needs.row_state || needs.second_batch),
        "--method {}: only methods that work from G (and losses) are measured",
        args.method
    );
    // J; parameters, two moments and the update.
    let bytes = (width * (tasks * bytes_of(args.storage) + 4 * 4)) as u64;
    ensure!(
        bytes <= machine_memory(),
        "--tasks {tasks} x --params {width} in {}, with the parameters' own state, take {}; this machine has {} of memory and swap",
        args.storage.name(),
        human_bytes(bytes),
        human_bytes(machine_memory())
    );
    let mut memory = Memory::unlimited();
    let jacobian = match args.storage {
        Storage::F32 => {
            let mut values = memory.buffer("jacobian", tasks * width)?;
            values.par_chunks_mut(width).enumerate().for_each(|(row, values)| fill(row, values, |value| value));
            Kept::F32(values)
        }
        Storage::Bf16 => {
            let mut values = memory.buffer_of("jacobian", tasks * width)?;
            values.par_chunks_mut(width).enumerate().for_each(|(row, values)| fill(row, values, bf16::from_f32));
            Kept::Bf16(values)
        }
    };
    let mut state = memory.buffer("parameters and moments", 3 * width)?;
    let mut update = memory.buffer("update", width)?;
    bandwidth::rewrite(&mut state);
    let times = repeat(args.runs, |run| Ok(measure(method.as_mut(), &jacobian, &mut state, &mut update, run as u64)))?;
    print(args.json, &document(args, &times), text)
}

/// J as it is kept.
enum Kept {
    F32(Buffer),
    Bf16(Buffer<bf16>),
}

impl Kept {
    fn rows(&self, width: usize) -> Rows<'_> {
        match self {
            Self::F32(values) => Rows::F32(values.chunks_exact(width).collect()),
            Self::Bf16(values) => Rows::Bf16(values.chunks_exact(width).collect()),
        }
    }

    /// Its bytes as f32 values, of which nothing but reading them is asked.
    fn raw(&self) -> &[f32] {
        match self {
            Self::F32(values) => values,
            Self::Bf16(values) => bytemuck::cast_slice(&values[..values.len() / 2 * 2]),
        }
    }
}

/// Noise around a common direction, so that some pairs agree and some conflict.
fn fill<T>(row: usize, values: &mut [T], kept: impl Fn(f32) -> T) {
    let mut random = Random(row as u64);
    for (column, value) in values.iter_mut().enumerate() {
        let noise = (random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
        let common = if column % 2 == 0 { 0.3 } else { -0.3 };
        *value = kept(noise + if row.is_multiple_of(2) { common } else { -common });
    }
}

fn measure(method: &mut dyn Method, jacobian: &Kept, state: &mut [f32], update: &mut [f32], run: u64) -> Times {
    let width = update.len();
    let mut clock = Instant::now();
    let mut lap = || std::mem::replace(&mut clock, Instant::now()).elapsed().as_secs_f64() * 1e3;
    let rows = jacobian.rows(width);
    let (count, needs) = (rows.count(), method.needs());
    let mut times = Times::default();
    let mut products = vec![0.0; count * count];
    lap();
    if needs.gram {
        gram_of(&mut products, &rows);
    }
    times.gram = lap();
    let (tasks, losses) = ((0..count).collect::<Vec<_>>(), vec![1.0; count]);
    let (gram, losses) = (if needs.gram { &products[..] } else { &[] }, if needs.losses { &losses[..] } else { &[] });
    let inputs = Inputs { gram, cross_gram: &[], losses, row_sums: &[], tasks: &tasks, round: run, seed: 1, orders: None };
    let weights = method.solve(&inputs).weights;
    times.solve = lap();
    let short: Vec<f32> = weights.iter().map(|&weight| weight as f32).collect();
    let (values, moments) = state.split_at_mut(width);
    let (first, second) = moments.split_at_mut(width);
    combine_and_step(Group { values, first, second }, &rows, Combine::Weights(&short), &step(run));
    times.update = lap();
    combine_rows(update, &rows, &weights);
    times.combine = lap();
    black_box(bandwidth::read(jacobian.raw()));
    times.read = lap();
    bandwidth::rewrite(state);
    times.rewrite = lap();
    times
}

fn step(run: u64) -> Step {
    let (beta1, beta2) = (0.9f32, 0.999f32);
    let power = run as i32 + 1;
    let rule =
        Rule::AdamW { beta1, beta2, eps: 1e-8, correction1: 1.0 - beta1.powi(power), correction2: 1.0 - beta2.powi(power) };
    Step { rule, lr: 1e-4, weight_decay: 0.01 }
}

fn document(args: &Args, times: &[Times]) -> Value {
    let of = |part: fn(&Times) -> f64| median(times.iter().map(part));
    let floor = of(Times::floor);
    let bytes = args.params as f64 * (2 * args.tasks * bytes_of(args.storage) + 6 * 4) as f64;
    let more = json!({
        "tasks": args.tasks,
        "params": args.params,
        "method": args.method,
        "storage": args.storage.name(),
        "threads": rayon::current_num_threads(),
        "floor_ms": floor,
        "ratio_to_floor": of(|times| times.total() / times.floor()),
        "gbps": bytes / floor / 1e6,
        "aggregate_ms": of(Times::aggregate),
        "parts": {
            "gram": of(|times| times.gram),
            "solve": of(|times| times.solve),
            "update": of(|times| times.update),
            "combine": of(|times| times.combine),
            "read": of(|times| times.read),
            "rewrite": of(|times| times.rewrite),
        },
    });
    report("surgery", &times.iter().map(Times::total).collect::<Vec<_>>(), more)
}

fn text(report: &Value) -> String {
    let mut text = format!(
        "{}, {} tasks x {} parameters: {:.2} ms a round, {:.2} times the floor of {:.2} ms ({:.1} GB/s)",
        report["method"].as_str().unwrap_or_default(),
        report["tasks"],
        report["params"],
        number(&report["ms"]),
        number(&report["ratio_to_floor"]),
        number(&report["floor_ms"]),
        number(&report["gbps"])
    );
    for part in ["gram", "solve", "update", "combine"] {
        text += &format!("\n  {part:<8} {:9.3} ms", number(&report["parts"][part]));
    }
    text
}
