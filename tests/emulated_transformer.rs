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
/// Of the cases with a task that predicts words: no multiple of 8.
const WORDS_OF_MLM: usize = 51;
const HIDDEN: usize = 64;
const POSITIONS: usize = 16;
/// Sequences of a micro-batch.
const SEQUENCES: usize = 3;
/// All but the last two are tasks of every case.
const KINDS: [(HeadKind, usize); 6] = [
    (HeadKind::Classification, 3),
    (HeadKind::Regression, 1),
    (HeadKind::Multilabel, 2),
    (HeadKind::Regression, 1),
    (HeadKind::Mlm, WORDS_OF_MLM),
    (HeadKind::Similarity, HIDDEN),
];

/// What the cases differ in.
#[derive(Clone, Copy, Debug)]
struct Case {
    rounds: u64,
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
    /// Of two tasks, the second predicts words: so many at once on a device.
    words: Option<usize>,
    /// Of three tasks, the second compares texts.
    pairs: bool,
}

impl Case {
    /// By task.
    fn kinds(self) -> &'static [(HeadKind, usize)] {
        match (self.words, self.pairs) {
            (Some(_), true) => &[KINDS[0], KINDS[4], KINDS[5]],
            (Some(_), false) => &[KINDS[0], KINDS[4], KINDS[3]],
            (None, true) => &[KINDS[0], KINDS[5], KINDS[3]],
            (None, false) => &KINDS[..4],
        }
    }

    fn vocabulary(self) -> usize {
        if self.words.is_some() { WORDS_OF_MLM } else { VOCABULARY }
    }
}

const PLAIN: Case = Case {
    rounds: 5,
    pooling: Pooling::Cls,
    dropout: 0.1,
    frozen: 0,
    recompute: false,
    dense_steps: false,
    method: "pcgrad",
    storage: Storage::F32,
    conflict_every: 1,
    apart: false,
    words: None,
    pairs: false,
};

const SGD: Rule = Rule::Sgd { momentum: 0.9 };
const ADAMW: Rule = Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, correction1: 0.1, correction2: 0.001 };

struct Setup {
    trainer: Trainer,
    limits: Limits,
    start: Start,
}

fn setup(case: Case) -> Setup {
    let (kinds, vocabulary) = (case.kinds(), case.vocabulary());
    let head =
        |(task, (kind, outputs))| HeadSpec { task: format!("t{task}"), kind, outputs, class_weights: None, temperature: 0.5 };
    let spec = TransformerSpec {
        vocabulary,
        cls: 0,
        sep: 1,
        mask: Some(2),
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
    let network = Network::new(ModelSpec { encoder, heads: kinds.iter().copied().enumerate().map(head).collect() });
    let balancer = balance::registry::build("equal", &Map::new(), kinds.len()).unwrap();
    let methods = vec![taskloom::surgery::methods::registry::build(case.method, &Map::new(), kinds.len()).unwrap()];
    let start = Start { seed: 3, equal_heads: false, second_moment: true, row_moment: false, row_capacity: vocabulary };
    let rows = (kinds.len() + 1) * SEQUENCES * if case.pairs { 2 } else { 1 };
    let widest = if case.pairs { HIDDEN } else { 3 };
    let tokens = rows * POSITIONS;
    let trained = if case.frozen == 0 { kinds.len() } else { 0 };
    let masked = if case.words.is_some() { tokens } else { 0 };
    let limits = Limits {
        group_rows: rows,
        round_rows: if case.apart { 2 * rows } else { rows },
        group_logits: widest * rows + vocabulary * masked,
        pairs: if case.pairs { SEQUENCES } else { 0 },
        logits_at_once: case.words.map(|_| widest * rows + vocabulary.next_multiple_of(8) * 2 * MASKED * SEQUENCES),
        present: kinds.len(),
        bag_rows: vec![vocabulary; trained],
        task_rows: vec![vocabulary; trained],
        tokens: TokenLimits {
            group_tokens: tokens,
            group_queries: tokens,
            head_rows: rows + masked,
            masked,
            words_at_once: case.words.unwrap_or(0),
            round_tokens: tokens,
            kept: 0,
        },
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
    let kinds = case.kinds();
    // Of its kind, the task with two micro-batches predicts words, or compares texts, where one does.
    let twice = if case.words.is_some() || case.pairs { 1 } else { 0 };
    let mut tasks: Vec<usize> = (0..kinds.len()).collect();
    if case.apart {
        tasks.push(twice);
    }
    for (number, &task) in tasks.iter().enumerate() {
        let random = Keyed::new(5, Stream::Synthetic, round as u32, task as u32, number as u32);
        let (start, mut words) = (batch.keys.len(), Vec::new());
        let (kind, outputs) = kinds[task];
        for row in 0..(SEQUENCES * kind.rows()) as u32 {
            let masked = (kind == HeadKind::Mlm).then_some(&mut words);
            let from = (&random, case.vocabulary() as u32);
            push_sequence(&mut batch, task, 100 * number as u32 + row, from, masked);
        }
        let value = |at: usize| random.normal(1000 + at as u32) as f32;
        let targets = match kind {
            HeadKind::Mlm => Targets::Class(words),
            HeadKind::Similarity => Targets::Pairs(SEQUENCES),
            HeadKind::Classification => Targets::Class((0..SEQUENCES as u32).map(|row| row % 3).collect()),
            HeadKind::Multilabel => Targets::Values((0..SEQUENCES * outputs).map(|at| f32::from(value(at) > 0.0)).collect()),
            // One of the values is missing.
            _ => Targets::Values((0..SEQUENCES).map(|at| if at == 2 { f32::NAN } else { value(at) }).collect()),
        };
        let micro_batches = if case.apart && task == twice { 2.0 } else { 1.0 };
        let scale = 1.0 / (micro_batches * targets.observed() as f32);
        let (rows, first) = (start..batch.keys.len(), number < kinds.len());
        batch.parts.push(Part { task, present: task, batch: 0, rows, targets, scale, first });
    }
    let all = batch.parts.len();
    batch.groups = if case.apart { (0..all).map(|part| part..part + 1).collect() } else { std::iter::once(0..all).collect() };
    batch
}

/// Most words of a sequence that are predicted.
const MASKED: usize = POSITIONS / 3;

/// Words of a few that all have, and of all; those that are to be predicted are pushed onto `masked`, if there are such.
fn push_sequence(
    batch: &mut Batch,
    task: usize,
    example: u32,
    (random, vocabulary): (&Keyed, u32),
    mut masked: Option<&mut Vec<u32>>,
) {
    let length = 2 + random.word(example) % (POSITIONS as u32 - 2);
    batch.keys.push(RowKey { task: task as u32, example });
    for position in 0..length {
        let word = random.word(5000 + 40 * example + position);
        let word = if position == 0 { 0 } else { word % if position % 2 == 0 { 8 } else { vocabulary } };
        let hidden = masked.as_mut().filter(|_| position % 3 == 1);
        let shown = if hidden.is_some() { 2 } else { word };
        if let Some(words) = hidden {
            batch.tokens.masked.push(batch.bags.rows.len() as u32);
            words.push(word);
        }
        batch.bags.rows.push(shown);
        batch.bags.finish_example(1.0);
        batch.tokens.positions.push(position);
        batch.tokens.types.push(u32::from(position > 5));
        batch.tokens.keys.push(TokenKey { task: task as u32, example, position });
    }
    batch.tokens.finish_example(batch.bags.rows.len());
}

fn one_round(trainer: &mut Trainer, case: Case, rule: Rule, round: u64) -> Committed {
    let rates = Rates { rule, lr: 3e-3, head_lr: 3e-3, embedding_lr: 3e-3, weight_decay: 0.01 };
    let tasks: Vec<usize> = (0..case.kinds().len()).collect();
    trainer.run_round(&batch(case, round), &tasks, round, &rates).expect("no fault").expect("finite")
}

/// Every parameter, the table's untouched rows included.
fn parameters(trainer: &mut Trainer) -> Vec<f32> {
    trainer.fetch_parameters().unwrap();
    let parameters = &trainer.model.parameters;
    let table = parameters.rows.as_ref().map(|table| table.whole()).unwrap_or_default();
    [&parameters.shared.values[..], &parameters.heads.values, &table].concat()
}

/// Logits of two tasks of the batch of round 9 after some rounds, the losses of each, and all parameters.
struct Trained {
    losses: Vec<f64>,
    logits: Vec<f32>,
    parameters: Vec<f32>,
}

fn train(trainer: &mut Trainer, case: Case, rule: Rule, rounds: u64) -> Trained {
    let losses = (0..rounds).flat_map(|round| one_round(trainer, case, rule, round).losses).collect();
    let mut logits = Vec::new();
    for task in 0..2 {
        let mut unseen = batch(case, 9);
        unseen.parts = vec![unseen.parts.swap_remove(task)];
        let outputs = case.kinds()[task].1;
        let count = unseen.parts[0].targets.rows(outputs) * outputs;
        logits.extend_from_slice(&trainer.predict(&unseen).unwrap()[..count]);
    }
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

/// To what bf16 leaves of up to five rounds.
fn rounds_match(mut device: Trainer, case: Case) {
    let found = train(&mut device, case, SGD, case.rounds);
    let mut cpu = setup(case).trainer;
    let start = parameters(&mut cpu);
    let expected = train(&mut cpu, case, SGD, case.rounds);
    for (at, (loss, expected)) in found.losses.iter().zip(&expected.losses).enumerate() {
        assert!((loss - expected).abs() <= 3e-2 * expected.abs().max(0.1), "{case:?} loss {at}: {loss} for {expected}");
    }
    let (error, moved) = (distance(&found.parameters, &expected.parameters), distance(&expected.parameters, &start));
    assert!(error <= 5e-2 * moved, "{case:?}: {error} of {moved}");
    let (error, size) =
        (distance(&found.logits, &expected.logits), distance(&expected.logits, &vec![0.0; expected.logits.len()]));
    assert!(error <= 3e-2 * size, "{case:?}: logits {error} of {size}");
}

const CASES: [Case; 9] = [
    PLAIN,
    Case { pooling: Pooling::Mean, apart: true, ..PLAIN },
    Case { rounds: 3, pooling: Pooling::Pooler, recompute: true, ..PLAIN },
    Case { rounds: 3, frozen: 1, dropout: 0.0, ..PLAIN },
    Case { rounds: 3, frozen: 2, pooling: Pooling::Pooler, apart: true, ..PLAIN },
    Case { method: "moco", dense_steps: true, ..PLAIN },
    Case { rounds: 3, method: "excess_mtl", apart: true, ..PLAIN },
    Case { storage: Storage::Bf16, ..PLAIN },
    Case { rounds: 3, method: "mean", conflict_every: 0, apart: true, ..PLAIN },
];

/// Seven words at once.
const WORDS: Case = Case { words: Some(7), ..PLAIN };

const CASES_OF_WORDS: [Case; 5] = [
    WORDS,
    Case { rounds: 3, pooling: Pooling::Pooler, apart: true, storage: Storage::Bf16, ..WORDS },
    Case { rounds: 3, frozen: 1, apart: true, ..WORDS },
    Case { rounds: 3, method: "moco", dense_steps: true, recompute: true, ..WORDS },
    Case { rounds: 3, method: "mean", conflict_every: 0, apart: true, words: Some(100), ..WORDS },
];

const PAIRS: Case = Case { pairs: true, ..PLAIN };

const CASES_OF_PAIRS: [Case; 4] = [
    PAIRS,
    Case { rounds: 3, pooling: Pooling::Mean, apart: true, storage: Storage::Bf16, ..PAIRS },
    Case { rounds: 3, pooling: Pooling::Pooler, frozen: 1, recompute: true, ..PAIRS },
    Case { rounds: 3, method: "mean", conflict_every: 0, apart: true, words: Some(7), ..PAIRS },
];

fn train_on_emulated(cases: &[Case]) {
    for &case in cases {
        let Some(device) = on_emulated(case, 1) else { return };
        rounds_match(device, case);
    }
}

fn train_on_card(cases: &[Case]) {
    for &case in cases {
        match driver::open("cuda") {
            Ok(driver) => rounds_match(on(driver, case), case),
            Err(why) => {
                let required = std::env::var_os("TASKLOOM_REQUIRE_CUDA").is_some_and(|value| value == "1");
                assert!(!required, "{why}");
                return eprintln!("skipped: {why}");
            }
        }
    }
}

#[test]
fn a_small_bert_trains_as_on_the_cpu() {
    train_on_emulated(&CASES);
}

#[test]
fn a_small_bert_trains_on_a_card_as_on_the_cpu() {
    train_on_card(&CASES);
}

#[test]
fn words_are_learned_as_on_the_cpu() {
    train_on_emulated(&CASES_OF_WORDS);
}

#[test]
fn words_are_learned_on_a_card_as_on_the_cpu() {
    train_on_card(&CASES_OF_WORDS);
}

#[test]
fn texts_are_compared_as_on_the_cpu() {
    train_on_emulated(&CASES_OF_PAIRS);
}

#[test]
fn texts_are_compared_on_a_card_as_on_the_cpu() {
    train_on_card(&CASES_OF_PAIRS);
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
    for case in
        [Case { pooling: Pooling::Mean, apart: true, ..PLAIN }, Case { apart: true, ..WORDS }, Case { apart: true, ..PAIRS }]
    {
        let Some(mut first) = on_emulated(case, 0) else { return };
        let first = train(&mut first, case, ADAMW, 2);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        for seed in 1..5 {
            let other = train(&mut on_emulated(case, seed).expect("there was one before"), case, ADAMW, 2);
            assert_eq!(bits(&other.parameters), bits(&first.parameters), "{case:?}, seed {seed}");
            assert_eq!(bits(&other.logits), bits(&first.logits), "{case:?}, seed {seed}");
            assert_eq!(other.losses, first.losses, "{case:?}, seed {seed}");
        }
    }
}
