//! `taskloom bench step`: what one round costs on synthetic data, stage by stage.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use serde_json::{Map, Value, json};

use crate::cli::{BenchEncoder, BenchStep};
use crate::device::Device;
use crate::device::memory::{Memory, peak_resident};
use crate::model::Start;
use crate::model::network::{Batch, Limits, Network, Part, Targets};
use crate::model::spec::{BagSpec, EncoderSpec, HeadKind, HeadSpec, Input, ModelSpec};
use crate::model::transformer::{Pooling, TokenLimits, TransformerSpec};
use crate::ops::activation::Activation;
use crate::ops::adamw::Rule;
use crate::ops::dropout::RowKey;
use crate::ops::gemm::time_in_products;
use crate::ops::philox::{Keyed, Stream};
use crate::ops::token_dropout::TokenKey;
use crate::output;
use crate::surgery::balance;
use crate::surgery::methods::registry;
use crate::surgery::update::Rates;
use crate::train::round::{Engine, Stages};
use crate::train::round_options::{RoundOptions, Solvers};

const HIDDEN: usize = 768;
/// The bag: a BERT vocabulary and 2^19 buckets, and texts of this many n-grams, as the review tasks have after word dropout.
const TABLE_ROWS: usize = 30_522 + (1 << 19);
const GRAMS: usize = 100;
/// The transformer: BERT's vocabulary.
const VOCABULARY: usize = 30_522;
const SEED: u64 = 1;

pub fn step(options: &BenchStep) -> Result<()> {
    if options.tasks == 0 || options.batch == 0 || options.runs == 0 || options.lanes == 0 {
        bail!("--tasks, --batch, --lanes and --runs must be at least 1");
    }
    if options.lanes > 1 && options.device != "cpu" {
        bail!("--lanes are the CPU's: a device has streams of its own");
    }
    let batches: Vec<Batch> = (0..3).map(|round| batch(options, round)).collect();
    let mut memory = Memory::unlimited();
    let (mut engine, limits, start) = engine(options, &batches, &mut memory)?;
    let planned = memory.used();
    if let Some(driver) = Device::select(&options.device)?.open()? {
        engine.accelerate(driver, &limits, &start)?;
    }
    let tasks: Vec<usize> = (0..options.tasks).collect();
    let mut times = Vec::new();
    for run in 0..options.runs + 2 {
        let rates = rates(run as u64);
        let products = time_in_products();
        let clock = Instant::now();
        let outcome = engine.run_round(&batches[run % batches.len()], &tasks, run as u64, &rates)?;
        let total = clock.elapsed();
        let stages = outcome.map_err(|anomaly| anyhow::anyhow!("{anomaly:?}"))?.stages;
        // The first two rounds touch memory for the first time.
        if run >= 2 {
            let share = (time_in_products() - products).div_duration_f64(total * rayon::current_num_threads() as u32);
            times.push((total, stages, share));
        }
    }
    let tokens = batches.iter().map(|batch| batch.bags.rows.len()).sum::<usize>() as f64 / batches.len() as f64;
    print(options, &report(options, tokens, planned, times))
}

pub(super) fn engine(options: &BenchStep, batches: &[Batch], memory: &mut Memory) -> Result<(Engine, Limits, Start)> {
    let input = match options.encoder {
        BenchEncoder::Linear => Input::Features(HIDDEN),
        BenchEncoder::Bag => Input::Bag(BagSpec {
            rows: TABLE_ROWS,
            dim: HIDDEN,
            init: 0.0,
            word_dropout: 0.0,
            vocabulary: Some(30_522),
            buckets: 1 << 19,
            ngrams: 2,
        }),
        BenchEncoder::Transformer => Input::Tokens(transformer(options)),
    };
    // The linear encoder is PyTorch's nn.Linear(768, 768), so that both can be timed side by side.
    let activation = if options.encoder == BenchEncoder::Bag { Activation::Gelu } else { Activation::None };
    let encoder = EncoderSpec { input, hidden: HIDDEN, activation, residual: false, dropout: 0.0 };
    let head = |task| HeadSpec { task: format!("task{task}"), kind: HeadKind::Classification, outputs: 2 };
    let network = Network::new(ModelSpec { encoder, heads: (0..options.tasks).map(head).collect() });
    let method = registry::build(&options.method, &Map::new(), options.tasks).map_err(|fault| anyhow!("--method: {fault}"))?;
    let rows = options.tasks * options.batch;
    let bag_rows = match options.encoder {
        BenchEncoder::Linear => Vec::new(),
        BenchEncoder::Bag => vec![options.batch * GRAMS; options.tasks],
        BenchEncoder::Transformer => vec![(options.batch * options.seq).min(VOCABULARY); options.tasks],
    };
    let row_capacity = match options.encoder {
        BenchEncoder::Transformer => {
            let words: std::collections::BTreeSet<u32> =
                batches.iter().flat_map(|batch| batch.bags.rows.iter().copied()).collect();
            words.len()
        }
        _ => (3 * rows * GRAMS).min(TABLE_ROWS),
    };
    let tokens = batches.iter().map(|batch| batch.bags.rows.len()).max().unwrap_or(0);
    let tokens = TokenLimits { group_tokens: tokens, group_queries: rows, head_rows: rows, masked: 0, round_tokens: tokens };
    let present = options.tasks;
    let (task_rows, bag_entries) = (Vec::new(), rows * GRAMS);
    let limits =
        Limits { group_rows: rows, round_rows: rows, group_logits: 2 * rows, present, bag_rows, bag_entries, task_rows, tokens };
    let start = Start { seed: SEED, equal_heads: false, second_moment: true, row_moment: false, row_capacity };
    let balancer = balance::registry::build("equal", &Map::new(), options.tasks).map_err(anyhow::Error::msg)?;
    let round_options = RoundOptions { lanes: options.lanes, ..RoundOptions::plain(SEED) };
    if options.lanes > 1 && !round_options.stores_jacobian(&*method) {
        bail!("--lanes need a method that keeps the tasks' gradients apart, which \"{}\" does not", options.method);
    }
    let solvers = Solvers { balancer, methods: vec![method] };
    Ok((Engine::new(memory, network, &start, solvers, round_options, &limits)?, limits, start))
}

/// BERT's shape at a width of 768, as the PyTorch side of the comparison builds it.
fn transformer(options: &BenchStep) -> TransformerSpec {
    TransformerSpec {
        vocabulary: VOCABULARY,
        cls: 101,
        sep: 102,
        mask: None,
        layers: options.layers,
        heads: HIDDEN / 64,
        intermediate: 4 * HIDDEN,
        positions: 512,
        types: 2,
        norm_eps: 1e-12,
        init: 0.02,
        attention_dropout: 0.0,
        pooling: Pooling::Cls,
        recompute: options.recompute,
        frozen: 0,
        dense_steps: false,
    }
}

pub(super) fn rates(round: u64) -> Rates {
    let (beta1, beta2) = (0.9f32, 0.999f32);
    let step = round as i32 + 1;
    let rule = Rule::AdamW { beta1, beta2, eps: 1e-8, correction1: 1.0 - beta1.powi(step), correction2: 1.0 - beta2.powi(step) };
    Rates { rule, lr: 1e-4, head_lr: 1e-4, embedding_lr: 1e-4, weight_decay: 0.01 }
}

/// One sequence of a random length with random words.
fn push_sequence(batch: &mut Batch, seq: usize, key: RowKey, random: Keyed) {
    let shortest = (seq / 4).max(1);
    let len = shortest + (random.uniform(1) * (seq - shortest + 1) as f64) as usize;
    for position in 0..len as u32 {
        batch.bags.rows.push(1000 + random.word(position + 2) % 29_000);
        batch.bags.finish_example(1.0);
        batch.tokens.positions.push(position);
        batch.tokens.types.push(0);
        batch.tokens.keys.push(TokenKey { task: key.task, example: key.example, position });
    }
    batch.tokens.bounds.push(batch.bags.rows.len() as u32);
}

/// One group for each lane.
fn groups(options: &BenchStep) -> Vec<std::ops::Range<usize>> {
    let size = options.tasks.div_ceil(options.lanes);
    (0..options.tasks).step_by(size).map(|start| start..(start + size).min(options.tasks)).collect()
}

/// Normal features, Zipf-like n-grams or uniform tokens, and random labels.
pub(super) fn batch(options: &BenchStep, round: u32) -> Batch {
    let mut batch = Batch { groups: groups(options), ..Batch::default() };
    batch.bags.clear();
    batch.tokens.bounds.push(0);
    for task in 0..options.tasks {
        let start = batch.keys.len();
        let mut classes = Vec::new();
        for example in 0..options.batch {
            let random = Keyed::new(SEED, Stream::Synthetic, round, task as u32, example as u32);
            batch.keys.push(RowKey { task: task as u32, example: example as u32 });
            classes.push(random.word(0) % 2);
            match options.encoder {
                BenchEncoder::Linear => batch.features.extend((0..HIDDEN as u32).map(|i| random.normal(i) as f32)),
                BenchEncoder::Transformer => {
                    let key = batch.keys[batch.keys.len() - 1];
                    push_sequence(&mut batch, options.seq, key, random);
                }
                BenchEncoder::Bag => {
                    // Log-uniform ranks: word frequencies fall like 1 / rank.
                    let row = |i| ((TABLE_ROWS as f64).powf(random.uniform(i + 1)) as u32).min(TABLE_ROWS as u32 - 1);
                    let mut rows: Vec<u32> = (0..GRAMS as u32).map(row).collect();
                    rows.sort_unstable();
                    rows.dedup();
                    batch.bags.rows.extend(&rows);
                    batch.bags.finish_example(1.0 / (rows.len() as f32).sqrt());
                }
            }
        }
        batch.parts.push(Part {
            task,
            present: task,
            batch: 0,
            rows: start..start + options.batch,
            targets: Targets::Class(classes),
            scale: 1.0 / options.batch as f32,
            first: true,
        });
    }
    batch
}

fn report(options: &BenchStep, tokens: f64, planned: u64, mut times: Vec<(Duration, Stages, f64)>) -> Value {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let part = |stage: fn(&Stages) -> Duration| {
        let mut values: Vec<f64> = times.iter().map(|(_, stages, _)| ms(stage(stages))).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let parts = [
        part(|stages| stages.forward_backward),
        part(|stages| stages.gram),
        part(|stages| stages.solve),
        part(|stages| stages.update),
    ];
    let mut shares: Vec<f64> = times.iter().map(|(_, _, share)| *share).collect();
    shares.sort_by(f64::total_cmp);
    times.sort_by_key(|(total, ..)| *total);
    let quantile = |share: f64| ms(times[((times.len() - 1) as f64 * share).round() as usize].0);
    let median = quantile(0.5);
    let encoder = match options.encoder {
        BenchEncoder::Linear => "linear",
        BenchEncoder::Bag => "bag",
        BenchEncoder::Transformer => "transformer",
    };
    let mut document = json!({
        "name": "step",
        "encoder": encoder,
        "device": options.device,
        "tasks": options.tasks,
        "batch": options.batch,
        "method": options.method,
        "threads": rayon::current_num_threads(),
        "lanes": options.lanes,
        "ms": median,
        "ms_p10": quantile(0.1),
        "ms_p90": quantile(0.9),
        "runs": times.len(),
        "examples_per_second": (options.tasks * options.batch) as f64 / median * 1e3,
        "products_share": shares[shares.len() / 2],
        "peak_bytes": peak_resident(),
        "parts": {
            "forward_backward": parts[0],
            "gram": parts[1],
            "solve": parts[2],
            "update": parts[3],
            "other": (median - parts.iter().sum::<f64>()).max(0.0),
        },
    });
    if options.encoder == BenchEncoder::Transformer {
        document["layers"] = json!(options.layers);
        document["seq"] = json!(options.seq);
        document["tokens_per_second"] = json!(tokens / median * 1e3);
        document["planned_bytes"] = json!(planned);
    }
    document
}

fn print(options: &BenchStep, report: &Value) -> Result<()> {
    if options.json {
        return output::line(report);
    }
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    output::line(format_args!(
        "{} encoder, {} tasks x {} examples, {}: {:.2} ms a round ({:.0} examples/s)",
        report["encoder"].as_str().unwrap_or_default(),
        options.tasks,
        options.batch,
        options.method,
        number(&report["ms"]),
        number(&report["examples_per_second"])
    ))?;
    output::line(format_args!(
        "  {:<17} {:8.1} % of the threads' time",
        "matrix products",
        100.0 * number(&report["products_share"])
    ))?;
    for stage in ["forward_backward", "gram", "solve", "update", "other"] {
        output::line(format_args!("  {stage:<17} {:8.2} ms", number(&report["parts"][stage])))?;
    }
    Ok(())
}
