//! Gradient surgery: from the Gram matrix of the tasks' gradients to one weight per task.
//!
//! Everything here is small f64 code on T x T values. It knows neither devices nor files nor the rest of the crate, so a
//! method can be held against its paper with nothing but a matrix in hand.

mod pcgrad;
mod uniform;

pub use pcgrad::{Order, PcGrad};
pub use uniform::{Mean, Sum};

/// What a method asks of the round. What it does not ask for is neither computed nor stored: without G there are no private
/// gradients, so such a method weighs all tasks alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// G = J J^T, hence the private gradients J themselves.
    pub gram: bool,
    /// The tasks' losses of this round.
    pub losses: bool,
}

/// What a method sees of one round: the present tasks only, an absent task has no row.
pub struct Inputs<'a> {
    /// (T x T) Gram matrix, row-major and symmetric; empty when [`Needs::gram`] is false.
    pub gram: &'a [f64],
    /// (T) unweighted losses; empty when [`Needs::losses`] is false.
    pub losses: &'a [f64],
    /// (T) run-wide index of each present task, ascending: the key of per-task state.
    pub tasks: &'a [usize],
    /// Counter and seed from which a method draws whatever is random in it.
    pub round: u64,
    pub seed: u64,
    /// Projection order of each row, where the caller fixes it; `orders[i]` permutes 0..T.
    pub orders: Option<&'a [Vec<usize>]>,
}

/// Whether the weights are the method's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    /// The solver gave up, why, and what was used instead.
    Fallback(String),
}

#[derive(Clone, Debug)]
pub struct Solution {
    /// (T) the update is d = sum_i weights[i] g_i.
    pub weights: Vec<f64>,
    pub status: Status,
}

impl Solution {
    pub fn ok(weights: Vec<f64>) -> Self {
        Self { weights, status: Status::Ok }
    }
}

pub trait Method: Send {
    fn name(&self) -> &'static str;

    fn needs(&self) -> Needs;

    /// The update is on the scale of one gradient (an average), not of their sum.
    fn averages(&self) -> bool {
        false
    }

    /// Solves one round. `inputs.tasks` is not empty.
    fn solve(&mut self, inputs: &Inputs) -> Solution;

    /// Everything the method remembers between rounds, for the checkpoint; `null` for none.
    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Takes back what [`Method::state`] gave.
    fn restore(&mut self, state: &serde_json::Value) -> Result<(), String> {
        match state {
            serde_json::Value::Null => Ok(()),
            other => Err(format!("{} keeps no state, found {other}", self.name())),
        }
    }
}
