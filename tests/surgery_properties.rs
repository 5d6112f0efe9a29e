//! What the surgery methods promise, on random and on hard Jacobians.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_json::{Value, json};
use taskloom::surgery::methods::registry::{self, DESCRIPTORS, Descriptor};
use taskloom::surgery::methods::{Inputs, Method};
use taskloom::surgery::request::{Answer, Request, compensated_dot, solve};

type Matrix = Vec<Vec<f64>>;

fn request(method: &str, params: Value, jacobian: &Matrix) -> Request {
    let params = params.as_object().expect("parameters are a table").clone();
    let losses = (0..jacobian.len()).map(|row| 0.5 + row as f64).collect();
    Request {
        method: method.to_owned(),
        params,
        jacobian: jacobian.clone(),
        jacobian2: None,
        orders: None,
        losses: Some(losses),
        seed: 11,
    }
}

fn answer(method: &str, params: Value, jacobian: &Matrix) -> Answer {
    solve(&request(method, params, jacobian)).unwrap_or_else(|fault| panic!("{method}: {fault}"))
}

fn norm(vector: &[f64]) -> f64 {
    compensated_dot(vector, vector).sqrt()
}

fn distance(left: &[f64], right: &[f64]) -> f64 {
    norm(&left.iter().zip(right).map(|(l, r)| l - r).collect::<Vec<f64>>())
}

/// Rows at angles no solver has trouble with: as many columns as rows and more, entries of size one.
fn generic() -> impl Strategy<Value = Matrix> {
    (1_usize..8).prop_flat_map(|rows| {
        let row = proptest::collection::vec(-1.0..1.0, 3 * rows + 4);
        proptest::collection::vec(row, rows)
    })
}

/// Anything goes: rank-deficient, rows of very different scales, zero, duplicate and opposed rows.
fn hard() -> impl Strategy<Value = Matrix> {
    let shape = (1_usize..10, 1_usize..8);
    shape.prop_flat_map(|(rows, columns)| {
        let row = (proptest::collection::vec(-1.0..1.0, columns), -6..5_i32, 0..6_u8);
        proptest::collection::vec(row, rows).prop_map(|rows| {
            let mut matrix: Matrix = Vec::new();
            for (values, exponent, kind) in rows {
                let previous = matrix.last().cloned();
                matrix.push(match (kind, previous) {
                    (0, _) => vec![0.0; values.len()],
                    (1, Some(previous)) => previous,
                    (2, Some(previous)) => previous.iter().map(|value| -value).collect(),
                    _ => values.iter().map(|value| value * 10.0_f64.powi(exponent)).collect(),
                });
            }
            matrix
        })
    })
}

/// Methods whose update does not depend on the order of the tasks. The others draw orders or signs, or settle exact ties by
/// position (Krum).
const EQUIVARIANT: &[&str] = &[
    "mean",
    "sum",
    "mgda",
    "upgrad",
    "dualproj",
    "cagrad",
    "nash_mtl",
    "fairgrad",
    "imtl_g",
    "aligned_mtl",
    "config",
    "sdmgrad",
    "modo",
    "excess_mtl",
];

/// A fixed seed: the same cases on every machine and every run.
fn config() -> ProptestConfig {
    ProptestConfig { cases: 200, rng_seed: RngSeed::Fixed(20_240_611), failure_persistence: None, ..Default::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn updates_are_finite_on_any_finite_jacobian(jacobian in hard()) {
        for descriptor in DESCRIPTORS {
            match solve(&request(descriptor.name, json!({}), &jacobian)) {
                Ok(found) => prop_assert!(found.update.iter().all(|value| value.is_finite()), "{}", descriptor.name),
                Err(fault) => prop_assert!(fault.contains("tasks, found"), "{fault}"),
            }
        }
    }

    /// Nash-MTL and FairGrad alone have problems without a solution; every other solver finishes its own.
    #[test]
    fn solvers_do_not_give_up(jacobian in hard()) {
        for method in ["upgrad", "dualproj", "cagrad", "mgda", "imtl_g", "aligned_mtl", "config", "gradvac"] {
            let found = answer(method, json!({}), &jacobian);
            prop_assert_eq!(found.status, "ok", "{}: {:?}", method, found.message);
        }
        for method in ["nash_mtl", "fairgrad"] {
            let message = answer(method, json!({}), &jacobian).message.unwrap_or_default();
            prop_assert!(message.is_empty() || message.ends_with("ridge of 1e-8"), "{method}: {message}");
        }
    }

    #[test]
    fn the_order_of_the_tasks_does_not_matter(jacobian in generic()) {
        let mut turned = jacobian.clone();
        turned.reverse();
        turned.rotate_left(jacobian.len() / 3);
        for method in EQUIVARIANT {
            let (one, other) = (answer(method, json!({}), &jacobian), answer(method, json!({}), &turned));
            let apart = distance(&one.update, &other.update);
            prop_assert!(apart <= 1e-7 * norm(&one.update), "{method}: {apart:e}");
        }
    }

    /// H w >= 0 with H = G / trace + 1e-4 I: no task is hurt by more than the regulariser allows.
    #[test]
    fn projections_hurt_no_task(jacobian in hard()) {
        for method in ["upgrad", "dualproj"] {
            let found = answer(method, json!({}), &jacobian);
            let trace: f64 = (0..jacobian.len()).map(|i| found.gram[i][i]).sum();
            let weights = found.weights.expect("weights");
            for (row, weight) in found.gram.iter().zip(&weights) {
                let gain = compensated_dot(row, &weights);
                let largest: f64 = row.iter().zip(&weights).map(|(g, w)| (g * w).abs()).sum();
                prop_assert!(trace < 1e-4 || gain >= -1.01e-4 * trace * weight - 1e-11 * largest, "{method}: {gain:e}");
            }
        }
    }

    /// At the shortest vector d of the hull g_i . d >= d . d; Frank-Wolfe reaches it as fast as 1 / iterations.
    #[test]
    fn mgda_hurts_no_task_once_it_has_converged(jacobian in generic()) {
        let found = answer("mgda", json!({"epsilon": 1e-12, "max_iters": 20_000}), &jacobian);
        let square = compensated_dot(&found.update, &found.update);
        let longest = (0..jacobian.len()).map(|i| found.gram[i][i]).fold(0.0, f64::max);
        for row in &jacobian {
            prop_assert!(compensated_dot(row, &found.update) >= square - 1e-3 * longest);
        }
    }

    #[test]
    fn cagrad_stays_inside_its_ball(jacobian in hard(), c in 0.0..3.0_f64) {
        let mean = answer("mean", json!({}), &jacobian).update;
        let found = answer("cagrad", json!({ "c": c }), &jacobian).update;
        let longest = jacobian.iter().map(|row| norm(row)).fold(0.0, f64::max);
        let zero = found.iter().all(|value| *value == 0.0);
        prop_assert!(zero || distance(&found, &mean) <= c * norm(&mean) * (1.0 + 1e-9) + 1e-13 * longest);
    }

    /// Up to its sign for IMTL-G, which divides by the sum of its weights.
    #[test]
    fn the_direction_of_impartial_methods_ignores_the_tasks_scales(
        jacobian in generic(),
        exponents in proptest::collection::vec(-2.0..2.0_f64, 8),
    ) {
        let scaled: Matrix = jacobian
            .iter()
            .zip(exponents)
            .map(|(row, exponent)| row.iter().map(|value| value * 10.0_f64.powf(exponent)).collect())
            .collect();
        for method in ["imtl_g", "config"] {
            let (one, other) = (answer(method, json!({}), &jacobian).update, answer(method, json!({}), &scaled).update);
            let cosine = compensated_dot(&one, &other) / (norm(&one) * norm(&other));
            let aligned = if method == "imtl_g" { cosine.abs() } else { cosine };
            prop_assert!(aligned > 1.0 - 1e-9, "{method}: {cosine}");
        }
    }
}

const TASKS: usize = 5;

/// Row buffers of a run, for the methods that keep them.
type Buffers = Vec<Vec<f64>>;

/// One round with a Jacobian that depends on the round, and task 3 absent in every third one.
fn advance(method: &mut dyn Method, descriptor: &Descriptor, buffers: &mut Buffers, round: u64) -> Vec<f64> {
    let tasks: Vec<usize> = (0..TASKS).filter(|&task| task != 3 || !round.is_multiple_of(3)).collect();
    let value = |task: usize, column: usize| ((task * 7 + column * 3 + 1) as f64 * (round + 1) as f64).sin();
    let rows: Matrix = tasks.iter().map(|&task| (0..9).map(|column| value(task, column)).collect()).collect();
    let products: Vec<f64> = rows.iter().flat_map(|left| rows.iter().map(move |right| compensated_dot(left, right))).collect();
    let losses: Vec<f64> = tasks.iter().map(|&task| 1.0 + value(task, 20).abs()).collect();
    let seen = |wanted: bool| if wanted { products.as_slice() } else { &[] };
    let inputs = Inputs {
        gram: seen(descriptor.needs.gram),
        cross_gram: seen(descriptor.needs.second_batch),
        losses: &losses,
        row_sums: &[],
        tasks: &tasks,
        round,
        seed: 5,
        orders: None,
    };
    let Some(pass) = method.row_pass(&inputs) else { return method.solve(&inputs).weights };
    let mut sums = vec![0.0; pass.sums_len(rows.len())];
    let views: Vec<&[f64]> = rows.iter().map(Vec::as_slice).collect();
    let present = buffers.iter_mut().enumerate().filter(|(task, _)| tasks.contains(task));
    let mut buffer_views: Vec<&mut [f64]> = present.map(|(_, buffer)| buffer.as_mut_slice()).collect();
    pass.apply(&views, &mut buffer_views, &mut sums);
    method.solve(&Inputs { row_sums: &sums, ..inputs }).weights
}

#[test]
fn a_restored_method_goes_on_as_if_nothing_had_happened() {
    for descriptor in DESCRIPTORS {
        let params = if descriptor.name == "nash_mtl" { json!({"update_every": 4}) } else { json!({}) };
        let params = params.as_object().expect("a table").clone();
        let fresh = || registry::build(descriptor.name, &params, TASKS).expect(descriptor.name);
        let mut buffers = vec![vec![0.0; 9]; TASKS];
        let mut original = fresh();
        for round in 0..10 {
            advance(original.as_mut(), descriptor, &mut buffers, round);
        }
        let text = original.state().to_string();
        let mut restored = fresh();
        restored.restore(&serde_json::from_str(&text).expect("JSON")).expect(descriptor.name);
        assert_eq!(restored.state().to_string(), text);
        let mut copied = buffers.clone();
        for round in 10..18 {
            let expected = advance(original.as_mut(), descriptor, &mut buffers, round);
            assert_eq!(advance(restored.as_mut(), descriptor, &mut copied, round), expected, "{}", descriptor.name);
        }
    }
}

#[test]
fn a_foreign_state_is_refused() {
    for descriptor in DESCRIPTORS {
        let mut method = registry::build(descriptor.name, &serde_json::Map::new(), TASKS).expect(descriptor.name);
        assert!(method.restore(&json!({"unknown": 1})).is_err(), "{}", descriptor.name);
    }
}

/// The run's guard stops a round before surgery sees a NaN; should one slip through, weights stay finite and nothing panics.
#[test]
fn a_gram_of_nan_is_survived() {
    for descriptor in DESCRIPTORS.iter().filter(|descriptor| !descriptor.needs.elementwise) {
        let mut method = registry::build(descriptor.name, &serde_json::Map::new(), TASKS).expect(descriptor.name);
        for bad in [f64::NAN, f64::INFINITY] {
            let mut gram = vec![1.0; TASKS * TASKS];
            gram[0] = bad;
            let inputs = Inputs {
                gram: &gram,
                cross_gram: &gram,
                losses: &[1.0; TASKS],
                row_sums: &gram,
                tasks: &[0, 1, 2, 3, 4],
                round: 0,
                seed: 1,
                orders: None,
            };
            let weights = method.solve(&inputs).weights;
            assert!(weights.iter().all(|weight| weight.is_finite()), "{} {bad}: {weights:?}", descriptor.name);
        }
    }
}

/// Twenty-four tasks, the most the benchmark suites have.
#[test]
fn many_tasks_are_finite() {
    let jacobian: Matrix = (0..24).map(|row| (0..30).map(|column| ((row * 31 + column * 17) as f64).sin()).collect()).collect();
    for descriptor in DESCRIPTORS {
        let found = answer(descriptor.name, json!({}), &jacobian);
        assert!(found.update.iter().all(|value| value.is_finite()), "{}", descriptor.name);
    }
}
