//! What the tests of the methods share: rounds, matrices, and the hard cases among them.

use serde_json::Value;

use super::columns::{ColumnBlock, Columnwise, combine};
use super::linalg::dot;
use super::random::{bits, normal};
use super::{Inputs, Method, registry};

/// A round of the given tasks with nothing in it yet.
pub fn inputs(tasks: &[usize]) -> Inputs<'_> {
    Inputs { gram: &[], cross_gram: &[], losses: &[], row_sums: &[], tasks, round: 0, seed: 7, orders: None }
}

pub fn build(name: &str, params: Value, tasks: usize) -> Box<dyn Method> {
    let params = params.as_object().expect("parameters are a table");
    registry::build(name, params, tasks).expect("a valid method")
}

/// What a rule makes of one column of J, by the column's number.
pub fn column(rule: &dyn Columnwise, gradients: &[f64], number: u64) -> f64 {
    let rows: Vec<&[f64]> = gradients.iter().map(std::slice::from_ref).collect();
    let mut out = [0.0];
    combine(rule, &ColumnBlock { rows: &rows, first: number, round: 2, seed: 1 }, &mut out);
    out[0]
}

pub fn gaussian(rows: usize, columns: usize, seed: u64) -> Vec<Vec<f64>> {
    (0..rows as u64).map(|row| (0..columns as u64).map(|column| normal(bits(seed, row, column))).collect()).collect()
}

pub fn gram_of(rows: &[Vec<f64>]) -> Vec<f64> {
    rows.iter().flat_map(|left| rows.iter().map(move |right| dot(left, right))).collect()
}

/// Rank-deficient, opposed, single, many, badly scaled, zero and duplicate rows.
pub fn hard_matrices() -> Vec<Vec<Vec<f64>>> {
    let scaled = |factor: f64| gaussian(4, 10, 2).iter().map(|row| row.iter().map(|x| x * factor).collect()).collect();
    let twice = {
        let rows = gaussian(3, 10, 4);
        [rows.clone(), rows].concat()
    };
    let uneven: Vec<Vec<f64>> = gaussian(4, 10, 5)
        .iter()
        .zip([1e-6, 1.0, 1e2, 1e4])
        .map(|(row, factor)| row.iter().map(|x| x * factor).collect())
        .collect();
    let mut with_zero = gaussian(4, 10, 6);
    with_zero[2] = vec![0.0; 10];
    let parallel = {
        let rows = gaussian(2, 10, 8);
        let near = rows[0].iter().zip(&rows[1]).map(|(a, b)| 1000.0 * (a + 1e-6 * b)).collect();
        vec![rows[0].clone(), near, rows[1].clone()]
    };
    vec![
        gaussian(5, 2, 1),
        vec![vec![1.0, 2.0], vec![-1.0, -2.0]],
        vec![vec![1.0, 0.5], vec![-3.0, -1.5], vec![2.0, 1.0]],
        vec![vec![-4.0, 1.0, 1.0], vec![6.0, 1.0, 1.0]],
        gaussian(1, 7, 3),
        gaussian(24, 40, 7),
        gaussian(24, 5, 9),
        scaled(1e-6),
        scaled(1e4),
        twice,
        uneven,
        with_zero,
        parallel,
        vec![vec![0.0; 3]; 4],
    ]
}
