//! Every surgery method with every loss balancer, under both optimizers: some rounds of the program on a small linear problem, against
//! the same rounds computed here in f64 with gradients derived by hand.
//!
//! Task t has features x and a value y; its output is o = v_t . (W x + b) + c_t, its loss the mean of (o - y)^2. W and b are shared.
//! What is taken from the program are the solvers, which work on G in f64: here they are given the G of gradients in f64.

use std::sync::Arc;

use serde_json::Map;
use taskloom::machine::memory::Memory;
use taskloom::model::Start;
use taskloom::model::encoders::linear::Linear;
use taskloom::model::network::{Batch, Limits, Network, Part, Targets};
use taskloom::model::spec::{HeadKind, HeadSpec, ModelSpec, ParamTable};
use taskloom::ops::activation::Activation;
use taskloom::ops::adamw::Rule;
use taskloom::ops::dropout::RowKey;
use taskloom::random::Random;
use taskloom::surgery::balance::{self, Balancer, Losses};
use taskloom::surgery::methods::{ColumnBlock, Inputs, Method, Status, columns, registry};
use taskloom::surgery::update::Rates;
use taskloom::train::round::Trainer;
use taskloom::train::round_options::{RoundOptions, Solvers};

const TASKS: usize = 4;
const FEATURES: usize = 5;
const HIDDEN: usize = 3;
/// W, then b.
const SHARED: usize = HIDDEN * FEATURES + HIDDEN;
/// v, then c.
const HEAD: usize = HIDDEN + 1;
/// Of a task, in each round the same.
const EXAMPLES: usize = 6;
const ROUNDS: u64 = 5;
const SEED: u64 = 11;
/// Powers of two, so that they are the same in f32.
const LR: f64 = 1.0 / 64.0;
const DECAY: f64 = 1.0 / 128.0;

/// Sums of n = EXAMPLES * (FEATURES + HIDDEN) products reach G and the update in f32, whose rounding grows like the root of n and is
/// taken along from round to round.
fn tolerance(method: &str) -> f64 {
    // The steps within its solver, from one batch to the other and back, move further apart.
    let amplified = if method == "sdmgrad" { 16.0 } else { 1.0 };
    amplified * ((EXAMPLES * (FEATURES + HIDDEN)) as f64).sqrt() * f64::from(f32::EPSILON) * ROUNDS as f64
}

/// (TASKS x EXAMPLES x FEATURES) and (TASKS x EXAMPLES).
struct Data {
    features: Vec<f32>,
    values: Vec<f32>,
}

impl Data {
    fn new() -> Self {
        let mut random = Random(SEED);
        let mut draw = |count: usize| (0..count).map(|_| (2.0 * random.uniform() - 1.0) as f32).collect::<Vec<_>>();
        Self { features: draw(TASKS * EXAMPLES * FEATURES), values: draw(TASKS * EXAMPLES) }
    }

    fn row(&self, task: usize, example: usize) -> (&[f32], f64) {
        let row = task * EXAMPLES + example;
        (&self.features[row * FEATURES..(row + 1) * FEATURES], f64::from(self.values[row]))
    }

    /// All examples, divided among independent batches, a group of all tasks for each.
    fn batch(&self, batches: usize) -> Batch {
        let mut batch = Batch::default();
        let size = EXAMPLES / batches;
        for number in 0..batches {
            batch.groups.push(number * TASKS..(number + 1) * TASKS);
            for task in 0..TASKS {
                let start = batch.keys.len();
                let examples = number * size..(number + 1) * size;
                for example in examples.clone() {
                    batch.features.extend(self.row(task, example).0);
                    batch.keys.push(RowKey { task: task as u32, example: example as u32 });
                }
                batch.parts.push(Part {
                    task,
                    present: task,
                    batch: number,
                    rows: start..start + size,
                    targets: Targets::Values(examples.map(|example| self.row(task, example).1 as f32).collect()),
                    scale: 1.0 / EXAMPLES as f32,
                    first: true,
                });
            }
        }
        batch
    }
}

fn method(name: &str) -> Box<dyn Method> {
    registry::build(name, &Map::new(), TASKS).expect("a method")
}

fn balancer(name: &str) -> Box<dyn Balancer> {
    balance::registry::build(name, &Map::new(), TASKS).expect("a balancer")
}

fn trainer(names: [&str; 2], adamw: bool) -> Trainer {
    let encoder = Linear { columns: FEATURES, hidden: HIDDEN, activation: Activation::None, residual: false, dropout: 0.0 };
    let head = |task| HeadSpec {
        task: format!("t{task}"),
        kind: HeadKind::Regression,
        outputs: 1,
        class_weights: None,
        temperature: 1.0,
    };
    let network = Network::new(ModelSpec { encoder: Arc::new(encoder), heads: (0..TASKS).map(head).collect() });
    let start = Start { seed: SEED, equal_heads: false, second_moment: adamw, row_moment: false, row_capacity: 0 };
    let rows = TASKS * EXAMPLES;
    let limits = Limits { group_rows: rows, round_rows: rows, group_logits: rows, present: TASKS, ..Limits::default() };
    let solvers = Solvers { balancer: balancer(names[1]), methods: vec![method(names[0])] };
    Trainer::new(&mut Memory::unlimited(), network, &start, solvers, RoundOptions::plain(SEED), &limits).expect("fits")
}

fn rates(adamw: bool, round: u64) -> Rates {
    let step = round as i32 + 1;
    let (beta1, beta2) = (0.875f32, 0.9375f32);
    let (correction1, correction2) = (1.0 - beta1.powi(step), 1.0 - beta2.powi(step));
    let rule =
        if adamw { Rule::AdamW { beta1, beta2, eps: 1e-8, correction1, correction2 } } else { Rule::Sgd { momentum: 0.5 } };
    Rates { rule, lr: LR, head_lr: LR, embedding_lr: LR, weight_decay: DECAY }
}

/// Parameters with their moments, and which of them decay.
struct Params {
    values: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
    decays: Vec<bool>,
}

impl Params {
    fn new(values: &[f32], decays: Vec<bool>) -> Self {
        let zeros = vec![0.0; values.len()];
        let values = values.iter().map(|&value| f64::from(value)).collect();
        Self { values, first: zeros.clone(), second: zeros, decays }
    }

    fn step(&mut self, update: &[f64], rates: &Rates) {
        for (at, &d) in update.iter().enumerate() {
            let decay = if self.decays[at] { DECAY } else { 0.0 };
            let (p, m, v) = (&mut self.values[at], &mut self.first[at], &mut self.second[at]);
            match rates.rule {
                Rule::AdamW { beta1, beta2, eps, correction1, correction2 } => {
                    let [beta1, beta2, eps] = [beta1, beta2, eps].map(f64::from);
                    *m = beta1 * *m + (1.0 - beta1) * d;
                    *v = beta2 * *v + (1.0 - beta2) * d * d;
                    let (mean, square) = (*m / f64::from(correction1), *v / f64::from(correction2));
                    *p -= LR * (decay * *p + mean / (square.sqrt() + eps));
                }
                Rule::Sgd { momentum } => {
                    *m = f64::from(momentum) * *m + d + decay * *p;
                    *p -= LR * *m;
                }
            }
        }
    }
}

/// A task's mean loss over some of its examples, and its gradients.
struct Gradient {
    loss: f64,
    shared: Vec<f64>,
    head: Vec<f64>,
}

/// The problem in f64.
struct Reference<'a> {
    data: &'a Data,
    shared: Params,
    heads: Params,
    method: Box<dyn Method>,
    balancer: Box<dyn Balancer>,
    /// (TASKS x SHARED) of methods with row state.
    buffers: Vec<Vec<f64>>,
}

impl<'a> Reference<'a> {
    fn new(data: &'a Data, trainer: &Trainer, names: [&str; 2]) -> Self {
        let table: &ParamTable = &trainer.model.network.table;
        let shapes: Vec<&[usize]> = table.shared.iter().chain(table.head_params(0)).map(|param| &param.shape[..]).collect();
        assert_eq!(shapes, [&[HIDDEN, FEATURES][..], &[HIDDEN], &[1, HIDDEN], &[1]], "the layout that is read here");
        let shared = (0..SHARED).map(|at| at < HIDDEN * FEATURES).collect();
        let heads = (0..TASKS * HEAD).map(|at| at % HEAD < HIDDEN).collect();
        Self {
            data,
            shared: Params::new(&trainer.model.parameters.shared.values, shared),
            heads: Params::new(&trainer.model.parameters.heads.values, heads),
            method: method(names[0]),
            balancer: balancer(names[1]),
            buffers: vec![vec![0.0; SHARED]; TASKS],
        }
    }

    fn gradient(&self, task: usize, examples: std::ops::Range<usize>) -> Gradient {
        let (dense, bias) = self.shared.values.split_at(HIDDEN * FEATURES);
        let (v, c) = self.heads.values[task * HEAD..(task + 1) * HEAD].split_at(HIDDEN);
        let mut found = Gradient { loss: 0.0, shared: vec![0.0; SHARED], head: vec![0.0; HEAD] };
        let share = 1.0 / examples.len() as f64;
        for example in examples {
            let (x, y) = self.data.row(task, example);
            let unit = |unit: usize| -> f64 {
                let row = &dense[unit * FEATURES..(unit + 1) * FEATURES];
                row.iter().zip(x).map(|(w, &x)| w * f64::from(x)).sum::<f64>() + bias[unit]
            };
            let h: Vec<f64> = (0..HIDDEN).map(unit).collect();
            let error = h.iter().zip(v).map(|(h, v)| h * v).sum::<f64>() + c[0] - y;
            found.loss += share * error * error;
            let slope = share * 2.0 * error;
            for unit in 0..HIDDEN {
                found.head[unit] += slope * h[unit];
                found.shared[HIDDEN * FEATURES + unit] += slope * v[unit];
                for (column, &x) in x.iter().enumerate() {
                    found.shared[unit * FEATURES + column] += slope * v[unit] * f64::from(x);
                }
            }
            found.head[HIDDEN] += slope;
        }
        found
    }

    fn all(&self, examples: std::ops::Range<usize>) -> Vec<Gradient> {
        (0..TASKS).map(|task| self.gradient(task, examples.clone())).collect()
    }

    fn losses(&self) -> Vec<f64> {
        self.all(0..EXAMPLES).iter().map(|gradient| gradient.loss).collect()
    }

    /// Computes and applies a round; the losses before it, and how it was solved.
    fn round(&mut self, round: u64, rates: &Rates) -> (Vec<f64>, Status) {
        let tasks: Vec<usize> = (0..TASKS).collect();
        let whole = self.all(0..EXAMPLES);
        let losses: Vec<f64> = whole.iter().map(|gradient| gradient.loss).collect();
        let seen = Losses { losses: &losses, tasks: &tasks, round, epoch: round, seed: SEED };
        let factors = self.balancer.factors(&seen).factors;
        let scaled = |gradients: &[Gradient]| -> Vec<Vec<f64>> {
            gradients.iter().zip(&factors).map(|(own, factor)| own.shared.iter().map(|g| factor * g).collect()).collect()
        };
        let mut rows = scaled(&whole);
        let halves = [0..EXAMPLES / 2, EXAMPLES / 2..EXAMPLES].map(|examples| scaled(&self.all(examples)));
        let gram = products(&rows, &rows);
        let cross_gram = products(&halves[0], &halves[1]);
        let inputs = Inputs {
            gram: &gram,
            cross_gram: &cross_gram,
            losses: &losses,
            row_sums: &[],
            tasks: &tasks,
            round,
            seed: SEED,
            orders: None,
        };
        let mut sums = Vec::new();
        if let Some(pass) = self.method.row_pass(&inputs) {
            sums = vec![0.0; pass.sums_len(TASKS)];
            let views: Vec<&[f64]> = rows.iter().map(Vec::as_slice).collect();
            let mut buffers: Vec<&mut [f64]> = self.buffers.iter_mut().map(Vec::as_mut_slice).collect();
            pass.apply(&views, &mut buffers, &mut sums);
            if pass.updates_from_buffers() {
                rows.clone_from(&self.buffers);
            }
        }
        let from_buffers = !sums.is_empty() && sums.len() == gram.len();
        let gram = if from_buffers { &sums } else { &gram };
        let solution = self.method.solve(&Inputs { gram, row_sums: &sums, ..inputs });
        let mut update = vec![0.0; SHARED];
        match self.method.columnwise() {
            Some(rule) => {
                let views: Vec<(f64, &[f64])> = rows.iter().map(|row| (1.0, row.as_slice())).collect();
                let block = ColumnBlock { rows: &views, count: TASKS, first: 0, round, seed: SEED };
                columns::combine(rule, &block, &mut update);
            }
            None => {
                for (weight, row) in solution.weights.iter().zip(&rows) {
                    update.iter_mut().zip(row).for_each(|(d, g)| *d += weight * g);
                }
            }
        }
        self.shared.step(&update, rates);
        let heads: Vec<f64> = whole.iter().zip(&factors).flat_map(|(own, f)| own.head.iter().map(move |g| f * g)).collect();
        self.heads.step(&heads, rates);
        if self.balancer.wants_losses_after_step() {
            let after = self.losses();
            self.balancer.after_step(&Losses { losses: &after, ..seen });
        }
        (losses, solution.status)
    }
}

/// (TASKS x TASKS)
fn products(left: &[Vec<f64>], right: &[Vec<f64>]) -> Vec<f64> {
    let dot = |l: &Vec<f64>, r: &Vec<f64>| l.iter().zip(r).map(|(l, r)| l * r).sum();
    left.iter().flat_map(|l| right.iter().map(move |r| dot(l, r))).collect()
}

/// The largest distance of a value from its reference, by the largest of these.
fn distance(found: &[f32], expected: &[f64]) -> f64 {
    let largest = expected.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
    found.iter().zip(expected).map(|(found, expected)| (f64::from(*found) - expected).abs() / largest).fold(0.0, f64::max)
}

#[test]
fn every_method_and_balancer_trains() {
    let data = Data::new();
    let tasks: Vec<usize> = (0..TASKS).collect();
    for method in registry::DESCRIPTORS {
        for balancer in balance::registry::DESCRIPTORS {
            for adamw in [true, false] {
                let names = [method.name, balancer.name];
                let what = format!("{} with {}, AdamW: {adamw}", method.name, balancer.name);
                let mut trainer = trainer(names, adamw);
                let mut reference = Reference::new(&data, &trainer, names);
                let batch = data.batch(trainer.batches());
                let before = reference.shared.values.clone();
                let mut worst = 0f64;
                for round in 0..ROUNDS {
                    let rates = rates(adamw, round);
                    let done = trainer.run_round(&batch, &tasks, round, &rates).expect("no device").expect("finite");
                    let (losses, status) = reference.round(round, &rates);
                    assert_eq!(done.status, status, "{what}, round {round}");
                    let shown: Vec<f32> = done.losses.iter().map(|&loss| loss as f32).collect();
                    worst = worst.max(distance(&shown, &losses));
                }
                worst = worst.max(distance(&trainer.model.parameters.shared.values, &reference.shared.values));
                worst = worst.max(distance(&trainer.model.parameters.heads.values, &reference.heads.values));
                assert!(distance(&trainer.model.parameters.shared.values, &before) > 1e-3, "{what}: nothing has moved");
                let allowed = tolerance(method.name);
                assert!(worst <= allowed, "{what}: off by {worst:e}, allowed {allowed:e}");
            }
        }
    }
}
