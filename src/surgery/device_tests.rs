//! kernels/solve.cu, the rules for columns and the passes over buffers against the methods: one Gram matrix, several rounds of
//! state.

use super::blocks::Blocks;
use super::buffers::{PassAt, Passes};
use super::methods::{ColumnBlock, Inputs, RowPass, columns, registry};
use crate::machine::tensor::{DType, Tensor};
use crate::ops::adamw::{Rule, Step};
use crate::ops::column_rule::{self, ColumnSquare, How, Kernel};
use crate::ops::row_gradients::{RowGradients, Union};
use crate::ops::row_pass::PassRows;
use crate::ops::row_update::{RowUpdate, TableState};
use crate::ops::solve::{Method, Solve};
use crate::ops::testing::{On, Place};
use crate::ops::update::{Columns, ParameterState, Update};

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
    let sets = grams.len();
    let [weights, factors, summary] = on.run(|device| {
        let place = &mut Place::on(device);
        let own = Solve {
            weights: place.room(sets, TASKS, DType::F64),
            factors: place.room(1, TASKS, DType::F64),
            shared_factors: place.room(sets, TASKS, DType::F32),
            head_factors: place.room(1, TASKS, DType::F32),
            summary: place.room(1, 4, DType::F64),
            halted: place.words(&[0]),
            targets: place.f64(&vec![0.0; sets * cells]),
            parts: place.room(sets, cells, DType::F64),
            products: place.room(sets, cells, DType::F64),
            gram: place.f64(&grams.concat()),
            losses: place.f64(&[1.0; TASKS]),
            head_squares: place.f64(&heads),
            orders: orders.iter().flatten().map(|&at| at as u32).collect::<Vec<u32>>().repeat(sets),
            tasks: vec![0, 1, 2, 3],
            run_tasks: TASKS,
            method,
            rescale: 1.0,
            clip_norm,
            clip_tasks,
            heads_weighted: false,
        };
        for _ in 0..3 {
            place.run(&own);
        }
        [own.weights, own.shared_factors, own.summary].map(|result| place.found("solved", result).values)
    });
    for (found, expected) in weights.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-11 * (1.0 + expected.abs()), "{name}: {found} for {expected}");
    }
    assert!((summary[0] - square.sqrt()).abs() < 1e-9 * square.sqrt() && summary[2] == 1.0, "{summary:?} for {square}");
    let clip = if clip_tasks { 1.0 } else { clip_norm / square.sqrt() };
    assert!((summary[1] - clip).abs() < 1e-9);
    for (at, (factor, weight)) in factors.iter().zip(&expected).enumerate() {
        assert!((factor - weight * clips[at % TASKS] * clip).abs() < 1e-6, "{factors:?}");
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

/// A method's rule as operations take it, on gradients scaled by these factors.
fn rule<'a>(host: crate::ops::adamw::ColumnRule<'a>, kernel: Kernel, factors: &'a [f64]) -> column_rule::Rule<'a> {
    column_rule::Rule { host, kernel, factors, seed: SEED, round: ROUND }
}

const SEED: u64 = 5;
const ROUND: u64 = 7;
const FACTORS: [f64; TASKS] = [1.0, 0.5, 2.0, 1.5];
const RULES: [(&str, Kernel); 2] =
    [("graddrop", Kernel::GradDrop { leak: 0.0 }), ("trimmed_mean", Kernel::TrimmedMean { trim: 1 })];

/// What the method makes of some columns.
fn combine(name: &str, rows: &[(usize, &[f32])], first: u64, out: &mut [f32]) {
    let params = match name {
        "trimmed_mean" => serde_json::json!({ "trim": 1 }),
        _ => serde_json::json!({}),
    };
    let method = registry::build(name, params.as_object().expect("an object"), TASKS).expect("known");
    let rows: Vec<(f64, &[f32])> = rows.iter().map(|&(task, row)| (FACTORS[task], row)).collect();
    let block = ColumnBlock { rows: &rows, count: TASKS, first, round: ROUND, seed: SEED };
    columns::combine(method.columnwise().expect("elementwise"), &block, out);
}

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 7919) % 101) as f32 / 50.0 - 1.0).collect()
}

/// SGD with rate -1 from zero leaves the combined gradient itself.
const PLAIN: Step = Step { rule: Rule::Sgd { momentum: 0.0 }, lr: -1.0, weight_decay: 0.0 };

/// Dense columns and two table rows, the second one of all but one task.
fn rules_for_columns(on: On) {
    let (width, dim) = (300, 37);
    let mut union = Union::default();
    union.merge(&[&[3, 8], &[3], &[3, 8], &[3, 8]]);
    for ((name, kernel), dtype) in RULES.into_iter().zip([DType::F32, DType::Bf16]) {
        let host = |rows: &[(usize, &[f32])], first: u64, out: &mut [f32]| combine(name, rows, first, out);
        on.compare(|place: &mut Place| {
            let rule = rule(&host, kernel, &FACTORS);
            let (all, rows) = (place.jacobian(&values(TASKS * width), width, dtype), place.f32(&values(7 * dim), dim));
            let jacobian: Vec<Tensor> = (0..TASKS).map(|task| all.rows(task..task + 1)).collect();
            let tasks = vec![rows.rows(0..2), rows.rows(2..3), rows.rows(3..5), rows.rows(5..7)];
            let gradients = RowGradients::new(&union, tasks, dim);
            let mut zeros = |rows: usize, columns: usize| place.f32(&vec![0.0; rows * columns], columns);
            let (values, first, table, moment) = (zeros(1, width), zeros(1, width), zeros(2, dim), zeros(2, dim));
            let none = Tensor::NONE;
            place.run(&Update {
                state: ParameterState { values, first, second: none, copy: none },
                jacobian: jacobian.clone(),
                columns: vec![Columns { range: 0..width, set: 0, decay: true }],
                how: How::Columns(rule.clone()),
                step: PLAIN,
                halted: none,
            });
            place.run(&RowUpdate {
                state: TableState { values: table, first: moment, second: none, copy: none },
                slots: &[0, 1],
                gradients: gradients.clone(),
                how: How::Columns(rule.clone()),
                first_column: width as u64,
                step: PLAIN,
                halted: none,
            });
            let out = place.room(1, 1, DType::F64);
            let scratch = [place.scratch(2, DType::F64), place.scratch(1, DType::F64), place.scratch(1, DType::F32)];
            place.run(&ColumnSquare { jacobian, rows: Some(gradients), rule, out, scratch });
            vec![place.found("columns", values), place.found("rows", table), place.found("square", out)]
        });
    }
}

/// As many tasks as fill all of the shared memory that needs no permission, beside what the kernel has of its own.
fn a_rule_for_24_tasks(on: On) {
    let (tasks, width, factors) = (24, 300, [1.0; 24]);
    let mean = |rows: &[(usize, &[f32])], _: u64, out: &mut [f32]| {
        for (column, out) in out.iter_mut().enumerate() {
            *out = (rows.iter().map(|(_, row)| f64::from(row[column])).sum::<f64>() / tasks as f64) as f32;
        }
    };
    on.compare(|place: &mut Place| {
        let all = place.f32(&values(tasks * width), width);
        let jacobian: Vec<Tensor> = (0..tasks).map(|task| all.rows(task..task + 1)).collect();
        let rule = rule(&mean, Kernel::TrimmedMean { trim: 0 }, &factors);
        let out = place.room(1, 1, DType::F64);
        let scratch = [place.scratch(1, DType::F64), place.scratch(1, DType::F64), place.scratch(1, DType::F32)];
        place.run(&ColumnSquare { jacobian, rows: None, rule, out, scratch });
        vec![place.found("square", out)]
    });
}

/// One second moment a row: AdamW's first step from zero, whose length hangs on the mean square of the row's update.
fn a_rule_with_one_moment_a_row(on: On) {
    let dim = 37;
    let mut union = Union::default();
    union.merge(&[&[0], &[0], &[0], &[0]]);
    let host = |rows: &[(usize, &[f32])], first: u64, out: &mut [f32]| combine("trimmed_mean", rows, first, out);
    let adam = Rule::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, correction1: 0.1, correction2: 0.01 };
    on.compare(|place: &mut Place| {
        let rows = place.f32(&values(TASKS * dim), dim);
        let tasks = (0..TASKS).map(|task| rows.rows(task..task + 1)).collect();
        let [values, first] = [(); 2].map(|()| place.f32(&vec![0.0; dim], dim));
        let second = place.f32(&[0.0], 1);
        place.run(&RowUpdate {
            state: TableState { values, first, second, copy: Tensor::NONE },
            slots: &[0],
            gradients: RowGradients::new(&union, tasks, dim),
            how: How::Columns(rule(&host, Kernel::TrimmedMean { trim: 1 }, &FACTORS)),
            first_column: 0,
            step: Step { rule: adam, lr: 0.1, weight_decay: 0.0 },
            halted: Tensor::NONE,
        });
        vec![place.found("values", values), place.found("moment", second)]
    });
}

/// Three tasks of a run's four, two rounds: dense columns in blocks of which one has the table's rows, and rows that tasks touch
/// for the first time, for the second, and not at all.
fn passes_over_buffers(on: On, passes: &[RowPass], apart: bool) {
    // The block of the table's rows is not the last, and more columns than a chunk has.
    let (width, dim, tasks) = (9_000, 37, [0, 2, 3]);
    let names = ["a", "b", "c"].map(String::from).to_vec();
    let blocks = Blocks { names, ranges: vec![0..101, 101..300, 300..width], table: Some(1), apart };
    let factors = [0.5, 2.0, 1.25];
    let moved = Passes { passes, factors: &factors, tasks: &tasks };
    on.compare(|place: &mut Place| {
        let stride = width + 24;
        let (all, buffers) = (place.f32(&values(tasks.len() * stride), stride), place.f32(&vec![0.0; 4 * width], width));
        let (rows, row_buffers) = (place.f32(&values(5 * dim), dim), place.f32(&vec![0.0; 12 * dim], dim));
        let (sums, partials) = (place.room(passes.len(), tasks.len(), DType::F64), place.scratch(64, DType::F64));
        let mut found = Vec::new();
        // By task: slots of its buffer, of which there are three.
        for slots in [[vec![0, 1], vec![], vec![0, 2, 1]], [vec![2, 1], vec![0], vec![1, 0]]] {
            let mut first = 0;
            let gradients = slots.iter().map(|own: &Vec<u32>| {
                first += own.len();
                if own.is_empty() { Tensor::NONE } else { rows.rows(first - own.len()..first) }
            });
            let at = PassAt {
                jacobian: (0..tasks.len()).map(|task| Tensor { columns: width, ..all.rows(task..task + 1) }).collect(),
                buffers: tasks.iter().map(|&task| buffers.rows(task..task + 1)).collect(),
                rows: Some(PassRows {
                    gradients: gradients.collect(),
                    buffers: tasks.iter().map(|&task| row_buffers.rows(3 * task..3 * task + 3)).collect(),
                    slots: slots.to_vec(),
                    dim,
                }),
                sums,
                partials,
            };
            place.run(&moved.over(&blocks, at));
            found.push(place.found("sums", sums));
        }
        let results = [("gradients", all), ("buffers", buffers), ("row gradients", rows), ("row buffers", row_buffers)];
        found.extend(results.map(|(what, tensor)| place.found(what, tensor)));
        found
    });
}

fn gradients_blend_into_their_buffers(on: On) {
    let blend = |keep| RowPass::Blend { keep, add: vec![1.5, 0.25, 3.0] };
    passes_over_buffers(on, &[blend(0.5)], false);
    passes_over_buffers(on, &[blend(0.5), blend(0.75), blend(0.0)], true);
}

fn squares_add_up_in_their_buffers(on: On) {
    passes_over_buffers(on, &[RowPass::Squares { eps: 1e-7 }], false);
    passes_over_buffers(on, &[1e-7, 1e-3, 1.0].map(|eps| RowPass::Squares { eps }), true);
}

crate::ops::testing::on_devices! {
    gradients_blend_into_their_buffers,
    squares_add_up_in_their_buffers,
    several_blocks_and_clipped_tasks,
    rules_for_columns,
    a_rule_for_24_tasks,
    a_rule_with_one_moment_a_row,
    pcgrad_on_the_device,
    gradvac_on_the_device,
}
