//! `taskloom bench kernels`: what the kernels reach on a card, beside a ceiling measured in the same run.

use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::cli::BenchKernels;
use crate::device::driver::{Address, Call, DeviceError, Driver, Priority, StreamId, open};
use crate::ops::activation::Activation;
use crate::ops::adamw::Rule;
use crate::ops::launch::Launch;
use crate::ops::launch::elementwise::{self, Scalar};
use crate::ops::launch::gemm::{Forward, Input, Segments, forward, input, weight as weight_gradient};
use crate::ops::launch::surgery::{
    Chunks, ChunksOnDevice, Columns, GroupRates, Jacobian, Rates, RatesOnDevice, State, gram, update_weights,
};

/// Launches between two looks at the clock: one wait is then small beside them.
const REPEATS: usize = 10;
const TASKS: usize = 8;
const GEMMS: [[usize; 3]; 4] = [[8192, 768, 768], [8192, 2304, 768], [8192, 3072, 768], [32768, 768, 3072]];

pub fn run(options: &BenchKernels) -> Result<()> {
    if options.device == "emulated" {
        bail!("bench kernels times a card; the emulated device executes kernels on the host, and its times mean nothing");
    }
    if options.params == 0 || options.runs == 0 {
        bail!("--params and --runs must be at least 1");
    }
    let mut bench = Bench::new(open(&options.device)?, options.runs)?;
    let name = bench.driver.name();
    let mut lines = memory_bound(&mut bench, options.params)?;
    lines.extend(products(&mut bench)?);
    for mut line in lines {
        line["device"] = json!(name);
        if options.json {
            println!("{line}");
        } else {
            let rate = ["gbps", "tflops"].into_iter().find_map(|unit| Some((unit, line[unit].as_f64()?)));
            let (unit, rate) = rate.unwrap_or(("", 0.0));
            let (name, ms) = (line["name"].as_str().unwrap_or_default(), line["ms"].as_f64().unwrap_or_default());
            println!("{name:<36} {ms:9.4} ms  {rate:8.1} {unit:<6}  {:.2} of the ceiling", ceiling_share(&line));
        }
    }
    Ok(())
}

fn ceiling_share(line: &Value) -> f64 {
    line["ratio_to_ceiling"].as_f64().unwrap_or_default()
}

struct Bench {
    driver: Box<dyn Driver>,
    stream: StreamId,
    runs: usize,
}

/// Milliseconds of one launch: median, and tenths from either end.
struct Times([f64; 3]);

impl Bench {
    fn new(mut driver: Box<dyn Driver>, runs: usize) -> Result<Self, DeviceError> {
        let stream = driver.stream(Priority::High)?;
        Ok(Self { driver, stream, runs })
    }

    /// Zeros.
    fn room(&mut self, bytes: usize) -> Result<Address, DeviceError> {
        let at = self.driver.allocate("benchmark", bytes)?;
        self.driver.fill(self.stream, at, 0, bytes)?;
        Ok(at)
    }

    fn upload<T: bytemuck::Pod>(&mut self, values: &[T]) -> Result<Address, DeviceError> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let (at, staging) = (self.driver.allocate("benchmark", bytes.len())?, self.driver.staging(bytes.len())?);
        self.driver.staging_bytes(staging)?.copy_from_slice(bytes);
        self.driver.copy_in(self.stream, at, staging, 0..bytes.len())?;
        Ok(at)
    }

    fn time(&mut self, mut work: impl FnMut(&mut dyn Driver, StreamId) -> Result<(), DeviceError>) -> Result<Times> {
        let mut times = Vec::with_capacity(self.runs);
        for run in 0..self.runs + 2 {
            self.driver.synchronize(self.stream)?;
            let clock = Instant::now();
            for _ in 0..REPEATS {
                work(&mut *self.driver, self.stream)?;
            }
            self.driver.synchronize(self.stream)?;
            // The first two warm up.
            if run >= 2 {
                times.push(clock.elapsed().as_secs_f64() * 1e3 / REPEATS as f64);
            }
        }
        times.sort_by(f64::total_cmp);
        let quantile = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        Ok(Times([quantile(0.5), quantile(0.1), quantile(0.9)]))
    }

    fn time_launch(&mut self, launch: &Launch) -> Result<Times> {
        let Launch { kernel, grid, threads, shared, arguments } = launch;
        let call = Call { kernel, grid: *grid, threads: *threads, shared: *shared, arguments };
        self.time(|driver, stream| driver.launch(stream, &call))
    }

    fn line(&self, name: &str, parameters: Value, Times([ms, p10, p90]): Times, unit: &str, rate: f64, ceiling: f64) -> Value {
        json!({ "name": name, "parameters": parameters, "ms": ms, "ms_p10": p10, "ms_p90": p90, "runs": self.runs, unit: rate,
                "ceiling": ceiling, "ratio_to_ceiling": rate / ceiling })
    }
}

/// Passes over J and the parameters, against a plain copy on the device.
fn memory_bound(bench: &mut Bench, params: usize) -> Result<Vec<Value>> {
    let stride = params.next_multiple_of(64);
    let jacobian = Jacobian { at: bench.room(4 * TASKS * stride)?, stride: stride as u64, tasks: TASKS };
    let half = 2 * TASKS * stride;
    let copied = bench.time(|driver, stream| driver.copy(stream, jacobian.at, jacobian.at + half as Address, half))?;
    let gbps = |bytes: usize, Times([ms, ..]): &Times| bytes as f64 / ms / 1e6;
    let ceiling = gbps(2 * half, &copied);
    let mut lines = vec![bench.line("copy", json!({ "bytes": half }), copied, "gbps", ceiling, ceiling)];

    let cut = |length| Chunks::new(&[Columns { columns: 0..params as u64, block: 0, group: 0 }], length);
    let [gram_cut, update_cut] = [cut(Chunks::gram_length(params as u64)), cut(Chunks::UPDATE_LENGTH)];
    let on_gram = chunks(bench, &gram_cut)?;
    let partials = bench.room(8 * TASKS * TASKS * gram_cut.len())?;
    let times = bench.time_launch(&gram(partials, jacobian, on_gram))?;
    let rate = gbps(4 * TASKS * params, &times);
    let shape = json!({ "tasks": TASKS, "params": params });
    lines.push(bench.line("gram", shape.clone(), times, "gbps", rate, ceiling));

    let state = State {
        values: bench.room(4 * params)?,
        first: bench.room(4 * params)?,
        second: bench.room(4 * params)?,
        copy: bench.room(2 * params)?,
    };
    let rule = Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, correction1: 0.1, correction2: 0.001 };
    let rates = RatesOnDevice {
        rates: bench.upload(&[Rates::from(rule)])?,
        groups: bench.upload(&[GroupRates { lr: 1e-4, weight_decay: 0.01 }])?,
    };
    let (weights, on_update) = (bench.upload(&[1.0f32; TASKS])?, chunks(bench, &update_cut)?);
    let times = bench.time_launch(&update_weights(state, jacobian, weights, rates, on_update))?;
    let rate = gbps((4 * TASKS + 26) * params, &times);
    lines.push(bench.line("update", shape, times, "gbps", rate, ceiling));

    let launch = elementwise::activation_backward(Scalar::Bf16, jacobian.at, state.values, params, Activation::Gelu);
    let times = bench.time_launch(&launch)?;
    let rate = gbps(6 * params, &times);
    lines.push(bench.line("gelu_backward", json!({ "values": params }), times, "gbps", rate, ceiling));
    for at in [jacobian.at, partials, state.values, state.first, state.second, state.copy] {
        bench.driver.free(at);
    }
    Ok(lines)
}

fn chunks(bench: &mut Bench, chunks: &Chunks) -> Result<ChunksOnDevice, DeviceError> {
    Ok(ChunksOnDevice {
        count: chunks.len(),
        firsts: bench.upload(&chunks.firsts)?,
        lengths: bench.upload(&chunks.lengths)?,
        blocks: bench.upload(&chunks.blocks)?,
        groups: bench.upload(&chunks.groups)?,
    })
}

/// The three products of a linear layer; their ceiling is the fastest of them, beside cuBLAS see scripts/gpu-check.sh.
fn products(bench: &mut Bench) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    for [m, n, k] in GEMMS {
        let (x, out, weight) = (bench.room(2 * m * k)?, bench.room(2 * m * n)?, bench.room(2 * n * k)?);
        let gradient = bench.room(4 * n * k)?;
        let segments = Segments {
            starts: bench.upload(&[0u32])?,
            ends: bench.upload(&[m as u32])?,
            offsets: bench.upload(&[0u64])?,
            add: bench.upload(&[0u32])?,
            count: 1,
        };
        let activation = Activation::None;
        let (residual, residual_columns) = (0, 0);
        let own_forward = Forward { out, pre: 0, x, weight, bias: 0, residual, residual_columns, m, n, k, activation };
        let own_input =
            Input { out: x, out_wide: 0, dout: out, weight, pre: 0, residual, residual_columns, m, n: k, k: n, activation };
        let launches = [
            ("gemm_forward", forward(own_forward)),
            ("gemm_input", input(own_input)),
            ("gemm_weight", weight_gradient(gradient, out, x, segments, n, k)),
        ];
        for (name, launch) in launches {
            let times = bench.time_launch(&launch)?;
            let rate = 2.0 * (m * n * k) as f64 / times.0[0] / 1e9;
            found.push((format!("{name} {m}x{n}x{k}"), json!({ "m": m, "n": n, "k": k }), times, rate));
        }
        [x, out, weight, gradient].into_iter().for_each(|at| bench.driver.free(at));
    }
    let ceiling = found.iter().map(|(.., rate)| *rate).fold(0.0, f64::max);
    let line = |(name, shape, times, rate): (String, Value, Times, f64)| bench.line(&name, shape, times, "tflops", rate, ceiling);
    Ok(found.into_iter().map(line).collect())
}
