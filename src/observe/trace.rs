//! A schedule as it happened, in the trace format of Chrome and Perfetto: one track per lane, one per task.
//!
//! `chrome://tracing` and ui.perfetto.dev open the file. It is valid JSON once [`Trace::finish`] has run; a viewer also
//! takes what a killed run left.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::schedule::access::Operation;
use crate::schedule::wait::WaitReason;

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
            Operation::Save => Kind::Checkpoint,
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

impl Kind {
    pub const ALL: [Kind; 5] = [Kind::Gradient, Kind::Commit, Kind::Evaluation, Kind::Checkpoint, Kind::Failure];

    pub(super) fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
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
    /// What it waited for, where that is known.
    pub waited_for: Option<WaitReason>,
    /// Said beside the name, e.g. the round.
    pub note: String,
}

/// Process numbers of the tracks.
pub(super) const LANES: u32 = 1;
pub(super) const TASKS: u32 = 2;

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

    /// Goes on with the trace of a process before this one: what it wrote stays, and its last microsecond is returned.
    pub fn resume(path: &Path, names: &[String], lanes: usize) -> Result<(Self, f64)> {
        let Ok(text) = std::fs::read_to_string(path) else { return Ok((Self::create(path, names, lanes)?, 0.0)) };
        let events: Vec<Value> = events(&text).filter(|event| event["ph"] == "X").collect();
        let end = |event: &Value| event["ts"].as_f64().unwrap_or_default() + event["dur"].as_f64().unwrap_or_default();
        let last = events.iter().map(end).fold(0.0, f64::max);
        let mut trace = Self::create(path, names, lanes)?;
        events.iter().try_for_each(|event| trace.put(event))?;
        Ok((trace, last))
    }

    /// Writes a quantum on its lane's and its task's track, and before it on the task's the wait.
    pub fn add(&mut self, span: &Span) -> Result<()> {
        let task = span.task.map_or_else(String::new, |task| format!(" {}", self.names[task]));
        self.put(&event(&format!("{}{task}", span.kind.name()), LANES, span.lane, span.start, span))?;
        self.add_to_task(span)
    }

    /// Writes a quantum on its task's track only, for one of several that share it.
    pub fn add_to_task(&mut self, span: &Span) -> Result<()> {
        let Some(task) = span.task else { return Ok(()) };
        if span.due < span.start {
            let mut wait = event("wait", TASKS, task, span.due, &Span { end: span.start, ..span.clone() });
            if let Some(reason) = span.waited_for {
                wait["args"]["for"] = json!(reason.name());
            }
            self.put(&wait)?;
        }
        self.put(&event(span.kind.name(), TASKS, task, span.start, span))
    }

    /// Sees what there is so far written.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().with_context(|| format!("cannot write {}", self.path.display()))
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

/// One event a line; a killed process leaves its last one cut and the list open.
fn events(text: &str) -> impl Iterator<Item = Value> {
    text.lines().filter_map(|line| serde_json::from_str(line.trim_end_matches(',')).ok())
}

/// The tasks' names and quanta in the text of a trace, from the time on at which the first one began.
pub fn read(text: &str) -> (Vec<String>, Vec<Span>) {
    let (mut names, mut spans, mut due): (Vec<String>, Vec<Span>, BTreeMap<usize, f64>) = Default::default();
    for event in events(text).filter(|event| event["pid"] == TASKS) {
        let Some(task) = event["tid"].as_u64().map(|task| task as usize) else { continue };
        let [start, dur] = ["ts", "dur"].map(|key| event[key].as_f64().unwrap_or_default());
        match (event["ph"].as_str(), event["name"].as_str()) {
            // Titles come in the tasks' order.
            (Some("M"), _) => names.extend(event["args"]["name"].as_str().map(str::to_owned)),
            (Some("X"), Some("wait")) => drop(due.insert(task, start)),
            (Some("X"), Some(name)) if task < names.len() => {
                let Some(kind) = Kind::find(name) else { continue };
                let note = event["args"]["note"].as_str().unwrap_or_default().to_owned();
                let due = due.remove(&task).unwrap_or(start);
                spans.push(Span { kind, task: Some(task), lane: 0, due, start, end: start + dur, waited_for: None, note });
            }
            _ => {}
        }
    }
    let first = spans.iter().map(|span| span.start).fold(f64::INFINITY, f64::min);
    for span in &mut spans {
        (span.due, span.start, span.end) = ((span.due - first).max(0.0), span.start - first, span.end - first);
    }
    (names, spans)
}

/// The event of a span from `from` on.
fn event(name: &str, pid: u32, tid: usize, from: f64, span: &Span) -> Value {
    let (kind, dur) = (span.kind.name(), span.end - from);
    json!({ "ph": "X", "name": name, "cat": kind, "pid": pid, "tid": tid, "ts": from, "dur": dur, "args": { "note": span.note } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient() -> Span {
        let note = String::new();
        Span { kind: Kind::Gradient, task: None, lane: 0, due: 1.0, start: 3.0, end: 7.0, waited_for: None, note }
    }

    #[test]
    fn a_trace_is_json_with_both_tracks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        let mut trace = Trace::create(&path, &["books".to_owned()], 1).unwrap();
        let span = Span { task: Some(0), ..gradient() };
        trace.add(&span).unwrap();
        trace.add(&Span { task: None, kind: Kind::Checkpoint, ..span.clone() }).unwrap();
        trace.finish().unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let events: Vec<Value> = serde_json::from_str(&text).unwrap();
        let spans: Vec<(&str, f64)> = events
            .iter()
            .filter(|event| event["ph"] == "X")
            .map(|event| (event["name"].as_str().unwrap(), event["dur"].as_f64().unwrap()))
            .collect();
        assert_eq!(spans, [("gradient books", 4.0), ("wait", 2.0), ("gradient", 4.0), ("checkpoint", 4.0)]);
        let (names, spans) = read(&text);
        assert_eq!(names, ["books"]);
        assert_eq!(spans, [Span { due: 0.0, start: 0.0, end: 4.0, ..span }]);
    }

    #[test]
    fn a_cut_trace_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        let names = ["books".to_owned()];
        let span = gradient();
        let mut trace = Trace::create(&path, &names, 1).unwrap();
        trace.add(&span).unwrap();
        trace.add(&Span { start: 8.0, end: 9.0, ..span.clone() }).unwrap();
        trace.finish().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for (cut, last, kept) in [(0, 9.0, 2), (2, 9.0, 2), (30, 7.0, 1)] {
            std::fs::write(&path, &text[..text.len() - cut]).unwrap();
            let (mut trace, end) = Trace::resume(&path, &names, 1).unwrap();
            assert_eq!(end, last);
            trace.add(&span).unwrap();
            trace.finish().unwrap();
            let events: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            assert_eq!(events.iter().filter(|event| event["ph"] == "X").count(), kept + 1, "cut by {cut}");
            assert_eq!(events.iter().filter(|event| event["ph"] == "M").count(), 4);
        }
    }
}
