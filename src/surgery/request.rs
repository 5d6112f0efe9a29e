//! One surgery problem as JSON: what `taskloom surgery` reads and answers, a line each.
//!
//! A request is `{"method": "pcgrad", "params": {}, "jacobian": [[..], ..]}` and may carry `orders` (row i's projection
//! order), `losses`, `jacobian2` (the second batch of a two-batch method) and `seed`. Every request meets a fresh method
//! in its first round. All arithmetic is f64; Gram matrices are summed with compensation, so nearly parallel and
//! nearly opposed rows keep the digits their solvers live on.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::methods::columns::{self, ColumnBlock};
use super::methods::{Inputs, Method, Needs, RowPass, Status, registry};

/// Most rows of a request: some methods take T^4 steps.
pub const MOST_ROWS: usize = 256;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    pub method: String,
    #[serde(default)]
    pub params: Map<String, Value>,
    /// (T x P)
    pub jacobian: Vec<Vec<f64>>,
    /// (T x P) gradients of a second, independent batch.
    pub jacobian2: Option<Vec<Vec<f64>>>,
    /// (T) each a permutation of 0..T, row i's own index may be left out.
    pub orders: Option<Vec<Vec<usize>>>,
    /// (T)
    pub losses: Option<Vec<f64>>,
    #[serde(default)]
    pub seed: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    pub method: String,
    /// (T x T)
    pub gram: Vec<Vec<f64>>,
    /// (T); null for a method without weights.
    pub weights: Option<Vec<f64>>,
    /// (P)
    pub update: Vec<f64>,
    /// Pairs of tasks with a negative inner product.
    pub conflicts: usize,
    /// `ok` or `fallback`.
    pub status: &'static str,
    /// Why, when the status is `fallback`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Answers one line with one line; a bad request is answered too, by `{"error": ".."}`.
pub fn answer_line(line: &str) -> String {
    let answered = serde_json::from_str::<Request>(line)
        .map_err(|fault| format!("bad request: {fault}"))
        .and_then(|request| solve(&request))
        .and_then(|answer| serde_json::to_string(&answer).map_err(|fault| fault.to_string()));
    answered.unwrap_or_else(|fault| serde_json::json!({ "error": fault }).to_string())
}

pub fn solve(request: &Request) -> Result<Answer, String> {
    check(request)?;
    let rows = &request.jacobian;
    let count = rows.len();
    let mut method = registry::build(&request.method, &request.params, count)?;
    let needs = method.needs();
    let losses = losses_for(needs, request)?;
    let tasks: Vec<usize> = (0..count).collect();
    let gram = finite(products(rows, rows), "the Gram matrix")?;
    let cross_gram = match &request.jacobian2 {
        Some(second) if needs.second_batch => finite(products(rows, second), "the product of the two Jacobians")?,
        _ if needs.second_batch => gram.clone(),
        _ => Vec::new(),
    };
    let inputs = Inputs {
        gram: &gram,
        cross_gram: &cross_gram,
        losses,
        row_sums: &[],
        tasks: &tasks,
        round: 0,
        seed: request.seed,
        orders: request.orders.as_deref(),
    };
    let (weights, update, status) = run(method.as_mut(), &inputs, request);
    let (status, message) = verdict(status, needs.second_batch && request.jacobian2.is_none());
    Ok(Answer {
        method: request.method.clone(),
        conflicts: conflicts(&gram, count),
        gram: gram.chunks_exact(count).map(<[f64]>::to_vec).collect(),
        weights,
        update: finite(update, "the update")?,
        status,
        message,
    })
}

/// Weights (if the method has any), update and status.
fn run(method: &mut dyn Method, inputs: &Inputs, request: &Request) -> (Option<Vec<f64>>, Vec<f64>, Status) {
    let rows = &request.jacobian;
    if let Some(pass) = method.row_pass(inputs) {
        return run_row_pass(method, inputs, rows, &pass);
    }
    let solution = method.solve(inputs);
    if let Some(rule) = method.columnwise() {
        let mut update = vec![0.0; rows[0].len()];
        let views: Vec<(f64, &[f64])> = rows.iter().map(|row| (1.0, row.as_slice())).collect();
        let block = ColumnBlock { rows: &views, count: views.len(), first: 0, round: inputs.round, seed: inputs.seed };
        columns::combine(rule, &block, &mut update);
        return (None, update, solution.status);
    }
    let update = match (&request.jacobian2, method.needs().second_batch) {
        (Some(second), true) => combination(&solution.weights, &halfway(rows, second)),
        _ => combination(&solution.weights, rows),
    };
    (Some(solution.weights), update, solution.status)
}

/// The first round of a method with row state: its buffers start at zero.
fn run_row_pass(
    method: &mut dyn Method,
    inputs: &Inputs,
    rows: &[Vec<f64>],
    pass: &RowPass,
) -> (Option<Vec<f64>>, Vec<f64>, Status) {
    let mut buffers = vec![vec![0.0; rows[0].len()]; rows.len()];
    let mut sums = vec![0.0; pass.sums_len(rows.len())];
    let views: Vec<&[f64]> = rows.iter().map(Vec::as_slice).collect();
    let mut buffer_views: Vec<&mut [f64]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
    pass.apply(&views, &mut buffer_views, &mut sums);
    let solution = method.solve(&Inputs { row_sums: &sums, ..*inputs });
    let source = if pass.updates_from_buffers() { &buffers } else { rows };
    let update = combination(&solution.weights, source);
    (Some(solution.weights), update, solution.status)
}

fn verdict(status: Status, single_batch: bool) -> (&'static str, Option<String>) {
    match status {
        Status::Fallback(message) => ("fallback", Some(message)),
        Status::Ok if single_batch => {
            ("fallback", Some("no \"jacobian2\": the one batch stood in for both, which biases the weights".to_owned()))
        }
        Status::Ok => ("ok", None),
    }
}

fn check(request: &Request) -> Result<(), String> {
    check_matrix("jacobian", &request.jacobian)?;
    let (count, width) = (request.jacobian.len(), request.jacobian[0].len());
    if let Some(second) = &request.jacobian2 {
        check_matrix("jacobian2", second)?;
        if (second.len(), second[0].len()) != (count, width) {
            let (rows, columns) = (second.len(), second[0].len());
            return Err(format!("jacobian2 is {rows} x {columns}, jacobian {count} x {width}"));
        }
    }
    if let Some(losses) = &request.losses {
        if losses.len() != count {
            return Err(format!("{} losses for {count} rows", losses.len()));
        }
        if let Some(at) = losses.iter().position(|loss| !loss.is_finite()) {
            return Err(format!("losses[{at}] is {}", losses[at]));
        }
    }
    match &request.orders {
        Some(orders) => check_orders(orders, count),
        None => Ok(()),
    }
}

fn check_matrix(name: &str, rows: &[Vec<f64>]) -> Result<(), String> {
    let Some(first) = rows.first() else {
        return Err(format!("{name} has no rows"));
    };
    if first.is_empty() {
        return Err(format!("{name} has no columns"));
    }
    if rows.len() > MOST_ROWS {
        return Err(format!("{name} has {} rows; at most {MOST_ROWS} are solved", rows.len()));
    }
    for (at, row) in rows.iter().enumerate() {
        if row.len() != first.len() {
            return Err(format!("{name} is ragged: row 0 has {} values, row {at} has {}", first.len(), row.len()));
        }
        if let Some(column) = row.iter().position(|value| !value.is_finite()) {
            return Err(format!("{name}[{at}][{column}] is {}", row[column]));
        }
    }
    Ok(())
}

fn check_orders(orders: &[Vec<usize>], count: usize) -> Result<(), String> {
    if orders.len() != count {
        return Err(format!("{} orders for {count} rows", orders.len()));
    }
    for (row, order) in orders.iter().enumerate() {
        let mut others: Vec<usize> = order.iter().copied().filter(|&other| other != row).collect();
        let own = order.len() - others.len();
        others.sort_unstable();
        if own > 1 || !others.iter().copied().eq((0..count).filter(|&other| other != row)) {
            return Err(format!("orders[{row}] = {order:?} is not a permutation of 0..{count} (row {row} may be left out)"));
        }
    }
    Ok(())
}

fn losses_for(needs: Needs, request: &Request) -> Result<&[f64], String> {
    match &request.losses {
        Some(losses) if needs.losses => Ok(losses),
        None if needs.losses => Err(format!("{} needs \"losses\", one per row", request.method)),
        _ => Ok(&[]),
    }
}

fn finite(values: Vec<f64>, what: &str) -> Result<Vec<f64>, String> {
    if values.iter().all(|value| value.is_finite()) { Ok(values) } else { Err(format!("{what} exceeds the range of f64")) }
}

/// (T x T) left right'
fn products(left: &[Vec<f64>], right: &[Vec<f64>]) -> Vec<f64> {
    let count = left.len();
    let mut result = vec![0.0; count * count];
    let symmetric = std::ptr::eq(left, right);
    for i in 0..count {
        for j in 0..count {
            result[i * count + j] = if symmetric && j < i { result[j * count + i] } else { compensated_dot(&left[i], &right[j]) };
        }
    }
    result
}

/// A dot product as if summed in twice the precision and rounded once (Ogita, Rump & Oishi 2005, Dot2).
pub fn compensated_dot(left: &[f64], right: &[f64]) -> f64 {
    let (mut sum, mut lost) = (0.0_f64, 0.0_f64);
    for (l, r) in left.iter().zip(right) {
        let product = l * r;
        let product_error = l.mul_add(*r, -product);
        let total = sum + product;
        let virtual_product = total - sum;
        let sum_error = (sum - (total - virtual_product)) + (product - virtual_product);
        sum = total;
        lost += product_error + sum_error;
    }
    sum + lost
}

fn combination(weights: &[f64], rows: &[Vec<f64>]) -> Vec<f64> {
    let mut update = vec![0.0; rows[0].len()];
    for (weight, row) in weights.iter().zip(rows) {
        for (sum, value) in update.iter_mut().zip(row) {
            *sum += weight * value;
        }
    }
    update
}

fn halfway(left: &[Vec<f64>], right: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let between = |(l, r): (&Vec<f64>, &Vec<f64>)| l.iter().zip(r).map(|(l, r)| 0.5 * l + 0.5 * r).collect();
    left.iter().zip(right).map(between).collect()
}

fn conflicts(gram: &[f64], count: usize) -> usize {
    (0..count).map(|i| (i + 1..count).filter(|j| gram[i * count + j] < 0.0).count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(request: Value) -> Value {
        serde_json::from_str(&answer_line(&request.to_string())).expect("an answer is JSON")
    }

    fn fault(request: Value) -> String {
        answer(request)["error"].as_str().expect("an error").to_owned()
    }

    #[test]
    fn an_answer_has_gram_weights_update_and_conflicts() {
        let found = answer(json!({"method": "pcgrad", "jacobian": [[1.0, 0.0], [-1.0, 1.0]]}));
        assert_eq!(
            found,
            json!({"method": "pcgrad", "gram": [[1.0, -1.0], [-1.0, 2.0]], "weights": [2.0, 1.5],
                   "update": [0.5, 1.5], "conflicts": 1, "status": "ok"})
        );
    }

    #[test]
    fn an_elementwise_method_has_no_weights() {
        let found = answer(json!({"method": "trimmed_mean", "jacobian": [[1.0], [2.0], [9.0]]}));
        assert_eq!((&found["weights"], &found["update"]), (&Value::Null, &json!([2.0])));
    }

    #[test]
    fn a_bad_jacobian_is_refused() {
        assert_eq!(fault(json!({"method": "sum", "jacobian": []})), "jacobian has no rows");
        assert_eq!(fault(json!({"method": "sum", "jacobian": [[], []]})), "jacobian has no columns");
        let many = vec![[1]; MOST_ROWS + 1];
        assert_eq!(fault(json!({"method": "sum", "jacobian": many})), "jacobian has 257 rows; at most 256 are solved");
        assert_eq!(
            fault(json!({"method": "sum", "jacobian": [[1, 2], [3]]})),
            "jacobian is ragged: row 0 has 2 values, row 1 has 1"
        );
        for text in ["[[NaN]]", "[[1e999]]", "[[null]]", "7"] {
            let reply = answer_line(&format!(r#"{{"method": "sum", "jacobian": {text}}}"#));
            assert!(reply.starts_with(r#"{"error":"bad request: "#), "{reply}");
        }
        assert_eq!(fault(json!({"method": "sum", "jacobian": [[1e200]]})), "the Gram matrix exceeds the range of f64");
    }

    #[test]
    fn bad_orders_are_refused() {
        let with = |orders: Value| fault(json!({"method": "pcgrad", "jacobian": [[1], [2], [3]], "orders": orders}));
        assert_eq!(with(json!([[1, 2]])), "1 orders for 3 rows");
        let twice = "orders[1] = [0, 0] is not a permutation of 0..3 (row 1 may be left out)";
        assert_eq!(with(json!([[1, 2], [0, 0], [0, 1]])), twice);
        assert!(with(json!([[1, 2], [0, 3], [0, 1]])).starts_with("orders[1]"));
        assert!(with(json!([[0, 0, 1, 2], [0, 2], [0, 1]])).starts_with("orders[0]"));
    }

    #[test]
    fn orders_may_hold_or_omit_their_own_row() {
        let with = |orders: Value| {
            answer(json!({"method": "pcgrad", "jacobian": [[1, 0], [-1, 1], [-1, -2]], "orders": orders}))["weights"].clone()
        };
        assert_eq!(with(json!([[2, 1], [0, 2], [1, 0]])), with(json!([[2, 0, 1], [1, 0, 2], [1, 0, 2]])));
    }

    #[test]
    fn missing_or_wrong_losses_are_named() {
        assert_eq!(fault(json!({"method": "db_mtl", "jacobian": [[1]]})), r#"db_mtl needs "losses", one per row"#);
        assert_eq!(fault(json!({"method": "sum", "jacobian": [[1]], "losses": [1, 2]})), "2 losses for 1 rows");
    }

    #[test]
    fn unknown_names_are_named() {
        assert!(fault(json!({"method": "mgba", "jacobian": [[1]]})).contains("did you mean \"mgda\"?"));
        assert!(fault(json!({"method": "mgda", "jacobian": [[1]], "params": {"epsilom": 1}})).contains("\"epsilon\"?"));
        assert!(fault(json!({"method": "mgda", "jacobian": [[1]], "jacobain": 1})).contains("unknown field"));
    }

    #[test]
    fn two_batches_are_used_when_given() {
        let one = answer(json!({"method": "modo", "jacobian": [[1, 0], [0, 1]]}));
        assert_eq!(one["status"], "fallback");
        let two = answer(json!({"method": "modo", "jacobian": [[1, 0], [0, 1]], "jacobian2": [[3, 0], [0, 3]]}));
        assert_eq!((&two["status"], &two["update"]), (&json!("ok"), &json!([1.0, 1.0])));
    }

    #[test]
    fn cancellation_does_not_cost_digits() {
        assert_eq!(compensated_dot(&[1e16, 1.0, -1e16], &[1.0, 1.0, 1.0]), 1.0);
        assert_eq!(compensated_dot(&[1.0 + f64::EPSILON, -1.0], &[1.0 - f64::EPSILON, 1.0]), -f64::EPSILON * f64::EPSILON);
    }
}
