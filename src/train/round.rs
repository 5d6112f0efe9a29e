//! One round: forward and backward of every fused group, surgery, commit. Nothing changes unless all of it is finite.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::device::memory::Memory;
use crate::model::network::{Batch, Gradients, Limits, Network, Part, Randomness, Scratch, Targets};
use crate::model::{Parameters, Start};
use crate::ops::row_gradients::Union;
use crate::surgery::balance::{Balancer, Factors, Losses};
use crate::surgery::conflict::{Conflicts, Ledger};
use crate::surgery::gram::{RoundGram, round_gram};
use crate::surgery::methods::{ColumnBlock, Columnwise, Inputs, Method, Status, columns, registry};
use crate::surgery::update::{Decision, Rates, Shared, column_square, commit};

/// Whose norm is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClipScope {
    /// The whole update: shared gradient after surgery and all heads together.
    Update,
    /// Each task's private gradient, encoder and head together, before surgery.
    Task,
}

/// Gradient clipping; a norm of 0 is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    pub norm: f64,
    pub scope: ClipScope,
}

/// On which scale a method's update is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// The reference's own.
    Native,
    Sum,
    Mean,
}

/// The fixed choices of a run that a round needs.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub seed: u64,
    pub clip: Clip,
    pub scale: Scale,
    /// Heads take the surgery's weight of their task instead of their own gradient.
    pub weighted_heads: bool,
    /// Rounds between two sets of conflict statistics; 0 for none.
    pub conflict_every: u64,
    /// What balancers that average over epochs go by.
    pub rounds_per_epoch: u64,
}

/// What settles a round: factors on the losses, then weights of the gradients.
pub struct Settlers {
    pub balancer: Box<dyn Balancer>,
    pub method: Box<dyn Method>,
}

impl Rules {
    /// Whether each task's gradient must be kept apart.
    pub fn stores_jacobian(&self, method: &dyn Method) -> bool {
        let clips_tasks = self.clip.norm > 0.0 && self.clip.scope == ClipScope::Task;
        method.needs().gram || method.needs().elementwise || self.conflict_every > 0 || clips_tasks
    }
}

/// Everything a round works on.
pub struct Engine {
    pub network: Network,
    pub parameters: Parameters,
    pub balancer: Box<dyn Balancer>,
    pub method: Box<dyn Method>,
    pub rules: Rules,
    /// What the run's conflicts came to so far.
    pub ledger: Ledger,
    /// The method's update is on the scale of one gradient, not of their sum.
    averages: bool,
    gradients: Gradients,
    scratch: Scratch,
    union: Union,
    slots: Vec<u32>,
}

/// Time spent in the stages of a round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stages {
    pub forward_backward: Duration,
    pub gram: Duration,
    pub solve: Duration,
    pub update: Duration,
}

/// A committed round.
pub struct Committed {
    /// (T) mean loss over the observed targets of each present task.
    pub losses: Vec<f64>,
    /// (T) the balancer's factor on each task's loss.
    pub balance: Factors,
    /// (T) weight of each task's shared gradient, balancing and clipping left out; empty for an elementwise method.
    pub weights: Vec<f64>,
    /// Norm of the whole update before clipping.
    pub norm: f64,
    /// Share of the update left by clipping; 1 if none.
    pub clip: f64,
    pub status: Status,
    pub conflicts: Option<Conflicts>,
    pub stages: Stages,
}

/// Why a round was not committed.
#[derive(Clone, Debug, PartialEq)]
pub struct Anomaly {
    /// Run-wide index of the task; absent when the gradients were only kept added up.
    pub task: Option<usize>,
    pub what: &'static str,
    pub value: f64,
}

pub type Outcome = Result<Committed, Anomaly>;

impl Engine {
    pub fn new(
        memory: &mut Memory,
        network: Network,
        start: &Start,
        settlers: Settlers,
        rules: Rules,
        limits: &Limits,
    ) -> Result<Self> {
        let Settlers { balancer, method } = settlers;
        let parameters = Parameters::new(memory, &network, start)?;
        let stored = rules.stores_jacobian(method.as_ref());
        let rows = if stored { network.spec.heads.len() } else { 1 };
        let gradients = Gradients::new(memory, &network, rows, stored, limits)?;
        let scratch = Scratch::new(memory, &network.spec.encoder, limits)?;
        let averages = registry::find(method.name()).is_ok_and(|found| found.averages);
        let (union, slots) = (Union::default(), Vec::new());
        let ledger = Ledger::new(network.spec.heads.len());
        Ok(Self { network, parameters, balancer, method, rules, ledger, averages, gradients, scratch, union, slots })
    }

    /// Logits of a batch without training, part after part of its first group.
    pub fn predict(&mut self, batch: &Batch) -> &[f32] {
        self.network.forward(self.parameters.weights(), batch, &batch.parts, &mut self.scratch, None);
        self.scratch.logits()
    }

    /// Tokens that an evaluation batch may have, where the encoder reads tokens.
    pub fn token_room(&self) -> Option<usize> {
        self.scratch.token_room(self.network.spec.encoder.hidden)
    }

    /// Masked tokens that an evaluation batch may have.
    pub fn masked_room(&self) -> usize {
        self.scratch.masked_room()
    }

    /// Sum of losses of one row of the last predicted batch, which holds rows of `task` only.
    pub fn row_loss(&mut self, task: usize, targets: &Targets, row: usize) -> f64 {
        self.network.row_loss(task, targets, row, &mut self.scratch)
    }

    /// Runs round `round` on `batch` for the present `tasks` (ascending run-wide indices).
    pub fn round(&mut self, batch: &Batch, tasks: &[usize], round: u64, rates: &Rates) -> Outcome {
        let mut stages = Stages::default();
        let mut clock = Instant::now();
        let mut lap = || std::mem::replace(&mut clock, Instant::now()).elapsed();

        let (losses, balance) = self.forward_backward(batch, tasks, round)?;
        stages.forward_backward = lap();

        self.union.merge(&self.gradients.rows[..tasks.len().min(self.gradients.rows.len())]);
        if let Some(table) = self.parameters.rows.as_ref().filter(|_| self.network.spec.steps_whole_table()) {
            self.union.cover(table.rows());
        }
        let (gram, head_squares) = self.products(tasks)?;
        let conflicts = self.tracks_conflicts().then(|| Conflicts::of(&gram.gram, tasks.len()));
        stages.gram = lap();

        let factors = if self.gradients.stored { balance.factors.clone() } else { vec![1.0; tasks.len()] };
        let decision = self.decide(gram, head_squares, tasks, &losses, factors, round);
        let conflicts = conflicts.and_then(|conflicts| self.book(conflicts, &decision, tasks, round));
        stages.solve = lap();

        self.commit(&decision, tasks, round, rates);
        stages.update = lap();

        if self.balancer.wants_losses_after_step()
            && let Ok(after) = self.losses(batch, tasks, round)
        {
            let seen = self.seen(&after, tasks, round);
            self.balancer.after_step(&seen);
        }
        let Decided { weights, norm, clip, status, .. } = decision;
        Ok(Committed { losses, balance, weights, norm, clip, status, conflicts, stages })
    }

    /// Private gradients of every present task; mean losses, and what the balancer makes of them. Gradients that are only
    /// added up are scaled by it on the way, others later.
    fn forward_backward(&mut self, batch: &Batch, tasks: &[usize], round: u64) -> Result<(Vec<f64>, Factors), Anomaly> {
        let random = self.randomness(round);
        let early = !self.gradients.stored && self.balancer.name() != "equal";
        let mut factors = None;
        if early && batch.groups.len() > 1 {
            // How far back a loss counts is known once all of them are: one more pass forward instead of T rows of J.
            let losses = self.losses(batch, tasks, round)?;
            factors = Some(self.balance(&losses, tasks, round));
        }
        let mut means = MeanLosses::new(tasks.len());
        for group in &batch.groups {
            let parts = &batch.parts[group.clone()];
            self.forward(batch, parts, random, &mut means)?;
            if early {
                let factors = match &factors {
                    Some(known) => known,
                    None => &*factors.insert(self.balance(&means.means(), tasks, round)),
                };
                self.network.scale_logit_gradients(parts, &mut self.scratch, &factors.factors);
            }
            let weights = self.parameters.weights();
            self.network.backward(weights, batch, parts, &mut self.scratch, &mut self.gradients, random);
        }
        self.network.row_gradients(batch, &mut self.gradients, tasks.len());
        let losses = means.means();
        let factors = match factors {
            Some(factors) => factors,
            None => self.balance(&losses, tasks, round),
        };
        Ok((losses, factors))
    }

    /// Moves all parameters as decided.
    fn commit(&mut self, decision: &Decided, tasks: &[usize], round: u64, rates: &Rates) {
        let shared: Vec<f64> = decision.weights.iter().zip(&decision.factors).map(|(w, f)| w * f).collect();
        let rule = self.method.columnwise().map(|rule| scaled_rule(rule, &decision.factors, round, self.rules.seed));
        let shared = rule.as_ref().map_or(Shared::Weights(&shared), |rule| Shared::Columns(rule));
        let applied = Decision { tasks, shared, heads: &decision.heads };
        commit(&self.network, &mut self.parameters, &self.gradients, &self.union, &mut self.slots, &applied, rates);
    }

    fn randomness(&self, round: u64) -> Randomness {
        Randomness { seed: self.rules.seed, round: round as u32 }
    }

    /// One group's losses; its logit gradients are left in the scratch.
    fn forward(&mut self, batch: &Batch, parts: &[Part], random: Randomness, means: &mut MeanLosses) -> Result<(), Anomaly> {
        self.network.forward(self.parameters.weights(), batch, parts, &mut self.scratch, Some(random));
        for (part, loss) in parts.iter().zip(self.network.losses(parts, &mut self.scratch)) {
            if !loss.is_finite() {
                return Err(Anomaly { task: Some(part.task), what: "loss", value: loss });
            }
            means.add(part, loss);
        }
        Ok(())
    }

    /// Mean losses of the round's examples under the parameters as they are now.
    fn losses(&mut self, batch: &Batch, tasks: &[usize], round: u64) -> Result<Vec<f64>, Anomaly> {
        let mut means = MeanLosses::new(tasks.len());
        for group in &batch.groups {
            self.forward(batch, &batch.parts[group.clone()], self.randomness(round), &mut means)?;
        }
        Ok(means.means())
    }

    fn balance(&mut self, losses: &[f64], tasks: &[usize], round: u64) -> Factors {
        let seen = self.seen(losses, tasks, round);
        self.balancer.factors(&seen)
    }

    fn seen<'a>(&self, losses: &'a [f64], tasks: &'a [usize], round: u64) -> Losses<'a> {
        Losses { losses, tasks, round, epoch: round / self.rules.rounds_per_epoch, seed: self.rules.seed }
    }

    fn tracks_conflicts(&self) -> bool {
        self.gradients.stored && self.rules.conflict_every > 0
    }

    /// Adds a round's conflicts to the run's; returns them where they are to be reported.
    fn book(&mut self, mut conflicts: Conflicts, decision: &Decided, tasks: &[usize], round: u64) -> Option<Conflicts> {
        conflicts.settle(&decision.weights, &decision.balanced, self.plain_weight(tasks.len()));
        self.ledger.add(&conflicts, tasks);
        round.is_multiple_of(self.rules.conflict_every).then_some(conflicts)
    }

    /// Every task's weight without surgery, on the scale of this run's updates.
    fn plain_weight(&self, count: usize) -> f64 {
        match (self.rules.scale, self.averages) {
            (Scale::Mean, _) | (Scale::Native, true) => 1.0 / count as f64,
            _ => 1.0,
        }
    }

    /// Gram matrix and squared norms of the heads' gradients.
    fn products(&self, tasks: &[usize]) -> Result<(RoundGram, Vec<f64>), Anomaly> {
        let gram = round_gram(&self.network, &self.gradients, &self.union, tasks.len());
        let mut head_squares = Vec::with_capacity(tasks.len());
        for (index, &task) in tasks.iter().enumerate() {
            let gradient = &self.gradients.heads[self.network.table.head_range(task)];
            let square: f64 = gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
            let own = gram.gram[index * tasks.len() + index] + square;
            if !own.is_finite() {
                return Err(Anomaly { task: Some(task), what: "gradient norm", value: own.sqrt() });
            }
            head_squares.push(square);
        }
        if let Some(added) = gram.added.filter(|added| !added.is_finite()) {
            return Err(Anomaly { task: None, what: "gradient norm", value: added.sqrt() });
        }
        Ok((gram, head_squares))
    }

    /// Surgery and clipping: from products to one factor per task for encoder and head. `balanced` are the factors on the
    /// tasks' gradients that are still to be applied.
    fn decide(
        &mut self,
        mut gram: RoundGram,
        heads: Vec<f64>,
        tasks: &[usize],
        losses: &[f64],
        balanced: Vec<f64>,
        round: u64,
    ) -> Decided {
        let count = tasks.len();
        let Clip { norm: limit, scope } = self.rules.clip;
        gram.scale(&balanced);
        let mut factors = balanced.clone();
        if limit > 0.0 && scope == ClipScope::Task {
            let square = |index: usize| gram.gram[index * count + index] + factors[index].powi(2) * heads[index];
            let clips: Vec<f64> = (0..count).map(|index| clip_factor(limit, square(index))).collect();
            gram.scale(&clips);
            factors.iter_mut().zip(clips).for_each(|(factor, clip)| *factor *= clip);
        }
        let inputs = Inputs {
            gram: &gram.gram,
            cross_gram: &[],
            losses,
            row_sums: &[],
            tasks,
            round,
            seed: self.rules.seed,
            orders: None,
        };
        let solution = self.method.solve(&inputs);
        let mut weights = solution.weights;
        let rescale = match (self.rules.scale, self.averages) {
            (Scale::Sum, true) => count as f64,
            (Scale::Mean, false) => 1.0 / count as f64,
            _ => 1.0,
        };
        weights.iter_mut().for_each(|weight| *weight *= rescale);
        let mut head_factors = factors.clone();
        if self.rules.weighted_heads {
            head_factors.iter_mut().zip(&weights).for_each(|(factor, weight)| *factor *= weight);
        }
        let head_square: f64 = head_factors.iter().zip(&heads).map(|(f, square)| f * f * square).sum();
        let shared_square = match self.method.columnwise() {
            Some(rule) => {
                factors.iter_mut().for_each(|factor| *factor *= rescale);
                let rule = scaled_rule(rule, &factors, round, self.rules.seed);
                column_square(&self.network, &self.gradients, &self.union, count, &rule)
            }
            None => gram.update_square(&weights),
        };
        let square = shared_square + head_square;
        let mut clip = 1.0;
        if limit > 0.0 && scope == ClipScope::Update {
            clip = clip_factor(limit, square);
            factors.iter_mut().chain(&mut head_factors).for_each(|factor| *factor *= clip);
        }
        Decided { weights, balanced, factors, heads: head_factors, norm: square.sqrt(), clip, status: solution.status }
    }
}

/// What surgery and clipping came to.
struct Decided {
    weights: Vec<f64>,
    /// (T) balancing of each task's gradient, where it was still to be applied.
    balanced: Vec<f64>,
    /// (T) balancing and clipping of each task's shared gradient.
    factors: Vec<f64>,
    /// (T) factor of each head's gradient.
    heads: Vec<f64>,
    norm: f64,
    clip: f64,
    status: Status,
}

/// A method's rule on gradients scaled by the tasks' factors.
fn scaled_rule<'a>(
    rule: &'a dyn Columnwise,
    factors: &'a [f64],
    round: u64,
    seed: u64,
) -> impl Fn(&[&[f32]], u64, &mut [f32]) + Sync + 'a {
    move |rows, first, out| columns::combine_scaled(rule, &ColumnBlock { rows, first, round, seed }, factors, out)
}

/// Losses of a round as they come in, group by group.
struct MeanLosses {
    sums: Vec<f64>,
    observed: Vec<usize>,
}

impl MeanLosses {
    fn new(count: usize) -> Self {
        Self { sums: vec![0.0; count], observed: vec![0; count] }
    }

    fn add(&mut self, part: &Part, loss: f64) {
        self.sums[part.present] += loss;
        self.observed[part.present] += part.targets.observed();
    }

    /// (T)
    fn means(&self) -> Vec<f64> {
        self.sums.iter().zip(&self.observed).map(|(sum, &count)| sum / count.max(1) as f64).collect()
    }
}

/// Factor that brings a vector with this squared norm inside the limit.
fn clip_factor(limit: f64, square: f64) -> f64 {
    let norm = square.sqrt();
    if norm > limit { limit / norm } else { 1.0 }
}
