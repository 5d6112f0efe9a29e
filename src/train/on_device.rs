//! A round of an engine whose parameters live on a device: the same stages as on the CPU. A simple method is solved there, with
//! one wait at the end of the round; another one on the host, from the one read of the gradients' products.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::accelerator::{Accelerator, Products, Round, SharedPlan, Solved, Solving, StepPlan};
use super::decide::{Decided, Known};
use super::round::{Anomaly, Committed, Engine, Outcome, Stages, batch_shares};
use super::rules::{ClipScope, Scale};
use crate::device::driver::Driver;
use crate::model::Start;
use crate::model::network::{Batch, Limits};
use crate::ops::launch::gemm as matmul;
use crate::ops::launch::heads;
use crate::ops::launch::surgery::{Columnwise, MOST_TASKS, Method, RULE_TASKS};
use crate::surgery::balance::Factors;
use crate::surgery::conflict::RoundConflicts;
use crate::surgery::gram::RoundGram;
use crate::surgery::methods::{ColumnRule, Order, Simple, Status};
use crate::surgery::update::Rates;

impl Engine {
    /// Moves the parameters to a device and computes every round there from now on.
    pub fn accelerate(&mut self, driver: Box<dyn Driver>, limits: &Limits, start: &Start) -> Result<()> {
        self.check_accelerable(limits)?;
        let mut accelerator = Accelerator::new(driver, &self.network, &self.blocks, limits, start)?;
        self.send(&mut accelerator)?;
        self.accelerator = Some(accelerator);
        Ok(())
    }

    /// An error where this run has parts that no device computes yet.
    pub fn check_accelerable(&self, limits: &Limits) -> Result<()> {
        let (name, needs) = (self.method().name(), self.method().needs());
        ensure!(self.network.spec.encoder.transformer().is_none(), "encoder.kind = \"transformer\" {CPU_ONLY}");
        ensure!(
            !needs.second_batch && !needs.row_state,
            "surgery.method = \"{name}\" needs two batches or buffers of its own and {CPU_ONLY}"
        );
        ensure!(
            !needs.elementwise || limits.present <= RULE_TASKS,
            "surgery.method = \"{name}\" takes at most {RULE_TASKS} tasks a round on a device, found {}: set run.device = \"cpu\"",
            limits.present
        );
        self.check_sizes(limits)
    }

    /// An error where a round exceeds what the kernels' grids and 32-bit numbers hold.
    fn check_sizes(&self, limits: &Limits) -> Result<()> {
        let spec = &self.network.spec;
        let widest = spec.heads.iter().map(|head| head.outputs).max().unwrap_or(0);
        let sizes = [
            ("tasks in a round", limits.present, MOST_TASKS),
            ("examples in a fused group", limits.group_rows, matmul::MOST_ROWS),
            ("hidden units", spec.encoder.hidden, matmul::MOST_ROWS),
            ("outputs of a task", widest, heads::most_outputs(spec.encoder.hidden)),
            ("embedding rows in a round", limits.bag_rows.iter().sum(), i32::MAX as usize),
        ];
        for (what, found, most) in sizes {
            ensure!(
                found <= most,
                "a device takes at most {most} {what}, found {found}: take fewer, or set run.device = \"cpu\""
            );
        }
        Ok(())
    }

    /// Where rounds are computed.
    pub fn device_name(&self) -> String {
        self.accelerator.as_ref().map_or_else(|| "cpu".to_owned(), Accelerator::name)
    }

    /// Dense rows of J of the present tasks as the last round left them: for comparisons of a device with the CPU.
    pub fn private_gradients(&mut self, tasks: usize) -> Result<Vec<Vec<f32>>> {
        match &mut self.accelerator {
            Some(accelerator) => Ok(accelerator.private_gradients(tasks)?),
            None => Ok((0..tasks).map(|row| self.gradients.jacobian.row(row)).collect()),
        }
    }

    /// Stages of rounds that a device ran as a captured graph.
    pub fn replays(&self) -> u64 {
        self.accelerator.as_ref().map_or(0, Accelerator::replays)
    }

    /// Brings parameters and what the method remembers back from the device, if there is one, for what reads them here:
    /// evaluation and checkpoints.
    pub fn fetch_parameters(&mut self) -> Result<()> {
        let Some(mut accelerator) = self.accelerator.take() else { return Ok(()) };
        let mut moved: Vec<f64> = self.methods.iter_mut().flat_map(|method| method.targets().to_vec()).collect();
        let stored = accelerator.store(&mut self.parameters).and_then(|()| accelerator.store_targets(&mut moved));
        if stored.is_ok() && self.solving(1).is_some() {
            let targets = self.methods.iter_mut().flat_map(|method| method.targets());
            targets.zip(moved).for_each(|(target, moved)| *target = moved);
        }
        self.accelerator = Some(accelerator);
        Ok(stored?)
    }

    /// Brings changed parameters to the device, if there is one.
    pub fn send_parameters(&mut self) -> Result<()> {
        let Some(mut accelerator) = self.accelerator.take() else { return Ok(()) };
        let sent = self.send(&mut accelerator);
        self.accelerator = Some(accelerator);
        sent
    }

    fn send(&mut self, accelerator: &mut Accelerator) -> Result<()> {
        accelerator.load(&self.parameters)?;
        let targets: Vec<f64> = self.methods.iter_mut().flat_map(|method| method.targets().to_vec()).collect();
        Ok(accelerator.load_targets(&targets)?)
    }

    /// [`Engine::round`] wherever this engine computes; the error is the device's.
    pub fn run_round(&mut self, batch: &Batch, tasks: &[usize], round: u64, rates: &Rates) -> Result<Outcome> {
        let Some(mut accelerator) = self.accelerator.take() else { return Ok(self.round(batch, tasks, round, rates)) };
        let outcome = match self.solving(tasks.len()) {
            Some(solving) => self.round_within(&mut accelerator, batch, tasks, round, rates, &solving),
            None => self.round_beside(&mut accelerator, batch, tasks, round, rates),
        };
        self.accelerator = Some(accelerator);
        outcome
    }

    /// How the device settles a round of `count` tasks by itself; none where the host has to.
    fn solving(&self, count: usize) -> Option<Solving> {
        let (method, order) = match self.method().simple()? {
            Simple::Sum | Simple::Mean => (Method::Sum, Order::Fixed),
            Simple::PcGrad { order } => (Method::PcGrad, order),
            Simple::GradVac { beta, eps, order } => (Method::GradVac { beta, eps }, order),
        };
        let heads_weighted = self.rules.weighted_heads;
        if self.balancer.name() != "equal" || (heads_weighted && self.blocks.settled() > 1) {
            return None;
        }
        // The kernel's sum stands for the mean as well.
        let rescale = match (self.rules.scale, self.averages) {
            (Scale::Native, true) | (Scale::Mean, _) => 1.0 / count as f64,
            (Scale::Native, false) | (Scale::Sum, _) => 1.0,
        };
        let clip = self.rules.clip;
        let clip_tasks = clip.scope == ClipScope::Task;
        Some(Solving { method, order, rescale, clip_norm: clip.norm, clip_tasks, heads_weighted })
    }

    /// Everything on the device.
    fn round_within(
        &mut self,
        device: &mut Accelerator,
        batch: &Batch,
        tasks: &[usize],
        round: u64,
        rates: &Rates,
        solving: &Solving,
    ) -> Result<Outcome> {
        let clock = Instant::now();
        let own = Round { network: &self.network, batch, tasks, random: self.randomness(round) };
        let (products, solved) = device.round(own, &mut self.parameters, solving, rates)?;
        // The stages overlap with the host, which waits for all of them at once.
        let stages = Stages { forward_backward: clock.elapsed(), ..Stages::default() };
        let Products { losses, heads, grams } = products;
        let losses = means(batch, &losses);
        let gram = RoundGram { blocks: grams, cross: Vec::new(), added: None };
        if let Some(anomaly) = anomaly(tasks, &losses, &heads, &gram.total()) {
            return Ok(Err(anomaly));
        }
        let Solved { weights, norm, clip, finite } = solved;
        if !finite {
            return Ok(Err(Anomaly { task: None, what: "update norm", value: norm }));
        }
        let balance = Factors::ok(vec![1.0; tasks.len()]);
        let conflicts = self.tracks_conflicts().then(|| RoundConflicts::of(&gram, tasks.len()));
        let conflicts = conflicts.and_then(|conflicts| self.book(conflicts, &weights, &balance.factors, tasks, round));
        Ok(Ok(Committed { losses, balance, weights, norm, clip, status: Status::Ok, conflicts, stages }))
    }

    /// Gradients and step on the device, surgery here.
    fn round_beside(
        &mut self,
        device: &mut Accelerator,
        batch: &Batch,
        tasks: &[usize],
        round: u64,
        rates: &Rates,
    ) -> Result<Outcome> {
        let mut stages = Stages::default();
        let mut clock = Instant::now();
        let mut lap = || std::mem::replace(&mut clock, Instant::now()).elapsed();

        let random = self.randomness(round);
        let own = Round { network: &self.network, batch, tasks, random };
        let (gradients, Products { losses, heads, grams }) = device.gradients(own, &mut self.parameters)?;
        let losses = means(batch, &losses);
        stages.forward_backward = lap();

        let gram = RoundGram { blocks: grams, cross: Vec::new(), added: None };
        if let Some(anomaly) = anomaly(tasks, &losses, &heads, &gram.total()) {
            return Ok(Err(anomaly));
        }
        let balance = self.balance(&losses, tasks, round);
        let conflicts = self.tracks_conflicts().then(|| RoundConflicts::of(&gram, tasks.len()));
        let shares = batch_shares(batch, tasks.len(), 1);
        let balanced = balance.factors.clone();
        let solved = self.solve_round(Known { gram, heads, tasks, losses: &losses, balanced, shares: &shares, round });
        let rule = self.method().columnwise().map(|rule| column_rule(rule.rule()));
        let own = Round { network: &self.network, batch, tasks, random };
        let square = match rule {
            Some(rule) if solved.wants_square() => Some(device.column_square(own, &gradients, rule, solved.factors())?),
            _ => None,
        };
        let decision = self.clip(solved, square);
        let Decided { weights, balanced, factors, heads, norm, clip, status } = decision;
        let conflicts = conflicts.and_then(|conflicts| self.book(conflicts, &weights, &balanced, tasks, round));
        stages.solve = lap();

        let own = Round { network: &self.network, batch, tasks, random };
        let scaled = |set: &Vec<f64>| set.iter().zip(&factors).map(|(w, f)| w * f).collect();
        let sets: Vec<Vec<f64>> = weights.iter().map(scaled).collect();
        let shared = rule.map_or(SharedPlan::Sets(&sets), |rule| SharedPlan::Columns { rule, factors: &factors });
        device.step(own, &gradients, &StepPlan { shared, heads: &heads }, rates)?;
        stages.update = lap();

        if self.balancer.wants_losses_after_step() {
            let after = means(batch, &device.losses(own, &mut self.parameters)?);
            if after.iter().all(|loss| loss.is_finite()) {
                let seen = self.seen(&after, tasks, round);
                self.balancer.after_step(&seen);
            }
        }
        Ok(Ok(Committed { losses, balance, weights, norm, clip, status, conflicts, stages }))
    }
}

/// What is said of parts that no device computes.
const CPU_ONLY: &str = "runs on the CPU only in this version: set run.device = \"cpu\"";

fn column_rule(rule: ColumnRule) -> Columnwise {
    match rule {
        ColumnRule::GradDrop { leak } => Columnwise::GradDrop { leak },
        ColumnRule::TrimmedMean { trim } => Columnwise::TrimmedMean { trim },
    }
}

/// (T) mean losses from their sums over a round.
fn means(batch: &Batch, sums: &[f64]) -> Vec<f64> {
    let mut observed = vec![0; sums.len()];
    for part in &batch.parts {
        observed[part.present] += part.targets.observed();
    }
    sums.iter().zip(observed).map(|(sum, count)| sum / count.max(1) as f64).collect()
}

/// What is not finite, if anything: a loss, or the norm of a task's gradient.
fn anomaly(tasks: &[usize], losses: &[f64], heads: &[f64], total: &[f64]) -> Option<Anomaly> {
    let norms = (0..tasks.len()).map(|at| (total[at * tasks.len() + at] + heads[at]).sqrt());
    let checks =
        losses.iter().copied().map(|loss| ("loss", loss)).zip(0..).chain(norms.map(|norm| ("gradient norm", norm)).zip(0..));
    let mut bad = checks.filter(|((_, value), _): &((_, f64), usize)| !value.is_finite());
    bad.next().map(|((what, value), at)| Anomaly { task: Some(tasks[at]), what, value })
}
