//! `taskloom bench kernels`: what the kernels reach on a card, on random values. Those bound by memory stand beside a copy measured
//! in the same run; the products have scripts/torch_products.py beside them.

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::{count, median, millis, number, print, repeat, report};
use crate::machine::driver::{Address, Card, DeviceError, Driver, Priority, StreamId, open};
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::Op;
use crate::machine::tensor::{DType, Tensor};
use crate::ops::activation::{Activation, ActivationBackward, convert_to_bf16};
use crate::ops::adamw::{Rule, Step};
use crate::ops::attention::{AttentionBackward, AttentionForward, Sequences};
use crate::ops::chunks::Chunks;
use crate::ops::column_rule::How;
use crate::ops::gemm::Write;
use crate::ops::gram::GramMatrices;
use crate::ops::jacobian_rows::{JacobianRows, Segment};
use crate::ops::linear::{LinearForward, LinearInputBackward, LinearWeightBackward};
use crate::ops::philox::{Keyed, Stream};
use crate::ops::update::{Columns, ParameterState, Update};

/// Launches between two looks at the clock: one wait is then small beside them.
const REPEATS: usize = 10;
const TASKS: usize = 8;
const MANY_TASKS: usize = 64;
/// Random values that buffers are filled with, over and over.
const NOISE: usize = 1 << 20;
/// Columns of the activations.
const GELU_WIDTH: usize = 768;
/// (m, n, k)
const GEMMS: [[usize; 3]; 4] = [[8192, 768, 768], [8192, 2304, 768], [8192, 3072, 768], [32768, 768, 3072]];

/// Tokens, heads and columns of a head of the attentions; tokens of their sequences.
const ATTENTION: [usize; 3] = [32_768, 12, 64];
const LENGTHS: [usize; 3] = [64, 128, 512];

#[derive(clap::Args)]
pub struct Args {
    /// The card: cuda or cuda:N
    #[arg(long, default_value = "cuda")]
    device: String,
    /// Columns of the Jacobian of 8 tasks
    #[arg(long, default_value_t = 100_000_000, value_parser = count::<1, 10_000_000_000>)]
    params: usize,
    /// Runs of ten launches to time, after two to warm up
    #[arg(long, default_value_t = 15, value_parser = count::<1, 100_000>)]
    runs: usize,
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    ensure!(
        args.device != "emulated",
        "bench kernels times a card; the emulated device executes kernels on the host, and its times mean nothing"
    );
    let mut bench = Bench::new(open(&args.device)?, args.runs, args.json)?;
    memory_bound(&mut bench, args.params)?;
    products(&mut bench)?;
    attention(&mut bench)
}

struct Bench {
    driver: Box<dyn Driver>,
    stream: StreamId,
    runs: usize,
    json: bool,
    /// ([`NOISE`]) unit normals each, on the device.
    noise_f32: Address,
    noise_bf16: Address,
}

impl Bench {
    fn new(mut driver: Box<dyn Driver>, runs: usize, json: bool) -> Result<Self, DeviceError> {
        let stream = driver.stream(Priority::Urgent)?;
        let mut bench = Self { driver, stream, runs, json, noise_f32: 0, noise_bf16: 0 };
        let random = Keyed::new(0, Stream::Synthetic, 0, 0, 0);
        let noise: Vec<f32> = (0..NOISE as u32).map(|at| random.normal(at) as f32).collect();
        bench.noise_f32 = bench.upload(&noise)?;
        bench.noise_bf16 = bench.room(2 * NOISE)?;
        let launch = convert_to_bf16(bench.noise_bf16, bench.noise_f32, 1, NOISE);
        bench.launch(&launch)?;
        Ok(bench)
    }

    fn room(&mut self, bytes: usize) -> Result<Address, DeviceError> {
        self.driver.allocate("benchmark", bytes)
    }

    /// Random values: products of zeros cost a card less power, and less time.
    fn noise_f32(&mut self, count: usize) -> Result<Address, DeviceError> {
        self.repeat(self.noise_f32, 4 * NOISE, 4 * count)
    }

    fn noise_bf16(&mut self, count: usize) -> Result<Address, DeviceError> {
        self.repeat(self.noise_bf16, 2 * NOISE, 2 * count)
    }

    fn repeat(&mut self, from: Address, period: usize, bytes: usize) -> Result<Address, DeviceError> {
        let at = self.room(bytes)?;
        for start in (0..bytes).step_by(period) {
            self.driver.copy(self.stream, at + start as Address, from, period.min(bytes - start))?;
        }
        Ok(at)
    }

    fn upload<T: bytemuck::Pod>(&mut self, values: &[T]) -> Result<Address, DeviceError> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let (at, staging) = (self.driver.allocate("benchmark", bytes.len())?, self.driver.staging(bytes.len())?);
        self.driver.staging_bytes(staging)?.copy_from_slice(bytes);
        self.driver.copy_in(self.stream, at, staging, 0..bytes.len())?;
        Ok(at)
    }

    /// Milliseconds of one launch, by run.
    fn time(&mut self, mut work: impl FnMut(&mut dyn Driver, StreamId) -> Result<(), DeviceError>) -> Result<Vec<f64>> {
        repeat(self.runs, |_| {
            self.driver.synchronize(self.stream)?;
            let clock = Instant::now();
            for _ in 0..REPEATS {
                work(&mut *self.driver, self.stream)?;
            }
            self.driver.synchronize(self.stream)?;
            Ok(millis(clock.elapsed()) / REPEATS as f64)
        })
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), DeviceError> {
        self.driver.launch(self.stream, launch)
    }

    /// The first launch of an operation.
    fn time_op(&mut self, op: &dyn Op) -> Result<Vec<f64>> {
        let launches = self.launches(op, &self.driver.card())?;
        let Some(launch) = launches.first() else { bail!("{} has no kernel", op.name()) };
        self.time(|driver, stream| driver.launch(stream, launch))
    }

    /// What an operation launches on a card.
    fn launches(&mut self, op: &dyn Op, card: &Card) -> Result<Vec<Launch>> {
        let mut tables = Vec::new();
        for table in op.tables() {
            tables.push(self.upload(&table)?);
        }
        let launch = |command| if let Command::Launch(launch) = command { Some(launch) } else { None };
        Ok(op.device(card, &tables).into_iter().filter_map(launch).filter(|launch| !launch.is_empty()).collect())
    }

    /// Prints a result as soon as it is there; `rate` in `unit`, and the ceiling it has.
    fn say(&self, name: &str, parameters: Value, times: &[f64], (rate, unit): (f64, &str), ceiling: Option<f64>) -> Result<()> {
        let mut more = json!({ "parameters": parameters, unit: rate, "device": self.driver.name() });
        if let Some(ceiling) = ceiling {
            more["ceiling"] = json!(ceiling);
            more["ratio_to_ceiling"] = json!(rate / ceiling);
        }
        print(self.json, &report(name, times, more), |report| {
            let share = ceiling.map_or_else(String::new, |ceiling| format!("  {:.2} of the ceiling", rate / ceiling));
            format!("{name:<36} {:9.4} ms  {rate:8.1} {unit:<6}{share}", number(&report["ms"]))
        })
    }
}

/// Passes over J and the parameters, against a plain copy on the device.
fn memory_bound(bench: &mut Bench, params: usize) -> Result<()> {
    let stride = params.next_multiple_of(64);
    let all = bench.noise_f32(TASKS * stride)?;
    let row = |task: usize| Tensor::dense(all + 4 * (task * stride) as Address, 1, params, DType::F32);
    let jacobian: Vec<Tensor> = (0..TASKS).map(row).collect();
    let half = 2 * TASKS * stride;
    let copied = bench.time(|driver, stream| driver.copy(stream, all, all + half as Address, half))?;
    let gbps = |bytes: usize, times: &[f64]| (bytes as f64 / median(times.iter().copied()) / 1e6, "gbps");
    let (ceiling, _) = gbps(2 * half, &copied);
    bench.say("copy", json!({ "bytes": half }), &copied, gbps(2 * half, &copied), Some(ceiling))?;

    for tasks in [TASKS, MANY_TASKS] {
        let columns = params * TASKS / tasks;
        let blocks = [0..columns; 1];
        let sums = Chunks::of_range(0..columns as u64, Chunks::gram_length(columns as u64)).len();
        let partials = Tensor::dense(bench.room(8 * tasks * tasks * sums)?, 1, 1, DType::F64);
        let row = |task: usize| Tensor::dense(all + 4 * (task * columns) as Address, 1, columns, DType::F32);
        let jacobian = (0..tasks).map(row).collect();
        let gram = GramMatrices { jacobian, blocks: &blocks, table: None, rows: None, gram: Tensor::NONE, partials };
        let times = bench.time_op(&gram)?;
        let shape = json!({ "tasks": tasks, "params": columns });
        bench.say("gram", shape, &times, gbps(4 * tasks * columns, &times), Some(ceiling))?;
        bench.driver.free(partials.at);
    }

    let [values, first, second] = [bench.noise_f32(params)?, bench.noise_f32(params)?, bench.room(4 * params)?];
    // Second moments are not negative.
    bench.driver.fill(bench.stream, second, 0, 4 * params)?;
    let copy = bench.room(2 * params)?;
    let own = |at: Address| Tensor::dense(at, 1, params, DType::F32);
    let rule = Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, correction1: 0.1, correction2: 0.001 };
    let update = Update {
        state: ParameterState { values: own(values), first: own(first), second: own(second), copy: own(copy) },
        jacobian,
        columns: vec![Columns { range: 0..params, set: 0, decay: true }],
        how: How::Weights(Tensor::dense(bench.upload(&[1.0f32; TASKS])?, 1, TASKS, DType::F32)),
        step: Step { rule, lr: 1e-4, weight_decay: 0.01 },
        halted: Tensor::NONE,
    };
    let times = bench.time_op(&update)?;
    bench.say(
        "update",
        json!({ "tasks": TASKS, "params": params }),
        &times,
        gbps((4 * TASKS + 26) * params, &times),
        Some(ceiling),
    )?;
    [all, values, first, second, copy].into_iter().for_each(|at| bench.driver.free(at));

    let rows = params.div_ceil(GELU_WIDTH);
    let count = rows * GELU_WIDTH;
    let [dout, pre] = [bench.noise_bf16(count)?, bench.noise_bf16(count)?];
    let own = |at: Address| Tensor::padded(at, rows, GELU_WIDTH, DType::Bf16);
    let times = bench.time_op(&ActivationBackward { dout: own(dout), pre: own(pre), activation: Activation::Gelu })?;
    bench.say("gelu_backward", json!({ "values": count }), &times, gbps(6 * count, &times), Some(ceiling))?;
    [dout, pre].into_iter().for_each(|at| bench.driver.free(at));
    Ok(())
}

/// The three products of a linear layer.
fn products(bench: &mut Bench) -> Result<()> {
    for [m, n, k] in GEMMS {
        let (x, weight, dout) = (bench.noise_bf16(m * k)?, bench.noise_bf16(n * k)?, bench.noise_bf16(m * n)?);
        let (out, dx, gradient) = (bench.room(2 * m * n)?, bench.room(2 * m * k)?, bench.room(4 * (n * k + n))?);
        let narrow = |at: Address, rows: usize, columns: usize| Tensor::padded(at, rows, columns, DType::Bf16);
        let none = Tensor::NONE;
        let (x_at, weight_at, dout_at) = (narrow(x, m, k), narrow(weight, n, k), narrow(dout, m, n));
        let segment = Segment { rows: 0..m, row: Tensor::dense(gradient, 1, n * k + n, DType::F32), write: Write::Replace };
        let ops: [(&str, Box<dyn Op>); 3] = [
            (
                "gemm_forward",
                Box::new(LinearForward {
                    out: narrow(out, m, n),
                    pre: none,
                    x: x_at,
                    weight: weight_at,
                    bias: none,
                    activation: Activation::None,
                    residual: none,
                }),
            ),
            ("gemm_input", Box::new(LinearInputBackward::new(narrow(dx, m, k), dout_at, weight_at))),
            (
                "gemm_weight",
                Box::new(LinearWeightBackward {
                    dout: dout_at,
                    x: x_at,
                    jacobian: JacobianRows { segments: vec![segment], added: false, staging: none },
                    columns: 0..n * k + n,
                    partials: none,
                }),
            ),
        ];
        for (name, op) in ops {
            let times = bench.time_op(&*op)?;
            let rate = 2.0 * (m * n * k) as f64 / median(times.iter().copied()) / 1e9;
            bench.say(&format!("{name} {m}x{n}x{k}"), json!({ "m": m, "n": n, "k": k }), &times, (rate, "tflops"), None)?;
        }
        [x, weight, dout, out, dx, gradient].into_iter().for_each(|at| bench.driver.free(at));
    }
    Ok(())
}

/// Attention over sequences of one length, by the kernels of the card's kind, and on Hopper cards by those that every card has.
fn attention(bench: &mut Bench) -> Result<()> {
    let [rows, heads, dim] = ATTENTION;
    let width = heads * dim;
    let (q, kv, dout) = (bench.noise_bf16(rows * width)?, bench.noise_bf16(rows * 2 * width)?, bench.noise_bf16(rows * width)?);
    let [out, dq, dkv] = [1, 1, 2].map(|times| 2 * rows * width * times);
    let (out, dq, dkv, log_sums) = (bench.room(out)?, bench.room(dq)?, bench.room(dkv)?, bench.room(4 * rows * heads)?);
    let narrow = |at: Address, columns: usize| Tensor::padded(at, rows, columns, DType::Bf16);
    let (q_at, kv_at, out_at) = (narrow(q, width), narrow(kv, 2 * width), narrow(out, width));
    let sums_at = Tensor::dense(log_sums, rows, heads, DType::F32);
    let own = bench.driver.card();
    let cards = [("", own), ("portable ", Card::PLAIN)];
    for length in LENGTHS {
        let bounds: Vec<u32> = (0..=rows as u32).step_by(length).collect();
        let shape = Sequences { queries: &bounds, keys: &bounds, heads, dim, dropout: None };
        let forward = AttentionForward { out: out_at, log_sums: sums_at, q: q_at, kv: kv_at, shape };
        let (dq, dkv, dout) = (narrow(dq, width), narrow(dkv, 2 * width), narrow(dout, width));
        let backward = AttentionBackward { dq, dkv, dout, out: out_at, log_sums: sums_at, q: q_at, kv: kv_at, shape };
        let ops: [(&str, &dyn Op); 2] = [("attention_forward", &forward), ("attention_backward", &backward)];
        for (name, op) in ops {
            for &(kind, card) in &cards[..if own.hopper { 2 } else { 1 }] {
                let launches = bench.launches(op, &card)?;
                let times = bench.time(|driver, stream| launches.iter().try_for_each(|launch| driver.launch(stream, launch)))?;
                let (work, ms) = (op.work(), median(times.iter().copied()));
                let shape =
                    json!({ "tokens": rows, "heads": heads, "dim": dim, "length": length, "gbps": work.bytes as f64 / ms / 1e6 });
                let rate = (work.operations as f64 / ms / 1e9, "tflops");
                bench.say(&format!("{kind}{name} {length}"), shape, &times, rate, None)?;
            }
        }
    }
    [q, kv, dout, out, dq, dkv, log_sums].into_iter().for_each(|at| bench.driver.free(at));
    Ok(())
}
