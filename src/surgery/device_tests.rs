//! kernels/solve.cu and the rules of update.cu against the methods: one Gram matrix, several rounds of state.

use super::methods::{ColumnBlock, Inputs, columns, registry};
use crate::ops::adamw::Rule;
use crate::ops::cases::{Device, under_every_order};
use crate::ops::launch::surgery::ChunksOnDevice;
use crate::ops::launch::surgery::{
    Chunks, ColumnRule, Columns, Columnwise, GroupRates, Jacobian, Method, Rates, RatesOnDevice, Solve, State, solve,
    update_columns,
};

const TASKS: usize = 4;

/// Rows of small whole numbers, so that products are exact; many pairs conflict.
fn jacobian() -> Vec<f64> {
    (0..TASKS * 6).map(|at| ((at * 37 + at * at * 11) % 13) as f64 - 6.0).collect()
}

fn gram(rows: &[f64]) -> Vec<f64> {
    let product = |i: usize, j: usize| (0..6).map(|k| rows[i * 6 + k] * rows[j * 6 + k]).sum();
    (0..TASKS * TASKS).map(|cell| product(cell / TASKS, cell % TASKS)).collect()
}

fn matches(name: &str, method: Method) {
    let gram = gram(&jacobian());
    let orders: Vec<Vec<usize>> = (0..TASKS).map(|row| (0..TASKS).map(|at| (at + row) % TASKS).collect()).collect();
    let tasks: Vec<usize> = (0..TASKS).collect();
    let params = serde_json::Map::new();
    let mut reference = registry::build(name, &params, TASKS).expect("known");
    let mut expected = Vec::new();
    for round in 0..3 {
        let inputs = Inputs {
            gram: &gram,
            cross_gram: &[],
            losses: &[1.0; TASKS],
            row_sums: &[],
            tasks: &tasks,
            round,
            seed: 1,
            orders: Some(&orders),
        };
        expected = reference.solve(&inputs).weights;
    }
    let clip_norm = 0.5;
    let (weights, factors, summary) = under_every_order(|device: &mut Device| {
        let flat: Vec<u32> = orders.iter().flatten().map(|&at| at as u32).collect();
        let own = Solve {
            weights: device.room::<f64>(TASKS),
            factors: device.room::<f64>(TASKS),
            shared_factors: device.room::<f32>(TASKS),
            head_factors: device.room::<f32>(TASKS),
            summary: device.room::<f64>(4),
            rates: device.upload(&[Rates::from(Rule::Sgd { momentum: 0.0 })]),
            targets: device.upload(&[0.0f64; TASKS * TASKS]),
            parts: device.room::<f64>(TASKS * TASKS),
            products: device.room::<f64>(TASKS * TASKS),
            gram: device.upload(&gram),
            orders: device.upload(&flat),
            tasks: device.upload(&[0u32, 1, 2, 3]),
            balance: device.upload(&[1.0f64; TASKS]),
            losses: device.upload(&[1.0f64; TASKS]),
            head_squares: device.upload(&[1.0f64, 2.0, 3.0, 4.0]),
            method,
            blocks: 1,
            count: TASKS,
            run_tasks: TASKS,
            rescale: 1.0,
            clip_norm,
            clip_tasks: false,
            heads_weighted: false,
        };
        for _ in 0..3 {
            device.run(&solve(&own));
        }
        (
            device.download::<f64>(own.weights, TASKS),
            device.download::<f32>(own.shared_factors, TASKS),
            device.download::<f64>(own.summary, 4),
        )
    });
    let mut square = 10.0;
    for i in 0..TASKS {
        for j in 0..TASKS {
            square += expected[i] * expected[j] * gram[i * TASKS + j];
        }
        assert!((weights[i] - expected[i]).abs() < 1e-12 * (1.0 + expected[i].abs()), "{name}: {weights:?} for {expected:?}");
    }
    assert!((summary[0] - square.sqrt()).abs() < 1e-9 * square.sqrt() && summary[2] == 1.0, "{summary:?} for {square}");
    for (factor, weight) in factors.iter().zip(&expected) {
        assert!((f64::from(*factor) - weight * clip_norm / square.sqrt()).abs() < 1e-6, "{factors:?}");
    }
}

#[test]
fn pcgrad_on_the_device() {
    matches("pcgrad", Method::PcGrad);
}

#[test]
fn gradvac_on_the_device() {
    matches("gradvac", Method::GradVac { beta: 0.5, eps: 1e-8 });
}

/// SGD with rate -1 from zero leaves the combined gradient itself.
fn rule_matches(name: &str, rule: Columnwise) {
    let (width, seed, round) = (300usize, 5u64, 7u64);
    let rows: Vec<f32> = (0..TASKS * width).map(|at| ((at * 7919) % 101) as f32 / 50.0 - 1.0).collect();
    let factors = [1.0f64, 0.5, 2.0, 1.5];
    let method = registry::build(name, &serde_json::Map::new(), TASKS).expect("known");
    let views: Vec<(f64, &[f32])> = factors.into_iter().zip(rows.chunks(width)).collect();
    let mut expected = vec![0.0f32; width];
    let block = ColumnBlock { rows: &views, count: TASKS, first: 0, round, seed };
    columns::combine(method.columnwise().expect("elementwise"), &block, &mut expected);
    let found = under_every_order(|device: &mut Device| {
        let chunks = Chunks::new(&[Columns { columns: 0..width as u64, block: 0, group: 0 }], 128);
        let at = ChunksOnDevice {
            count: chunks.len(),
            firsts: device.upload(&chunks.firsts),
            lengths: device.upload(&chunks.lengths),
            blocks: device.upload(&chunks.blocks),
            groups: device.upload(&chunks.groups),
        };
        let state =
            State { values: device.upload(&vec![0.0f32; width]), first: device.upload(&vec![0.0f32; width]), second: 0, copy: 0 };
        let own = Jacobian { at: device.upload(&rows), stride: width as u64, tasks: TASKS };
        let rates = RatesOnDevice {
            rates: device.upload(&[Rates::from(Rule::Sgd { momentum: 0.0 })]),
            groups: device.upload(&[GroupRates { lr: -1.0, weight_decay: 0.0 }]),
        };
        let rule = ColumnRule { rule, factors: device.upload(&factors), seed, round: device.upload(&[round]) };
        device.run(&update_columns(state, own, rule, rates, at));
        device.download::<f32>(state.values, width)
    });
    for (x, y) in found.iter().zip(&expected) {
        assert!((x - y).abs() <= 1e-6 * (1.0 + y.abs()), "{name}: {x} for {y}");
    }
}

#[test]
fn graddrop_on_the_device() {
    rule_matches("graddrop", Columnwise::GradDrop { leak: 0.0 });
}

#[test]
fn trimmed_mean_on_the_device() {
    rule_matches("trimmed_mean", Columnwise::TrimmedMean { trim: 1 });
}
