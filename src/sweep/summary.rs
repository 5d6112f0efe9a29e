//! What a sweep came to: a table for people, CSV, JSON, and the report of its runs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::folder::SweepFolder;
use super::ranking::{Ranked, Row};
use crate::files::write_whole;
use crate::output::csv;
use crate::report;

/// Runs that one report shows: those of the best points.
const MOST_REPORTED: usize = 60;

pub struct Summary<'a> {
    pub objective: &'a str,
    /// The best first.
    pub points: &'a [Ranked],
}

impl Summary<'_> {
    /// Writes summary.csv, summary.json and report.html.
    pub fn write(&self, folder: &SweepFolder) -> Result<()> {
        let path = |name: &str| folder.path().join(name);
        write_whole(&path("summary.csv"), &self.csv(folder))?;
        write_whole(&path("summary.json"), &format!("{:#}\n", self.json(folder)))?;
        let rows = self.points.iter().flat_map(|point| &point.rows).filter(|row| row.progress.has_begun);
        let runs: Vec<PathBuf> = rows.map(|row| folder.run(&row.trial)).take(MOST_REPORTED).collect();
        if runs.is_empty() {
            return Ok(());
        }
        let page = report::page(&runs).context("the runs cannot be reported")?;
        write_whole(&path("report.html"), &page)
    }

    fn keys(&self) -> Vec<&str> {
        self.points.first().iter().flat_map(|point| &point.point.values).map(|(key, _)| key.as_str()).collect()
    }

    fn csv(&self, folder: &SweepFolder) -> String {
        let head = ["rank", "point", "seed"].into_iter().chain(self.keys());
        let mut text = csv(head.chain(["status", "rounds", "objective", "dev", "test", "error", "folder"]));
        for (rank, point) in (1..).zip(self.points) {
            for row in &point.rows {
                text += &csv(fields(rank, point, row, &folder.run(&row.trial)).iter().map(String::as_str));
            }
        }
        text
    }

    pub fn json(&self, folder: &SweepFolder) -> Value {
        let run = |row: &Row| {
            json!({
                "folder": folder.run(&row.trial),
                "seed": row.trial.seed,
                "status": row.status.name(),
                "rounds": row.progress.rounds,
                "objective": row.value,
                "scores": row.progress.scores.iter().map(|(split, mean)| (split.clone(), json!(mean))).collect::<Map<_, _>>(),
                "error": row.status.error(),
            })
        };
        let point = |(rank, point): (usize, &Ranked)| {
            json!({
                "rank": rank,
                "point": point.point.number,
                "parameters": point.point.values.iter().cloned().collect::<Map<_, _>>(),
                "objective": point.score.mean,
                "deviation": point.deviation,
                "runs": point.rows.iter().map(run).collect::<Vec<_>>(),
            })
        };
        json!({ "objective": self.objective, "points": (1..).zip(self.points).map(point).collect::<Vec<_>>() })
    }

    /// A line a point, then one for each run that failed.
    pub fn table(&self) -> String {
        let mut lines = vec![head(self.objective, &self.keys())];
        lines.extend((1..).zip(self.points).map(|(rank, point)| line(rank, point)));
        let mut text = aligned(&lines);
        for row in self.points.iter().flat_map(|point| &point.rows) {
            if let Some(error) = row.status.error() {
                text += &format!("{}: {error}\n", row.trial.name);
            }
        }
        text
    }
}

fn fields(rank: usize, point: &Ranked, row: &Row, folder: &Path) -> Vec<String> {
    let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    let seed = row.trial.seed.map(|seed| seed.to_string()).unwrap_or_default();
    let start = [rank.to_string(), point.point.number.to_string(), seed];
    let values = point.point.values.iter().map(|(_, value)| shown(value));
    let mean = |split: &str| number(row.progress.scores.iter().find(|(own, _)| own == split).and_then(|(_, mean)| *mean));
    let end = [
        row.status.name().to_owned(),
        row.progress.rounds.to_string(),
        number(row.value),
        mean("dev"),
        mean("test"),
        row.status.error().unwrap_or_default().to_owned(),
        folder.display().to_string(),
    ];
    start.into_iter().chain(values).chain(end).collect()
}

/// A string without its quotes.
fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn head(objective: &str, keys: &[&str]) -> Vec<String> {
    let start = ["rank", "point"].into_iter().chain(keys.iter().copied());
    start.chain([objective, "runs", "rounds", "status"]).map(str::to_owned).collect()
}

fn line(rank: usize, point: &Ranked) -> Vec<String> {
    let objective = match (point.score.mean, point.deviation) {
        (Some(mean), Some(deviation)) => format!("{mean:.4} ± {deviation:.4}"),
        (Some(mean), None) => format!("{mean:.4}"),
        (None, _) => "-".to_owned(),
    };
    let rounds = point.rows.iter().map(|row| row.progress.rounds).max().unwrap_or(0);
    let mut names: Vec<&str> = point.rows.iter().map(|row| row.status.name()).collect();
    names.dedup();
    let start = [rank.to_string(), point.point.number.to_string()];
    let values = point.point.values.iter().map(|(_, value)| shown(value));
    let end = [objective, point.rows.len().to_string(), rounds.to_string(), names.join(", ")];
    start.into_iter().chain(values).chain(end).collect()
}

/// Columns as wide as their widest cell.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let row = |line: &Vec<String>| {
        let cells = line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    lines.iter().map(row).collect()
}
