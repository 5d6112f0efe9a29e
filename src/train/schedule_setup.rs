//! What the configuration says of whose turn it is, as the scheduler wants to know it.

use anyhow::{Result, anyhow, ensure};

use crate::config::schema::{self, Config, SamplerKind, ScheduleMode};
use crate::data::Corpus;
use crate::ops::philox::{Keyed, Stream};
use crate::schedule::Nanos;
use crate::schedule::dispatcher::Settings;
use crate::schedule::feedback::Feedback;
use crate::schedule::order::Order;
use crate::schedule::policy::round_robin;
use crate::schedule::retry::Retry;
use crate::schedule::sampler::{TaskSampling, proportional_rates, share};
use crate::schedule::synchronous::Synchronous;
use crate::schedule::task::Spec;
use crate::schedule::time_sliced::{Slice, TimeSliced};

/// The tasks of a run and how their rounds are scheduled.
pub struct ScheduleSetup {
    settings: Settings,
    specs: Vec<Spec>,
    pub samplings: Vec<TaskSampling>,
    pub is_sliced: bool,
    /// Rounds are charged what they took.
    pub is_measured: bool,
    micro_batch: u64,
    feedback: Option<Feedback>,
}

impl ScheduleSetup {
    /// Refuses deadlines that cannot be met, with the numbers.
    pub fn new(config: &Config, corpus: &Corpus) -> Result<Self> {
        let mut samplings = samplings(config, corpus)?;
        let is_sliced = config.schedule.mode == ScheduleMode::TimeSliced;
        let settings = settings(config, is_sliced);
        let specs = specs(config, corpus, &samplings);
        if is_sliced {
            // A round is one slot of one task; how often it comes is the scheduler's.
            samplings.iter_mut().for_each(|sampling| sampling.rate = 1.0);
        }
        let feedback = |rule: &schema::Feedback| {
            let &schema::Feedback { every, load, latency, min, max } = rule;
            Feedback { every, load, latency, min, max }
        };
        let turns = Self {
            settings,
            specs,
            samplings,
            is_sliced,
            is_measured: config.schedule.is_measured(),
            micro_batch: config.train.micro_batch as u64,
            feedback: config.schedule.feedback.as_ref().map(feedback),
        };
        turns.order()?;
        Ok(turns)
    }

    /// The order of the run, from its first round on.
    pub fn order(&self) -> Result<Order> {
        if self.is_sliced {
            return self.slices().map(Order::TimeSliced);
        }
        let rounds = Synchronous::new(self.settings.clone(), &self.specs, self.samplings.clone(), self.micro_batch);
        rounds.map(Order::Synchronous).map_err(refused)
    }

    fn slices(&self) -> Result<TimeSliced> {
        let slice = |(spec, sampling): (&Spec, &TaskSampling)| Slice {
            spec: spec.clone(),
            every: sampling.period,
            rounds: sampling.rounds,
            micro_batch: self.micro_batch,
        };
        let slices = self.specs.iter().zip(&self.samplings).map(slice).collect();
        let sliced = TimeSliced::new(self.settings.clone(), slices).map_err(refused)?;
        Ok(sliced.with_feedback(self.feedback))
    }

    /// Why the deadlines cannot all be met where rounds take so long, if they cannot; a task without a time takes what is planned.
    pub fn late(&self, costs: &[Option<Nanos>]) -> Option<String> {
        let specs = self.specs.iter().zip(costs);
        let specs: Vec<Spec> = specs.map(|(spec, cost)| Spec { cost: cost.unwrap_or(spec.cost), ..spec.clone() }).collect();
        (self.settings.policy.late)(&specs, self.settings.server_share).map(|late| late.message)
    }

    /// Rounds in which each task is present, of a run of `rounds`. Time-sliced: see [`TimeSliced::count`]; in synchronous rounds: if
    /// the task is present throughout.
    pub fn presence(&self, rounds: u64) -> Result<Vec<f64>> {
        if self.is_sliced {
            return Ok(self.slices()?.count(rounds));
        }
        let own = |sampling: &TaskSampling| sampling.rounds.map_or(rounds, |own| own.min(rounds)) as f64 / sampling.period as f64;
        Ok(self.samplings.iter().map(own).collect())
    }
}

fn refused(refusal: String) -> anyhow::Error {
    anyhow!("schedule: {refusal}")
}

fn settings(config: &Config, is_sliced: bool) -> Settings {
    let schedule = &config.schedule;
    let nanos = |seconds: f64| (seconds * 1e9) as u64;
    let policy = if is_sliced { schedule.policy } else { &round_robin::POLICY };
    Settings {
        policy,
        lanes: schedule.begun(),
        max_staleness: schedule.max_staleness as u32,
        server_share: schedule.server_share,
        retry: Retry { max: schedule.max_retries, base: nanos(schedule.retry_base), cap: nanos(schedule.retry_cap) },
        seed: config.run.seed,
        ..Settings::default()
    }
}

/// The cost of each task's slot in a round. Under `weighted` a task's weight is its share of the sampler's slots.
fn specs(config: &Config, corpus: &Corpus, samplings: &[TaskSampling]) -> Vec<Spec> {
    let cost = config.train.micro_batch as f64 * config.train.accumulate as f64 * config.schedule.example_us * 1e3;
    let spec = |(task, sampling): (&crate::data::TaskData, &TaskSampling)| Spec {
        weight: sampling.rate,
        priority: task.settings.priority,
        period: task.settings.deadline_ms.map_or(0, |ms| (ms * 1e6) as u64),
        parents: sampling.parents.clone(),
        ..Spec::new(task.name.clone(), (cost as u64).max(1))
    };
    corpus.tasks.iter().zip(samplings).map(spec).collect()
}

fn samplings(config: &Config, corpus: &Corpus) -> Result<Vec<TaskSampling>> {
    let count = corpus.tasks.len();
    let sizes: Vec<u64> = corpus.tasks.iter().map(|task| task.train.len() as u64).collect();
    let sampler = &config.sampler;
    let rates = match sampler.kind {
        SamplerKind::RoundRobin => vec![1.0; count],
        SamplerKind::Proportional => proportional_rates(&sizes, sampler.cap, sampler.temperature, count as f64),
        SamplerKind::Explicit => share(&corpus.tasks.iter().map(|task| task.settings.share).collect::<Vec<_>>(), count as f64),
    };
    let mut samplings = Vec::with_capacity(count);
    for (number, (task, rate)) in corpus.tasks.iter().zip(rates).enumerate() {
        let mut parents = Vec::new();
        for name in &task.settings.depends_on {
            let parent = corpus.tasks.iter().position(|other| other.name == *name);
            ensure!(parent.is_some(), "tasks.{}.depends_on: there is no task \"{name}\"", task.name);
            parents.extend(parent);
        }
        ensure!(
            task.settings.target.is_none() || task.dev.is_some(),
            "tasks.{}.target is a value on dev, but the task has no dev rows",
            task.name
        );
        ensure!(
            rate > 0.0,
            "tasks.{}: the sampler leaves it no share that can be told from 0 (sampler.temperature = {}, its share = {}): raise it",
            task.name,
            sampler.temperature,
            task.settings.share
        );
        let random = Keyed::new(config.run.seed, Stream::Phase, 0, number as u32, 0);
        samplings.push(TaskSampling {
            rate,
            phase: random.uniform(0),
            period: task.settings.period,
            rounds: task.settings.rounds,
            parents,
        });
    }
    Ok(samplings)
}
