//! Where a trainer computes: its parameters on the way to a device and back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::accelerator::{Accelerator, Counts, OpTime, SolverRoom};
use super::round::Trainer;
use crate::data::Corpus;
use crate::machine::driver::Driver;
use crate::model::Start;
use crate::model::network::{Batch, Keep, Limits};
use crate::model::spec::ModelSpec;
use crate::ops::column_rule::RULE_TASKS;
use crate::ops::gram::MOST_TASKS;
use crate::ops::storage::Storage;
use crate::ops::{heads, linear};
use crate::surgery::methods::DeviceSolver;

impl Trainer {
    /// Moves the parameters to a device and computes every round there from now on.
    pub fn accelerate(&mut self, driver: Box<dyn Driver>, limits: &Limits, start: &Start) -> Result<()> {
        let mut accelerator = self.plan_accelerator(driver, limits, start)?;
        self.send(&mut accelerator)?;
        self.accelerator = Some(accelerator);
        self.send_snapshot()
    }

    /// Everything that a device needs for this run, on any driver; parameters are still to come.
    pub fn plan_accelerator(&self, driver: Box<dyn Driver>, limits: &Limits, start: &Start) -> Result<Accelerator> {
        self.check_accelerable(limits)?;
        let apart = self.solver.round_options.commits_apart;
        let keep = self.keep_on_device(limits.present);
        let accelerator = Accelerator::new(driver, &self.model.network, &self.blocks, keep, apart, limits, start)?;
        let accelerator =
            if self.snapshot.is_some() { accelerator.with_snapshot(&self.model.network, limits)? } else { accelerator };
        let accelerator = match self.solver.on_device(self.blocks.sets()) {
            Some(solve) => accelerator.with_solver(&self.solver_room(&solve.solver, limits.present.max(1)))?,
            None => accelerator,
        };
        let Some(_) = self.solver.buffers else { return Ok(accelerator) };
        Ok(accelerator.with_buffers(&self.model.network, &self.blocks, limits)?)
    }

    fn solver_room(&self, solver: &DeviceSolver, present: usize) -> SolverRoom {
        let run_tasks = self.model.network.spec.heads.len();
        SolverRoom { state: self.method().device_state().len(), scratch: solver.scratch(present), run_tasks }
    }

    /// What the method's instances remember, one after the other, where a device solves by itself.
    fn method_state_on_device(&self) -> Vec<f64> {
        let methods = self.solver.on_device(self.blocks.sets()).map(|_| &self.solver.methods);
        methods.into_iter().flatten().flat_map(|method| method.device_state()).collect()
    }

    /// Which gradients a device keeps where so many tasks are present. It cannot scale what it adds up in one row, as the CPU does for
    /// a balancer; and a lone task's one row is its own, which the device solves by itself.
    pub fn keep_on_device(&self, present: usize) -> Keep {
        let keep = self.host.gradients.keep;
        if !keep.stored && present * keep.batches == 1 {
            return Keep { stored: true, storage: Storage::F32, ..keep };
        }
        Keep { stored: keep.stored || self.solver.balancer.name() != "equal", ..keep }
    }

    /// An error where this run has parts that no device computes yet.
    pub fn check_accelerable(&self, limits: &Limits) -> Result<()> {
        let (name, needs) = (self.method().name(), self.method().needs());
        if let Some(fault) = device_fault(&self.model.network.spec, limits) {
            bail!("{fault}: {STAY_ON_CPU}");
        }
        ensure!(
            !needs.elementwise || limits.present <= RULE_TASKS,
            "surgery.method = \"{name}\" takes at most {RULE_TASKS} tasks a round on a device, found {}: set run.device = \"cpu\"",
            limits.present
        );
        Ok(())
    }

    /// Copies the training examples to the device, where it was given room for them.
    pub fn load_data(&mut self, corpus: &Corpus) -> Result<()> {
        let network = &self.model.network;
        self.accelerator.as_mut().map_or(Ok(()), |accelerator| accelerator.load_data(corpus, network))
    }

    /// Whether a device has room for what a frozen prefix makes of the texts.
    pub fn keeps_states(&self) -> bool {
        self.accelerator.as_ref().is_some_and(Accelerator::keeps_states)
    }

    /// Computes it for a batch on the device, which keeps it from `row` on; where it ends.
    pub fn keep_states(&mut self, batch: &Batch, row: usize) -> Result<usize> {
        let Self { accelerator, model, .. } = self;
        let accelerator = accelerator.as_mut().context("states are kept on a device")?;
        Ok(accelerator.keep_states(model, batch, row)?)
    }

    /// Whether the training examples lie on a device, which fetches a batch's inputs.
    pub fn holds_data(&self) -> bool {
        self.accelerator.as_ref().is_some_and(Accelerator::holds_data)
    }

    /// Whether a device evaluates batches at the same time as it trains.
    pub fn evaluates_beside(&self) -> bool {
        self.accelerator.as_ref().is_some_and(Accelerator::evaluates_beside)
    }

    /// Begin and time of the batches that were evaluated beside rounds, since this was asked last, where quanta are timed.
    pub fn evaluated(&mut self) -> Vec<(Instant, Duration)> {
        self.accelerator.as_mut().map_or_else(Vec::new, Accelerator::evaluated)
    }

    /// Lanes that compute fused groups, and behind them the one that evaluates beside them, if there is one.
    pub fn tracks(&self) -> usize {
        self.lanes() + usize::from(self.evaluates_beside())
    }

    /// Where rounds are computed.
    pub fn device_name(&self) -> String {
        self.accelerator.as_ref().map_or_else(|| "cpu".to_owned(), Accelerator::name)
    }

    /// Dense rows of J of the present tasks as the last round left them: for comparisons of a device with the CPU.
    pub fn private_gradients(&mut self, tasks: usize) -> Result<Vec<Vec<f32>>> {
        match &mut self.accelerator {
            Some(accelerator) => Ok(accelerator.private_gradients(tasks)?),
            None => Ok((0..tasks).map(|row| self.host.gradients.jacobian.row(row)).collect()),
        }
    }

    /// Times each of a device's kernels from here on; the bytes a second of a copy on it.
    pub fn profile(&mut self) -> Result<f64> {
        Ok(self.accelerator.as_mut().context("a device's kernels are timed")?.profile()?)
    }

    /// By name, the operations since this was asked last, where they are timed.
    pub fn profiled(&mut self) -> BTreeMap<&'static str, OpTime> {
        self.accelerator.as_mut().map_or_else(BTreeMap::new, Accelerator::profiled)
    }

    /// What a device was given since the start, if there is one.
    pub fn device_counts(&self) -> Option<Counts> {
        self.accelerator.as_ref().map(Accelerator::counts)
    }

    /// Brings parameters, moments and what the method remembers back from the device, if there is one: for checkpoints.
    pub fn fetch_parameters(&mut self) -> Result<()> {
        self.fetch(true)
    }

    /// As [`Trainer::fetch_parameters`] without the moments: for what is evaluated, and for `best/`.
    pub fn fetch_values(&mut self) -> Result<()> {
        self.fetch(false)
    }

    fn fetch(&mut self, moments: bool) -> Result<()> {
        let Some(mut accelerator) = self.accelerator.take() else { return Ok(()) };
        let mut state = self.method_state_on_device();
        let stored = accelerator.store(&mut self.model.parameters, moments);
        let stored = stored.and_then(|()| accelerator.store_method_state(&mut state));
        if stored.is_ok() && !state.is_empty() {
            let own = state.len() / self.solver.methods.len();
            self.solver.methods.iter_mut().zip(state.chunks(own)).for_each(|(method, state)| method.set_device_state(state));
        }
        self.accelerator = Some(accelerator);
        Ok(stored?)
    }

    /// As [`Trainer::fetch_parameters`], of the buffers that the method keeps by task: for checkpoints.
    pub fn fetch_buffers(&mut self) -> Result<()> {
        match (&mut self.accelerator, &mut self.solver.buffers) {
            (Some(accelerator), Some(buffers)) => Ok(accelerator.store_buffers(buffers)?),
            _ => Ok(()),
        }
    }

    /// Brings changed parameters to the device, if there is one.
    pub fn send_parameters(&mut self) -> Result<()> {
        let Some(mut accelerator) = self.accelerator.take() else { return Ok(()) };
        accelerator.forget_layouts(&mut self.model.parameters);
        let sent = self.send(&mut accelerator);
        self.accelerator = Some(accelerator);
        sent?;
        self.send_snapshot()
    }

    /// Brings what is evaluated while training goes on to the device, if there are both.
    pub(super) fn send_snapshot(&mut self) -> Result<()> {
        self.with_snapshot(|trainer| match &mut trainer.accelerator {
            Some(accelerator) => Ok(accelerator.load_snapshot(&trainer.model.parameters)?),
            None => Ok(()),
        })
    }

    fn send(&mut self, accelerator: &mut Accelerator) -> Result<()> {
        accelerator.load(&self.model.parameters)?;
        self.solver.buffers.iter().try_for_each(|buffers| accelerator.load_buffers(buffers))?;
        Ok(accelerator.load_method_state(&self.method_state_on_device())?)
    }
}

/// What to do about a run that no device computes.
pub const STAY_ON_CPU: &str = "change it, or set run.device = \"cpu\"";

/// Why no device computes this model in batches of this size, if none does.
pub fn device_fault(spec: &ModelSpec, limits: &Limits) -> Option<String> {
    spec.encoder.device_fault().or_else(|| size_fault(spec, limits))
}

/// What exceeds the kernels' grids and 32-bit numbers.
fn size_fault(spec: &ModelSpec, limits: &Limits) -> Option<String> {
    let words = spec.mlm_head().map_or(0, |head| head.outputs);
    let sizes = [
        ("tasks in a round", limits.present, MOST_TASKS),
        ("examples in a fused group", limits.group_rows, linear::MOST_ROWS),
        ("tokens in a fused group", limits.tokens.group_tokens, linear::MOST_ROWS),
        ("hidden units", spec.encoder.hidden(), linear::MOST_ROWS),
        ("outputs of a task", spec.widest_head(), heads::most_outputs(spec.encoder.hidden())),
        ("words that a task predicts", words, linear::MOST_ROWS),
        ("embedding rows in a round", limits.bag_rows.iter().sum(), i32::MAX as usize),
    ];
    let (what, found, most) = sizes.into_iter().find(|(_, found, most)| found > most)?;
    Some(format!("a device takes at most {most} {what}, found {found}"))
}
