//! What people see on stderr: bars on a terminal, a line now and then elsewhere.

use std::fmt;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde_json::Value;

use super::event::{ByTask, Event, RoundEvent, TaskEnd, Weights};
use super::terminal::Terminal;
use crate::surgery::ledger::MeanCosine;

/// Tasks with a line of their own; more would push the bar off the screen.
const MOST_TASK_LINES: usize = 20;

pub struct Console {
    terminal: Terminal,
    rounds: ProgressBar,
    tasks: Vec<(String, ProgressBar)>,
    /// Smoothed mean loss, for lines without a terminal.
    loss: Option<f64>,
    /// Rounds between two plain lines.
    every: u64,
    /// Warnings of the last evaluation: what stays so is said once.
    warned: Vec<String>,
    /// Rounds that an earlier process did.
    before: u64,
}

impl Console {
    pub fn new() -> Self {
        let terminal = Terminal::new(8);
        Self { rounds: ProgressBar::hidden(), terminal, tasks: Vec::new(), loss: None, every: 0, warned: Vec::new(), before: 0 }
    }

    pub fn is_terminal(&self) -> bool {
        self.terminal.is_terminal()
    }

    /// One line that stays.
    pub fn say(&self, message: &str) {
        self.terminal.say(message);
    }

    /// A bar over the bytes of a file that is being read.
    pub fn reading(&self, total_bytes: u64) -> ProgressBar {
        let style = ProgressStyle::with_template("reading {msg} {bar:30} {bytes}/{total_bytes} {eta}");
        let bar = ProgressBar::new(total_bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.terminal.bars.add(bar)
    }

    pub fn show(&mut self, event: &Event) {
        match event {
            Event::Start { round, rounds, tasks, .. } => self.start(*round, *rounds, tasks),
            Event::Round(round) => self.round(round),
            Event::Conflict { .. }
            | Event::Adapted { .. }
            | Event::Measured { .. }
            | Event::Reweighted { .. }
            | Event::Changed { .. } => {}
            Event::Anomaly { message, .. } | Event::Late { message, .. } => self.say(&format!("warning: {message}")),
            Event::Failure { already_reported: true, .. } => {}
            Event::Failure { message, .. } => self.say(&format!("warning: {message}")),
            Event::Evaluation { round, scores, objective, best, warnings, .. } => {
                self.evaluation(*round, scores, *objective, *best);
                let new = warnings.iter().filter(|warning| !self.warned.contains(warning));
                new.for_each(|warning| self.say(&format!("warning: {warning}")));
                self.warned = warnings.to_vec();
            }
            Event::Target { round, task, metric, value, target } => {
                self.say(&format!("round {round}: task {task} is done: {metric} {value:.4} reaches its target of {target}"));
            }
            Event::Checkpoint { round, path, .. } => tracing::debug!("checkpoint after round {round}: {path}"),
            Event::End { round, reason, seconds, conflicts, blocks, fallbacks, schedule, tasks, .. } => {
                self.tasks.drain(..).for_each(|(_, bar)| bar.finish_and_clear());
                self.rounds.finish_and_clear();
                self.say(&format!("{reason} after {round} rounds, {seconds:.1} s"));
                for pair in conflicts.iter().filter(|pair| pair.cosine.is_sure) {
                    let ([one, other], cosine, share) = (&pair.tasks, mean_cosine(&pair.cosine), 100.0 * pair.share);
                    self.say(&format!("conflict: {one} and {other} in {share:.0} % of rounds, {cosine}"));
                }
                for block in blocks.iter().filter(|block| block.cosine.is_sure) {
                    let (name, cosine, share) = (&block.block, mean_cosine(&block.cosine), 100.0 * block.share);
                    self.say(&format!("contested: {name} in {share:.0} % of pairs and rounds, {cosine}"));
                }
                tasks
                    .iter()
                    .filter(|task| task.last_error.is_some() || task.state == "waiting")
                    .for_each(|task| self.say(&how(task)));
                tasks.iter().filter_map(deadlines).for_each(|line| self.say(&line));
                if schedule.stale > 0 {
                    self.say(&format!("{} gradients missed commits of other tasks (schedule.max_staleness)", schedule.stale));
                }
                for (name, rounds) in *fallbacks {
                    self.say(&format!("warning: {name} fell back in {rounds} rounds; metrics.jsonl says why"));
                }
            }
        }
    }

    fn start(&mut self, round: u64, rounds: u64, tasks: &[&str]) {
        self.every = (rounds / 20).max(1);
        self.before = round;
        self.rounds = self.terminal.bars.add(rounds_bar(round, rounds));
        if self.is_terminal() {
            self.rounds.enable_steady_tick(Duration::from_millis(500));
            let width = tasks.iter().map(|name| name.len()).max().unwrap_or(0);
            for name in tasks.iter().take(MOST_TASK_LINES) {
                let bar = self.terminal.bars.add(ProgressBar::new_spinner());
                bar.set_style(
                    ProgressStyle::with_template("  {prefix} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()),
                );
                bar.set_prefix(format!("{name:<width$}"));
                self.tasks.push(((*name).to_owned(), bar));
            }
        }
    }

    fn round(&mut self, event: &RoundEvent) {
        let ByTask { tasks, values: losses } = event.losses;
        let mean = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        let smooth = self.loss.map_or(mean, |loss| 0.9 * loss + 0.1 * mean);
        self.loss = Some(smooth);
        self.rounds.set_position((event.round + 1).saturating_sub(self.before));
        self.rounds.set_message(format!("loss {smooth:.4}"));
        for (name, bar) in &self.tasks {
            if let Some(index) = tasks.iter().position(|task| task == name) {
                let weight = one_weight(event, index).map_or(String::new(), |weight| format!("  weight {weight:.2}"));
                bar.set_message(format!("loss {:.4}{weight}", losses[index]));
            }
        }
        if let Some(reason) = event.fallback {
            self.say(&format!("warning: round {}: surgery fell back: {reason}", event.round));
        }
        if !self.is_terminal() && (event.round + 1).is_multiple_of(self.every) {
            self.say(&format!("round {} epoch {:.2} loss {smooth:.4} lr {:.2e}", event.round + 1, event.epoch, event.lr));
        }
    }

    fn evaluation(&mut self, round: u64, scores: &Value, objective: Option<f64>, best: bool) {
        let shown = |value: Option<f64>| value.map_or("undefined".to_owned(), |value| format!("{value:.4}"));
        let (mean, objective) = (shown(scores["mean_primary"].as_f64()), shown(objective));
        let split = scores["split"].as_str().unwrap_or_default();
        let best = if best { "  best" } else { "" };
        self.say(&format!("round {round} {split}: mean primary {mean}  objective {objective}{best}"));
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts the rounds of this process, whose time alone is known here; the numbers beside it are the run's.
fn rounds_bar(done: u64, rounds: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {done}/{rounds} rounds {per_sec} ETA {eta} {msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let style = style.with_key("done", move |bar: &ProgressState, out: &mut dyn fmt::Write| {
        let _ = write!(out, "{}", done + bar.pos());
    });
    let style = style.with_key("rounds", move |_: &ProgressState, out: &mut dyn fmt::Write| {
        let _ = write!(out, "{rounds}");
    });
    ProgressBar::new(rounds.saturating_sub(done)).with_style(style)
}

/// With its standard error.
fn mean_cosine(MeanCosine { cosine, standard_error, .. }: &MeanCosine) -> String {
    let error = standard_error.map_or(String::new(), |error| format!(" ± {error:.3}"));
    format!("mean cosine {cosine:+.3}{error}")
}

/// One line about a task that did not just run to its end.
fn how(task: &TaskEnd) -> String {
    let TaskEnd { task, state, rounds, rounds_lost, last_error, .. } = task;
    let why = last_error.as_ref().map_or(String::new(), |error| format!("; the last failure: {error}"));
    format!("task {task}: {state}, {rounds} rounds, {rounds_lost} lost{why}")
}

/// One line about a task with a deadline.
fn deadlines(task: &TaskEnd) -> Option<String> {
    let (met, missed) = (task.deadlines_met?, task.deadlines_missed?);
    Some(format!("deadlines of task {}: {met} met, {missed} missed", task.task))
}

/// A present task's weight, where the encoder has one set of them.
fn one_weight(event: &RoundEvent, index: usize) -> Option<f64> {
    match &event.weights {
        Weights::Whole(weights) => weights.values.get(index).copied(),
        Weights::Blocks(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an earlier process did has no time here: counted, it would make the rest seem to take none.
    #[test]
    fn a_resumed_bar_counts_new_rounds() {
        let mut console = Console::new();
        console.show(&Event::Start { round: 50, rounds: 120, tasks: &["a"], device: "cpu", threads: 1, bytes: 0, buffers: &[] });
        assert_eq!((console.rounds.position(), console.rounds.length()), (0, Some(70)));
        console.rounds = rounds_bar(50, 120);
        let of_a = ByTask { tasks: &["a"], values: &[1.0] };
        console.round(&RoundEvent {
            round: 59,
            epoch: 1.0,
            lr: 1.0,
            losses: of_a,
            factors: None,
            weights: Weights::Whole(of_a),
            norm: 1.0,
            clip: 1.0,
            fallback: None,
            ms: 1.0,
        });
        assert_eq!(console.rounds.position(), 10);
    }
}
