//! A schedule as it happened, in the trace format of Chrome and Perfetto: one track per lane, one per task.
//!
//! `chrome://tracing` and ui.perfetto.dev open the file. It is valid JSON once [`Trace::finish`] has run; a viewer also
//! takes what a killed run left.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::schedule::access::Operation;

/// What a span shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Gradient,
    Commit,
    Evaluation,
    Checkpoint,
    Failure,
}

impl Kind {
    pub fn of(operation: Operation) -> Self {
        match operation {
            Operation::Gradient => Kind::Gradient,
            Operation::Evaluation => Kind::Evaluation,
            Operation::Commit => Kind::Commit,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::Gradient => "gradient",
            Kind::Commit => "commit",
            Kind::Evaluation => "evaluation",
            Kind::Checkpoint => "checkpoint",
            Kind::Failure => "failure",
        }
    }
}

/// One quantum; times in microseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub kind: Kind,
    /// Whose it is; none for what concerns all.
    pub task: Option<usize>,
    pub lane: usize,
    /// When it could have begun: the time to `start` is shown as waiting.
    pub due: f64,
    pub start: f64,
    pub end: f64,
    /// Said beside the name, e.g. the round.
    pub note: String,
}

const LANES: u32 = 1;
const TASKS: u32 = 2;

pub struct Trace {
    file: BufWriter<File>,
    path: PathBuf,
    names: Vec<String>,
    first: bool,
}

impl Trace {
    pub fn create(path: &Path, names: &[String], lanes: usize) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let mut trace = Self { file: BufWriter::new(file), path: path.to_owned(), names: names.to_vec(), first: true };
        let title = |pid: u32, tid: Option<usize>, name: &str| match tid {
            None => json!({ "ph": "M", "name": "process_name", "pid": pid, "args": { "name": name } }),
            Some(tid) => json!({ "ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": { "name": name } }),
        };
        trace.put(&title(LANES, None, "lanes"))?;
        trace.put(&title(TASKS, None, "tasks"))?;
        for lane in 0..lanes {
            trace.put(&title(LANES, Some(lane), &format!("lane {lane}")))?;
        }
        for (task, name) in names.iter().enumerate() {
            trace.put(&title(TASKS, Some(task), name))?;
        }
        Ok(trace)
    }

    /// Writes a quantum on its lane's and its task's track, and before it on the task's the wait.
    pub fn add(&mut self, span: &Span) -> Result<()> {
        let kind = span.kind.name();
        let event = |name: &str, pid: u32, tid: usize, from: f64, to: f64| json!({ "ph": "X", "name": name, "cat": kind, "pid": pid, "tid": tid, "ts": from, "dur": to - from, "args": { "note": span.note } });
        let Some(task) = span.task else {
            return self.put(&event(kind, LANES, span.lane, span.start, span.end));
        };
        let on_lane = event(&format!("{kind} {}", self.names[task]), LANES, span.lane, span.start, span.end);
        self.put(&on_lane)?;
        if span.due < span.start {
            self.put(&event("wait", TASKS, task, span.due, span.start))?;
        }
        self.put(&event(kind, TASKS, task, span.start, span.end))
    }

    /// Ends the document and sees it written.
    pub fn finish(&mut self) -> Result<()> {
        let end = |file: &mut BufWriter<File>| {
            file.write_all(b"\n]\n")?;
            file.flush()
        };
        end(&mut self.file).with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn put(&mut self, event: &Value) -> Result<()> {
        let start = if std::mem::take(&mut self.first) { "[\n" } else { ",\n" };
        let write = |file: &mut BufWriter<File>| write!(file, "{start}{event}");
        write(&mut self.file).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_json_with_both_tracks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        let mut trace = Trace::create(&path, &["books".to_owned()], 1).unwrap();
        let span = Span { kind: Kind::Gradient, task: Some(0), lane: 0, due: 1.0, start: 3.0, end: 7.0, note: String::new() };
        trace.add(&span).unwrap();
        trace.add(&Span { task: None, kind: Kind::Checkpoint, ..span }).unwrap();
        trace.finish().unwrap();
        let events: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let spans: Vec<(&str, f64)> = events
            .iter()
            .filter(|event| event["ph"] == "X")
            .map(|event| (event["name"].as_str().unwrap(), event["dur"].as_f64().unwrap()))
            .collect();
        assert_eq!(spans, [("gradient books", 4.0), ("wait", 2.0), ("gradient", 4.0), ("checkpoint", 4.0)]);
    }
}
