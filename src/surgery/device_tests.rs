//! kernels/solve.cu against the methods that a device solves, whichever the registry has; the rules for columns and the passes over
//! buffers against theirs.

use std::rc::Rc;

use serde_json::{Map, Value};

use super::blocks::Blocks;
use super::buffers::{PassAt, Passes};
use super::methods::params::{Kind, Range};
use super::methods::registry::Descriptor;
use super::methods::testing::{gaussian, gram_of};
use super::methods::{ColumnBlock, DeviceSolver, Inputs, Method, Order, RowPass, Status, columns, registry};
use crate::machine::tensor::{DType, Tensor};
use crate::ops::adamw::{Rule, Step};
use crate::ops::column_rule::{self, ColumnSquare, How, Kernel};
use crate::ops::row_gradients::{RowGradients, Union};
use crate::ops::row_pass::PassRows;
use crate::ops::row_update::{RowUpdate, TableState};
use crate::ops::solve::Solve;
use crate::ops::testing::{On, Place};
use crate::ops::update::{Columns, ParameterState, Update};

const TASKS: usize = 4;

/// A method that a device solves, and parameters to give it.
struct Case {
    name: &'static str,
    params: Map<String, Value>,
}

impl Case {
    fn build(&self, run_tasks: usize) -> Box<dyn Method> {
        registry::build(self.name, &self.params, run_tasks).expect("known")
    }
}

/// Every such method with its defaults.
fn defaults() -> Vec<(Case, &'static Descriptor)> {
    let solved = registry::DESCRIPTORS.iter().filter(|descriptor| descriptor.is_solved_on_device());
    solved.map(|descriptor| (Case { name: descriptor.name, params: Map::new() }, descriptor)).collect()
}

/// Other values that a parameter may have.
fn others(kind: Kind) -> Vec<Value> {
    match kind {
        Kind::Number { range: Range::NonNegative, .. } => vec![0.0.into(), 2.0.into()],
        Kind::Number { range: Range::Unit, .. } => vec![0.0.into(), 1.0.into()],
        Kind::Number { .. } => vec![0.25.into()],
        Kind::Count { .. } => vec![3.into()],
        Kind::Choice { default, options } => {
            options.iter().filter(|&&option| option != default).map(|&option| option.into()).collect()
        }
    }
}

/// One parameter at a time.
fn variants() -> Vec<Case> {
    let mut cases = Vec::new();
    for (Case { name, .. }, descriptor) in defaults() {
        for param in descriptor.params {
            let changed = |value| Case { name, params: Map::from_iter([(param.name.to_owned(), value)]) };
            cases.extend(others(param.kind).into_iter().map(changed));
        }
    }
    cases
}

const KINDS: u64 = 7;

/// From this number on some rows add up to zero, so that what is left of them is rounding.
const SINGULAR: u64 = 4;

/// (T x T) by number: plain, with a row of zeros, with rows of very different length, nothing but zeros, of half the rank, with rows that
/// are equal, and of opposed rows.
fn gram(count: usize, kind: u64, seed: u64) -> Vec<f64> {
    let mut rows = gaussian(count, if kind == 4 { count.div_ceil(2) } else { 2 * count }, 100 * seed + kind);
    for row in 0..count {
        let first = rows[0].clone();
        match kind {
            1 if row == count / 2 => rows[row].fill(0.0),
            5 if row % 2 == 1 => rows[row] = rows[row - 1].clone(),
            2 => rows[row].iter_mut().for_each(|x| *x *= 10.0_f64.powi(row as i32 % 7 - 3)),
            6 if row % 2 == 1 => rows[row] = first.iter().map(|x| -x * row as f64).collect(),
            3 => rows[row].fill(0.0),
            _ => {}
        }
    }
    gram_of(&rows)
}

const SEED: u64 = 5;
const OBSERVED: f64 = 4.0;

/// A round: all but one of the run's tasks, some losses, and a matrix for each set.
struct Round {
    number: u64,
    tasks: Vec<usize>,
    losses: Vec<f64>,
    grams: Vec<Vec<f64>>,
}

impl Round {
    fn new(number: u64, kind: u64, count: usize, sets: usize) -> Self {
        let first = (number % 2) as usize;
        let mut losses: Vec<f64> = (0..count).map(|task| 0.5 + 0.25 * task as f64 + 0.125 * number as f64).collect();
        if number == 3 {
            losses[count - 1] = 0.0;
        }
        let grams = (0..sets as u64).map(|set| gram(count, kind, 10 * number + set)).collect();
        Self { number, tasks: (first..first + count).collect(), losses, grams }
    }

    fn inputs<'a>(&'a self, gram: &'a [f64]) -> Inputs<'a> {
        let Self { number, tasks, losses, .. } = self;
        Inputs { gram, cross_gram: &[], losses, row_sums: &[], tasks, round: *number, seed: SEED, orders: None }
    }

    /// What changes from round to round.
    fn give(&self, place: &mut Place, solver: &DeviceSolver, problem: &mut Solve) {
        let count = self.tasks.len();
        let visits = |order: Order, row| order.visits(count, SEED, self.number, row).into_iter().map(|at| at as u32);
        problem.gram = place.f64(&self.grams.concat());
        problem.losses = place.f64(&self.losses.iter().map(|loss| OBSERVED * loss).collect::<Vec<f64>>());
        problem.tasks = self.tasks.iter().map(|&task| task as u32).collect();
        problem.orders = solver.order.map_or_else(Vec::new, |order| (0..count).flat_map(|row| visits(order, row)).collect());
    }
}

/// Everything of a problem of so many tasks and sets but what changes from round to round.
fn problem(place: &mut Place, solver: &DeviceSolver, count: usize, state: &[Vec<f64>]) -> Solve {
    let (sets, numbers) = (state.len(), state[0].len());
    Solve {
        kernel: solver.kernel,
        weights: place.room(sets, count, DType::F64),
        factors: place.room(1, count, DType::F64),
        shared_factors: place.room(sets, count, DType::F32),
        head_factors: place.room(1, count, DType::F32),
        summary: place.room(1, 3, DType::F64),
        statuses: place.room(sets, 2, DType::F64),
        halted: place.words(&[0]),
        state: if numbers == 0 { Tensor::NONE } else { place.f64(&state.concat()).as_rows(sets, numbers) },
        scratch: place.room(sets, solver.scratch(count), DType::F64),
        gram: Tensor::NONE,
        losses: Tensor::NONE,
        head_squares: place.f64(&heads(count)),
        observed: vec![OBSERVED; count],
        orders: Vec::new(),
        tasks: Vec::new(),
        run_tasks: count + 1,
        numbers: solver.numbers,
        rescale: 1.0,
        clip_norm: 0.0,
        clip_tasks: false,
        heads_weighted: false,
    }
}

fn heads(count: usize) -> Vec<f64> {
    (0..count).map(|task| 1.0 + task as f64).collect()
}

/// The emulated device computes what the host does in the host's order, to the bit. A card contracts a product and a sum into one rounding
/// and has functions of its own, within two units in the last place: 1e-9 leaves room for what a condition of 1e6 makes of them. Rows that
/// add up to zero are solved with a ridge of 1e-8, or leave a rest of rounding of whose length the root is taken: 1e-6.
fn tolerance(on: On, kinds: &[u64]) -> f64 {
    match on {
        On::Emulated => 0.0,
        On::Cuda if kinds.iter().any(|&kind| kind >= SINGULAR) => 1e-6,
        On::Cuda => 1e-9,
    }
}

fn are_near(found: &[f64], expected: &[f64], tolerance: f64) -> bool {
    let largest = expected.iter().filter(|x| x.is_finite()).fold(0.0_f64, |most, x| most.max(x.abs()));
    let near = |(a, b): (&f64, &f64)| (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * largest;
    found.len() == expected.len() && found.iter().zip(expected).all(near)
}

/// Whether two updates are, on the scale of the parts that add up to them: weights of equal rows may differ where their sum does not.
fn make_the_same_update(gram: &[f64], found: &[f64], expected: &[f64], tolerance: f64) -> bool {
    let count = found.len();
    let apart: Vec<f64> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
    let square: f64 = (0..count * count).map(|cell| apart[cell / count] * apart[cell % count] * gram[cell]).sum();
    let parts: f64 = (0..count).map(|i| expected[i].powi(2) * gram[i * (count + 1)]).sum();
    parts > 0.0 && square.max(0.0).sqrt() <= tolerance * parts.sqrt()
}

/// The reason without its numbers, which may differ in a last digit on a card.
fn reason(status: &Status) -> String {
    match status {
        Status::Ok => String::new(),
        Status::Fallback(why) => why.chars().filter(char::is_ascii_alphabetic).collect(),
    }
}

/// Rounds of these kinds one after the other: weights, statuses, and what the method remembers at the end.
fn solves(on: On, case: &Case, count: usize, kinds: &[u64], sets: usize) {
    let mut methods: Vec<_> = (0..sets).map(|_| case.build(count + 1)).collect();
    let solver = methods[0].device_solver().expect("solved on a device");
    let start: Vec<Vec<f64>> = methods.iter().map(|method| method.device_state()).collect();
    let rounds: Vec<Round> =
        kinds.iter().enumerate().map(|(number, &kind)| Round::new(number as u64, kind, count, sets)).collect();
    let found = on.run(|device| {
        let place = &mut Place::on(device);
        let mut problem = problem(place, &solver, count, &start);
        let mut found = Vec::new();
        for round in &rounds {
            round.give(place, &solver, &mut problem);
            place.run(&problem);
            let results = [problem.weights, problem.statuses, problem.state];
            let mut values = |tensor: Tensor| if tensor.is_none() { Vec::new() } else { place.found("solved", tensor).values };
            // Bits, as a state may have NaN.
            found.push(results.map(|tensor| values(tensor).into_iter().map(f64::to_bits).collect::<Vec<u64>>()));
        }
        found
    });
    for (round, results) in rounds.iter().zip(found) {
        let [weights, statuses, state] = results.map(|bits| bits.into_iter().map(f64::from_bits).collect::<Vec<f64>>());
        let tolerance = tolerance(on, &kinds[..=round.number as usize]);
        for (set, method) in methods.iter_mut().enumerate() {
            let what = format!("{} {:?}, {count} tasks, round {}, set {set}", case.name, case.params, round.number);
            let expected = method.solve(&round.inputs(&round.grams[set]));
            let status = solver.status(statuses[2 * set], statuses[2 * set + 1]);
            assert_eq!(reason(&status), reason(&expected.status), "{what}: {status:?} for {:?}", expected.status);
            assert!(on == On::Cuda || status == expected.status, "{what}: {status:?} for {:?}", expected.status);
            let (found, expected, gram) = (&weights[set * count..][..count], &expected.weights, &round.grams[set]);
            let near = are_near(found, expected, tolerance) || make_the_same_update(gram, found, expected, tolerance);
            assert!(near, "{what}: {found:?} for {expected:?}");
        }
        let expected: Vec<f64> = methods.iter().flat_map(|method| method.device_state()).collect();
        if tolerance < 1e-6 {
            assert!(are_near(&state, &expected, tolerance), "state of {}: {state:?} for {expected:?}", case.name);
        }
        // What the host takes back is what it would have.
        for (method, state) in methods.iter_mut().zip(state.chunks(start[0].len().max(1))) {
            let before = method.state();
            method.set_device_state(state);
            assert!(on == On::Cuda || method.state() == before, "{}", case.name);
        }
    }
}

fn few_tasks(on: On) {
    let kinds: Vec<u64> = (0..KINDS).collect();
    for (case, _) in defaults() {
        for count in [1, 2, 9] {
            solves(on, &case, count, &kinds, 1);
        }
    }
}

fn other_parameters(on: On) {
    let kinds: Vec<u64> = (0..KINDS).collect();
    for case in variants() {
        solves(on, &case, 4, &kinds, 1);
    }
}

fn many_tasks(on: On) {
    for (case, _) in defaults() {
        solves(on, &case, 33, &[0, 2], 1);
    }
}

fn several_sets(on: On) {
    for (case, _) in defaults() {
        solves(on, &case, 3, &[0, 1, 0, 6], 3);
    }
}

/// More rows than a block has threads.
fn more_tasks_than_threads(on: On) {
    for (case, _) in defaults().into_iter().filter(|(_, descriptor)| descriptor.needs.gram).take(3) {
        solves(on, &case, 130, &[0], 1);
    }
}

/// Of two sets, clipping either the update or each task's gradient: norm, clip and factors.
fn clipped_tasks_and_updates(on: On) {
    const COUNT: usize = 4;
    let (clip_norm, heads, round) = (0.5, heads(COUNT), Round::new(0, 0, COUNT, 2));
    let both = |(case, _)| [false, true].map(|clip_tasks| (Rc::clone(&case), clip_tasks));
    for (case, clip_tasks) in defaults().into_iter().map(|(case, descriptor)| (Rc::new(case), descriptor)).flat_map(both) {
        let own_square = |task: usize| heads[task] + round.grams.iter().map(|gram| gram[task * (COUNT + 1)]).sum::<f64>();
        let clips: Vec<f64> = (0..COUNT).map(|task| if clip_tasks { clip_norm / own_square(task).sqrt() } else { 1.0 }).collect();
        let mut method = case.build(COUNT + 1);
        let solver = method.device_solver().expect("solved on a device");
        let state = vec![method.device_state(); 2];
        let mut expected = Vec::new();
        let mut square: f64 = heads.iter().zip(&clips).map(|(head, clip)| clip * clip * head).sum();
        for gram in &round.grams {
            let scaled: Vec<f64> =
                (0..COUNT * COUNT).map(|cell| gram[cell] * (clips[cell / COUNT] * clips[cell % COUNT])).collect();
            method = case.build(COUNT + 1);
            let weights: Vec<f64> = method.solve(&round.inputs(&scaled)).weights.iter().map(|weight| 2.0 * weight).collect();
            square += (0..COUNT * COUNT).map(|cell| weights[cell / COUNT] * weights[cell % COUNT] * scaled[cell]).sum::<f64>();
            expected.extend(weights);
        }
        let [weights, factors, head_factors, summary] = on.run(|device| {
            let place = &mut Place::on(device);
            let mut own = Solve { rescale: 2.0, clip_norm, clip_tasks, ..problem(place, &solver, COUNT, &state) };
            round.give(place, &solver, &mut own);
            place.run(&own);
            [own.weights, own.shared_factors, own.head_factors, own.summary].map(|result| place.found("solved", result).values)
        });
        let near = |a: f64, b: f64, tolerance: f64| assert!((a - b).abs() <= tolerance * b.abs(), "{}: {a} for {b}", case.name);
        let clip = if clip_tasks { 1.0 } else { clip_norm / square.sqrt() };
        weights.iter().zip(&expected).for_each(|(found, expected)| near(*found, *expected, 1e-9));
        near(summary[0], square.sqrt(), 1e-9);
        near(summary[1], clip, 1e-9);
        assert_eq!(summary[2], 1.0);
        for (at, (factor, weight)) in factors.iter().zip(&expected).enumerate() {
            near(*factor, weight * clips[at % COUNT] * clip, 1e-6);
        }
        head_factors.iter().zip(&clips).for_each(|(found, own)| near(*found, own * clip, 1e-6));
    }
}

/// A gradient that is not finite stops its round and all after it, until the host clears the halt: nothing is changed.
fn what_is_not_finite_changes_nothing(on: On) {
    const COUNT: usize = 3;
    for (case, _) in defaults() {
        let method = case.build(COUNT + 1);
        let solver = method.device_solver().expect("solved on a device");
        let start = vec![method.device_state(); 2];
        let good = Round::new(0, 0, COUNT, 2);
        let mut bad = [Round::new(1, 0, COUNT, 2), Round::new(1, 0, COUNT, 2)];
        bad[0].grams[1][COUNT + 1] = f64::NAN;
        bad[1].losses[2] = f64::INFINITY;
        on.run(|device| {
            let place = &mut Place::on(device);
            let mut own = problem(place, &solver, COUNT, &start);
            let mut left = Vec::new();
            for (round, halted) in [(&good, 0.0), (&bad[0], 1.0), (&good, 1.0), (&bad[1], 1.0)] {
                round.give(place, &solver, &mut own);
                place.run(&own);
                let results = [own.weights, own.shared_factors, own.head_factors, own.state];
                let now: Vec<u64> = results
                    .into_iter()
                    .filter(|tensor| !tensor.is_none())
                    .flat_map(|tensor| place.found("solved", tensor).values)
                    .map(f64::to_bits)
                    .collect();
                let summary = place.found("summary", own.summary).values;
                assert_eq!([place.found("halted", own.halted).values[0], summary[2]], [halted, 1.0 - halted], "{}", case.name);
                assert!(left.is_empty() || left == now, "{} has changed something", case.name);
                left = now;
            }
            left
        });
    }
}

/// A method's rule as operations take it, on gradients scaled by these factors.
fn rule<'a>(host: crate::ops::adamw::ColumnRule<'a>, kernel: Kernel, factors: &'a [f64]) -> column_rule::Rule<'a> {
    column_rule::Rule { host, kernel, factors, seed: SEED, round: ROUND }
}

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
            let partials = place.scratch(2, DType::F64);
            place.run(&ColumnSquare { jacobian, rows: Some(gradients), rule, out, partials });
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
        let partials = place.scratch(1, DType::F64);
        place.run(&ColumnSquare { jacobian, rows: None, rule, out, partials });
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
    few_tasks,
    other_parameters,
    many_tasks,
    several_sets,
    more_tasks_than_threads,
    clipped_tasks_and_updates,
    what_is_not_finite_changes_nothing,
    rules_for_columns,
    a_rule_for_24_tasks,
    a_rule_with_one_moment_a_row,
}
