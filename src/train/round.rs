//! One round: forward and backward of every fused group, surgery, commit; or several whose gradients are computed together. Nothing
//! changes unless all of it is finite.

use std::ops::Range;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::accelerator::{Accelerator, Prepared};
use super::ahead::Packed;
pub use super::backend::Anomaly;
use super::backend::{Backend, Forward, Products, Stop, Work};
use super::batch::Purpose;
use super::host::Host;
use super::predictor::HostPredictor;
use super::quanta::{Quantum, RoundTimes};
use super::round_options::{RoundOptions, Solvers};
use super::solve::{RoundStats, Solver, Step};
use super::stages::Lap;
pub use super::stages::Stages;
use crate::machine::memory::Memory;
use crate::model::network::{Batch, Keep, Limits, Network, Randomness};
use crate::model::snapshot::Snapshot;
use crate::model::{Model, Start};
use crate::surgery::balance::Factors;
use crate::surgery::blocks::Blocks;
use crate::surgery::buffers::TaskBuffers;
use crate::surgery::conflict::RoundConflicts;
use crate::surgery::ledger::RunLedger;
use crate::surgery::methods::{Method, Status, registry};
use crate::surgery::update::Rates;

/// Everything a run trains, and what it trains it with.
pub struct Trainer {
    pub model: Model,
    /// What an evaluation reads while training goes on, where it does.
    pub(super) snapshot: Option<Snapshot>,
    pub blocks: Blocks,
    pub solver: Solver,
    pub(super) host: Host,
    /// Where rounds are computed, if not on the CPU.
    pub(super) accelerator: Option<Accelerator>,
}

/// A committed round.
pub struct Committed {
    /// (T) mean loss over the observed targets of each present task.
    pub losses: Vec<f64>,
    /// (T) the balancer's factor on each task's loss.
    pub balance: Factors,
    /// (T) by part of the encoder that is solved on its own: weight of each task's shared gradient, balancing and clipping left out; empty for an elementwise
    /// method.
    pub weights: Vec<Vec<f64>>,
    /// Norm of the whole update before clipping.
    pub norm: f64,
    /// Share of the update left by clipping; 1 if none.
    pub clip: f64,
    pub status: Status,
    pub conflicts: Option<RoundConflicts>,
    pub stages: Stages,
    /// On a device, if [`Trainer::time_quanta`] wants them.
    pub times: Option<RoundTimes>,
}

pub type Outcome = Result<Committed, Anomaly>;

impl Trainer {
    pub fn new(
        memory: &mut Memory,
        network: Network,
        start: &Start,
        solvers: Solvers,
        round_options: RoundOptions,
        limits: &Limits,
    ) -> Result<Self> {
        let Solvers { balancer, methods } = solvers;
        let blocks = Blocks::new(&network, round_options.granularity, methods[0].needs());
        ensure!(methods.len() == blocks.sets(), "{} methods for {} parts of the encoder", methods.len(), blocks.sets());
        let method = &*methods[0];
        let mean_scaled = registry::find(method.name()).is_ok_and(|found| found.averages);
        let before = memory.used();
        let model = Model::new(memory, network, start)?;
        let network = &model.network;
        let snapshot = round_options.evaluates_copy.then(|| Snapshot::new(memory, &model.parameters)).transpose()?;
        let batches = if method.needs().second_batch { 2 } else { 1 };
        let keep = Keep { stored: round_options.stores_jacobian(method), batches, storage: round_options.storage };
        let buffers = method.needs().row_state.then(|| TaskBuffers::new(memory, network, &limits.task_rows)).transpose()?;
        if round_options.copies_checkpoints {
            // All of the above, or nearly.
            memory.reserve("checkpoint: copy", memory.used() - before)?;
        }
        let host = Host::new(memory, network, &round_options, keep, limits)?;
        let ledger = RunLedger::new(network.spec.heads.len(), blocks.count());
        let solver = Solver { round_options, balancer, methods, buffers, ledger, mean_scaled };
        Ok(Self { model, snapshot, blocks, solver, host, accelerator: None })
    }

    /// Copies the parameters for [`Trainer::with_snapshot`], where they are evaluated while training goes on.
    pub fn take_snapshot(&mut self) -> Result<()> {
        if self.snapshot.is_none() {
            return Ok(());
        }
        self.fetch_values()?;
        let Self { snapshot: Some(snapshot), model, accelerator, .. } = self else { return Ok(()) };
        snapshot.take(&model.parameters);
        Ok(accelerator.as_mut().map_or(Ok(()), |accelerator| accelerator.take_snapshot(&model.parameters))?)
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
            snapshot.exchange(&mut self.model.parameters);
        }
    }

    /// What the batch of a round is packed for.
    pub fn purpose(&self, seed: u64, round: u64) -> Purpose {
        Purpose { seed, round, batches: self.batches(), fetched: self.holds_data(), padded: self.is_accelerated() }
    }

    /// Independent batches that a round is divided into.
    pub fn batches(&self) -> usize {
        self.host.gradients.keep.batches
    }

    /// Lanes that compute fused groups.
    pub fn lanes(&self) -> usize {
        self.accelerator.as_ref().map_or(self.host.arenas.len(), Accelerator::lanes)
    }

    /// Whether a device times the quanta of rounds from here on, which then wait for their step; the CPU always does.
    pub fn time_quanta(&mut self, wanted: bool) {
        self.accelerator.iter_mut().for_each(|accelerator| accelerator.time_quanta(wanted));
    }

    /// Gives a device what was made of the round's batch beforehand, if anything was.
    pub fn prepare(&mut self, prepared: Option<Prepared>) {
        if let Some(accelerator) = &mut self.accelerator {
            accelerator.prepare(prepared, &mut self.model.parameters);
        }
    }

    /// Tells a device from where the batch of the round after this one will come, if it is foreseen; and with which rates, if that round
    /// follows for certain where this one commits.
    pub fn expect(&mut self, coming: Option<Receiver<Packed>>, certain: Option<Rates>) {
        if let Some(accelerator) = &mut self.accelerator {
            accelerator.expect(coming, certain);
        }
    }

    /// Whether a device has been given the round after the last one, which has to be run next.
    pub fn is_ahead(&self) -> bool {
        self.accelerator.as_ref().is_some_and(Accelerator::is_ahead)
    }

    /// The batch that was expected last, if it is `wanted`; what was done for it is undone otherwise.
    pub fn expected(&mut self, wanted: bool) -> Option<Packed> {
        self.accelerator.as_mut()?.expected(wanted, &mut self.model.parameters)
    }

    /// Whether rounds are computed on a device, beside which the CPU is free.
    pub fn is_accelerated(&self) -> bool {
        self.accelerator.is_some()
    }

    /// The method, by its first instance.
    pub fn method(&self) -> &dyn Method {
        self.solver.method()
    }

    /// What the method remembers, for the checkpoint; a list where there is one for each block.
    pub fn method_state(&self) -> Value {
        match &self.solver.methods[..] {
            [one] => one.state(),
            many => many.iter().map(|method| method.state()).collect(),
        }
    }

    /// Takes back what [`Trainer::method_state`] gave.
    pub fn restore_method(&mut self, state: &Value) -> Result<(), String> {
        match (&mut self.solver.methods[..], state) {
            ([one], state) => one.restore(state),
            (many, Value::Array(states)) if many.len() == states.len() => {
                many.iter_mut().zip(states).try_for_each(|(method, state)| method.restore(state))
            }
            (many, _) => Err(format!("the saved state of {} is not one for each of {} blocks", many[0].name(), many.len())),
        }
    }

    /// Computes logits on the host.
    pub fn on_host(&mut self) -> HostPredictor<'_> {
        HostPredictor { model: &self.model, scratch: &mut self.host.arenas[0] }
    }

    /// Runs round `round` on `batch` for the present `tasks` (ascending run-wide indices). The error is a device's.
    pub fn run_round(&mut self, batch: &Batch, tasks: &[usize], round: u64, rates: &Rates) -> Result<Outcome> {
        let commit = Commit { round, present: 0..tasks.len() };
        let outcomes = self.run_rounds(batch, tasks, &[commit], &|_, _| *rates)?;
        Ok(outcomes.and_then(|mut outcomes| outcomes.pop().expect("an outcome for each commit")))
    }

    /// Runs rounds whose gradients are all of the parameters as they are now, and whose `commits` follow each other; each takes some of
    /// the present `tasks`. `rates` of a round, where so many of them were committed before it. One outcome each; an anomaly of
    /// gradients is the error, and then nothing is committed.
    pub fn run_rounds(
        &mut self,
        batch: &Batch,
        tasks: &[usize],
        commits: &[Commit],
        rates: &dyn Fn(u64, u64) -> Rates,
    ) -> Result<Result<Vec<Outcome>, Anomaly>> {
        match self.rounds(batch, tasks, commits, rates) {
            Ok(outcomes) => Ok(Ok(outcomes)),
            Err(Stop::Anomaly(anomaly)) => Ok(Err(anomaly)),
            Err(Stop::Device(error)) => Err(error.into()),
        }
    }

    fn rounds(
        &mut self,
        batch: &Batch,
        tasks: &[usize],
        commits: &[Commit],
        rates: &dyn Fn(u64, u64) -> Rates,
    ) -> Result<Vec<Outcome>, Stop> {
        let Self { model: Model { network, parameters }, blocks, solver, host, accelerator, .. } = self;
        let backend: &mut dyn Backend = match accelerator {
            Some(accelerator) => accelerator,
            None => host,
        };
        let Keep { stored, batches, .. } = backend.keep();
        let shares = batch_shares(network, batch, tasks.len(), batches);
        let round = commits[0].round;
        let random = Randomness { seed: solver.round_options.seed, round: round as u32 };
        let mut work = Work { network, parameters, blocks, batch, tasks, first: 0, round, random, shares: &shares };
        let mut lap = Lap::new(Instant::now());
        if let [_] = commits {
            let committed = only_round(solver, backend, &mut work, stored, rates(round, 0), lap)?;
            return Ok(vec![Ok(committed)]);
        }
        let forward = backend.forward_backward(&mut work, None)?;
        if let Some(anomaly) = forward.anomaly(tasks) {
            return Err(anomaly);
        }
        let forward_backward = lap.time();
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(commits.len());
        for Commit { round, present } in commits {
            work.round = *round;
            (work.tasks, work.first) = (&tasks[present.clone()], present.start);
            work.shares = &shares[present.start * batches..present.end * batches];
            let products = backend.products(&work)?;
            let losses = forward.losses[present.clone()].to_vec();
            let gradients = GradientsOf { forward: Forward { losses, balanced: None }, products, step: None };
            let before = outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64;
            let mut lap = Lap { forward_backward, ..Lap::new(lap.began) };
            outcomes.push(match commit(solver, backend, &mut work, stored, gradients, &rates(*round, before), &mut lap) {
                Ok(committed) => Ok(committed),
                Err(Stop::Anomaly(anomaly)) => Err(anomaly),
                Err(device) => return Err(device),
            });
        }
        Ok(outcomes)
    }
}

/// A round among those that are run together.
#[derive(Clone, Debug)]
pub struct Commit {
    pub round: u64,
    /// Its tasks, by their position among those present.
    pub present: Range<usize>,
}

/// Gradients of a commit's tasks, and what is known of them; the step, where it was solved and made with them.
struct GradientsOf {
    forward: Forward,
    products: Products,
    step: Option<Step>,
}

/// A round by itself: gradients and commit.
fn only_round(
    solver: &mut Solver,
    backend: &mut dyn Backend,
    work: &mut Work,
    stored: bool,
    rates: Rates,
    mut lap: Lap,
) -> Result<Committed, Stop> {
    let (tasks, round) = (work.tasks, work.round);
    let on_device = solver.on_device(work.blocks.sets());
    let gradients = match on_device.and_then(|solve| backend.whole_round(work, &solve, &rates)) {
        Some(whole) => {
            let (forward, products, step) = whole?;
            lap.forward_backward = lap.time();
            GradientsOf { forward, products, step: Some(step) }
        }
        None => {
            let scales_early = !stored && solver.balancer.name() != "equal";
            let mut balance = |losses: &[f64]| solver.balance(losses, tasks, round);
            let forward = backend.forward_backward(work, scales_early.then_some(&mut balance))?;
            lap.forward_backward = lap.time();
            GradientsOf { forward, products: backend.products(work)?, step: None }
        }
    };
    commit(solver, backend, work, stored, gradients, &rates, &mut lap)
}

/// Surgery and the step, of gradients that `backend` holds.
fn commit(
    solver: &mut Solver,
    backend: &mut dyn Backend,
    work: &mut Work,
    stored: bool,
    gradients: GradientsOf,
    rates: &Rates,
    lap: &mut Lap,
) -> Result<Committed, Stop> {
    let (tasks, round, start) = (work.tasks, work.round, lap.clock - lap.began);
    let GradientsOf { forward, products, step } = gradients;
    if let Some(anomaly) = forward.anomaly(tasks).or_else(|| products.anomaly(tasks)) {
        return Err(anomaly);
    }
    let losses = forward.losses;
    let tracked = stored && solver.round_options.conflict_every > 0;
    let conflicts = tracked.then(|| RoundConflicts::of(&products.gram, tasks.len()));
    let gram = lap.time();

    let balance = forward.balanced.unwrap_or_else(|| solver.balance(&losses, tasks, round));
    let balanced = if stored { balance.factors.clone() } else { vec![1.0; tasks.len()] };
    let moved = step.is_some();
    let step = match step {
        Some(step) => step,
        None => solver.solve(backend, work, RoundStats { products, losses: &losses, balanced: &balanced })?,
    };
    if !step.norm.is_finite() {
        return Err(Stop::anomaly(None, "update norm", step.norm));
    }
    let conflicts = conflicts.and_then(|found| solver.add_conflicts(found, work, &step.weights, &balanced));
    let solve = lap.time();

    if !moved {
        backend.step(work, &step, solver.method().columnwise(), rates)?;
    }
    let update = lap.time();
    let times = backend.times(lap.began, Quantum { lane: 0, start, time: gram + solve + update });

    if solver.balancer.wants_losses_after_step() {
        let after = match backend.losses(work) {
            Err(Stop::Device(error)) => return Err(error.into()),
            after => after.ok().filter(|losses| losses.iter().all(|loss| loss.is_finite())),
        };
        if let Some(after) = after {
            let seen = solver.seen(&after, tasks, round);
            solver.balancer.after_step(&seen);
        }
    }
    let stages = Stages { forward_backward: lap.forward_backward, gram, solve, update };
    let Step { weights, norm, clip, status, .. } = step;
    Ok(Committed { losses, balance, weights, norm, clip, status, conflicts, stages, times })
}

/// (rows of J) the part of its task's observed targets that each row comes from.
fn batch_shares(network: &Network, batch: &Batch, present: usize, batches: usize) -> Vec<f64> {
    let mut counts = vec![0.0; present * batches];
    for part in &batch.parts {
        counts[part.present * batches + part.batch] += network.observed(part);
    }
    let totals: Vec<f64> = counts.chunks(batches).map(|counts| counts.iter().sum()).collect();
    counts.iter().enumerate().map(|(row, count)| count / totals[row / batches]).collect()
}
