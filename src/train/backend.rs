//! Where a round is computed: the part of it that differs between the CPU and a device.

use std::time::Instant;

use super::quanta::{Quantum, RoundTimes};
use super::solve::{Scaling, Step};
use crate::machine::driver::DeviceError;
use crate::model::Parameters;
use crate::model::network::{Batch, Keep, Network, Randomness};
use crate::ops::adamw::ColumnRule;
use crate::ops::column_rule::{Kernel, Rule};
use crate::surgery::balance::Factors;
use crate::surgery::blocks::Blocks;
use crate::surgery::buffers::{Passes, TaskBuffers};
use crate::surgery::gram::RoundGram;
use crate::surgery::methods::{self, Columnwise, DeviceSolver};
use crate::surgery::update::Rates;

/// What a round works on.
pub struct Work<'a> {
    pub network: &'a Network,
    pub parameters: &'a mut Parameters,
    pub blocks: &'a Blocks,
    pub batch: &'a Batch,
    /// Run-wide indices of the tasks that commit together, ascending.
    pub tasks: &'a [usize],
    /// Position of the first of them among all that are present: 0 where all commit together.
    pub first: usize,
    pub round: u64,
    pub random: Randomness,
    /// (rows of J) the part of its task's observed targets that each row comes from.
    pub shares: &'a [f64],
}

impl Work<'_> {
    /// The work of a later round, of which nobody asks yet what its rows of J come from.
    pub fn of_round<'b>(&'b mut self, round: u64, batch: &'b Batch, tasks: &'b [usize]) -> Work<'b> {
        let Self { network, blocks, ref mut parameters, random, .. } = *self;
        let random = Randomness { round: round as u32, ..random };
        Work { network, parameters, blocks, batch, tasks, first: 0, round, random, shares: &[] }
    }

    /// A rule for columns as operations take it: the host computes it as `host` does.
    pub fn column_rule<'r>(&self, rule: &dyn Columnwise, host: ColumnRule<'r>, factors: &'r [f64]) -> Rule<'r> {
        let kernel = match rule.rule() {
            methods::ColumnRule::GradDrop { leak } => Kernel::GradDrop { leak },
            methods::ColumnRule::TrimmedMean { trim } => Kernel::TrimmedMean { trim },
        };
        Rule { host, kernel, factors, seed: self.random.seed, round: self.round }
    }
}

/// Why a round was not committed.
#[derive(Clone, Debug, PartialEq)]
pub struct Anomaly {
    /// Run-wide index of the task; absent when the gradients were only kept added up.
    pub task: Option<usize>,
    pub what: &'static str,
    pub value: f64,
}

/// What ends a round without a commit.
pub enum Stop {
    Anomaly(Anomaly),
    Device(DeviceError),
}

impl From<DeviceError> for Stop {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

impl Stop {
    pub fn anomaly(task: Option<usize>, what: &'static str, value: f64) -> Self {
        Self::Anomaly(Anomaly { task, what, value })
    }
}

/// What the balancer makes of (T) mean losses.
pub type Balance<'a> = &'a mut dyn FnMut(&[f64]) -> Factors;

/// Losses of the present tasks, and the balancer's factors where the gradients are scaled by them already.
pub struct Forward {
    /// (T) mean losses over the observed targets.
    pub losses: Vec<f64>,
    pub balanced: Option<Factors>,
}

/// A sum of losses over what was observed: so many targets, or the sum of their classes' weights.
pub fn mean_over(sum: f64, observed: f64) -> f64 {
    if observed > 0.0 { sum / observed } else { 0.0 }
}

/// Products of the private gradients.
pub struct Products {
    pub gram: RoundGram,
    /// (T) squared norms of the heads' gradients.
    pub heads: Vec<f64>,
}

/// How a round is solved without its Gram matrix being read by anyone: for devices, which then wait once a round.
#[derive(Clone, Debug)]
pub struct DeviceSolve {
    pub solver: DeviceSolver,
    pub scaling: Scaling,
    /// 0: none.
    pub clip_norm: f64,
    /// Clip each task's gradient, not the update.
    pub clip_tasks: bool,
    pub weighted_heads: bool,
}

pub trait Backend {
    /// Which gradients it keeps.
    fn keep(&self) -> Keep;

    /// Private gradients of every present task, in place of the last round's. `balance` where they are only added up and have to be
    /// scaled on the way.
    fn forward_backward(&mut self, work: &mut Work, balance: Option<Balance>) -> Result<Forward, Stop>;

    /// Products of the gradients that [`Backend::forward_backward`] left.
    fn products(&mut self, work: &Work) -> Result<Products, Stop>;

    /// Runs the passes of a method with row state over the gradients; (sets) of (T) sums.
    fn move_buffers(&mut self, buffers: &mut TaskBuffers, passes: &Passes, work: &Work) -> Result<Vec<Vec<f64>>, Stop>;

    /// Squared norm of the shared update that a rule for columns makes of gradients scaled by (T) `factors`.
    fn column_square(&mut self, work: &Work, rule: &dyn Columnwise, factors: &[f64]) -> Result<f64, Stop>;

    /// Moves all parameters; `rule` where columns go by one.
    fn step(&mut self, work: &mut Work, step: &Step, rule: Option<&dyn Columnwise>, rates: &Rates) -> Result<(), Stop>;

    /// All of the above at once, where this backend can: nothing waits between gradients and step, which does nothing if anything
    /// is not finite.
    fn whole_round(
        &mut self,
        _work: &mut Work,
        _solve: &DeviceSolve,
        _rates: &Rates,
    ) -> Option<Result<(Forward, Products, Step), Stop>> {
        None
    }

    /// When the quanta of the round that has been stepped were computed, where that was measured. `began` and `commit` are as the
    /// caller's clock has them, for a backend that computes while it is called.
    fn times(&mut self, began: Instant, commit: Quantum) -> Option<RoundTimes>;

    /// (T) mean losses of the round's examples under the parameters as they are now.
    fn losses(&mut self, work: &mut Work) -> Result<Vec<f64>, Stop>;
}

impl Forward {
    /// The first task's loss that is not finite, if any.
    pub fn anomaly(&self, tasks: &[usize]) -> Option<Stop> {
        let (&task, &loss) = tasks.iter().zip(&self.losses).find(|(_, loss)| !loss.is_finite())?;
        Some(Stop::anomaly(Some(task), "loss", loss))
    }
}

impl Products {
    /// The first task's gradient norm that is not finite, if any.
    pub fn anomaly(&self, tasks: &[usize]) -> Option<Stop> {
        let total = self.gram.total();
        for (index, (&task, square)) in tasks.iter().zip(&self.heads).enumerate() {
            let own = total[index * tasks.len() + index] + square;
            if !own.is_finite() {
                return Some(Stop::anomaly(Some(task), "gradient norm", own.sqrt()));
            }
        }
        let added = self.gram.added.filter(|added| !added.is_finite())?;
        Some(Stop::anomaly(None, "gradient norm", added.sqrt()))
    }
}
