//! One round: forward and backward of every fused group, surgery, commit. Nothing changes unless all of it is finite.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::accelerator::Accelerator;
use super::decide::{Decided, Known, scaled_rule};
use super::lanes::{Lanes, Quantum};
use super::rules::{Rules, Scale, Settlers};
use crate::device::memory::Memory;
use crate::model::jacobian::Storage;
use crate::model::network::{Batch, Gradients, Keep, Limits, Network, Randomness, Scratch, Targets};
use crate::model::snapshot::Snapshot;
use crate::model::{Parameters, Start};
use crate::surgery::balance::{Balancer, Factors, Losses};
use crate::surgery::blocks::Blocks;
use crate::surgery::buffers::TaskBuffers;
use crate::surgery::conflict::RoundConflicts;
use crate::surgery::gram::{RoundGram, round_gram};
use crate::surgery::ledger::RunLedger;
use crate::surgery::methods::{Method, Status, registry};
use crate::surgery::update::{Decision, Rates, Shared, Touched, commit};

/// Everything a round works on.
pub struct Engine {
    pub network: Network,
    pub parameters: Parameters,
    /// What an evaluation reads while training goes on, where it does.
    pub(super) snapshot: Option<Snapshot>,
    pub balancer: Box<dyn Balancer>,
    pub rules: Rules,
    /// What the run's conflicts came to so far.
    pub ledger: RunLedger,
    pub blocks: Blocks,
    /// What the method keeps by task and parameter, if it does.
    pub buffers: Option<TaskBuffers>,
    /// One for each settled part of the encoder.
    pub(super) methods: Vec<Box<dyn Method>>,
    /// The method's update is on the scale of one gradient, not of their sum.
    pub(super) averages: bool,
    pub(super) gradients: Gradients,
    pub(super) touched: Touched,
    /// Where and when each fused group of the last round was computed.
    pub(super) quanta: Vec<Quantum>,
    pub(super) lanes: Lanes,
    /// Activations, by lane; evaluation uses the first.
    pub(super) arenas: Vec<Scratch>,
    /// Where rounds are computed, if not here.
    pub(super) accelerator: Option<Accelerator>,
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
    /// (T) by settled part: weight of each task's shared gradient, balancing and clipping left out; empty for an elementwise
    /// method.
    pub weights: Vec<Vec<f64>>,
    /// Norm of the whole update before clipping.
    pub norm: f64,
    /// Share of the update left by clipping; 1 if none.
    pub clip: f64,
    pub status: Status,
    pub conflicts: Option<RoundConflicts>,
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
        let Settlers { balancer, methods } = settlers;
        let blocks = Blocks::new(&network, rules.granularity, methods[0].needs());
        ensure!(methods.len() == blocks.settled(), "{} methods for {} parts of the encoder", methods.len(), blocks.settled());
        let method = &*methods[0];
        let averages = registry::find(method.name()).is_ok_and(|found| found.averages);
        let before = memory.used();
        let parameters = Parameters::new(memory, &network, start)?;
        let snapshot = rules.evaluates_copy.then(|| Snapshot::new(memory, &parameters)).transpose()?;
        let batches = if method.needs().second_batch { 2 } else { 1 };
        let keep = Keep { stored: rules.stores_jacobian(method), batches, storage: rules.storage };
        let buffers = method.needs().row_state.then(|| TaskBuffers::new(memory, &network, &limits.task_rows)).transpose()?;
        if rules.copies_checkpoints {
            // All of the above, or nearly.
            memory.reserve("checkpoint: copy", memory.used() - before)?;
        }
        let gradients = Gradients::new(memory, &network, keep, limits)?;
        let lanes = Lanes::new(if memory.is_dry() { 1 } else { rules.lanes })?;
        let mut arenas = Vec::with_capacity(rules.lanes);
        for lane in 0..rules.lanes {
            memory.within(if lane > 0 { format!("lane {lane} ") } else { String::new() });
            let scratch = Scratch::new(memory, &network.spec.encoder, limits)?;
            let staged = keep.stored && keep.storage == Storage::Bf16;
            arenas.push(if staged { scratch.staged(memory, network.largest_piece())? } else { scratch });
        }
        memory.within(String::new());
        let ledger = RunLedger::new(network.spec.heads.len(), blocks.count());
        let touched = Touched::default();
        Ok(Self {
            network,
            parameters,
            snapshot,
            balancer,
            rules,
            ledger,
            blocks,
            buffers,
            methods,
            averages,
            gradients,
            touched,
            quanta: Vec::new(),
            lanes,
            arenas,
            accelerator: None,
        })
    }

    /// Copies the parameters for [`Engine::with_snapshot`].
    pub fn take_snapshot(&mut self) {
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.take(&self.parameters);
        }
    }

    /// Does something that reads parameters with those of the snapshot, where there is one.
    pub fn with_snapshot<R>(&mut self, read: impl FnOnce(&mut Self) -> R) -> R {
        self.exchange();
        let result = read(self);
        self.exchange();
        result
    }

    /// Puts the snapshot in the parameters' place, or back.
    pub(super) fn exchange(&mut self) {
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.exchange(&mut self.parameters);
        }
    }

    /// Independent batches that a round is divided into.
    pub fn batches(&self) -> usize {
        self.gradients.batches
    }

    /// The method, by its first instance.
    pub fn method(&self) -> &dyn Method {
        &*self.methods[0]
    }

    /// What the method remembers, for the checkpoint; a list where there is one for each block.
    pub fn method_state(&self) -> Value {
        match &self.methods[..] {
            [one] => one.state(),
            many => many.iter().map(|method| method.state()).collect(),
        }
    }

    /// Takes back what [`Engine::method_state`] gave.
    pub fn restore_method(&mut self, state: &Value) -> Result<(), String> {
        match (&mut self.methods[..], state) {
            ([one], state) => one.restore(state),
            (many, Value::Array(states)) if many.len() == states.len() => {
                many.iter_mut().zip(states).try_for_each(|(method, state)| method.restore(state))
            }
            (many, _) => Err(format!("the saved state of {} is not one for each of {} blocks", many[0].name(), many.len())),
        }
    }

    /// Logits of a batch without training, part after part of its first group.
    pub fn predict(&mut self, batch: &Batch) -> &[f32] {
        self.network.forward(self.parameters.weights(), batch, &batch.parts, &mut self.arenas[0], None);
        self.arenas[0].logits()
    }

    /// (tokens x hidden) what the frozen prefix makes of a batch; none where there is no transformer.
    pub fn prefix(&mut self, batch: &Batch) -> Option<&[f32]> {
        self.network.prefix(self.parameters.weights(), batch, &mut self.arenas[0])
    }

    /// Tokens that an evaluation batch may have, where the encoder reads tokens.
    pub fn token_room(&self) -> Option<usize> {
        self.arenas[0].token_room(self.network.spec.encoder.hidden)
    }

    /// Masked tokens that an evaluation batch may have.
    pub fn masked_room(&self) -> usize {
        self.arenas[0].masked_room()
    }

    /// Sum of losses of one row of the last predicted batch, which holds rows of `task` only.
    pub fn row_loss(&mut self, task: usize, targets: &Targets, row: usize) -> f64 {
        self.network.row_loss(task, targets, row, &mut self.arenas[0])
    }

    /// Runs round `round` on `batch` for the present `tasks` (ascending run-wide indices).
    pub fn round(&mut self, batch: &Batch, tasks: &[usize], round: u64, rates: &Rates) -> Outcome {
        let mut stages = Stages::default();
        let mut clock = Instant::now();
        let mut lap = || std::mem::replace(&mut clock, Instant::now()).elapsed();

        let (losses, balance) = self.forward_backward(batch, tasks, round)?;
        stages.forward_backward = lap();

        let rows = (tasks.len() * self.gradients.batches).min(self.gradients.rows.len());
        self.touched.union.merge(&self.gradients.rows[..rows]);
        if let Some(table) = self.parameters.rows.as_ref().filter(|_| self.network.spec.steps_whole_table()) {
            self.touched.union.cover(table.rows());
        }
        let shares = batch_shares(batch, tasks.len(), self.gradients.batches);
        let (gram, heads) = self.products(tasks, &shares)?;
        let conflicts = self.tracks_conflicts().then(|| RoundConflicts::of(&gram, tasks.len()));
        stages.gram = lap();

        let balanced = if self.gradients.stored { balance.factors.clone() } else { vec![1.0; tasks.len()] };
        let decision = self.decide(Known { gram, heads, tasks, losses: &losses, balanced, shares: &shares, round });
        let conflicts = conflicts.and_then(|conflicts| self.book(conflicts, &decision.weights, &decision.balanced, tasks, round));
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

    /// Moves all parameters as decided.
    fn commit(&mut self, decision: &Decided, tasks: &[usize], round: u64, rates: &Rates) {
        let scaled = |set: &Vec<f64>| set.iter().zip(&decision.factors).map(|(w, f)| w * f).collect();
        let sets: Vec<Vec<f64>> = decision.weights.iter().map(scaled).collect();
        let rule = self.methods[0].columnwise().map(|rule| scaled_rule(rule, &decision.factors, round, self.rules.seed));
        let weights = Shared::Weights { sets: &sets, blocks: &self.blocks };
        let shared = rule.as_ref().map_or(weights, |rule| Shared::Columns(rule));
        let applied = Decision { tasks, shared, heads: &decision.heads };
        commit(&self.network, &mut self.parameters, &self.gradients, &mut self.touched, &applied, rates);
    }

    pub(super) fn randomness(&self, round: u64) -> Randomness {
        Randomness { seed: self.rules.seed, round: round as u32 }
    }

    pub(super) fn balance(&mut self, losses: &[f64], tasks: &[usize], round: u64) -> Factors {
        let seen = self.seen(losses, tasks, round);
        self.balancer.factors(&seen)
    }

    pub(super) fn seen<'a>(&self, losses: &'a [f64], tasks: &'a [usize], round: u64) -> Losses<'a> {
        Losses { losses, tasks, round, epoch: round / self.rules.rounds_per_epoch, seed: self.rules.seed }
    }

    pub(super) fn tracks_conflicts(&self) -> bool {
        self.gradients.stored && self.rules.conflict_every > 0
    }

    /// Adds a round's conflicts to the run's; returns them where they are to be reported.
    pub(super) fn book(
        &mut self,
        mut conflicts: RoundConflicts,
        weights: &[Vec<f64>],
        balanced: &[f64],
        tasks: &[usize],
        round: u64,
    ) -> Option<RoundConflicts> {
        let plain = self.plain_weight(tasks.len());
        conflicts.settle(&self.blocks, weights, balanced, plain);
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
    fn products(&self, tasks: &[usize], shares: &[f64]) -> Result<(RoundGram, Vec<f64>), Anomaly> {
        let gram = round_gram(&self.gradients, &self.touched.union, &self.blocks, tasks.len(), shares);
        let total = gram.total();
        let mut head_squares = Vec::with_capacity(tasks.len());
        for (index, &task) in tasks.iter().enumerate() {
            let gradient = &self.gradients.heads[self.network.table.head_range(task)];
            let square: f64 = gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
            let own = total[index * tasks.len() + index] + square;
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
}

/// (rows of J) the part of its task's observed targets that each row comes from.
pub(super) fn batch_shares(batch: &Batch, present: usize, batches: usize) -> Vec<f64> {
    let mut counts = vec![0.0; present * batches];
    for part in &batch.parts {
        counts[part.present * batches + part.batch] += part.targets.observed() as f64;
    }
    let totals: Vec<f64> = counts.chunks(batches).map(|counts| counts.iter().sum()).collect();
    counts.iter().enumerate().map(|(row, count)| count / totals[row / batches]).collect()
}
