//! Small rounds of four tasks, and trainers for them.

use std::sync::Arc;

use serde_json::Map;
use taskloom::config::schema::ClipScope;
use taskloom::machine::driver::{DeviceError, open_emulated};
use taskloom::machine::memory::Memory;
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
use taskloom::surgery::methods::{Granularity, registry};
use taskloom::surgery::update::Rates;
use taskloom::train::round::{Committed, Trainer};
use taskloom::train::round_options::{Clip, RoundOptions, Solvers};

/// Columns of the input.
pub const INPUTS: usize = 11;
pub const HIDDEN: usize = 24;
/// Examples of a micro-batch.
pub const ROWS: usize = 5;
/// Of the bag's table.
pub const TABLE_ROWS: usize = 40;
pub const KINDS: [(HeadKind, usize); 4] =
    [(HeadKind::Classification, 3), (HeadKind::Regression, 1), (HeadKind::Multilabel, 2), (HeadKind::Regression, 1)];

/// What the cases differ in.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub bag: bool,
    /// Standard deviation of the table's initial rows.
    pub init: f64,
    /// One second moment a row of the table.
    pub row_moment: bool,
    pub method: &'static str,
    pub balance: &'static str,
    pub granularity: Granularity,
    pub storage: Storage,
    /// Rounds between conflict statistics; without them a sum keeps no task's gradient apart.
    pub conflict_every: u64,
    pub activation: Activation,
    pub residual: bool,
    pub dropout: f64,
    pub clip: ClipScope,
    pub weighted_heads: bool,
    /// Task 2 is absent, and task 0 has two micro-batches in groups of their own.
    pub uneven: bool,
    /// Every task is a group of its own, on two lanes.
    pub apart: bool,
    /// A copy of the parameters is evaluated beside rounds.
    pub beside: bool,
}

pub const PLAIN: Case = Case {
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
pub const BAG: Case = Case { bag: true, init: 0.5, ..PLAIN };

pub const SGD: Rule = Rule::Sgd { momentum: 0.9 };
pub const ADAMW: Rule = Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, correction1: 0.1, correction2: 0.001 };

pub struct Setup {
    pub trainer: Trainer,
    pub limits: Limits,
    pub start: Start,
}

pub fn setup(case: Case) -> Setup {
    let head =
        |(task, (kind, outputs))| HeadSpec { task: format!("t{task}"), kind, outputs, class_weights: None, temperature: 1.0 };
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

pub fn batch(case: Case, round: u64) -> (Batch, Vec<usize>) {
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

pub fn rates(rule: Rule) -> Rates {
    Rates { rule, lr: 0.05, head_lr: 0.02, embedding_lr: 0.05, weight_decay: 0.01 }
}

pub fn one_round(trainer: &mut Trainer, case: Case, rule: Rule, round: u64) -> Committed {
    let (batch, tasks) = batch(case, round);
    trainer.run_round(&batch, &tasks, round, &rates(rule)).expect("no fault").expect("finite")
}

/// Every parameter, the table's untouched rows included.
pub fn parameters(trainer: &mut Trainer) -> Vec<f32> {
    trainer.fetch_parameters().unwrap();
    let parameters = &trainer.model.parameters;
    let table = parameters.rows.as_ref().map(|table| table.whole()).unwrap_or_default();
    [&parameters.shared.values[..], &parameters.heads.values, &table].concat()
}

/// Five rounds; the losses of each, and all parameters at the end.
pub fn train(trainer: &mut Trainer, case: Case, rule: Rule) -> (Vec<f64>, Vec<f32>) {
    let losses = (0..5).flat_map(|round| one_round(trainer, case, rule, round).losses).collect();
    (losses, parameters(trainer))
}

/// None where the build has no emulated device, which then says so.
pub fn on_emulated(case: Case, seed: u64) -> Option<Trainer> {
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

pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}
