//! metrics.jsonl: one JSON document a line, flushed line by line.
//!
//! Beside what its event says, each line has `time` (seconds since 1970), and `n` if the event happens again when a run goes on from a
//! checkpoint before it. `n` counts those lines; a checkpoint knows how many there were, so that the others can be told apart.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::event::Event;
use crate::files::scratch;

pub struct MetricsFile {
    file: File,
    path: PathBuf,
    /// Numbered lines so far.
    events: u64,
    /// Rounds of the newest checkpoint with a line.
    checkpoint: Option<u64>,
    /// Lines that were dropped although what they say decides what happens again: times that were measured.
    pub measured: Vec<Value>,
}

/// What a checkpoint knows of the lines before it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Past {
    pub rounds: u64,
    /// Numbered lines.
    pub events: u64,
}

impl MetricsFile {
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { file, path: path.to_owned(), events: 0, checkpoint: None, measured: Vec::new() })
    }

    /// Continues a file at a checkpoint: lines about what came after it are dropped, since it will happen again. `each` gets those
    /// that stay.
    pub fn resume(path: &Path, past: Past, each: &mut dyn FnMut(&Value) -> Result<()>) -> Result<Self> {
        let (mut checkpoint, mut measured) = (None, Vec::new());
        let mut keep = |line: &[u8]| -> Result<bool> {
            // A killed process may leave its last line cut.
            let Ok(line) = serde_json::from_slice::<Value>(line) else { return Ok(false) };
            let round = line["round"].as_u64().unwrap_or(0);
            let is_past = line["n"].as_u64().map_or(round <= past.rounds, |number| number < past.events);
            if is_past {
                checkpoint = if line["kind"] == "checkpoint" { Some(round) } else { checkpoint };
                each(&line)?;
            } else if line["kind"] == "measured" {
                measured.push(line);
            }
            Ok(is_past)
        };
        let scratch = scratch(path);
        let mut kept = BufWriter::new(File::create(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?);
        match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            opened => {
                let context = || format!("cannot read {}", path.display());
                for line in BufReader::new(opened.with_context(context)?).split(b'\n') {
                    let mut line = line.with_context(context)?;
                    if keep(&line)? {
                        line.push(b'\n');
                        kept.write_all(&line).with_context(|| format!("cannot write {}", scratch.display()))?;
                    }
                }
            }
        }
        let finish = || {
            kept.into_inner().map_err(|error| error.into_error())?;
            fs::rename(&scratch, path)?;
            OpenOptions::new().append(true).open(path)
        };
        let file = finish().with_context(|| format!("cannot continue {}", path.display()))?;
        Ok(Self { file, path: path.to_owned(), events: past.events, checkpoint, measured })
    }

    /// The line that was written.
    pub fn write(&mut self, event: &Event) -> Result<Value> {
        let mut line = event.json();
        line["time"] = json!(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        if event.happens_again() {
            line["n"] = json!(self.events);
            self.events += 1;
        }
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        written.with_context(|| format!("cannot write {}", self.path.display()))?;
        Ok(line)
    }

    pub fn events(&self) -> u64 {
        self.events
    }

    pub fn has_checkpoint(&self, round: u64) -> bool {
        self.checkpoint == Some(round)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_file_forgets_what_will_happen_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let lines = [
            r#"{"kind":"start","round":0,"n":0}"#,
            r#"{"kind":"target","round":4,"n":1}"#,
            r#"{"kind":"changed","round":4}"#,
            r#"{"kind":"target","round":5,"n":2}"#,
            r#"{"kind":"target","round":5,"n":3}"#,
            r#"{"kind":"checkpoint","round":5}"#,
            r#"{"kind":"checkpoint","round":6}"#,
            r#"{"kind":"end","rou"#,
        ];
        fs::write(&path, lines.join("\n")).unwrap();
        let mut seen = 0;
        let mut count = |_: &Value| {
            seen += 1;
            Ok(())
        };
        let mut file = MetricsFile::resume(&path, Past { rounds: 5, events: 3 }, &mut count).unwrap();
        assert_eq!(seen, 5);
        assert!(file.has_checkpoint(5) && !file.has_checkpoint(6));
        let target = Event::Target { round: 5, task: "a", metric: "f1", value: 1.0, target: 1.0 };
        assert_eq!(file.write(&target).unwrap()["n"], 3);
        let text = fs::read_to_string(&path).unwrap();
        let kept: Vec<&str> = text.lines().take(5).collect();
        assert_eq!(kept, [&lines[..4], &lines[5..6]].concat());
        assert_eq!(text.lines().count(), 6);
        let mut file = MetricsFile::resume(&folder.path().join("none"), Past::default(), &mut |_| Ok(())).unwrap();
        assert_eq!(file.write(&target).unwrap()["n"], 0);
    }
}
