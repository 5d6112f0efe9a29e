//! The transformer on a device, the emulated one and a card where there is one, against the CPU.

#![allow(clippy::print_stderr, reason = "says what is skipped")]

use std::sync::Arc;

use serde_json::Map;
use taskloom::machine::driver::{self, DeviceError, Driver, open_emulated};
use taskloom::machine::memory::Memory;
use taskloom::model::Start;
use taskloom::model::network::{Batch, Limits, Network, Part, Targets};
use taskloom::model::spec::{HeadKind, HeadSpec, ModelSpec};
use taskloom::model::transformer::{Pooling, TokenLimits, Transformer, TransformerSpec};
use taskloom::ops::adamw::Rule;
use taskloom::ops::dropout::RowKey;
use taskloom::ops::philox::{Keyed, Stream};
use taskloom::ops::storage::Storage;
use taskloom::ops::token_dropout::TokenKey;
use taskloom::surgery::balance;
use taskloom::surgery::update::Rates;
use taskloom::train::predictor::Predictor;
use taskloom::train::round::{Committed, Trainer};
use taskloom::train::round_options::{RoundOptions, Solvers};

const VOCABULARY: usize = 48;
const HIDDEN: usize = 64;
const POSITIONS: usize = 16;
/// Sequences of a micro-batch.
const SEQUENCES: usize = 3;
const KINDS: [(HeadKind, usize); 4] =
    [(HeadKind::Classification, 3), (HeadKind::Regression, 1), (HeadKind::Multilabel, 2), (HeadKind::Regression, 1)];

/// What the cases differ in.
#[derive(Clone, Copy, Debug)]
struct Case {
    pooling: Pooling,
    dropout: f64,
    frozen: usize,
    recompute: bool,
    dense_steps: bool,
    method: &'static str,
    storage: Storage,
    /// Rounds between conflict statistics; without them a sum keeps no task's gradient apart.
    conflict_every: u64,
    /// Every task is a group of its own, on two lanes, and task 0 has two micro-batches.
    apart: bool,
}

const PLAIN: Case = Case {
    pooling: Pooling::Cls,
    dropout: 0.1,
    frozen: 0,
    recompute: false,
    dense_steps: false,
    method: "pcgrad",
    storage: Storage::F32,
    conflict_every: 1,
    apart: false,
};

const SGD: Rule = Rule::Sgd { momentum: 0.9 };
const ADAMW: Rule = Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, correction1: 0.1, correction2: 0.001 };

struct Setup {
    trainer: Trainer,
    limits: Limits,
    start: Start,
}

fn setup(case: Case) -> Setup {
    let head = |(task, (kind, outputs))| HeadSpec { task: format!("t{task}"), kind, outputs };
    let spec = TransformerSpec {
        vocabulary: VOCABULARY,
        cls: 0,
        sep: 1,
        mask: None,
        layers: 2,
        heads: 2,
        intermediate: 96,
        positions: POSITIONS,
        types: 2,
        norm_eps: 1e-12,
        init: 0.1,
        attention_dropout: case.dropout,
        pooling: case.pooling,
        recompute: case.recompute,
        frozen: case.frozen,
        dense_steps: case.dense_steps,
    };
    let encoder = Arc::new(Transformer::new(spec, HIDDEN, case.dropout));
    let network = Network::new(ModelSpec { encoder, heads: KINDS.into_iter().enumerate().map(head).collect() });
    let balancer = balance::registry::build("equal", &Map::new(), KINDS.len()).unwrap();
    let methods = vec![taskloom::surgery::methods::registry::build(case.method, &Map::new(), KINDS.len()).unwrap()];
    let start = Start { seed: 3, equal_heads: false, second_moment: true, row_moment: false, row_capacity: VOCABULARY };
    let rows = (KINDS.len() + 1) * SEQUENCES;
    let tokens = rows * POSITIONS;
    let trained = if case.frozen == 0 { KINDS.len() } else { 0 };
    let limits = Limits {
        group_rows: rows,
        round_rows: if case.apart { 2 * rows } else { rows },
        group_logits: 3 * rows,
        present: KINDS.len(),
        bag_rows: vec![VOCABULARY; trained],
        task_rows: vec![VOCABULARY; trained],
        tokens: TokenLimits { group_tokens: tokens, group_queries: tokens, head_rows: rows, masked: 0, round_tokens: tokens },
        ..Limits::default()
    };
    let round_options = RoundOptions { conflict_every: case.conflict_every, storage: case.storage, ..RoundOptions::plain(7) };
    let solvers = Solvers { balancer, methods };
    let trainer = Trainer::new(&mut Memory::unlimited(), network, &start, solvers, round_options, &limits).unwrap();
    Setup { trainer, limits, start }
}

fn batch(case: Case, round: u64) -> Batch {
    let mut batch = Batch::default();
    batch.bags.clear();
    batch.tokens.bounds.push(0);
    let mut tasks: Vec<usize> = (0..KINDS.len()).collect();
    if case.apart {
        tasks.push(0);
    }
    for (number, &task) in tasks.iter().enumerate() {
        let random = Keyed::new(5, Stream::Synthetic, round as u32, task as u32, number as u32);
        let start = batch.keys.len();
        for row in 0..SEQUENCES as u32 {
            push_sequence(&mut batch, task, 100 * number as u32 + row, &random);
        }
        let (kind, outputs) = KINDS[task];
        let value = |at: usize| random.normal(1000 + at as u32) as f32;
        let targets = match kind {
            HeadKind::Classification => Targets::Class((0..SEQUENCES as u32).map(|row| row % 3).collect()),
            HeadKind::Multilabel => Targets::Values((0..SEQUENCES * outputs).map(|at| f32::from(value(at) > 0.0)).collect()),
            // One of the values is missing.
            _ => Targets::Values((0..SEQUENCES).map(|at| if at == 2 { f32::NAN } else { value(at) }).collect()),
        };
        let micro_batches = if case.apart && task == 0 { 2.0 } else { 1.0 };
        let scale = 1.0 / (micro_batches * targets.observed() as f32);
        let (rows, first) = (start..batch.keys.len(), number < KINDS.len());
        batch.parts.push(Part { task, present: task, batch: 0, rows, targets, scale, first });
    }
    let all = batch.parts.len();
    batch.groups = if case.apart { (0..all).map(|part| part..part + 1).collect() } else { std::iter::once(0..all).collect() };
    batch
}

/// Words of a few that all have, and of all.
fn push_sequence(batch: &mut Batch, task: usize, example: u32, random: &Keyed) {
    let length = 2 + random.word(example) % (POSITIONS as u32 - 2);
    batch.keys.push(RowKey { task: task as u32, example });
    for position in 0..length {
        let word = random.word(5000 + 40 * example + position);
        batch.bags.rows.push(if position == 0 { 0 } else { word % if position % 2 == 0 { 8 } else { VOCABULARY as u32 } });
        batch.bags.finish_example(1.0);
        batch.tokens.positions.push(position);
        batch.tokens.types.push(u32::from(position > 5));
        batch.tokens.keys.push(TokenKey { task: task as u32, example, position });
    }
    batch.tokens.bounds.push(batch.bags.rows.len() as u32);
}

fn one_round(trainer: &mut Trainer, case: Case, rule: Rule, round: u64) -> Committed {
    let rates = Rates { rule, lr: 3e-3, head_lr: 3e-3, embedding_lr: 3e-3, weight_decay: 0.01 };
    let tasks: Vec<usize> = (0..KINDS.len()).collect();
    trainer.run_round(&batch(case, round), &tasks, round, &rates).expect("no fault").expect("finite")
}

/// Every parameter, the table's untouched rows included.
fn parameters(trainer: &mut Trainer) -> Vec<f32> {
    trainer.fetch_parameters().unwrap();
    let parameters = &trainer.model.parameters;
    let table = parameters.rows.as_ref().map(|table| table.whole()).unwrap_or_default();
    [&parameters.shared.values[..], &parameters.heads.values, &table].concat()
}

/// Logits of the batch of round 9 after some rounds, the losses of each, and all parameters.
struct Trained {
    losses: Vec<f64>,
    logits: Vec<f32>,
    parameters: Vec<f32>,
}

fn train(trainer: &mut Trainer, case: Case, rule: Rule, rounds: u64) -> Trained {
    let losses = (0..rounds).flat_map(|round| one_round(trainer, case, rule, round).losses).collect();
    let mut unseen = batch(case, 9);
    unseen.parts.truncate(1);
    let logits = trainer.predict(&unseen).unwrap()[..SEQUENCES * KINDS[0].1].to_vec();
    Trained { losses, logits, parameters: parameters(trainer) }
}

fn on(driver: Box<dyn Driver>, case: Case) -> Trainer {
    let Setup { mut trainer, limits, start } = setup(case);
    trainer.accelerate(driver, &limits, &start).unwrap();
    trainer
}

/// None where the build has no emulated device, which then says so.
fn on_emulated(case: Case, seed: u64) -> Option<Trainer> {
    match open_emulated(seed) {
        Ok(driver) => Some(on(driver, case)),
        Err(DeviceError::Unavailable(why)) => {
            eprintln!("skipped: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

/// To what bf16 leaves of five rounds.
fn five_rounds_match(mut device: Trainer, case: Case) {
    let found = train(&mut device, case, SGD, 5);
    let mut cpu = setup(case).trainer;
    let start = parameters(&mut cpu);
    let expected = train(&mut cpu, case, SGD, 5);
    for (at, (loss, expected)) in found.losses.iter().zip(&expected.losses).enumerate() {
        assert!((loss - expected).abs() <= 3e-2 * expected.abs().max(0.1), "{case:?} loss {at}: {loss} for {expected}");
    }
    let (error, moved) = (distance(&found.parameters, &expected.parameters), distance(&expected.parameters, &start));
    assert!(error <= 5e-2 * moved, "{case:?}: {error} of {moved}");
    let (error, size) = (distance(&found.logits, &expected.logits), distance(&expected.logits, &[0.0; SEQUENCES * 3]));
    assert!(error <= 3e-2 * size, "{case:?}: logits {error} of {size}");
}

const CASES: [Case; 9] = [
    PLAIN,
    Case { pooling: Pooling::Mean, apart: true, ..PLAIN },
    Case { pooling: Pooling::Pooler, recompute: true, ..PLAIN },
    Case { frozen: 1, dropout: 0.0, ..PLAIN },
    Case { frozen: 2, pooling: Pooling::Pooler, apart: true, ..PLAIN },
    Case { method: "moco", dense_steps: true, ..PLAIN },
    Case { method: "excess_mtl", apart: true, ..PLAIN },
    Case { storage: Storage::Bf16, ..PLAIN },
    Case { method: "mean", conflict_every: 0, apart: true, ..PLAIN },
];

#[test]
fn a_small_bert_trains_as_on_the_cpu() {
    for case in CASES {
        let Some(device) = on_emulated(case, 1) else { return };
        five_rounds_match(device, case);
    }
}

#[test]
fn a_small_bert_trains_on_a_card_as_on_the_cpu() {
    for case in CASES {
        match driver::open("cuda") {
            Ok(driver) => five_rounds_match(on(driver, case), case),
            Err(why) => {
                let required = std::env::var_os("TASKLOOM_REQUIRE_CUDA").is_some_and(|value| value == "1");
                assert!(!required, "{why}");
                return eprintln!("skipped: {why}");
            }
        }
    }
}

#[test]
fn recomputing_gives_the_same_bytes() {
    let Some(mut kept) = on_emulated(PLAIN, 3) else { return };
    let recompute = Case { recompute: true, ..PLAIN };
    let mut again = on_emulated(recompute, 3).expect("there was one before");
    assert_eq!(train(&mut again, recompute, ADAMW, 2).parameters, train(&mut kept, PLAIN, ADAMW, 2).parameters);
}

/// Orders of blocks, threads and streams are the seed's.
#[test]
fn every_order_gives_the_same_bytes() {
    let case = Case { pooling: Pooling::Mean, apart: true, ..PLAIN };
    let Some(mut first) = on_emulated(case, 0) else { return };
    let first = train(&mut first, case, ADAMW, 2);
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    for seed in 1..6 {
        let other = train(&mut on_emulated(case, seed).expect("there was one before"), case, ADAMW, 2);
        assert_eq!(bits(&other.parameters), bits(&first.parameters), "seed {seed}");
        assert_eq!(bits(&other.logits), bits(&first.logits), "seed {seed}");
        assert_eq!(other.losses, first.losses, "seed {seed}");
    }
}
