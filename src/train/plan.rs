//! What a run will do and take, from its configuration and data: model, rounds, shapes, bytes. Allocates nothing big.

use anyhow::{Context, Result, anyhow, ensure};

use crate::config;
use crate::config::schema::{self, Config, EveryNamed};
use crate::data::Corpus;
use crate::machine::Device;
use crate::machine::memory::{Memory, check_machine, human_bytes};
use crate::model::network::{Keep, Limits, Network, Scratch};
use crate::model::spec::{HeadSpec, ModelSpec, ParamTable};
use crate::model::{Model, Start};
use crate::surgery::balance;
use crate::surgery::blocks::Blocks;
use crate::surgery::methods::{Needs, registry};
use crate::train::encoder::encoder;
use crate::train::pretrained::NO_MASK;
use crate::train::resident::data_limits;
use crate::train::round::Trainer;
use crate::train::round_options::{Clip, RoundOptions, Solvers};
use crate::train::schedule_setup::ScheduleSetup;
use crate::train::shapes::limits;

/// Indices tell so many rows of one round apart.
const MOST_ROWS: usize = u32::MAX as usize;

pub struct Plan {
    pub spec: ModelSpec,
    pub turns: ScheduleSetup,
    pub rounds: u64,
    pub rounds_per_epoch: u64,
    pub limits: Limits,
    pub start: Start,
    pub round_options: RoundOptions,
}

impl Plan {
    pub fn new(config: &Config, corpus: &Corpus) -> Result<Self> {
        let spec = model_spec(config, corpus)?;
        let turns = ScheduleSetup::new(config, corpus)?;
        let samplings = &turns.samplings;
        let examples: f64 = corpus.tasks.iter().map(|task| task.train.len() as f64).sum();
        let slots =
            if turns.is_sliced { 1.0 } else { samplings.iter().map(|sampling| sampling.rate / sampling.period as f64).sum() };
        let per_round = slots * config.train.micro_batch as f64 * config.train.accumulate as f64;
        let rounds_per_epoch = (examples / per_round).ceil().max(1.0) as u64;
        let rounds = match (config.train.rounds, config.train.epochs) {
            (Some(rounds), _) => rounds,
            (None, epochs) => (epochs.unwrap_or(1.0) * rounds_per_epoch as f64).ceil() as u64,
        };
        ensure!(
            rounds <= config::MOST_ROUNDS,
            "train.epochs = {} makes more than {} rounds, {rounds_per_epoch} an epoch: lower it",
            config.train.epochs.unwrap_or(1.0),
            config::MOST_ROUNDS
        );
        let (mut limits, row_capacity) = limits(config, corpus, &spec, samplings);
        limits.data = data_limits(config, &spec, needs(config), &limits)?;
        let start = Start {
            seed: config.run.seed,
            equal_heads: config.train.equal_heads,
            second_moment: config.optimizer.kind == schema::OptimizerKind::Adamw,
            row_moment: config.optimizer.row_moment == schema::RowMoment::Row,
            row_capacity,
        };
        let plan =
            Self { spec, turns, rounds, rounds_per_epoch, limits, start, round_options: round_options(config, rounds_per_epoch) };
        plan.check_sizes(config)?;
        plan.check_task_budgets(corpus)?;
        plan.check_lanes(config)?;
        Ok(plan)
    }

    /// Bytes a task takes for itself: its row of J, and its head with gradient and moments.
    pub fn task_bytes(&self, task: usize) -> u64 {
        let table = ParamTable::new(&self.spec);
        let head = table.head_range(task).len();
        let head_copies = if self.start.second_moment { 4 } else { 3 };
        let inputs = self.spec.encoder.inputs();
        let dense = table.shared_len();
        // Time-sliced tasks share one row of J.
        let rows = self.limits.bag_rows.get(task).or(self.limits.bag_rows.first()).map_or(0, |rows| rows * (4 * inputs + 16));
        (4 * (dense + head_copies * head) + rows) as u64
    }

    /// What cannot be counted, or kept on the host beside the buffers.
    fn check_sizes(&self, config: &Config) -> Result<()> {
        let limits = &self.limits;
        let examples = limits.round_rows.max(limits.group_rows);
        let tokens = limits.tokens.round_tokens.max(limits.tokens.group_tokens);
        for (found, what) in [(examples, "examples"), (limits.bag_entries, "n-grams"), (tokens, "tokens")] {
            ensure!(
                found <= MOST_ROWS,
                "a round of train.accumulate = {} times train.micro_batch = {} can have {found} {what} of all tasks; at most \
                 {MOST_ROWS}: lower one of them",
                config.train.accumulate,
                config.train.micro_batch
            );
        }
        let needs = needs(config);
        let tasks = self.spec.heads.len();
        let blocks = Blocks::new(&Network::new(self.spec.clone()), self.round_options.granularity, needs);
        // Three (T x T) matrices of f64 for each block and for all, and one for each method.
        let matrices = 3 * (blocks.count() + 1) + blocks.sets();
        let bytes = (8 * matrices as u64).saturating_mul((tasks as u64).saturating_mul(tasks as u64));
        check_machine(&format!("how {tasks} tasks get on, pair by pair, in {} blocks of the encoder", blocks.count()), bytes)?;
        // J, in f32.
        let dense = ParamTable::new(&self.spec).shared_len().saturating_mul(tasks);
        ensure!(dense <= isize::MAX as usize / 4, "{tasks} tasks with a gradient of all parameters each are too large to count");
        Ok(())
    }

    fn check_lanes(&self, config: &Config) -> Result<()> {
        let surgery = &config.surgery;
        let method = registry::build(&surgery.method, &surgery.params, self.spec.heads.len())
            .map_err(|fault| anyhow!("surgery.method: {fault}"))?;
        ensure!(
            self.round_options.lanes == 1 || self.round_options.stores_jacobian(&*method),
            "schedule.lanes = {} needs the tasks' gradients apart, but this run adds them up in one row (surgery.method = \"{}\", \
             observe.conflict_every = 0), one group after the other: set schedule.lanes = 1 or observe.conflict_every",
            self.round_options.lanes,
            surgery.method
        );
        let together = self.turns.is_sliced && self.limits.present > 1;
        ensure!(
            !together || self.round_options.stores_jacobian(&*method) && !method.needs().row_state,
            "schedule.max_staleness = {} computes the gradients of several rounds together and {}: set schedule.max_staleness = 0{}",
            config.schedule.max_staleness,
            if method.needs().row_state {
                format!("surgery.method = \"{}\" keeps buffers of every round's", surgery.method)
            } else {
                "needs them apart, but this run adds them up in one row (observe.conflict_every = 0)".to_owned()
            },
            if method.needs().row_state { "" } else { " or observe.conflict_every" }
        );
        Ok(())
    }

    fn check_task_budgets(&self, corpus: &Corpus) -> Result<()> {
        for (number, task) in corpus.tasks.iter().enumerate() {
            let (budget, needed) = (task.settings.memory, self.task_bytes(number));
            ensure!(
                budget == 0 || needed <= budget,
                "tasks.{}.memory allows {}, but the task's row of J and its head need {}: lower train.micro_batch or \
                 encoder.hidden, or raise the budget",
                task.name,
                human_bytes(budget),
                human_bytes(needed)
            );
        }
        Ok(())
    }

    /// The model alone, and room to evaluate it.
    pub fn model(&self, memory: &mut Memory) -> Result<(Model, Scratch)> {
        let model = Model::new(memory, Network::new(self.spec.clone()), &self.start)?;
        let scratch = Scratch::new(memory, &*self.spec.encoder, &self.limits)?;
        Ok((model, scratch))
    }

    /// Allocates everything the run needs.
    pub fn trainer(&self, config: &Config, memory: &mut Memory) -> Result<Trainer> {
        let surgery = &config.surgery;
        let needs = needs(config);
        let mut network = Network::new(self.spec.clone());
        network.label_smoothing = config.train.label_smoothing;
        let balance = &config.balance;
        let balancer = balance::registry::build(&balance.method, &balance.params, self.spec.heads.len())
            .map_err(|fault| anyhow!("balance.method: {fault}"))?;
        let blocks = Blocks::new(&network, self.round_options.granularity, needs);
        let method = |_| registry::build(&surgery.method, &surgery.params, self.spec.heads.len());
        let methods = (0..blocks.sets()).map(method).collect::<Result<_, _>>();
        let methods = methods.map_err(|fault| anyhow!("surgery.method: {fault}"))?;
        Trainer::new(memory, network, &self.start, Solvers { balancer, methods }, self.round_options, &self.limits)
    }

    /// Buffers of the run and their bytes, without allocating them: those on its device, if it has one.
    pub fn buffers(&self, config: &Config) -> Result<Vec<(String, u64)>> {
        if let Some(buffers) = self.device_buffers(config)? {
            return Ok(buffers);
        }
        let mut memory = Memory::plan(0);
        self.trainer(config, &mut memory)?;
        Ok(memory.buffers().to_vec())
    }

    /// An error that names the buffer with which the run would exceed `memory.device`, or the largest one where it would
    /// exceed what a device has.
    pub fn check_budget(&self, config: &Config) -> Result<()> {
        if let Some(buffers) = self.device_buffers(config)? {
            return self.check_device_memory(config, &buffers);
        }
        self.trainer(config, &mut Memory::plan(config.memory.device)).map(|_| ())
    }

    /// An error where the run takes more memory than this machine has; a device is asked by [`Plan::check_budget`].
    pub fn check_machine(&self, config: &Config) -> Result<()> {
        if self.device_buffers(config)?.is_some() {
            return Ok(());
        }
        let buffers = self.buffers(config)?;
        let total = buffers.iter().map(|(_, bytes)| bytes).sum();
        let largest = buffers.iter().max_by_key(|(_, bytes)| *bytes).map_or("", |(name, _)| name);
        check_machine(&format!("the run's buffers, of which \"{largest}\" is the largest"), total)
    }

    /// Bytes of J's dense part that the run does without, because nothing in it needs the tasks' gradients apart.
    pub fn saved_bytes(&self, config: &Config) -> Result<u64> {
        let trainer = self.trainer(config, &mut Memory::plan(0))?;
        let on_device = Device::parse(&config.run.device)? != Device::Cpu;
        let present = self.limits.present;
        let keep = if on_device { trainer.keep_on_device(present) } else { trainer.host.gradients.keep };
        let bytes = |keep: Keep| keep.bytes(present, trainer.model.network.table.shared_len());
        Ok(bytes(Keep { stored: true, ..keep }).saturating_sub(bytes(keep)))
    }

    /// Passes over each task's data in the whole run, from [`ScheduleSetup::presence`].
    pub fn passes(&self, config: &Config, corpus: &Corpus) -> Result<Vec<f64>> {
        let slot = config.train.micro_batch as f64 * config.train.accumulate as f64;
        let presence = self.turns.presence(self.rounds)?;
        let tasks = presence.iter().zip(&self.turns.samplings).zip(&corpus.tasks);
        Ok(tasks.map(|((rounds, sampling), task)| rounds * sampling.rate * slot / task.train.len() as f64).collect())
    }
}

fn needs(config: &Config) -> Needs {
    registry::find(&config.surgery.method).map_or(Needs::NOTHING, |found| found.needs)
}

/// Rounds between two occasions, e.g. of an evaluation; none for "end".
pub fn interval(every: &schema::Every, rounds_per_epoch: u64) -> Option<u64> {
    match every {
        schema::Every::Rounds(rounds) => Some(*rounds),
        schema::Every::Named(EveryNamed::Epoch) => Some(rounds_per_epoch),
        schema::Every::Named(EveryNamed::End) => None,
    }
}

fn round_options(config: &Config, rounds_per_epoch: u64) -> RoundOptions {
    RoundOptions {
        seed: config.run.seed,
        clip: Clip { norm: config.clip.norm, scope: config.clip.scope },
        scale: config.surgery.scale,
        granularity: config.surgery.granularity,
        storage: config.surgery.storage,
        weighted_heads: config.surgery.heads == schema::HeadGradients::Weighted,
        conflict_every: config.observe.conflict_every,
        rounds_per_epoch,
        lanes: config.schedule.lanes,
        commits_apart: config.schedule.max_staleness > 0,
        evaluates_copy: config.eval.batches_per_round > 0,
        copies_checkpoints: config.checkpoint.background,
    }
}

pub fn model_spec(config: &Config, corpus: &Corpus) -> Result<ModelSpec> {
    let heads = corpus.tasks.iter().map(|task| HeadSpec {
        task: task.name.clone(),
        kind: task.settings.head,
        outputs: task.outputs,
        class_weights: task.class_weights.clone(),
        temperature: task.settings.temperature,
    });
    let features = || corpus.feature_dim.context("encoder.kind = \"linear\" needs tasks with dense features");
    let encoder = encoder(config, corpus.tokenizer.as_deref(), features)?;
    let spec = ModelSpec { encoder, heads: heads.collect() };
    if let (Some(head), Some(transformer)) = (spec.mlm_head(), spec.encoder.transformer()) {
        ensure!(transformer.spec.mask.is_some(), "tasks.{}.head: {NO_MASK}", head.task);
    }
    Ok(spec)
}
