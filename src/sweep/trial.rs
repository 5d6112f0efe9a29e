//! One run of a sweep: how it is made, and how far it has come, as its folder tells.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::points::Point;
use crate::config::sweep::Sweep;
use crate::train::checkpoint;

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// Number of its point.
    pub point: usize,
    /// None: the configuration's own.
    pub seed: Option<u64>,
    /// Of its folder.
    pub name: String,
    /// All that is set, as `--set` takes it.
    pub sets: Vec<String>,
}

/// The runs of all points, in order.
pub fn trials(sweep: &Sweep, points: &[Point]) -> Vec<Trial> {
    let seeds: Vec<Option<u64>> = sweep.seeds.iter().copied().map(Some).collect();
    let seeds = if seeds.is_empty() { vec![None] } else { seeds };
    let objective = sweep.objective.iter().map(|objective| format!("best.metric={objective}"));
    let shared: Vec<String> = sweep.set.iter().cloned().chain(objective).collect();
    let trial = |point: &Point, seed: Option<u64>| {
        let name = match seed {
            Some(seed) => format!("point-{:03}-seed-{seed}", point.number),
            None => format!("point-{:03}", point.number),
        };
        let seed_set = seed.map(|seed| format!("run.seed={seed}"));
        let own = [format!("run.name={name}")].into_iter().chain(seed_set);
        Trial { point: point.number, seed, sets: shared.iter().cloned().chain(point.sets()).chain(own).collect(), name }
    };
    points.iter().flat_map(|point| seeds.iter().map(move |&seed| trial(point, seed))).collect()
}

/// What a run folder holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// It can be resumed.
    pub has_begun: bool,
    pub has_ended: bool,
    /// Done by the newest checkpoint; all of them once it has ended.
    pub rounds: u64,
    /// (Rounds done, value of the objective) of each evaluation that was the best so far.
    pub bests: Vec<(u64, f64)>,
    /// By split: mean of the primary metrics at the end.
    pub scores: Vec<(String, Option<f64>)>,
    pub seconds: Option<f64>,
    /// Of the tasks that have failed.
    pub error: Option<String>,
}

impl Progress {
    /// A folder that is not there, or not whole, is one of a run that has not begun.
    pub fn read(folder: &Path) -> Self {
        let mut progress = Self { has_begun: folder.join("config.toml").is_file(), ..Self::default() };
        if !progress.has_begun {
            return progress;
        }
        let newest = checkpoint::list(&folder.join("checkpoints")).first().and_then(|path| checkpoint::round_of(path));
        progress.rounds = newest.unwrap_or(0);
        let metrics = fs::read_to_string(folder.join("metrics.jsonl")).unwrap_or_default();
        progress.bests = metrics.lines().filter(|line| line.contains("\"eval\"")).filter_map(best).collect();
        let summary = fs::read_to_string(folder.join("summary.json")).unwrap_or_default();
        if let Ok(summary) = serde_json::from_str::<Value>(&summary)
            && !summary["reason"].as_str().unwrap_or("interrupted").starts_with("interrupted")
        {
            progress.end(&summary);
        }
        progress
    }

    fn end(&mut self, summary: &Value) {
        self.has_ended = true;
        self.rounds = summary["round"].as_u64().unwrap_or(self.rounds);
        self.seconds = summary["seconds"].as_f64();
        let scores = summary["scores"].as_object().into_iter().flatten();
        self.scores = scores.map(|(split, scores)| (split.clone(), scores["mean_primary"].as_f64())).collect();
        let tasks = summary["tasks"].as_array().into_iter().flatten();
        let failed = tasks.filter(|task| task["state"] == "failed");
        let reasons = failed.map(|task| {
            let why = task["last_error"].as_str().unwrap_or("no reason is known");
            format!("task {} has failed: {why}", task["task"].as_str().unwrap_or_default())
        });
        self.error = reasons.collect::<Vec<_>>().first().cloned();
    }

    /// The objective with the parameters that were best after so many rounds.
    pub fn value(&self, rounds: u64) -> Option<f64> {
        self.bests.iter().rev().find(|(round, _)| *round <= rounds).map(|(_, value)| *value)
    }
}

fn best(line: &str) -> Option<(u64, f64)> {
    let line: Value = serde_json::from_str(line).ok()?;
    let is_best = line["kind"] == "eval" && line["best"] == true;
    is_best.then(|| Some((line["round"].as_u64()?, line["objective"].as_f64()?)))?
}

/// Whether a process works in the folder.
pub fn is_busy(folder: &Path) -> bool {
    let Ok(file) = File::open(folder.join("run.lock")) else { return false };
    matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// The last line of metrics.jsonl says how far a run at work is.
pub fn rounds_at_work(folder: &Path) -> Option<u64> {
    use std::io::{Read, Seek, SeekFrom};
    let path: PathBuf = folder.join("metrics.jsonl");
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(1 << 18))).ok()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let rounds = text.lines().rev().filter_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        Some(line["round"].as_u64()? + u64::from(line["kind"] == "round"))
    });
    rounds.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_tells_how_far_a_run_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert_eq!(Progress::read(folder.path()), Progress::default());
        fs::write(path("config.toml"), "").unwrap();
        let lines = [
            r#"{"v":1,"kind":"eval","round":4,"best":true,"objective":0.5}"#,
            r#"{"v":1,"kind":"eval","round":8,"best":false,"objective":0.4}"#,
            r#"{"v":1,"kind":"eval","round":12,"best":true,"objective":0.75}"#,
            r#"{"v":1,"kind":"round","round":12}"#,
            r#"{"v":1,"kind":"eva"#,
        ];
        fs::write(path("metrics.jsonl"), lines.join("\n")).unwrap();
        fs::write(path("summary.json"), r#"{"reason":"interrupted; continue","round":12}"#).unwrap();
        let progress = Progress::read(folder.path());
        assert_eq!((progress.has_begun, progress.has_ended), (true, false));
        assert_eq!([3, 4, 11, 12, 99].map(|round| progress.value(round)), [None, Some(0.5), Some(0.5), Some(0.75), Some(0.75)]);
        assert_eq!(rounds_at_work(folder.path()), Some(13));
        let tasks = r#"[{"task":"a","state":"done"},{"task":"b","state":"failed","last_error":"loss is NaN"}]"#;
        let summary = format!(
            r#"{{"reason":"finished","round":20,"seconds":2.0,"scores":{{"dev":{{"mean_primary":0.7}}}},"tasks":{tasks}}}"#
        );
        fs::write(path("summary.json"), summary).unwrap();
        let progress = Progress::read(folder.path());
        assert_eq!((progress.has_ended, progress.rounds), (true, 20));
        assert_eq!(progress.error.as_deref(), Some("task b has failed: loss is NaN"));
        assert_eq!(progress.scores, [("dev".to_owned(), Some(0.7))]);
    }
}
