//! Training on the emulated device: the kernels of kernels/*.cu as C++, every access checked, against the CPU.

#![allow(clippy::print_stderr, reason = "says what is skipped")]

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use common::device::{Operation, Tampered};
use serde_json::Map;
use taskloom::config::schema::ClipScope;
use taskloom::machine::driver::{self, DeviceError, open_emulated};
use taskloom::machine::memory::Memory;
use taskloom::machine::planned::Planned;
use taskloom::model::Start;
use taskloom::model::encoders::Encoder;
use taskloom::model::encoders::bag::Bag;
use taskloom::model::encoders::linear::Linear;
use taskloom::model::network::{Batch, Limits, Network, Part, Targets};
use taskloom::model::spec::{HeadKind, HeadSpec, ModelSpec};
use taskloom::ops::activation::Activation;
use taskloom::ops::adamw::Rule;
use taskloom::ops::dropout::RowKey;
use taskloom::ops::philox::{Keyed, Stream};
use taskloom::ops::storage::Storage;
use taskloom::surgery::balance;
use taskloom::surgery::methods::Granularity;
use taskloom::surgery::methods::{ColumnBlock, Inputs, columns, registry};
use taskloom::surgery::update::Rates;
use taskloom::train::predictor::Predictor;
use taskloom::train::quanta::RoundTimes;
use taskloom::train::round::{Committed, Trainer};
use taskloom::train::round_options::{Clip, RoundOptions, Solvers};

/// Columns of the input.
const INPUTS: usize = 11;
const HIDDEN: usize = 24;
/// Examples of a micro-batch.
const ROWS: usize = 5;
/// Of the bag's table.
const TABLE_ROWS: usize = 40;
const KINDS: [(HeadKind, usize); 4] =
    [(HeadKind::Classification, 3), (HeadKind::Regression, 1), (HeadKind::Multilabel, 2), (HeadKind::Regression, 1)];

/// What the cases differ in.
#[derive(Clone, Copy, Debug)]
struct Case {
    bag: bool,
    /// Standard deviation of the table's initial rows.
    init: f64,
    /// One second moment a row of the table.
    row_moment: bool,
    method: &'static str,
    balance: &'static str,
    granularity: Granularity,
    storage: Storage,
    /// Rounds between conflict statistics; without them a sum keeps no task's gradient apart.
    conflict_every: u64,
    activation: Activation,
    residual: bool,
    dropout: f64,
    clip: ClipScope,
    weighted_heads: bool,
    /// Task 2 is absent, and task 0 has two micro-batches in groups of their own.
    uneven: bool,
    /// Every task is a group of its own, on two lanes.
    apart: bool,
    /// A copy of the parameters is evaluated beside rounds.
    beside: bool,
}

const PLAIN: Case = Case {
    bag: false,
    init: 0.0,
    row_moment: false,
    method: "pcgrad",
    balance: "equal",
    granularity: Granularity::Model,
    storage: Storage::F32,
    conflict_every: 1,
    activation: Activation::Gelu,
    residual: false,
    dropout: 0.0,
    clip: ClipScope::Update,
    weighted_heads: false,
    uneven: false,
    apart: false,
    beside: false,
};
const BAG: Case = Case { bag: true, init: 0.5, ..PLAIN };

const SGD: Rule = Rule::Sgd { momentum: 0.9 };
const ADAMW: Rule = Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, correction1: 0.1, correction2: 0.001 };

struct Setup {
    trainer: Trainer,
    limits: Limits,
    start: Start,
}

fn setup(case: Case) -> Setup {
    let head = |(task, (kind, outputs))| HeadSpec { task: format!("t{task}"), kind, outputs, class_weights: None };
    let Case { activation, residual, dropout, bag, init, .. } = case;
    let layer = Linear { columns: INPUTS, hidden: HIDDEN, activation, residual, dropout };
    let encoder: Arc<dyn Encoder> = if bag {
        let rows = TABLE_ROWS;
        Arc::new(Bag { rows, init, word_dropout: 0.0, vocabulary: None, buckets: rows, ngrams: 1, layer })
    } else {
        Arc::new(layer)
    };
    let mut network = Network::new(ModelSpec { encoder, heads: KINDS.into_iter().enumerate().map(head).collect() });
    network.label_smoothing = 0.1;
    let balancer = balance::registry::build(case.balance, &Map::new(), KINDS.len()).unwrap();
    let apart = if case.granularity == Granularity::Tensor { 2 + usize::from(bag) } else { 1 };
    let methods = (0..apart).map(|_| registry::build(case.method, &Map::new(), KINDS.len()).unwrap()).collect();
    let start = Start { seed: 3, equal_heads: false, second_moment: true, row_moment: case.row_moment, row_capacity: TABLE_ROWS };
    let rows = 5 * ROWS;
    let limits = Limits {
        group_rows: if case.apart { ROWS } else { rows },
        round_rows: rows,
        group_logits: 3 * rows,
        present: KINDS.len(),
        bag_rows: if bag { vec![TABLE_ROWS; KINDS.len()] } else { Vec::new() },
        task_rows: if bag { vec![TABLE_ROWS; KINDS.len()] } else { Vec::new() },
        bag_entries: 5 * rows,
        ..Limits::default()
    };
    let round_options = RoundOptions {
        clip: Clip { norm: 1.0, scope: case.clip },
        granularity: case.granularity,
        storage: case.storage,
        weighted_heads: case.weighted_heads,
        conflict_every: case.conflict_every,
        evaluates_copy: case.beside,
        ..RoundOptions::plain(7)
    };
    let trainer = Trainer::new(&mut Memory::unlimited(), network, &start, Solvers { balancer, methods }, round_options, &limits);
    Setup { trainer: trainer.unwrap(), limits, start }
}

fn batch(case: Case, round: u64) -> (Batch, Vec<usize>) {
    let tasks: Vec<usize> = if case.uneven { vec![0, 1, 3] } else { vec![0, 1, 2, 3] };
    let mut parts: Vec<(usize, bool)> = (0..tasks.len()).map(|present| (present, true)).collect();
    if case.uneven {
        parts.push((0, false));
    }
    let split = if case.uneven { parts.len() - 1 } else { parts.len() };
    let mut batch = Batch { groups: std::iter::once(0..split).collect(), ..Batch::default() };
    if case.apart {
        batch.groups = (0..parts.len()).map(|part| part..part + 1).collect();
    } else if split < parts.len() {
        batch.groups.push(split..parts.len());
    }
    batch.bags.clear();
    for (number, (present, first)) in parts.into_iter().enumerate() {
        let task = tasks[present];
        let random = Keyed::new(5, Stream::Synthetic, round as u32, task as u32, number as u32);
        let value = |at: usize| random.normal(1000 + at as u32) as f32;
        if case.bag {
            for example in 0..ROWS as u32 {
                // Some examples are empty; rows below 10 are shared by many.
                let rows = (0..example).map(|at| random.word(50 * example + at) % if at < 2 { 10 } else { TABLE_ROWS as u32 });
                let rows: std::collections::BTreeSet<u32> = rows.collect();
                batch.bags.rows.extend(&rows);
                batch.bags.finish_example(1.0 / (rows.len().max(1) as f32).sqrt());
            }
        } else {
            batch.features.extend((0..(ROWS * INPUTS) as u32).map(|at| random.normal(at) as f32));
        }
        batch.keys.extend((0..ROWS as u32).map(|row| RowKey { task: task as u32, example: 100 * number as u32 + row }));
        let (kind, outputs) = KINDS[task];
        let targets = match kind {
            HeadKind::Classification => Targets::Class((0..ROWS as u32).map(|row| row % 3).collect()),
            HeadKind::Multilabel => {
                Targets::Values((0..ROWS * outputs).map(|at| if value(at) > 0.0 { 1.0 } else { 0.0 }).collect())
            }
            // One of the values is missing.
            _ => Targets::Values((0..ROWS).map(|at| if at == 2 { f32::NAN } else { value(at) }).collect()),
        };
        let micro_batches = if case.uneven && task == 0 { 2.0 } else { 1.0 };
        let scale = 1.0 / (micro_batches * targets.observed() as f32);
        batch.parts.push(Part { task, present, batch: 0, rows: number * ROWS..(number + 1) * ROWS, targets, scale, first });
    }
    (batch, tasks)
}

fn rates(rule: Rule) -> Rates {
    Rates { rule, lr: 0.05, head_lr: 0.02, embedding_lr: 0.05, weight_decay: 0.01 }
}

fn one_round(trainer: &mut Trainer, case: Case, rule: Rule, round: u64) -> Committed {
    let (batch, tasks) = batch(case, round);
    trainer.run_round(&batch, &tasks, round, &rates(rule)).expect("no fault").expect("finite")
}

/// Every parameter, the table's untouched rows included.
fn parameters(trainer: &mut Trainer) -> Vec<f32> {
    trainer.fetch_parameters().unwrap();
    let parameters = &trainer.model.parameters;
    let table = parameters.rows.as_ref().map(|table| table.whole()).unwrap_or_default();
    [&parameters.shared.values[..], &parameters.heads.values, &table].concat()
}

/// Five rounds; the losses of each, and all parameters at the end.
fn train(trainer: &mut Trainer, case: Case, rule: Rule) -> (Vec<f64>, Vec<f32>) {
    let losses = (0..5).flat_map(|round| one_round(trainer, case, rule, round).losses).collect();
    (losses, parameters(trainer))
}

/// None where the build has no emulated device, which then says so.
fn on_emulated(case: Case, seed: u64) -> Option<Trainer> {
    let Setup { mut trainer, limits, start } = setup(case);
    match open_emulated(seed) {
        Ok(driver) => trainer.accelerate(driver, &limits, &start).unwrap(),
        Err(DeviceError::Unavailable(why)) => {
            eprintln!("skipped: {why}");
            return None;
        }
        Err(error) => panic!("{error}"),
    }
    Some(trainer)
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

/// bf16 has 8 bits of mantissa: 1e-2 by norm, of what training has changed.
fn five_rounds_match(case: Case, rule: Rule) {
    let Some(mut device) = on_emulated(case, 1) else { return };
    let (losses, found) = train(&mut device, case, rule);
    let mut trainer = setup(case).trainer;
    let start = parameters(&mut trainer);
    let (expected_losses, expected) = train(&mut trainer, case, rule);
    let (error, moved) = (distance(&found, &expected), distance(&expected, &start));
    assert!(error <= 1e-2 * moved, "{case:?}: {error} of {moved}");
    for (at, (loss, expected)) in losses.iter().zip(&expected_losses).enumerate() {
        assert!((loss - expected).abs() <= 1e-2 * expected.abs().max(0.1), "{case:?} loss {at}: {loss} for {expected}");
    }
}

#[test]
fn the_linear_encoder_trains_as_on_the_cpu() {
    let tensor = Granularity::Tensor;
    for case in [
        PLAIN,
        Case { method: "mean", activation: Activation::None, residual: true, ..PLAIN },
        Case { method: "gradvac", activation: Activation::Tanh, dropout: 0.25, ..PLAIN },
        Case { residual: true, uneven: true, weighted_heads: true, ..PLAIN },
        Case { clip: ClipScope::Task, apart: true, uneven: true, ..PLAIN },
        Case { method: "gradvac", granularity: tensor, ..PLAIN },
        Case { method: "upgrad", uneven: true, ..PLAIN },
        Case { method: "cagrad", granularity: tensor, apart: true, ..PLAIN },
        Case { balance: "dwa", ..PLAIN },
        Case { method: "sum", balance: "famo", apart: true, ..PLAIN },
        Case { method: "trimmed_mean", uneven: true, apart: true, ..PLAIN },
        Case { method: "trimmed_mean", balance: "dwa", clip: ClipScope::Task, ..PLAIN },
        Case { storage: Storage::Bf16, uneven: true, ..PLAIN },
        Case { storage: Storage::Bf16, method: "trimmed_mean", ..PLAIN },
        Case { conflict_every: 0, method: "sum", uneven: true, apart: true, ..PLAIN },
        Case { conflict_every: 0, method: "mean", storage: Storage::Bf16, ..PLAIN },
        Case { conflict_every: 0, method: "sum", balance: "dwa", ..PLAIN },
        Case { method: "moco", balance: "dwa", ..PLAIN },
        Case { method: "moco", granularity: tensor, uneven: true, clip: ClipScope::Task, ..PLAIN },
        Case { method: "excess_mtl", weighted_heads: true, apart: true, ..PLAIN },
        Case { method: "excess_mtl", granularity: tensor, uneven: true, ..PLAIN },
    ] {
        five_rounds_match(case, SGD);
    }
}

#[test]
fn the_bag_encoder_trains_as_on_the_cpu() {
    for case in [
        BAG,
        Case { method: "gradvac", init: 0.0, uneven: true, dropout: 0.25, ..BAG },
        Case { method: "upgrad", residual: true, apart: true, ..BAG },
        Case { granularity: Granularity::Tensor, residual: true, activation: Activation::None, ..BAG },
        Case { method: "trimmed_mean", uneven: true, apart: true, ..BAG },
        Case { storage: Storage::Bf16, method: "upgrad", uneven: true, ..BAG },
        Case { conflict_every: 0, method: "sum", uneven: true, ..BAG },
        Case { conflict_every: 0, method: "mean", apart: true, ..BAG },
        Case { method: "moco", uneven: true, apart: true, ..BAG },
        Case { method: "moco", granularity: Granularity::Tensor, ..BAG },
        Case { method: "excess_mtl", uneven: true, ..BAG },
        Case { method: "excess_mtl", granularity: Granularity::Tensor, clip: ClipScope::Task, ..BAG },
    ] {
        five_rounds_match(case, SGD);
    }
}

fn rounded(x: &mut f32) {
    let bits = x.to_bits();
    *x = f32::from_bits((bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) & 0xffff_0000);
}

/// Two runs part where rounding turns a ReLU or a constraint on or off. So each round starts anew from the device's parameters:
/// its rows of J are those of a CPU that sees weights and inputs rounded to bf16 (1e-2 by norm), and its weights those of the
/// method on the Gram matrix of these very rows.
#[test]
fn every_round_matches_the_cpu_at_the_same_parameters() {
    let relu = Case { activation: Activation::Relu, residual: true, ..PLAIN };
    for case in [
        Case { method: "upgrad", uneven: true, ..relu },
        Case { method: "pcgrad", apart: true, ..relu },
        Case { method: "gradvac", uneven: true, ..relu },
        Case { method: "nash_mtl", ..relu },
    ] {
        let Some(mut device) = on_emulated(case, 1) else { return };
        let mut method = registry::build(case.method, &Map::new(), KINDS.len()).unwrap();
        for round in 0..5 {
            let mut cpu = setup(case).trainer;
            device.fetch_parameters().unwrap();
            cpu.model.parameters.shared.values.copy_from_slice(&device.model.parameters.shared.values);
            cpu.model.parameters.heads.values.copy_from_slice(&device.model.parameters.heads.values);
            cpu.model.parameters.shared.values[..HIDDEN * INPUTS].iter_mut().for_each(rounded);
            let (mut coarse, tasks) = batch(case, round);
            coarse.features.iter_mut().for_each(rounded);
            cpu.run_round(&coarse, &tasks, round, &rates(SGD)).unwrap().unwrap();
            let done = one_round(&mut device, case, SGD, round);
            let (rows, expected) = (device.private_gradients(tasks.len()).unwrap(), cpu.private_gradients(tasks.len()).unwrap());
            for (row, expected) in rows.iter().zip(&expected) {
                let (error, size) = (distance(row, expected), distance(expected, &vec![0.0; expected.len()]));
                assert!(error <= 1e-2 * size, "{case:?} round {round}: {error} of {size}");
            }
            let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
            let gram: Vec<f64> = rows.iter().flat_map(|a| rows.iter().map(|b| product(a, b))).collect();
            let inputs = Inputs {
                gram: &gram,
                cross_gram: &[],
                losses: &done.losses,
                row_sums: &[],
                tasks: &tasks,
                round,
                seed: 7,
                orders: None,
            };
            let expected = method.solve(&inputs).weights;
            for (found, expected) in done.weights[0].iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{case:?} round {round}");
            }
        }
    }
}

/// Three rounds of every method that a device solves by itself: their weights are those of the method on the Gram matrix of the device's
/// own rows of J (1e-5: of f32). What it remembers after two of them goes to another run, whose third round is the same.
#[test]
fn what_a_device_solves_is_the_methods_own() {
    for descriptor in registry::DESCRIPTORS.iter().filter(|descriptor| descriptor.is_solved_on_device()) {
        let case = Case { method: descriptor.name, uneven: true, ..PLAIN };
        let Some(mut device) = on_emulated(case, 1) else { return };
        let mut method = registry::build(case.method, &Map::new(), KINDS.len()).unwrap();
        let round = |device: &mut Trainer, round| {
            let waits = device.device_counts().unwrap().host_waits;
            let done = one_round(device, case, SGD, round);
            assert_eq!(device.device_counts().unwrap().host_waits - waits, 1, "{case:?}");
            (done.weights, done.losses, done.status)
        };
        for number in 0..2 {
            let (weights, losses, status) = round(&mut device, number);
            let rows = device.private_gradients(losses.len()).unwrap();
            let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
            let gram: Vec<f64> = rows.iter().flat_map(|a| rows.iter().map(|b| product(a, b))).collect();
            let (losses, tasks) = (&losses[..], &[0, 1, 3][..]);
            let (cross_gram, row_sums, seed, orders) = (&[][..], &[][..], 7, None);
            let inputs = Inputs { gram: &gram, cross_gram, losses, row_sums, tasks, round: number, seed, orders };
            let expected = method.solve(&inputs);
            assert_eq!(status, expected.status, "{case:?} round {number}");
            for (found, expected) in weights[0].iter().zip(&expected.weights) {
                assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{case:?} round {number}");
            }
        }
        device.fetch_parameters().unwrap();
        let Setup { trainer: mut other, limits, start } = setup(case);
        other.model.parameters.shared.values.copy_from_slice(&device.model.parameters.shared.values);
        other.model.parameters.heads.values.copy_from_slice(&device.model.parameters.heads.values);
        other.restore_method(&device.method_state()).unwrap();
        other.accelerate(open_emulated(2).unwrap(), &limits, &start).unwrap();
        assert_eq!(round(&mut other, 2), round(&mut device, 2), "{case:?}");
        device.fetch_parameters().unwrap();
        other.fetch_parameters().unwrap();
        assert_eq!(other.method_state(), device.method_state(), "{case:?}");
    }
}

/// GradDrop keeps a sign or drops it, and rounding can turn that over. So its step is held against the rule on the device's own
/// rows of J, from the same parameters.
#[test]
fn graddrop_steps_by_its_rule_on_the_rows_it_has() {
    for (round, balance, case) in [(0, "equal", PLAIN), (3, "dwa", Case { uneven: true, apart: true, ..PLAIN })] {
        let case = Case { method: "graddrop", balance, ..case };
        let Some(mut device) = on_emulated(case, round) else { return };
        let before = device.model.parameters.shared.values.to_vec();
        let done = one_round(&mut device, case, SGD, round);
        assert!(done.clip < 1.0 && (done.clip - 1.0 / done.norm).abs() < 1e-12, "{} of {}", done.clip, done.norm);
        let rows = device.private_gradients(done.losses.len()).unwrap();
        let rows: Vec<(f64, &[f32])> =
            rows.iter().zip(&done.balance.factors).map(|(row, factor)| (done.clip * factor, row.as_slice())).collect();
        let method = registry::build("graddrop", &Map::new(), KINDS.len()).unwrap();
        let mut expected = vec![0.0; before.len()];
        let block = ColumnBlock { rows: &rows, count: rows.len(), first: 0, round, seed: 7 };
        columns::combine(method.columnwise().expect("elementwise"), &block, &mut expected);
        let square: f64 = expected.iter().map(|&d| f64::from(d).powi(2)).sum();
        assert!(square > 0.01 && square < 1.0, "the encoder's share of a clipped update: {square}");
        let rates = rates(SGD);
        device.fetch_parameters().unwrap();
        for (at, (found, (p, d))) in device.model.parameters.shared.values.iter().zip(before.iter().zip(&expected)).enumerate() {
            let decay = if at < HIDDEN * INPUTS { rates.weight_decay as f32 } else { 0.0 };
            let wanted = p - rates.lr as f32 * (decay * p + d);
            assert!((found - wanted).abs() <= 1e-6, "round {round}, column {at}: {found} for {wanted}");
        }
    }
}

/// Three rounds, of which the last is replayed where the shapes stay.
fn few_rounds(trainer: &mut Trainer, case: Case) -> (Vec<f64>, Vec<f32>) {
    let losses = (0..3).flat_map(|round| one_round(trainer, case, ADAMW, round).losses).collect();
    (losses, parameters(trainer))
}

/// Orders of blocks, threads and streams are the seed's.
#[test]
fn twenty_orders_give_the_same_bytes() {
    for case in [Case { dropout: 0.1, uneven: true, apart: true, ..PLAIN }, Case { apart: true, residual: true, ..BAG }] {
        let Some(mut first) = on_emulated(case, 0) else { return };
        let first = few_rounds(&mut first, case);
        for seed in 1..20u64 {
            let (losses, parameters) = few_rounds(&mut on_emulated(case, seed).expect("there was one before"), case);
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&parameters), bits(&first.1), "seed {seed}");
            assert_eq!(losses, first.0, "seed {seed}");
        }
    }
}

/// Four timed rounds, of which the last are replayed where the shapes stay.
fn timed_rounds(trainer: &mut Trainer, case: Case) -> (Vec<RoundTimes>, Vec<f32>) {
    trainer.time_quanta(true);
    let times = (0..4).map(|round| one_round(trainer, case, ADAMW, round).times.expect("asked for")).collect();
    (times, parameters(trainer))
}

/// Groups that do not depend on each other are in flight together on their two lanes, the commit follows them all; the times of
/// the emulated device are the same whatever the seed, and taking them changes no byte.
#[test]
fn quanta_are_timed_on_the_streams_they_ran_on() {
    let apart = Case { apart: true, ..PLAIN };
    for case in [apart, Case { method: "upgrad", ..apart }, Case { uneven: true, balance: "famo", ..apart }, PLAIN] {
        let Some(mut plain) = on_emulated(case, 0) else { return };
        for round in 0..4 {
            assert_eq!(one_round(&mut plain, case, ADAMW, round).times, None);
        }
        let plain = parameters(&mut plain);
        let starts_and_lengths = |times: &RoundTimes| {
            let quanta = times.groups.iter().chain([&times.commit]);
            quanta.map(|quantum| (quantum.lane, quantum.start, quantum.time)).collect::<Vec<_>>()
        };
        let mut first = Vec::new();
        for seed in 0..6 {
            let mut device = on_emulated(case, seed).expect("there was one before");
            let (rounds, parameters) = timed_rounds(&mut device, case);
            assert_eq!(parameters, plain, "{case:?}");
            for (round, times) in rounds.iter().enumerate() {
                let RoundTimes { groups, commit, .. } = times;
                assert_eq!(groups.len(), batch(case, round as u64).0.groups.len());
                let ends = groups.iter().map(|group| group.start + group.time);
                assert!(groups.iter().all(|group| !group.time.is_zero()) && !commit.time.is_zero(), "{times:?}");
                assert!(ends.clone().all(|end| end <= commit.start), "{times:?}");
                if let [first, second, ..] = groups[..] {
                    assert_eq!((first.lane, second.lane), (0, 1));
                    assert!(first.start < second.start && second.start < first.start + first.time, "{times:?}");
                }
            }
            let found: Vec<_> = rounds.iter().map(starts_and_lengths).collect();
            if seed == 0 {
                first = found;
            } else {
                assert_eq!(found, first, "seed {seed}");
            }
        }
    }
}

/// Two rounds in which one wait for an event is left out: the fault, if any, and the waits there were.
fn without_wait(case: Case, timed: bool, missed: usize, seed: u64) -> Option<(Option<String>, usize)> {
    let inner = match open_emulated(seed) {
        Ok(inner) => inner,
        Err(why) => {
            eprintln!("skipped: {why}");
            return None;
        }
    };
    let Setup { mut trainer, limits, start } = setup(case);
    let waits = Rc::new(Cell::new(0));
    let so_far = Rc::clone(&waits);
    let instead = move |operation: Operation| -> Option<driver::Result<()>> {
        let missing = operation == Operation::Wait && so_far.replace(so_far.get() + 1) == missed;
        missing.then_some(Ok(()))
    };
    trainer.accelerate(Box::new(Tampered { inner, instead }), &limits, &start).unwrap();
    trainer.time_quanta(timed);
    let run = |round| {
        let (batch, tasks) = batch(case, round);
        trainer.run_round(&batch, &tasks, round, &rates(ADAMW)).map(|_| ())
    };
    let fault = (0..2).try_for_each(run).and_then(|()| trainer.fetch_parameters()).err();
    Some((fault.map(|error| format!("{error:#}")), waits.get()))
}

/// Every wait of a round on two lanes orders something: without it the emulated device finds a race, whatever the seed. Timers
/// order nothing.
#[test]
fn a_removed_event_is_caught() {
    [false, true].into_iter().for_each(every_wait_orders_something);
}

fn every_wait_orders_something(timed: bool) {
    let case = Case { apart: true, uneven: true, method: "upgrad", ..BAG };
    let Some((sound, waits)) = without_wait(case, timed, usize::MAX, 0) else { return };
    assert_eq!(sound, None);
    let round = waits / 2;
    assert!(round >= 8, "{round} waits a round");
    let mut unseen = Vec::new();
    // The first wait is for the step of the round before, which the host has waited for where rounds are timed.
    for missed in round + usize::from(timed)..waits {
        let fault = without_wait(case, timed, missed, missed as u64).and_then(|(fault, _)| fault);
        if !fault.is_some_and(|fault| {
            fault.contains("no event puts that before this one") || fault.contains("nothing has been written")
        }) {
            unseen.push(missed - round);
        }
    }
    assert!(unseen.is_empty(), "waits {unseen:?} of {round} order nothing");
}

/// A batch of one task, as an evaluation has it.
fn evaluated(case: Case) -> Batch {
    let (mut batch, _) = batch(case, 9);
    batch.parts.truncate(1);
    batch.groups.truncate(1);
    batch
}

/// Logits of a copy that was taken after one round: computed at once, and beside the round after it, in a lane of its own.
fn beside_a_round(trainer: &mut Trainer, case: Case) -> anyhow::Result<[Vec<f32>; 2]> {
    let batch = evaluated(case);
    trainer.take_snapshot()?;
    let at_once = trainer.with_snapshot(|trainer| trainer.predict(&batch).map(<[f32]>::to_vec))?;
    trainer.with_snapshot(|trainer| trainer.submit(&batch))?;
    one_round(trainer, case, ADAMW, 1);
    let beside = trainer.with_snapshot(|trainer| trainer.collect().map(<[f32]>::to_vec))?;
    Ok([at_once, beside])
}

#[test]
fn a_copy_is_evaluated_beside_rounds_in_any_order() {
    for case in [Case { beside: true, apart: true, ..PLAIN }, Case { beside: true, ..BAG }] {
        let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
        for seed in 0..20 {
            let Some(mut trainer) = on_emulated(case, seed) else { return };
            one_round(&mut trainer, case, ADAMW, 0);
            let [at_once, beside] = beside_a_round(&mut trainer, case).expect("no fault");
            assert_eq!(at_once, beside, "seed {seed}");
            assert!(beside.iter().all(|logit| logit.is_finite()) && !beside.is_empty());
            let now = trainer.with_snapshot(|trainer| trainer.model.parameters.shared.values.to_vec());
            assert_ne!(parameters(&mut trainer)[..now.len()], now, "the round moved what was copied");
            let found = (beside, parameters(&mut trainer));
            assert_eq!(*first.get_or_insert_with(|| found.clone()), found, "seed {seed}");
        }
    }
}

/// Nothing but one event puts the copy before the batches that read it.
#[test]
fn a_copy_that_is_not_waited_for_is_caught() {
    let case = Case { beside: true, ..PLAIN };
    let mut expected = usize::MAX;
    for missed in [false, true] {
        let inner = match open_emulated(0) {
            Ok(inner) => inner,
            Err(why) => return eprintln!("skipped: {why}"),
        };
        let Setup { mut trainer, limits, start } = setup(case);
        let waits = Rc::new(Cell::new(0));
        let (so_far, left_out) = (Rc::clone(&waits), expected);
        let instead = move |operation: Operation| -> Option<driver::Result<()>> {
            let missing = operation == Operation::Wait && so_far.replace(so_far.get() + 1) == left_out;
            missing.then_some(Ok(()))
        };
        trainer.accelerate(Box::new(Tampered { inner, instead }), &limits, &start).unwrap();
        one_round(&mut trainer, case, ADAMW, 0);
        expected = waits.get();
        let fault = beside_a_round(&mut trainer, case).err().map(|error| format!("{error:#}"));
        assert_eq!(fault.is_some(), missed, "{fault:?}");
        assert!(fault.is_none_or(|fault| fault.contains("no event puts that before this one")));
    }
}

/// Before anything is allocated.
#[test]
fn what_no_grid_holds_is_refused() {
    let Setup { mut trainer, limits, start } = setup(PLAIN);
    let limits = Limits { group_rows: 9_000_000, ..limits };
    let error = trainer.accelerate(Planned::driver().0, &limits, &start).unwrap_err().to_string();
    assert!(error.contains("at most 8388480 examples in a fused group, found 9000000"), "{error}");
}

/// The capture of a round's launches, in which one fails, is ended: the rounds after it are computed.
#[test]
fn a_failed_capture_is_ended() {
    let Ok(inner) = open_emulated(0) else { return };
    let Setup { mut trainer, limits, start } = setup(PLAIN);
    let refuses = Rc::new(Cell::new(false));
    let asked = Rc::clone(&refuses);
    let instead = move |operation: Operation| -> Option<driver::Result<()>> {
        let refused = operation == Operation::Launch && asked.take();
        refused.then(|| Err(DeviceError::Invalid("refused once".to_owned())))
    };
    trainer.accelerate(Box::new(Tampered { inner, instead }), &limits, &start).unwrap();
    one_round(&mut trainer, PLAIN, ADAMW, 0);
    refuses.set(true);
    let (batch, tasks) = batch(PLAIN, 1);
    let error = trainer.run_round(&batch, &tasks, 1, &rates(ADAMW)).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "refused once");
    for round in 1..4 {
        one_round(&mut trainer, PLAIN, ADAMW, round);
    }
    assert_eq!(replays(&trainer), 3);
}

/// Graphs that were launched.
fn replays(trainer: &Trainer) -> u64 {
    trainer.device_counts().expect("a device").graph_launches
}

/// The second of two equal rounds is captured, and all after it are replayed.
#[test]
fn steady_rounds_are_replayed() {
    let Some(mut device) = on_emulated(PLAIN, 3) else { return };
    for round in 0..5 {
        one_round(&mut device, PLAIN, ADAMW, round);
    }
    assert_eq!(replays(&device), 4);
}

/// One moment a row, and rows that round after round get their slots.
#[test]
fn adamw_on_the_table_moves_as_on_the_cpu() {
    for row_moment in [false, true] {
        let case = Case { row_moment, uneven: true, method: "sum", ..BAG };
        let Some(mut device) = on_emulated(case, 2) else { return };
        let mut cpu = setup(case).trainer;
        // One round: where a gradient is all rounding AdamW's first step is of full length, one way or the other.
        let losses = one_round(&mut device, case, ADAMW, 0).losses;
        let expected = one_round(&mut cpu, case, ADAMW, 0).losses;
        assert!(losses.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-2 * b.abs()));
        device.fetch_parameters().unwrap();
        let (ours, theirs) = (device.model.parameters.rows.as_ref().unwrap(), cpu.model.parameters.rows.as_ref().unwrap());
        assert_eq!(ours.touched(), theirs.touched());
        for (what, (ours, theirs)) in ["values", "first", "second"].iter().zip(ours.stored().into_iter().zip(theirs.stored())) {
            let size = distance(theirs, &vec![0.0; theirs.len()]);
            assert!(distance(ours, theirs) <= 2e-2 * size, "{what}: {} of {size}", distance(ours, theirs));
        }
    }
}
