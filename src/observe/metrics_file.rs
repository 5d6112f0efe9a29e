//! metrics.jsonl: one JSON document a line, flushed line by line.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::event::Event;

pub struct MetricsFile {
    file: File,
    path: PathBuf,
}

impl MetricsFile {
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Continues a file at a checkpoint: lines about what came after it are dropped, since it will happen again. A line
    /// about round r stands for what happened once r rounds were done, or for round r itself if it is of kind `round`,
    /// `conflict`, `anomaly` or `failure`.
    pub fn resume(path: &Path, rounds_done: u64, evaluation_due: bool) -> Result<Self> {
        let kept = match File::open(path) {
            Ok(file) => keep(BufReader::new(file), rounds_done, evaluation_due),
            Err(_) => String::new(),
        };
        let write = || {
            // Written beside and renamed: a second kill must not lose the lines either.
            let scratch = path.with_extension("jsonl.new");
            std::fs::write(&scratch, kept)?;
            std::fs::rename(&scratch, path)?;
            OpenOptions::new().append(true).open(path)
        };
        let file = write().with_context(|| format!("cannot continue {}", path.display()))?;
        Ok(Self { file, path: path.to_owned() })
    }

    pub fn write(&mut self, event: &Event) -> Result<()> {
        let mut line = event.json().to_string();
        line.push('\n');
        self.file.write_all(line.as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn keep(lines: impl BufRead, rounds_done: u64, evaluation_due: bool) -> String {
    let mut kept = String::new();
    for line in lines.lines().map_while(Result::ok) {
        // The last line of a killed process may be cut.
        let Ok(value) = serde_json::from_str::<Value>(&line) else { break };
        let round = value["round"].as_u64().unwrap_or(0);
        let keep = match value["kind"].as_str() {
            // The outcome of an evaluation that went on beside training.
            Some("eval") if value.get("known").is_some() => value["known"].as_u64().is_some_and(|known| known <= rounds_done),
            Some("round" | "conflict" | "anomaly" | "failure") => round < rounds_done,
            Some("eval" | "target") => round < rounds_done || (round == rounds_done && !evaluation_due),
            _ => round <= rounds_done,
        };
        if keep {
            kept += &line;
            kept.push('\n');
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_file_forgets_what_will_happen_again() {
        let text = "{\"kind\":\"start\",\"round\":0}\n{\"kind\":\"round\",\"round\":4}\n{\"kind\":\"eval\",\"round\":5}\n\
                    {\"kind\":\"checkpoint\",\"round\":5}\n{\"kind\":\"round\",\"round\":5}\n{\"kind\":\"round\",\"rou";
        let kept = keep(text.as_bytes(), 5, false);
        assert_eq!(kept.lines().count(), 4);
        assert!(!kept.contains("\"round\":5}\n{\"kind\":\"round\""));
        assert_eq!(keep(text.as_bytes(), 5, true).lines().count(), 3);
    }
}
