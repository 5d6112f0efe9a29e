//! What is measured of rounds, where a run goes by it: recorded in metrics.jsonl and in checkpoints, so that a run that goes on
//! from a checkpoint decides as the one before it did.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::observe::event::{ByTask, Event};
use crate::schedule::Nanos;
use crate::schedule::order::Scheduled;
use crate::train::isolation::Attempt;
use crate::train::run::Run;

/// Microseconds of one round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// All of it, where the scheduler's clock is measured.
    pub took: Option<u32>,
    /// By task with an `adaptive` micro-batch: the slowest group that it was in.
    pub groups: BTreeMap<usize, u32>,
}

impl Measured {
    /// What the scheduler charges.
    pub fn cost(&self) -> Option<Nanos> {
        self.took.map(|micros| 1000 * Nanos::from(micros))
    }
}

/// At least one, so that nothing is free.
fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX).max(1)
}

impl Run<'_> {
    /// By the commits of what was scheduled: what is known of each of its rounds, as an earlier process recorded it, or as it was now.
    pub(super) fn measure(&mut self, scheduled: &Scheduled, attempt: &Attempt, times: &[Duration]) -> Result<Vec<Measured>> {
        let mut all = Vec::with_capacity(scheduled.commits.len());
        for ((round, tasks), &time) in (self.state.round..).zip(&scheduled.commits).zip(times) {
            let mut measured = Measured::default();
            if self.plan.turns.is_measured {
                measured.took = Some(micros(time));
            }
            if attempt.done.iter().any(|done| done.round == round) {
                let adaptive = tasks.iter().filter(|&&task| self.corpus.tasks[task].settings.adaptive.is_some());
                measured.groups = adaptive.filter_map(|&task| Some((task, micros(attempt.slowest_group(task)?)))).collect();
            }
            if let Some(recorded) = self.recorded.remove(&round) {
                measured = self.as_recorded(&recorded, measured);
            }
            self.record(round, tasks, &measured)?;
            all.push(measured);
        }
        Ok(all)
    }

    /// What a line of metrics.jsonl says in place of what was measured now.
    fn as_recorded(&self, line: &Value, mut measured: Measured) -> Measured {
        let read = |value: &Value| value.as_u64().and_then(|micros| u32::try_from(micros).ok()).filter(|&micros| micros > 0);
        measured.took = measured.took.map(|now| read(&line["us"]).unwrap_or(now));
        for (task, now) in &mut measured.groups {
            *now = read(&line["groups"][&self.corpus.tasks[*task].name]).unwrap_or(*now);
        }
        measured
    }

    fn record(&mut self, round: u64, tasks: &[usize], measured: &Measured) -> Result<()> {
        if let Some(took) = measured.took {
            self.state.took.resize(round as usize, 1);
            self.state.took.push(took);
        }
        if measured.took.is_none() && measured.groups.is_empty() {
            return Ok(());
        }
        let name = |&task: &usize| self.corpus.tasks[task].name.as_str();
        let (tasks, names): (Vec<&str>, Vec<&str>) =
            (tasks.iter().map(name).collect(), measured.groups.keys().map(name).collect());
        let micros: Vec<u32> = measured.groups.values().copied().collect();
        let groups = (!names.is_empty()).then_some(ByTask { tasks: &names, values: &micros });
        self.observer.emit(&Event::Measured { round, tasks: &tasks, us: measured.took, groups })
    }

    /// What each of the scheduled rounds took: of the `whole` time, as much as its share of gradients and commits.
    pub(super) fn times(scheduled: &Scheduled, attempt: &Attempt, whole: Duration) -> Vec<Duration> {
        if scheduled.commits.len() <= 1 {
            return vec![whole; scheduled.commits.len()];
        }
        let own = |tasks: &Vec<usize>| {
            let commits = attempt.done.iter().filter(|done| done.tasks.iter().any(|task| tasks.contains(task)));
            let commits: Duration = commits.map(|done| done.committed.stages.after_gradients()).sum();
            let groups = attempt
                .computed
                .iter()
                .flat_map(|computed| &computed.groups)
                .filter(|group| group.tasks.iter().any(|task| tasks.contains(task)));
            let gradients: f64 = groups.map(|group| group.time.as_secs_f64() / group.tasks.len() as f64).sum();
            commits.as_secs_f64() + gradients
        };
        let own: Vec<f64> = scheduled.commits.iter().map(own).collect();
        let all: f64 = own.iter().sum();
        let share = |own: &f64| if all > 0.0 { own / all } else { 1.0 / scheduled.commits.len() as f64 };
        own.iter().map(|own| whole.mul_f64(share(own))).collect()
    }

    /// Reports a change of the tasks' weights that followed from the last rounds.
    pub(super) fn report_reweighted(&mut self) -> Result<()> {
        let Some(change) = self.order.take_reweighted() else { return Ok(()) };
        let names: Vec<&str> = self.corpus.tasks.iter().map(|task| task.name.as_str()).collect();
        let ms = |time: Nanos| time as f64 / 1e6;
        let busy: Vec<f64> = change.seen.iter().map(|seen| ms(seen.busy)).collect();
        let waited: Vec<f64> = change.seen.iter().map(|seen| ms(seen.waited) / seen.rounds.max(1) as f64).collect();
        let by_task = |values| ByTask { tasks: &names, values };
        self.observer.emit(&Event::Reweighted {
            round: self.state.round,
            weights: by_task(&change.weights),
            busy_ms: by_task(&busy),
            wait_ms: by_task(&waited),
        })
    }
}
