//! What the configuration says of whose turn it is, as the scheduler wants to know it.

use anyhow::{Result, anyhow, ensure};

use crate::config::schema::{Config, SamplerKind, ScheduleMode};
use crate::data::Corpus;
use crate::ops::philox::{Keyed, Stream};
use crate::schedule::Policy;
use crate::schedule::deal::{Player, proportional_rates, share};
use crate::schedule::dispatcher::Settings;
use crate::schedule::lockstep::Lockstep;
use crate::schedule::order::Order;
use crate::schedule::retry::Retry;
use crate::schedule::slices::{Slice, Slices};
use crate::schedule::task::Spec;

/// The tasks of a run and how their rounds are dealt.
pub struct Turns {
    settings: Settings,
    specs: Vec<Spec>,
    pub players: Vec<Player>,
    pub is_sliced: bool,
    micro_batch: u64,
}

impl Turns {
    /// Refuses deadlines that cannot be met, with the numbers.
    pub fn new(config: &Config, corpus: &Corpus) -> Result<Self> {
        let mut players = players(config, corpus)?;
        let is_sliced = config.schedule.mode == ScheduleMode::TimeSliced;
        let settings = settings(config, is_sliced);
        let specs = specs(config, corpus, &players);
        if is_sliced {
            // A round is one slot of one task; how often it comes is the scheduler's.
            players.iter_mut().for_each(|player| player.rate = 1.0);
        }
        let turns = Self { settings, specs, players, is_sliced, micro_batch: config.train.micro_batch as u64 };
        turns.order()?;
        Ok(turns)
    }

    /// The order of the run, from its first round on.
    pub fn order(&self) -> Result<Order> {
        if self.is_sliced {
            return self.slices().map(Order::TimeSliced);
        }
        let rounds = Lockstep::new(self.settings.clone(), &self.specs, self.players.clone(), self.micro_batch);
        rounds.map(Order::Synchronous).map_err(refused)
    }

    fn slices(&self) -> Result<Slices> {
        let slice = |(spec, player): (&Spec, &Player)| Slice {
            spec: spec.clone(),
            every: player.period,
            rounds: player.rounds,
            micro_batch: self.micro_batch,
        };
        Slices::new(self.settings.clone(), self.specs.iter().zip(&self.players).map(slice).collect()).map_err(refused)
    }

    /// Rounds in which each task is present, of a run of `rounds`. Time-sliced: see [`Slices::count`]; in synchronous rounds: if
    /// the task is present throughout.
    pub fn presence(&self, rounds: u64) -> Result<Vec<f64>> {
        if self.is_sliced {
            return Ok(self.slices()?.count(rounds));
        }
        let own = |player: &Player| player.rounds.map_or(rounds, |own| own.min(rounds)) as f64 / player.period as f64;
        Ok(self.players.iter().map(own).collect())
    }
}

fn refused(refusal: String) -> anyhow::Error {
    anyhow!("schedule: {refusal}")
}

fn settings(config: &Config, is_sliced: bool) -> Settings {
    let schedule = &config.schedule;
    let nanos = |seconds: f64| (seconds * 1e9) as u64;
    let policy = if is_sliced { Policy::find(&schedule.policy).unwrap_or_default() } else { Policy::RoundRobin };
    Settings {
        policy,
        server_share: schedule.server_share,
        retry: Retry { max: schedule.max_retries, base: nanos(schedule.retry_base), cap: nanos(schedule.retry_cap) },
        seed: config.run.seed,
        ..Settings::default()
    }
}

/// The cost of each task's slot in a round. Under `weighted` a task's weight is its share of the sampler's slots.
fn specs(config: &Config, corpus: &Corpus, players: &[Player]) -> Vec<Spec> {
    let cost = config.train.micro_batch as f64 * config.train.accumulate as f64 * config.schedule.example_us * 1e3;
    let spec = |(task, player): (&crate::data::TaskData, &Player)| Spec {
        weight: player.rate,
        priority: task.settings.priority,
        period: task.settings.deadline_ms.map_or(0, |ms| (ms * 1e6) as u64),
        parents: player.parents.clone(),
        ..Spec::new(task.name.clone(), (cost as u64).max(1))
    };
    corpus.tasks.iter().zip(players).map(spec).collect()
}

fn players(config: &Config, corpus: &Corpus) -> Result<Vec<Player>> {
    let count = corpus.tasks.len();
    let sizes: Vec<u64> = corpus.tasks.iter().map(|task| task.train.len() as u64).collect();
    let sampler = &config.sampler;
    let rates = match sampler.kind {
        SamplerKind::RoundRobin => vec![1.0; count],
        SamplerKind::Proportional => proportional_rates(&sizes, sampler.cap, sampler.temperature, count as f64),
        SamplerKind::Explicit => share(&corpus.tasks.iter().map(|task| task.settings.share).collect::<Vec<_>>(), count as f64),
    };
    let mut players = Vec::with_capacity(count);
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
        players.push(Player {
            rate,
            phase: random.uniform(0),
            period: task.settings.period,
            rounds: task.settings.rounds,
            parents,
        });
    }
    Ok(players)
}
