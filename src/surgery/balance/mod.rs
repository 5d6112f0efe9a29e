//! Loss balancing: from the tasks' losses to one factor per task, before any surgery.
//!
//! The run descends on sum_t c_t L_t with the factors c_t held constant, so c_t is the derivative of whatever the paper
//! combines the losses into. Names and semantics are TorchJD's scalarizers, except where a file says otherwise.

mod adam;
mod dwa;
mod equal;
mod famo;
mod gls;
mod imtl_l;
pub mod registry;
mod rlw;
mod si;
mod stch;
mod uw;

#[cfg(test)]
mod testing;

use super::methods::Status;

/// What a balancer sees of one round: the present tasks only.
#[derive(Clone, Copy)]
pub struct Losses<'a> {
    /// (T) unweighted losses of this round.
    pub losses: &'a [f64],
    /// (T) run-wide index of each present task, ascending.
    pub tasks: &'a [usize],
    pub round: u64,
    /// Epochs completed; balancers that average over epochs roll over when it grows.
    pub epoch: u64,
    pub seed: u64,
}

#[derive(Clone, Debug)]
pub struct Factors {
    /// (T) c_t, constants to the backward pass.
    pub factors: Vec<f64>,
    pub status: Status,
}

impl Factors {
    pub fn ok(factors: Vec<f64>) -> Self {
        Self { factors, status: Status::Ok }
    }

    /// Equal factors in place of the balancer's own, and why.
    pub fn equal(count: usize, why: impl std::fmt::Display) -> Self {
        Self { factors: vec![1.0; count], status: Status::Fallback(format!("{why}; took equal factors")) }
    }

    /// `factors`, unless one of them is not finite: then equal ones, visibly.
    fn checked(factors: Vec<f64>) -> Self {
        if factors.iter().all(|factor| factor.is_finite()) {
            Self::ok(factors)
        } else {
            Self::equal(factors.len(), "the factors are not finite")
        }
    }
}

pub trait Balancer: Send {
    fn name(&self) -> &'static str;

    /// The factors of one round. `round.tasks` is not empty.
    fn factors(&mut self, round: &Losses) -> Factors;

    /// Whether the losses of the same examples are wanted again after the step, by [`Balancer::after_step`].
    fn wants_losses_after_step(&self) -> bool {
        false
    }

    /// The losses of the round's examples under the updated parameters.
    fn after_step(&mut self, _round: &Losses) {}

    /// Everything the balancer remembers between rounds, for the checkpoint; `null` for none.
    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Takes back what [`Balancer::state`] gave.
    fn restore(&mut self, state: &serde_json::Value) -> Result<(), String> {
        match state {
            serde_json::Value::Null => Ok(()),
            other => Err(format!("{} keeps no state, found {other}", self.name())),
        }
    }
}

/// The first loss whose logarithm does not exist, in words.
fn not_positive(owner: &str, losses: &[f64]) -> Option<String> {
    let fault = losses.iter().find(|loss| !(**loss > 0.0 && loss.is_finite()))?;
    Some(format!("{owner} needs positive losses, found {fault}"))
}
