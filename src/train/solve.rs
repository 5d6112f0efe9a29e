//! Surgery and clipping of a round: from losses and products of gradients to one factor per task for encoder and heads.

use std::iter::repeat_n;

use super::backend::{Backend, DeviceSolve, Products, Stop, Work};
use super::round_options::{Clip, RoundOptions};
use crate::config::schema::{ClipScope, Scale};
use crate::surgery::balance::{Balancer, Factors, Losses};
use crate::surgery::blocks::Blocks;
use crate::surgery::buffers::{Passes, TaskBuffers};
use crate::surgery::conflict::RoundConflicts;
use crate::surgery::gram::RoundGram;
use crate::surgery::ledger::RunLedger;
use crate::surgery::methods::{Inputs, Method, RowPass, Solution, Status};

/// Everything that a run solves its rounds with, and remembers of them.
pub struct Solver {
    pub round_options: RoundOptions,
    pub balancer: Box<dyn Balancer>,
    /// One for each part of the encoder that has weights of its own.
    pub methods: Vec<Box<dyn Method>>,
    /// What the method keeps by task and parameter, if it does.
    pub buffers: Option<TaskBuffers>,
    /// What the run's conflicts came to so far.
    pub ledger: RunLedger,
    /// The method's update is on the scale of one gradient, not of their sum.
    pub mean_scaled: bool,
}

/// What stands between a method's own scale and that of the run.
#[derive(Clone, Copy, Debug)]
pub enum Scaling {
    None,
    MeanToSum,
    SumToMean,
}

impl Scaling {
    /// On the weights of `count` tasks.
    pub fn factor(self, count: usize) -> f64 {
        match self {
            Self::None => 1.0,
            Self::MeanToSum => count as f64,
            Self::SumToMean => 1.0 / count as f64,
        }
    }
}

/// What is known of a round's gradients.
pub struct RoundStats<'a> {
    pub products: Products,
    /// (T)
    pub losses: &'a [f64],
    /// (T) balancing of each task's gradient, where it is still to be applied.
    pub balanced: &'a [f64],
}

/// What surgery and clipping came to.
pub struct Step {
    /// (T) by set: one for the encoder, or one for each block; empty for an elementwise method.
    pub weights: Vec<Vec<f64>>,
    /// (T) balancing and clipping of each task's shared gradient.
    pub factors: Vec<f64>,
    /// (T) factor of each head's gradient.
    pub heads: Vec<f64>,
    /// Norm of the whole update before clipping.
    pub norm: f64,
    /// Share of the update left by clipping; 1 if none.
    pub clip: f64,
    pub status: Status,
}

impl Step {
    /// (T) by set: factor of each task's shared gradient.
    pub fn shared(&self) -> Vec<Vec<f64>> {
        let scaled = |set: &Vec<f64>| set.iter().zip(&self.factors).map(|(w, f)| w * f).collect();
        self.weights.iter().map(scaled).collect()
    }
}

impl Step {
    /// (rows of J) by set, as [`Step::shared`], each task having as many rows as a round has batches.
    pub fn by_row(&self, batches: usize) -> Vec<Vec<f64>> {
        self.shared().iter().map(|set| set.iter().flat_map(|&weight| repeat_n(weight, batches)).collect()).collect()
    }
}

impl Solver {
    /// The method, by its first instance.
    pub fn method(&self) -> &dyn Method {
        &*self.methods[0]
    }

    pub fn balance(&mut self, losses: &[f64], tasks: &[usize], round: u64) -> Factors {
        let seen = self.seen(losses, tasks, round);
        self.balancer.factors(&seen)
    }

    pub fn seen<'a>(&self, losses: &'a [f64], tasks: &'a [usize], round: u64) -> Losses<'a> {
        Losses { losses, tasks, round, epoch: round / self.round_options.rounds_per_epoch, seed: self.round_options.seed }
    }

    /// How rounds with `sets` of weights are solved by a device itself; none where the host has to.
    pub fn on_device(&self, sets: usize) -> Option<DeviceSolve> {
        let solver = self.method().device_solver()?;
        let weighted_heads = self.round_options.weighted_heads;
        // The host solves rounds that are computed together, so that what a method remembers of them all is the host's.
        let remembered_here = self.round_options.commits_apart && !self.method().device_state().is_empty();
        if self.balancer.name() != "equal" || (weighted_heads && sets > 1) || remembered_here {
            return None;
        }
        let Clip { norm: clip_norm, scope } = self.round_options.clip;
        let clip_tasks = scope == ClipScope::Task;
        Some(DeviceSolve { solver, scaling: self.scaling(), clip_norm, clip_tasks, weighted_heads })
    }

    fn scaling(&self) -> Scaling {
        match (self.round_options.scale, self.mean_scaled) {
            (Scale::Sum, true) => Scaling::MeanToSum,
            (Scale::Mean, false) => Scaling::SumToMean,
            _ => Scaling::None,
        }
    }

    /// Solves the round's surgery on the gradients that `backend` holds. A method with row state moves its buffers here.
    pub fn solve(&mut self, backend: &mut dyn Backend, work: &Work, stats: RoundStats) -> Result<Step, Stop> {
        let RoundStats { products: Products { mut gram, heads }, losses, balanced } = stats;
        let (count, round) = (work.tasks.len(), work.round);
        let Clip { norm: limit, scope } = self.round_options.clip;
        gram.scale(balanced);
        let mut factors = balanced.to_vec();
        if limit > 0.0 && scope == ClipScope::Task {
            let total = gram.total();
            let square = |index: usize| total[index * count + index] + factors[index].powi(2) * heads[index];
            let clips: Vec<f64> = (0..count).map(|index| clip_factor(limit, square(index))).collect();
            gram.scale(&clips);
            factors.iter_mut().zip(clips).for_each(|(factor, clip)| *factor *= clip);
        }
        let mut head_factors = factors.clone();
        let (tasks, seed) = (work.tasks, self.round_options.seed);
        let inputs = Inputs { gram: &[], cross_gram: &[], losses, row_sums: &[], tasks, round, seed, orders: None };
        let sums = self.move_buffers(backend, work, &inputs, &mut gram, &mut factors)?;
        let (mut weights, status) = self.weights(&inputs, &gram, work, &sums);
        let rescale = self.scaling().factor(count);
        weights.iter_mut().flatten().for_each(|weight| *weight *= rescale);
        if self.round_options.weighted_heads {
            head_factors.iter_mut().zip(&weights[0]).for_each(|(factor, weight)| *factor *= weight);
        }
        let head_square: f64 = head_factors.iter().zip(&heads).map(|(f, square)| f * f * square).sum();
        let shared_square = match self.method().columnwise() {
            // No Gram matrix knows the norm of an update that is made column by column.
            Some(rule) => {
                factors.iter_mut().for_each(|factor| *factor *= rescale);
                backend.column_square(work, rule, &factors)?
            }
            None => gram.update_square(work.blocks, &weights),
        };
        let square = shared_square + head_square;
        let mut step = Step { weights, factors, heads: head_factors, norm: square.sqrt(), clip: 1.0, status };
        if limit > 0.0 && scope == ClipScope::Update {
            step.clip = clip_factor(limit, square);
            step.factors.iter_mut().chain(&mut step.heads).for_each(|factor| *factor *= step.clip);
        }
        Ok(step)
    }

    /// Runs the passes of a method with row state, if this is one; returns each set's sums. Where the buffers take the
    /// gradients' place, so do their products, and what scaled the gradients is in them.
    fn move_buffers(
        &mut self,
        backend: &mut dyn Backend,
        work: &Work,
        inputs: &Inputs,
        gram: &mut RoundGram,
        factors: &mut [f64],
    ) -> Result<Vec<Vec<f64>>, Stop> {
        let Some(buffers) = &mut self.buffers else { return Ok(Vec::new()) };
        let grams = gram.by_set(work.blocks);
        let pass = |(method, [gram, _]): (&mut Box<dyn Method>, &[Vec<f64>; 2])| method.row_pass(&Inputs { gram, ..*inputs });
        let passes: Vec<RowPass> = self.methods.iter_mut().zip(&grams).filter_map(pass).collect();
        let sums = backend.move_buffers(buffers, &Passes { passes: &passes, factors, tasks: inputs.tasks }, work)?;
        if !passes.iter().any(RowPass::updates_from_buffers) {
            return Ok(sums);
        }
        factors.fill(1.0);
        *gram = backend.products(work)?.gram;
        Ok(gram.by_set(work.blocks).into_iter().map(|[gram, _]| gram).collect())
    }

    /// Weights of every set, and the first fallback among them.
    fn weights(&mut self, inputs: &Inputs, gram: &RoundGram, work: &Work, sums: &[Vec<f64>]) -> (Vec<Vec<f64>>, Status) {
        let (mut all, mut statuses) = (Vec::new(), Vec::new());
        for (set, (method, [gram, cross_gram])) in self.methods.iter_mut().zip(&gram.by_set(work.blocks)).enumerate() {
            let row_sums = sums.get(set).map_or(&[][..], Vec::as_slice);
            let Solution { weights, status } = method.solve(&Inputs { gram, cross_gram, row_sums, ..*inputs });
            all.push(weights);
            statuses.push(status);
        }
        (all, first_fallback(statuses, work.blocks))
    }

    /// Adds a round's conflicts to the run's; returns them where they are to be reported.
    pub fn add_conflicts(
        &mut self,
        mut conflicts: RoundConflicts,
        work: &Work,
        weights: &[Vec<f64>],
        balanced: &[f64],
    ) -> Option<RoundConflicts> {
        // Every task's weight without surgery, on the scale of this run's updates.
        let plain = match (self.round_options.scale, self.mean_scaled) {
            (Scale::Mean, _) | (Scale::Native, true) => 1.0 / work.tasks.len() as f64,
            _ => 1.0,
        };
        conflicts.settle(work.blocks, weights, balanced, plain);
        self.ledger.add(&conflicts, work.tasks);
        work.round.is_multiple_of(self.round_options.conflict_every).then_some(conflicts)
    }
}

/// The first fallback among the sets' statuses, and of which block it is where they have weights of their own.
pub fn first_fallback(statuses: impl IntoIterator<Item = Status>, blocks: &Blocks) -> Status {
    let fallback = statuses.into_iter().enumerate().find_map(|(set, status)| match status {
        Status::Fallback(why) if blocks.apart => Some(format!("{}: {why}", blocks.names[set])),
        Status::Fallback(why) => Some(why),
        Status::Ok => None,
    });
    fallback.map_or(Status::Ok, Status::Fallback)
}

/// Factor that brings a vector with this squared norm inside the limit.
fn clip_factor(limit: f64, square: f64) -> f64 {
    let norm = square.sqrt();
    if norm > limit { limit / norm } else { 1.0 }
}
