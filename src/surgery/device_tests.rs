//! kernels/solve.cu and the rules of update.cu against the methods: one Gram matrix, several rounds of state.

use super::methods::{ColumnBlock, Inputs, columns, registry};
use crate::ops::adamw::Rule;
use crate::ops::cases::{Device, On};
use crate::ops::launch::rows::{self, Table, Union};
use crate::ops::launch::surgery::ChunksOnDevice;
use crate::ops::launch::surgery::{
    Chunks, ColumnRule, Columns, Columnwise, GroupRates, Jacobian, Method, Rates, RatesOnDevice, Solve, State, column_squares,
    solve, update_columns,
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

/// Another block's rows.
fn other() -> Vec<f64> {
    jacobian().iter().rev().map(|x| 2.0 * x).collect()
}

/// Blocks with a method of their own each, three rounds; clipping either the update or each task's gradient.
fn matches(on: On, name: &str, method: Method, grams: &[Vec<f64>], clip_tasks: bool) {
    let (clip_norm, heads) = (0.5, [1.0f64, 2.0, 3.0, 4.0]);
    let cells = TASKS * TASKS;
    let orders: Vec<Vec<usize>> = (0..TASKS).map(|row| (0..TASKS).map(|at| (at + row) % TASKS).collect()).collect();
    let tasks: Vec<usize> = (0..TASKS).collect();
    let own_square = |task: usize| heads[task] + grams.iter().map(|gram| gram[task * (TASKS + 1)]).sum::<f64>();
    let clips: Vec<f64> = (0..TASKS).map(|task| if clip_tasks { clip_norm / own_square(task).sqrt() } else { 1.0 }).collect();
    let mut expected = Vec::new();
    let mut square: f64 = heads.iter().zip(&clips).map(|(head, clip)| clip * clip * head).sum();
    for gram in grams {
        let scaled: Vec<f64> = (0..cells).map(|cell| gram[cell] * clips[cell / TASKS] * clips[cell % TASKS]).collect();
        let mut reference = registry::build(name, &serde_json::Map::new(), TASKS).expect("known");
        let inputs = |round| Inputs {
            gram: &scaled,
            cross_gram: &[],
            losses: &[1.0; TASKS],
            row_sums: &[],
            tasks: &tasks,
            round,
            seed: 1,
            orders: Some(&orders),
        };
        let mut weights = Vec::new();
        for round in 0..3 {
            weights = reference.solve(&inputs(round)).weights;
        }
        square += (0..cells).map(|cell| weights[cell / TASKS] * weights[cell % TASKS] * scaled[cell]).sum::<f64>();
        expected.extend(weights);
    }
    let count = expected.len();
    let (weights, factors, summary) = on.run(|device: &mut Device| {
        let flat: Vec<u32> = orders.iter().flatten().map(|&at| at as u32).collect();
        let own = Solve {
            weights: device.room::<f64>(count),
            factors: device.room::<f64>(TASKS),
            shared_factors: device.room::<f32>(count),
            head_factors: device.room::<f32>(TASKS),
            summary: device.room::<f64>(4),
            rates: device.upload(&[Rates::from(Rule::Sgd { momentum: 0.0 })]),
            targets: device.upload(&vec![0.0f64; grams.len() * cells]),
            parts: device.room::<f64>(grams.len() * cells),
            products: device.room::<f64>(grams.len() * cells),
            gram: device.upload(&grams.concat()),
            orders: device.upload(&flat.repeat(grams.len())),
            tasks: device.upload(&[0u32, 1, 2, 3]),
            balance: device.upload(&[1.0f64; TASKS]),
            losses: device.upload(&[1.0f64; TASKS]),
            head_squares: device.upload(&heads),
            method,
            blocks: grams.len(),
            count: TASKS,
            run_tasks: TASKS,
            rescale: 1.0,
            clip_norm,
            clip_tasks,
            heads_weighted: false,
        };
        for _ in 0..3 {
            device.run(&solve(&own));
        }
        (
            device.download::<f64>(own.weights, count),
            device.download::<f32>(own.shared_factors, count),
            device.download::<f64>(own.summary, 4),
        )
    });
    for (found, expected) in weights.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-11 * (1.0 + expected.abs()), "{name}: {found} for {expected}");
    }
    assert!((summary[0] - square.sqrt()).abs() < 1e-9 * square.sqrt() && summary[2] == 1.0, "{summary:?} for {square}");
    let clip = if clip_tasks { 1.0 } else { clip_norm / square.sqrt() };
    assert!((summary[1] - clip).abs() < 1e-9);
    for (at, (factor, weight)) in factors.iter().zip(&expected).enumerate() {
        assert!((f64::from(*factor) - weight * clips[at % TASKS] * clip).abs() < 1e-6, "{factors:?}");
    }
}

const GRADVAC: Method = Method::GradVac { beta: 0.5, eps: 1e-8 };

fn pcgrad_on_the_device(on: On) {
    matches(on, "pcgrad", Method::PcGrad, &[gram(&jacobian())], false);
}

fn gradvac_on_the_device(on: On) {
    matches(on, "gradvac", GRADVAC, &[gram(&jacobian())], false);
}

fn several_blocks_and_clipped_tasks(on: On) {
    let grams = [gram(&jacobian()), gram(&other())];
    for clip_tasks in [false, true] {
        matches(on, "pcgrad", Method::PcGrad, &grams, clip_tasks);
        matches(on, "gradvac", GRADVAC, &grams, clip_tasks);
    }
}

/// SGD with rate -1 from zero leaves the combined gradient itself.
fn rule_matches(on: On, name: &str, rule: Columnwise) {
    let (width, seed, round) = (300usize, 5u64, 7u64);
    let rows: Vec<f32> = (0..TASKS * width).map(|at| ((at * 7919) % 101) as f32 / 50.0 - 1.0).collect();
    let factors = [1.0f64, 0.5, 2.0, 1.5];
    let method = registry::build(name, &serde_json::Map::new(), TASKS).expect("known");
    let views: Vec<(f64, &[f32])> = factors.into_iter().zip(rows.chunks(width)).collect();
    let mut expected = vec![0.0f32; width];
    let block = ColumnBlock { rows: &views, count: TASKS, first: 0, round, seed };
    columns::combine(method.columnwise().expect("elementwise"), &block, &mut expected);
    let (found, squares) = on.run(|device: &mut Device| {
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
        let squares = device.room::<f64>(at.count);
        device.run(&column_squares(squares, own, rule, at));
        (device.download::<f32>(state.values, width), device.download::<f64>(squares, at.count))
    });
    for (square, columns) in squares.iter().zip(expected.chunks(128)) {
        let exact: f64 = columns.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        assert!((square - exact).abs() <= 1e-6 * exact, "{name}: {square} for {exact}");
    }
    for (x, y) in found.iter().zip(&expected) {
        assert!((x - y).abs() <= 1e-6 * (1.0 + y.abs()), "{name}: {x} for {y}");
    }
}

fn graddrop_on_the_device(on: On) {
    rule_matches(on, "graddrop", Columnwise::GradDrop { leak: 0.0 });
}

fn trimmed_mean_on_the_device(on: On) {
    rule_matches(on, "trimmed_mean", Columnwise::TrimmedMean { trim: 1 });
}

/// Two table rows, the second one of all but one task; SGD with rate -1 from zero leaves the update itself.
fn row_rule_matches(on: On, name: &str, rule: Columnwise) {
    let (dim, seed, round, base) = (37usize, 5u64, 7u64, 1000u64);
    let table_rows = [3u32, 8];
    let members: [&[u32]; 2] = [&[0, 1, 2, 3], &[0, 2, 3]];
    let rows: Vec<f32> = (0..7 * dim).map(|at| ((at * 7919) % 101) as f32 / 50.0 - 1.0).collect();
    let factors = [1.0f64, 0.5, 2.0, 1.5];
    let method = registry::build(name, &serde_json::Map::new(), TASKS).expect("known");
    let mut expected = vec![0.0f32; 2 * dim];
    let (mut pairs, mut next) = (Vec::new(), 0u32);
    for (index, (tasks, out)) in members.iter().zip(expected.chunks_mut(dim)).enumerate() {
        let own = tasks.iter().zip(next..);
        let views: Vec<(f64, &[f32])> =
            own.clone().map(|(&task, row)| (factors[task as usize], &rows[row as usize * dim..][..dim])).collect();
        pairs.extend(own.map(|(&task, row)| [task, row]));
        next += tasks.len() as u32;
        let first = base + u64::from(table_rows[index]) * dim as u64;
        let block = ColumnBlock { rows: &views, count: TASKS, first, round, seed };
        columns::combine(method.columnwise().expect("elementwise"), &block, out);
    }
    let (found, squares) = on.run(|device: &mut Device| {
        let table = Table {
            values: device.upload(&vec![0.0f32; 2 * dim]),
            first: device.upload(&vec![0.0f32; 2 * dim]),
            second: 0,
            second_dim: 0,
            slots: device.upload(&[0u32, 1]),
            dim,
            group: 0,
        };
        let union = Union {
            rows: device.upload(&table_rows),
            starts: device.upload(&[0u32, 4, 7]),
            members: device.upload(&pairs),
            count: 2,
        };
        let rates = RatesOnDevice {
            rates: device.upload(&[Rates::from(Rule::Sgd { momentum: 0.0 })]),
            groups: device.upload(&[GroupRates { lr: -1.0, weight_decay: 0.0 }]),
        };
        let rule = ColumnRule { rule, factors: device.upload(&factors), seed, round: device.upload(&[round]) };
        let gradients = device.upload(&rows);
        device.run(&rows::update_columns(table, gradients, union, TASKS, rule, base, rates));
        let squares = device.room::<f64>(1);
        device.run(&rows::column_squares(squares, gradients, union, TASKS, dim, rule, base));
        (device.download::<f32>(table.values, 2 * dim), device.download::<f64>(squares, 1))
    });
    let exact: f64 = expected.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    assert!((squares[0] - exact).abs() <= 1e-6 * exact, "{name}: {squares:?} for {exact}");
    for (x, y) in found.iter().zip(&expected) {
        assert!((x - y).abs() <= 1e-6 * (1.0 + y.abs()), "{name}: {x} for {y}");
    }
}

/// One second moment a row: AdamW's first step from zero, whose length hangs on the mean square of the row's update.
fn a_rule_with_one_moment_a_row(on: On) {
    let (dim, seed, round) = (37usize, 5u64, 7u64);
    let rows: Vec<f32> = (0..TASKS * dim).map(|at| ((at * 7919) % 101) as f32 / 50.0 - 1.0).collect();
    let method = registry::build("trimmed_mean", &serde_json::Map::new(), TASKS).expect("known");
    let views: Vec<(f64, &[f32])> = rows.chunks(dim).map(|row| (1.0, row)).collect();
    let mut update = vec![0.0f32; dim];
    let block = ColumnBlock { rows: &views, count: TASKS, first: 0, round, seed };
    columns::combine(method.columnwise().expect("elementwise"), &block, &mut update);
    let (beta1, beta2) = (0.9f32, 0.99f32);
    let optimizer = Rule::AdamW { beta1, beta2, eps: 1e-8, correction1: 1.0 - beta1, correction2: 1.0 - beta2 };
    let (values, moment) = on.run(|device: &mut Device| {
        let table = Table {
            values: device.upload(&vec![0.0f32; dim]),
            first: device.upload(&vec![0.0f32; dim]),
            second: device.upload(&[0.0f32]),
            second_dim: 1,
            slots: device.upload(&[0u32]),
            dim,
            group: 0,
        };
        let members: Vec<[u32; 2]> = (0..TASKS as u32).map(|task| [task, task]).collect();
        let union = Union {
            rows: device.upload(&[0u32]),
            starts: device.upload(&[0u32, TASKS as u32]),
            members: device.upload(&members),
            count: 1,
        };
        let rates = RatesOnDevice {
            rates: device.upload(&[Rates::from(optimizer)]),
            groups: device.upload(&[GroupRates { lr: 0.1, weight_decay: 0.0 }]),
        };
        let rule = Columnwise::TrimmedMean { trim: 1 };
        let rule = ColumnRule { rule, factors: device.upload(&[1.0f64; TASKS]), seed, round: device.upload(&[round]) };
        let gradients = device.upload(&rows);
        device.run(&rows::update_columns(table, gradients, union, TASKS, rule, 0, rates));
        (device.download::<f32>(table.values, dim), device.download::<f32>(table.second, 1))
    });
    let square = update.iter().map(|d| d * d).sum::<f32>() / dim as f32;
    assert!((moment[0] - (1.0 - beta2) * square).abs() <= 1e-5 * moment[0], "{moment:?} for {square}");
    for (x, d) in values.iter().zip(&update) {
        let expected = -0.1 * d / square.sqrt();
        assert!((x - expected).abs() <= 1e-5, "{x} for {expected}");
    }
}

fn rules_on_table_rows(on: On) {
    row_rule_matches(on, "graddrop", Columnwise::GradDrop { leak: 0.0 });
    row_rule_matches(on, "trimmed_mean", Columnwise::TrimmedMean { trim: 1 });
}

crate::ops::cases::on_devices! {
    several_blocks_and_clipped_tasks,
    rules_on_table_rows,
    a_rule_with_one_moment_a_row,
    pcgrad_on_the_device,
    gradvac_on_the_device,
    graddrop_on_the_device,
    trimmed_mean_on_the_device,
}
