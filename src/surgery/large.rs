//! One surgery problem on an f32 Jacobian as large as memory: the arithmetic of a training round, without a network.

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::methods::columns::{self, ColumnBlock};
use super::methods::{Inputs, Method, Status, registry};
use crate::ops::adamw::combine_rows;
use crate::ops::gram::gram;
use crate::ops::storage::Rows;

pub struct Problem<'a> {
    /// (T x P)
    pub rows: &'a [&'a [f32]],
    /// (T x P) gradients of a second, independent batch.
    pub second: Option<&'a [&'a [f32]]>,
    /// (T), or empty.
    pub losses: &'a [f64],
}

pub struct Solved {
    /// (T x T)
    pub gram: Vec<f64>,
    /// (T); none for a method without weights.
    pub weights: Option<Vec<f64>>,
    /// (P)
    pub update: Vec<f32>,
    pub status: Status,
}

impl Solved {
    /// What `taskloom surgery` prints of it.
    pub fn json(&self, method: &str) -> Value {
        let count = (self.gram.len() as f64).sqrt() as usize;
        let pairs = (0..count).flat_map(|i| (0..i).map(move |j| (i, j)));
        let mut value = json!({
            "method": method,
            "gram": self.gram.chunks(count.max(1)).collect::<Vec<_>>(),
            "weights": self.weights,
            "conflicts": pairs.filter(|(i, j)| self.gram[i * count + j] < 0.0).count(),
            "status": if self.status == Status::Ok { "ok" } else { "fallback" },
        });
        if let Status::Fallback(message) = &self.status {
            value["message"] = json!(message);
        }
        value
    }
}

/// The first round of a fresh method. Errors: unknown method or parameter, shapes that differ, values that are not finite.
pub fn solve(name: &str, params: &Map<String, Value>, problem: &Problem) -> Result<Solved, String> {
    let rows = problem.rows;
    let count = rows.len();
    let mut method = registry::build(name, params, count)?;
    let needs = method.needs();
    if needs.losses && problem.losses.len() != count {
        return Err(format!("{name} needs a tensor losses of {count} values, found {}", problem.losses.len()));
    }
    let mut products = vec![0.0; count * count];
    gram(&mut products, rows);
    if let Some(at) = (0..count).find(|at| !products[at * count + at].is_finite()) {
        return Err(format!("row {at} of the Jacobian is not finite, or its norm exceeds the range of f32"));
    }
    let cross = match problem.second.filter(|_| needs.second_batch) {
        Some(second) => cross_products(rows, second)?,
        None => products.clone(),
    };
    let tasks: Vec<usize> = (0..count).collect();
    let losses = if needs.losses { problem.losses } else { &[] };
    let inputs =
        Inputs { gram: &products, cross_gram: &cross, losses, row_sums: &[], tasks: &tasks, round: 0, seed: 0, orders: None };
    let (weights, update, mut status) = run(method.as_mut(), &inputs, problem);
    if needs.second_batch && problem.second.is_none() && status == Status::Ok {
        status = Status::Fallback("no jacobian2: the one batch stood in for both, which biases the weights".into());
    }
    Ok(Solved { gram: products, weights, update, status })
}

/// (T x T) J1 J2'
fn cross_products(rows: &[&[f32]], second: &[&[f32]]) -> Result<Vec<f64>, String> {
    let count = rows.len();
    if second.len() != count || second[0].len() != rows[0].len() {
        return Err(format!("jacobian2 is {} x {}, jacobian {count} x {}", second.len(), second[0].len(), rows[0].len()));
    }
    let both: Vec<&[f32]> = rows.iter().chain(second).copied().collect();
    let mut all = vec![0.0; 4 * count * count];
    gram(&mut all, &both);
    Ok((0..count).flat_map(|row| all[2 * count * row + count..2 * count * (row + 1)].to_vec()).collect())
}

/// Weights (if the method has any), update and status.
fn run(method: &mut dyn Method, inputs: &Inputs, problem: &Problem) -> (Option<Vec<f64>>, Vec<f32>, Status) {
    let rows = problem.rows;
    let mut update = vec![0.0f32; rows[0].len()];
    if let Some(pass) = method.row_pass(inputs) {
        let mut buffers = vec![vec![0.0f32; rows[0].len()]; rows.len()];
        let mut sums = vec![0.0; pass.sums_len(rows.len())];
        pass.apply(rows, &mut buffers.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>(), &mut sums);
        let solution = method.solve(&Inputs { row_sums: &sums, ..*inputs });
        let kept: Vec<&[f32]> = buffers.iter().map(Vec::as_slice).collect();
        let from = if pass.updates_from_buffers() { &kept } else { rows };
        combine_rows(&mut update, &from.into(), &solution.weights);
        return (Some(solution.weights), update, solution.status);
    }
    let solution = method.solve(inputs);
    if let Some(rule) = method.columnwise() {
        const COLUMNS: usize = 4096;
        update.par_chunks_mut(COLUMNS).enumerate().for_each(|(index, out)| {
            let range = index * COLUMNS..index * COLUMNS + out.len();
            let parts: Vec<(f64, &[f32])> = rows.iter().map(|row| (1.0, &row[range.clone()])).collect();
            let (round, seed) = (inputs.round, inputs.seed);
            let block = ColumnBlock { rows: &parts, count: parts.len(), first: range.start as u64, round, seed };
            columns::combine(rule, &block, out);
        });
        return (None, update, solution.status);
    }
    match problem.second.filter(|_| method.needs().second_batch) {
        Some(second) => {
            let both: Vec<&[f32]> = rows.iter().chain(second).copied().collect();
            let halves: Vec<f64> = solution.weights.iter().chain(&solution.weights).map(|weight| weight / 2.0).collect();
            combine_rows(&mut update, &Rows::F32(both), &halves);
        }
        None => combine_rows(&mut update, &rows.into(), &solution.weights),
    }
    (Some(solution.weights), update, solution.status)
}

#[cfg(test)]
mod tests {
    use super::super::request;
    use super::*;

    /// f32 rows: both ways compute from the same numbers, so they differ by f32's rounding of sums alone.
    #[test]
    fn every_method_agrees_with_its_json_form() {
        let value = |task: usize, column: usize| (((task * 7 + column * 3 + 1) * (column + 2)) as f32 * 0.1).sin();
        let rows: Vec<Vec<f32>> = (0..5).map(|task| (0..600).map(|column| value(task, column)).collect()).collect();
        let views: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let losses = [1.0, 0.5, 2.0, 1.5, 0.25];
        for descriptor in registry::DESCRIPTORS {
            let problem = Problem { rows: &views, second: None, losses: &losses };
            let found = solve(descriptor.name, &Map::new(), &problem).expect(descriptor.name);
            let request = json!({"method": descriptor.name, "jacobian": rows, "losses": losses});
            let expected = request::solve(&serde_json::from_value(request).unwrap()).expect(descriptor.name);
            let largest = expected.update.iter().fold(0.0f64, |most, value| most.max(value.abs()));
            for (found, expected) in found.update.iter().zip(&expected.update) {
                assert!((f64::from(*found) - expected).abs() <= 1e-4 * largest, "{}", descriptor.name);
            }
        }
    }
}
