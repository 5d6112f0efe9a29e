//! Gradient surgery: from the Gram matrix of the tasks' gradients to one weight per task.
//!
//! Everything here is small f64 code on T x T values. It knows neither devices nor files nor the rest of the crate, so a
//! method can be held against its paper with nothing but a matrix in hand. [`registry::build`] makes a method from its
//! name; [`registry::DESCRIPTORS`] describes them all.
//!
//! Most methods turn G into weights. Two kinds need more of J than G: [`Columnwise`] methods look at one column at a
//! time, and methods with a [`RowPass`] keep a P-long buffer per task. Both stay pure: they say what happens to one block
//! of columns, and whoever holds J runs it over all of them.

pub mod columns;
pub mod on_device;
pub mod params;
pub mod random;
pub mod registry;
pub mod rows;
pub mod state;

mod aligned_mtl;
mod bargain;
mod cagrad;
mod config;
mod db_mtl;
mod dualproj;
mod eigen;
mod excess_mtl;
mod fairgrad;
mod graddrop;
mod gradnorm;
mod gradvac;
mod imtl_g;
mod krum;
mod linalg;
mod mgda;
mod moco;
mod modo;
mod nash_mtl;
mod pcgrad;
mod projection;
mod sdmgrad;
mod simplex;
mod trimmed_mean;
mod uniform;
mod upgrad;

#[cfg(test)]
pub(super) mod testing;

pub use columns::{ColumnBlock, Columnwise, Rule as ColumnRule};
pub use on_device::DeviceSolver;
pub use pcgrad::{Order, PcGrad};
pub use rows::RowPass;
pub use simplex::softmax;
pub use uniform::{Mean, Sum};

use crate::choices::choices;

/// What a method asks of the round. What it does not ask for is neither computed nor stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// G = J J^T, hence the private gradients J themselves.
    pub gram: bool,
    /// The tasks' losses of this round.
    pub losses: bool,
    /// A round of two independent batches with gradients J1 and J2: the method sees J1 J2^T, and the rows it weighs are
    /// the mean (J1 + J2) / 2, as in MoDo's equation 2.9b.
    pub second_batch: bool,
    /// The update is made column by column from J itself; there are no weights. See [`Columnwise`].
    pub elementwise: bool,
    /// One P-long buffer per task, kept between rounds. See [`RowPass`].
    pub row_state: bool,
}

impl Needs {
    pub const NOTHING: Self = Self { gram: false, losses: false, second_batch: false, elementwise: false, row_state: false };
    pub const GRAM: Self = Self { gram: true, ..Self::NOTHING };
    pub const GRAM_AND_LOSSES: Self = Self { losses: true, ..Self::GRAM };
    pub const SECOND_BATCH: Self = Self { second_batch: true, ..Self::NOTHING };
    pub const ELEMENTWISE: Self = Self { elementwise: true, ..Self::NOTHING };

    /// Whether a method sees other things in one block of the encoder than in another.
    pub fn differ_by_block(&self) -> bool {
        self.gram || self.second_batch || self.row_state
    }
}

choices! {
    /// The part of the encoder that is solved at once.
    pub enum Granularity {
        Model = "model",
        /// Each block of the parameter table.
        Layer = "layer",
        /// Each parameter.
        Tensor = "tensor",
    }
}

/// What a method sees of one round: the present tasks only, an absent task has no row.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// (T x T) Gram matrix, row-major and symmetric; empty when [`Needs::gram`] is false.
    pub gram: &'a [f64],
    /// (T x T) J1 J2^T of two independent batches, row-major, NOT symmetric; empty when [`Needs::second_batch`] is false.
    pub cross_gram: &'a [f64],
    /// (T) unweighted losses; empty when [`Needs::losses`] is false.
    pub losses: &'a [f64],
    /// What this round's [`RowPass`] summed up; empty when [`Needs::row_state`] is false.
    pub row_sums: &'a [f64],
    /// (T) run-wide index of each present task, ascending: the key of per-task state.
    pub tasks: &'a [usize],
    /// Counter and seed from which a method draws whatever is random in it.
    pub round: u64,
    pub seed: u64,
    /// Projection order of each row, where the caller fixes it; `orders[i]` permutes 0..T, with or without i itself.
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
    /// (T) the update is d = sum_i weights[i] g_i; empty for an elementwise method.
    pub weights: Vec<f64>,
    pub status: Status,
}

impl Solution {
    pub fn ok(weights: Vec<f64>) -> Self {
        Self { weights, status: Status::Ok }
    }

    /// The plain mean of the `count` rows in place of a solution, and why.
    pub fn mean(count: usize, why: impl std::fmt::Display) -> Self {
        Self { weights: vec![1.0 / count as f64; count], status: Status::Fallback(took_mean(why)) }
    }

    /// `weights`, unless one of them is not finite: then the mean, visibly.
    pub fn checked(weights: Vec<f64>) -> Self {
        if weights.iter().all(|weight| weight.is_finite()) { Self::ok(weights) } else { Self::mean(weights.len(), NOT_FINITE) }
    }
}

/// Why [`Solution::checked`] falls back.
const NOT_FINITE: &str = "the weights are not finite";

/// Why the mean took a solution's place.
fn took_mean(why: impl std::fmt::Display) -> String {
    format!("{why}; took the mean")
}

pub trait Method: Send {
    fn name(&self) -> &'static str;

    fn needs(&self) -> Needs;

    /// Solves one round. `inputs.tasks` is not empty. An elementwise method only judges the round: its status.
    fn solve(&mut self, inputs: &Inputs) -> Solution;

    /// The rule for one block of columns, when [`Needs::elementwise`].
    fn columnwise(&self) -> Option<&dyn Columnwise> {
        None
    }

    /// What this round does to the P-long buffers, when [`Needs::row_state`]; asked before [`Method::solve`], which then
    /// finds the pass's sums in [`Inputs::row_sums`].
    fn row_pass(&mut self, _inputs: &Inputs) -> Option<RowPass> {
        None
    }

    /// How a device that holds J solves it by itself, so that nobody waits for the host; none where it cannot.
    fn device_solver(&self) -> Option<DeviceSolver> {
        None
    }

    /// What [`Method::device_solver`]'s kernel remembers between rounds: always as many numbers.
    fn device_state(&self) -> Vec<f64> {
        Vec::new()
    }

    /// Takes back what a kernel has made of [`Method::device_state`].
    fn set_device_state(&mut self, _state: &[f64]) {}

    /// Everything the method remembers between rounds (the row buffers apart), for the checkpoint; `null` for none.
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
