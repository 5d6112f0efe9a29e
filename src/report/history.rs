//! What a run's metrics.jsonl tells, in bounded memory: curves are averaged, matrices thinned.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde::de::DeserializeOwned;

use super::conflicts::Conflicts;
use super::curve::Curve;
use super::lines::{ByTask, End, Evaluation, Head, Incident, Round, Start};
use crate::observe::event::VERSION;

/// Most incidents that are kept; the others are counted.
const MOST_INCIDENTS: usize = 200;

#[derive(Default)]
pub struct History {
    pub start: Option<Start>,
    pub rounds: Rounds,
    pub conflicts: Conflicts,
    pub evaluations: Vec<Evaluation>,
    pub incidents: Vec<Incident>,
    /// Incidents beyond those.
    pub more_incidents: usize,
    pub checkpoints: usize,
    pub end: Option<End>,
}

/// Committed rounds, as far as they were logged.
#[derive(Default)]
pub struct Rounds {
    pub logged: u64,
    /// Number of the last one.
    pub last: Option<u64>,
    pub lr: Curve,
    pub norm: Curve,
    pub ms: Curve,
    pub mean_loss: Curve,
    pub tasks: BTreeMap<String, TaskRounds>,
    /// Weights by block, where surgery works on each by itself: mean over the run, by task.
    pub block_weights: BTreeMap<String, BTreeMap<String, Curve>>,
    /// Rounds in which a solver fell back, with the first reason.
    pub fallbacks: (u64, Option<String>),
}

/// A task's part of them.
#[derive(Default)]
pub struct TaskRounds {
    pub rounds: u64,
    pub loss: Curve,
    /// Of surgery; the mean over the blocks where each has its own.
    pub weight: Curve,
    /// Its weight against an equal share of the round's weights: -0.5 is half of that.
    pub relative: Curve,
    /// Of the loss balancer, if there is one.
    pub factor: Curve,
    /// Of the rounds it was in.
    pub ms: Curve,
}

impl History {
    /// Reads metrics.jsonl. A last line without its end is left out: a killed process leaves one. A file that is not there yet
    /// is empty. `with_maps`: the matrices of conflicts are kept.
    pub fn read(path: &Path, with_maps: bool) -> Result<Self> {
        let mut history = Self { conflicts: Conflicts::new(with_maps), ..Self::default() };
        let context = || format!("cannot read {}", path.display());
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(history),
            opened => opened.with_context(context)?,
        };
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            if reader.read_until(b'\n', &mut line).with_context(context)? == 0 {
                break;
            }
            let is_whole = line.ends_with(b"\n");
            match history.take(&line) {
                Err(error) if is_whole => return Err(error.context(format!("{}:{number}", path.display()))),
                _ => {}
            }
        }
        Ok(history)
    }

    fn take(&mut self, line: &[u8]) -> Result<()> {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        let head: Head = parse(line)?;
        ensure!(head.v <= VERSION, "a line of version {}; this program reads up to {VERSION}", head.v);
        match head.kind.as_str() {
            "start" => self.start = Some(parse(line)?),
            "round" => self.rounds.add(&parse(line)?),
            "conflict" => self.conflicts.add(&parse(line)?, line),
            "eval" => self.evaluations.push(parse(line)?),
            "checkpoint" => self.checkpoints += 1,
            "end" => self.end = Some(parse(line)?),
            "anomaly" | "failure" | "late" | "adapted" | "target" | "changed" | "reweighted" => self.incident(parse(line)?),
            // Times for a run that goes on, and what later versions tell.
            _ => {}
        }
        Ok(())
    }

    fn incident(&mut self, incident: Incident) {
        if self.incidents.len() < MOST_INCIDENTS {
            self.incidents.push(incident);
        } else {
            self.more_incidents += 1;
        }
    }

    /// Tasks in the run's order; where no line has it, by name.
    pub fn tasks(&self) -> Vec<String> {
        match &self.start {
            Some(start) => start.tasks.clone(),
            None => self.rounds.tasks.keys().cloned().collect(),
        }
    }
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T> {
    serde_json::from_slice(line).map_err(|error| anyhow!("no line of a run's metrics: {error}"))
}

impl Rounds {
    fn add(&mut self, round: &Round) {
        let x = round.round as f64;
        self.logged += 1;
        self.last = Some(round.round);
        for (curve, value) in [(&mut self.lr, round.lr), (&mut self.norm, round.norm), (&mut self.ms, round.ms)] {
            curve.add(x, value.unwrap_or(f64::NAN));
        }
        let losses: Vec<f64> = round.losses.values().map(|loss| loss.unwrap_or(f64::NAN)).collect();
        self.mean_loss.add(x, losses.iter().sum::<f64>() / losses.len() as f64);
        for (task, loss) in &round.losses {
            let own = self.tasks.entry(task.clone()).or_default();
            own.rounds += 1;
            own.loss.add(x, loss.unwrap_or(f64::NAN));
            own.ms.add(x, round.ms.unwrap_or(f64::NAN));
        }
        self.add_to_tasks(x, &round.balance, |task| &mut task.factor);
        let weights = if round.weights.is_empty() { &block_means(&round.block_weights) } else { &round.weights };
        self.add_to_tasks(x, weights, |task| &mut task.weight);
        self.add_to_tasks(x, &against_equal_shares(weights), |task| &mut task.relative);
        for (block, weights) in &round.block_weights {
            let curves = self.block_weights.entry(block.clone()).or_default();
            for (task, weight) in weights {
                curves.entry(task.clone()).or_default().add(x, weight.unwrap_or(f64::NAN));
            }
        }
        if let Some(reason) = &round.fallback {
            self.fallbacks.0 += 1;
            self.fallbacks.1.get_or_insert_with(|| reason.clone());
        }
    }

    fn add_to_tasks(&mut self, x: f64, values: &ByTask, curve: fn(&mut TaskRounds) -> &mut Curve) {
        for (task, value) in values {
            curve(self.tasks.entry(task.clone()).or_default()).add(x, value.unwrap_or(f64::NAN));
        }
    }
}

/// Each task's mean over the blocks.
fn block_means(blocks: &BTreeMap<String, ByTask>) -> ByTask {
    let mut sums: BTreeMap<&String, f64> = BTreeMap::new();
    for (task, weight) in blocks.values().flatten() {
        *sums.entry(task).or_default() += weight.unwrap_or(f64::NAN);
    }
    sums.into_iter().map(|(task, sum)| (task.clone(), Some(sum / blocks.len() as f64))).collect()
}

/// Each weight as a part of their mean, less one; nothing of a task alone, or where the weights have no positive sum.
fn against_equal_shares(weights: &ByTask) -> ByTask {
    let sum: f64 = weights.values().map(|weight| weight.unwrap_or(f64::NAN)).sum();
    if weights.len() < 2 || !sum.is_finite() || sum <= 0.0 {
        return ByTask::new();
    }
    let mean = sum / weights.len() as f64;
    weights.iter().map(|(task, weight)| (task.clone(), weight.map(|weight| weight / mean - 1.0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<History> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, text).unwrap();
        History::read(&path, true)
    }

    const ROUND: &str =
        r#"{"v":1,"kind":"round","round":0,"losses":{"a":1.0,"b":null},"weights":{"a":0.5,"b":1.5},"lr":0.1,"ms":2.0}"#;

    #[test]
    fn a_cut_last_line_is_left_out() {
        for end in ["", "{\"v\":1,\"kind\":\"rou"] {
            let history = read(&format!("{ROUND}\n{end}")).unwrap();
            assert_eq!((history.rounds.logged, history.tasks()), (1, vec!["a".to_owned(), "b".to_owned()]));
            assert_eq!(history.rounds.tasks["b"].weight.points(), [(0.0, 1.5)]);
            assert_eq!(history.rounds.tasks["a"].relative.points(), [(0.0, -0.5)]);
            assert!(history.rounds.tasks["b"].loss.is_empty());
        }
    }

    #[test]
    fn garbage_is_named_with_its_line() {
        for garbage in ["\u{0}\u{0}", "{\"v\":1}", "[]", "{\"v\":1,\"kind\":\"round\",\"round\":\"x\"}"] {
            let error = format!("{:#}", read(&format!("{ROUND}\n{garbage}\n{ROUND}\n")).err().unwrap());
            assert!(error.contains("metrics.jsonl:2: no line of a run's metrics: "), "{error}");
        }
        let error = format!("{:#}", read("{\"v\":2,\"kind\":\"round\"}\n").err().unwrap());
        assert!(error.contains("version 2"), "{error}");
    }

    #[test]
    fn weights_of_blocks_are_averaged() {
        let line =
            r#"{"v":1,"kind":"round","round":4,"losses":{"a":1.0},"block_weights":{"x":{"a":1.0},"y":{"a":2.0}},"lr":0.1}"#;
        let history = read(&format!("{line}\n")).unwrap();
        assert_eq!(history.rounds.tasks["a"].weight.points(), [(4.0, 1.5)]);
        assert_eq!(history.rounds.block_weights["y"]["a"].points(), [(4.0, 2.0)]);
    }
}
