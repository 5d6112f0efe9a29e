//! What is read of a run folder.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::history::History;
use super::lines::FinalScores;
use crate::config::schema::MetricKind;
use crate::config::{Settings, is_error, metrics_of, stored_settings};
use crate::observe::tracks::Tracks;

/// The split that runs are evaluated on along the way.
pub const DEV: &str = "dev";

/// One run.
pub struct Run {
    /// The folder's own name, without where it lies.
    pub name: String,
    pub settings: Settings,
    /// Where values that are no defaults were written, by key; none where the run did not say.
    pub origins: Option<BTreeMap<String, String>>,
    pub history: History,
    /// None without a trace.json, or where it is not shown.
    pub tracks: Option<Tracks>,
}

impl Run {
    /// `alone`: the page is about this run only, and shows its trace and the matrices of its conflicts.
    pub fn read(folder: &Path, alone: bool) -> Result<Self> {
        if !folder.join("config.toml").is_file() {
            bail!("{} is no run folder: it has no config.toml", folder.display());
        }
        let whole = folder.canonicalize().with_context(|| format!("cannot open {}", folder.display()))?;
        let name = whole.file_name().map_or_else(|| "/".to_owned(), |name| name.to_string_lossy().into_owned());
        let settings = stored_settings(&folder.join("config.toml"))?;
        let history = History::read(&folder.join("metrics.jsonl"), alone)?;
        let origins = match text(&folder.join("origins.json"))? {
            Some(text) => {
                let context = || format!("{} is no list of origins", folder.join("origins.json").display());
                Some(serde_json::from_str(&text).with_context(context)?)
            }
            None => None,
        };
        let trace = if alone { text(&folder.join("trace.json"))? } else { None };
        let tracks = trace.map(|text| Tracks::read(&text));
        Ok(Self { name, settings, origins, history, tracks })
    }

    /// The metrics of a task; the first is its primary one.
    pub fn metrics(&self, task: &str) -> &[MetricKind] {
        let config = &self.settings.config;
        metrics_of(config.tasks.get(task).unwrap_or(&config.task_defaults))
    }

    pub fn primary(&self, task: &str) -> Option<Metric> {
        self.metrics(task).first().map(|&kind| Metric { name: kind.name(), is_error: is_error(kind) })
    }

    /// The task's dev scores by its primary metric, in order: (rounds done, value).
    pub fn scores(&self, task: &str) -> Vec<(f64, f64)> {
        let Some(metric) = self.primary(task) else { return Vec::new() };
        let value = |evaluation: &super::lines::Evaluation| evaluation.value(task, metric.name);
        self.history.evaluations.iter().filter_map(|evaluation| Some((evaluation.round as f64, value(evaluation)?))).collect()
    }

    /// Of a run that has ended, what its parameters come to on a split: the best ones, or the last where none were kept.
    pub fn final_scores(&self, split: &str) -> Option<&FinalScores> {
        self.history.end.as_ref()?.scores.get(split)
    }

    /// The task's final score by its primary metric; on dev, of a run that has not told, that of its last evaluation.
    pub fn final_score(&self, split: &str, task: &str) -> Option<f64> {
        match self.final_scores(split) {
            Some(scores) => scores.tasks.get(task)?.get(self.primary(task)?.name)?.as_f64(),
            None if split == DEV => self.scores(task).last().map(|score| score.1),
            None => None,
        }
    }

    /// The mean of these over the tasks.
    pub fn final_mean(&self, split: &str) -> Option<f64> {
        match self.final_scores(split) {
            Some(scores) => scores.mean_primary,
            None if split == DEV => self.history.evaluations.last()?.mean_primary,
            None => None,
        }
    }

    pub fn method(&self) -> &str {
        &self.settings.config.surgery.method
    }
}

/// A metric and which way is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    /// The smaller the better.
    pub is_error: bool,
}

impl Metric {
    /// The best of some values.
    pub fn best(self, values: impl Iterator<Item = f64>) -> Option<f64> {
        values.reduce(if self.is_error { f64::min } else { f64::max })
    }
}

/// A file's text, if there is one.
fn text(path: &Path) -> Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}
