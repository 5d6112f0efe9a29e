//! The schedule of a run once more, from what the run recorded of times, failures and targets: the same decisions, or the first
//! that is another one.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::data::{Corpus, Targets};
use crate::schedule::order::Record;
use crate::train::checkpoint::State;
use crate::train::plan::Plan;

/// What a replay came to.
#[derive(Debug, Default)]
pub struct Replayed {
    pub rounds: u64,
    /// By task: the rounds it took part in, and what they took where that was measured, in microseconds.
    pub tasks: Vec<(u64, u64)>,
    /// Gradients that had missed commits.
    pub stale: u64,
    /// Lines of metrics.jsonl that say who was in a round.
    pub compared: u64,
    /// The first of them that says otherwise.
    pub difference: Option<Difference>,
}

/// A round that the replay gives to others.
#[derive(Debug)]
pub struct Difference {
    pub round: u64,
    pub run: Vec<String>,
    pub replay: Vec<String>,
}

/// Goes through the rounds of a checkpoint again, and holds them against the lines of the run's metrics.jsonl.
pub fn replay(corpus: &Corpus, plan: &Plan, state: &State, metrics: &Path) -> Result<Replayed> {
    let mut order = plan.turns.order()?;
    let reached = state.reached();
    let record = Record { incidents: &state.incidents, finished: &reached, took: &state.took };
    let mut commits: Vec<Vec<usize>> = Vec::new();
    order.replay(state.round, record, &mut |round, scheduled| {
        // Rounds in which nobody took part have no commit.
        commits.resize(round as usize, Vec::new());
        commits.extend(scheduled.commits.iter().cloned());
    });
    let mut replayed = Replayed { rounds: state.round, tasks: vec![(0, 0); corpus.tasks.len()], ..Replayed::default() };
    replayed.stale = order.counts().stale;
    for (round, tasks) in commits.iter().enumerate() {
        for &task in tasks {
            replayed.tasks[task].0 += 1;
            replayed.tasks[task].1 += state.took.get(round).map_or(0, |&micros| u64::from(micros));
        }
    }
    let names = |tasks: &[usize]| -> Vec<String> { tasks.iter().map(|&task| corpus.tasks[task].name.clone()).collect() };
    let context = || format!("cannot read {}", metrics.display());
    for line in BufReader::new(File::open(metrics).with_context(context)?).lines() {
        let Some((round, run)) = serde_json::from_str(&line.with_context(context)?).ok().as_ref().and_then(who) else { continue };
        let Some(tasks) = commits.get(round as usize) else { continue };
        replayed.compared += 1;
        if replayed.difference.is_none() && !agree(state, corpus, tasks, &run, round) {
            replayed.difference = Some(Difference { round, run, replay: names(tasks) });
        }
    }
    Ok(replayed)
}

/// The round that a line is about, and the tasks that it says were in it.
fn who(line: &Value) -> Option<(u64, Vec<String>)> {
    let tasks: Vec<String> = match line["kind"].as_str()? {
        "round" => line["losses"].as_object()?.keys().cloned().collect(),
        "measured" => line["tasks"].as_array()?.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => return None,
    };
    Some((line["round"].as_u64()?, tasks))
}

/// A committed round lacks those whose part of it failed, and those whose examples had no target.
fn agree(state: &State, corpus: &Corpus, tasks: &[usize], run: &[String], round: u64) -> bool {
    let failed = |task: usize| state.incidents.iter().any(|incident| (incident.round, incident.task) == (round, task));
    let has_gaps = |task: usize| match &corpus.tasks[task].train.targets {
        Targets::Class(_) | Targets::Pairs => false,
        Targets::Words => true,
        Targets::Values { values, .. } => values.iter().any(|value| value.is_nan()),
    };
    let name = |task: usize| &corpus.tasks[task].name;
    run.iter().all(|own| tasks.iter().any(|&task| name(task) == own))
        && tasks.iter().all(|&task| run.contains(name(task)) || failed(task) || has_gaps(task))
}
