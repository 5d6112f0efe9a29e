//! One round: forward and backward of every fused group, surgery, commit. Nothing changes unless all of it is finite.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::device::memory::Memory;
use crate::model::network::{Batch, Gradients, Limits, Network, Randomness, Scratch, Targets};
use crate::model::{Parameters, Start};
use crate::ops::row_gradients::Union;
use crate::surgery::conflict::Conflicts;
use crate::surgery::gram::{RoundGram, round_gram};
use crate::surgery::methods::{Inputs, Method, Status, registry};
use crate::surgery::update::{Decision, Rates, commit};

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
}

impl Rules {
    /// Whether each task's gradient must be kept apart.
    pub fn stores_jacobian(&self, method: &dyn Method) -> bool {
        let clips_tasks = self.clip.norm > 0.0 && self.clip.scope == ClipScope::Task;
        method.needs().gram || self.conflict_every > 0 || clips_tasks
    }
}

/// Everything a round works on.
pub struct Engine {
    pub network: Network,
    pub parameters: Parameters,
    pub method: Box<dyn Method>,
    pub rules: Rules,
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
    /// (T) weight of each task's shared gradient, clipping left out.
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
        method: Box<dyn Method>,
        rules: Rules,
        limits: &Limits,
    ) -> Result<Self> {
        let parameters = Parameters::new(memory, &network, start)?;
        let stored = rules.stores_jacobian(method.as_ref());
        let rows = if stored { network.spec.heads.len() } else { 1 };
        let gradients = Gradients::new(memory, &network, rows, stored, limits)?;
        let scratch = Scratch::new(memory, &network.spec.encoder, limits)?;
        let averages = registry::find(method.name()).is_ok_and(|found| found.averages);
        let (union, slots) = (Union::default(), Vec::new());
        Ok(Self { network, parameters, method, rules, averages, gradients, scratch, union, slots })
    }

    /// Logits of a batch without training, part after part of its first group.
    pub fn predict(&mut self, batch: &Batch) -> &[f32] {
        self.network.forward(self.parameters.weights(), batch, &batch.parts, &mut self.scratch, None);
        self.scratch.logits()
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

        let losses = self.forward_backward(batch, tasks, round)?;
        stages.forward_backward = lap();

        self.union.merge(&self.gradients.rows[..tasks.len().min(self.gradients.rows.len())]);
        let (gram, head_squares, conflicts) = self.products(tasks, round)?;
        stages.gram = lap();

        let decision = self.decide(gram, head_squares, tasks, &losses, round);
        stages.solve = lap();

        let shared: Vec<f64> = decision.weights.iter().zip(&decision.factors).map(|(w, f)| w * f).collect();
        let applied = Decision { tasks, shared: &shared, heads: &decision.heads };
        commit(&self.network, &mut self.parameters, &self.gradients, &self.union, &mut self.slots, &applied, rates);
        stages.update = lap();

        let Decided { weights, norm, clip, status, .. } = decision;
        Ok(Committed { losses, weights, norm, clip, status, conflicts, stages })
    }

    /// Private gradients of every present task; mean losses.
    fn forward_backward(&mut self, batch: &Batch, tasks: &[usize], round: u64) -> Result<Vec<f64>, Anomaly> {
        let random = Randomness { seed: self.rules.seed, round: round as u32 };
        let mut sums = vec![0.0; tasks.len()];
        let mut observed = vec![0usize; tasks.len()];
        for group in &batch.groups {
            let parts = &batch.parts[group.clone()];
            let weights = self.parameters.weights();
            self.network.forward(weights, batch, parts, &mut self.scratch, Some(random));
            for (part, loss) in parts.iter().zip(self.network.losses(parts, &mut self.scratch)) {
                if !loss.is_finite() {
                    return Err(Anomaly { task: Some(part.task), what: "loss", value: loss });
                }
                sums[part.present] += loss;
                observed[part.present] += part.targets.observed();
            }
            self.network.backward(weights, batch, parts, &mut self.scratch, &mut self.gradients, random);
        }
        self.network.row_gradients(batch, &mut self.gradients, tasks.len());
        Ok(sums.iter().zip(observed).map(|(sum, count)| sum / count.max(1) as f64).collect())
    }

    /// Gram matrix, squared norms of the heads' gradients, and conflict statistics where they are due.
    #[allow(clippy::type_complexity, reason = "three results of one pass, taken apart at once")]
    fn products(&self, tasks: &[usize], round: u64) -> Result<(RoundGram, Vec<f64>, Option<Conflicts>), Anomaly> {
        let gram = round_gram(&self.network, &self.gradients, &self.union, tasks.len());
        let mut head_squares = Vec::with_capacity(tasks.len());
        for (index, &task) in tasks.iter().enumerate() {
            let (weight, bias) = self.network.table.head(task);
            let gradient = &self.gradients.heads[weight.offset..bias.range().end];
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
        let due = self.gradients.stored && self.rules.conflict_every > 0 && round.is_multiple_of(self.rules.conflict_every);
        let conflicts = due.then(|| Conflicts::of(&gram.gram, tasks.len()));
        Ok((gram, head_squares, conflicts))
    }

    /// Surgery and clipping: from products to one factor per task for encoder and head.
    fn decide(&mut self, mut gram: RoundGram, heads: Vec<f64>, tasks: &[usize], losses: &[f64], round: u64) -> Decided {
        let count = tasks.len();
        let Clip { norm: limit, scope } = self.rules.clip;
        let mut factors = vec![1.0; count];
        if limit > 0.0 && scope == ClipScope::Task {
            for (index, factor) in factors.iter_mut().enumerate() {
                *factor = clip_factor(limit, gram.gram[index * count + index] + heads[index]);
            }
            gram.scale(&factors);
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
        let mut head_factors: Vec<f64> =
            factors.iter().zip(&weights).map(|(f, w)| if self.rules.weighted_heads { f * w } else { *f }).collect();
        let head_square: f64 = head_factors.iter().zip(&heads).map(|(f, square)| f * f * square).sum();
        let square = gram.update_square(&weights) + head_square;
        let mut clip = 1.0;
        if limit > 0.0 && scope == ClipScope::Update {
            clip = clip_factor(limit, square);
            factors.iter_mut().chain(&mut head_factors).for_each(|factor| *factor *= clip);
        }
        Decided { weights, factors, heads: head_factors, norm: square.sqrt(), clip, status: solution.status }
    }
}

/// What surgery and clipping came to.
struct Decided {
    weights: Vec<f64>,
    /// (T) clipping of each task's shared gradient.
    factors: Vec<f64>,
    /// (T) factor of each head's gradient.
    heads: Vec<f64>,
    norm: f64,
    clip: f64,
    status: Status,
}

/// Factor that brings a vector with this squared norm inside the limit.
fn clip_factor(limit: f64, square: f64) -> f64 {
    let norm = square.sqrt();
    if norm > limit { limit / norm } else { 1.0 }
}
