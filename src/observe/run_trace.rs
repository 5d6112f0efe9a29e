//! The schedule of a training run as it happens, for `trace.json`.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::trace::{Kind, Span, Trace};

/// A fused group of a round as it was computed.
pub struct GroupSpan {
    pub tasks: Vec<usize>,
    pub lane: usize,
    /// Since the round's computation began.
    pub start: Duration,
    pub time: Duration,
}

/// The work of one round.
pub struct RoundSpans<'a> {
    pub round: u64,
    pub start: f64,
    /// Empty where nothing was committed.
    pub groups: &'a [GroupSpan],
    pub commit: Duration,
    /// Tasks whose part failed, and why.
    pub failed: &'a [(usize, &'a str)],
}

/// Writes the spans of a run. Times are microseconds since the run was started first, the time between processes left out.
pub struct RunTrace {
    trace: Trace,
    clock: Instant,
    offset: f64,
    /// When each task's last span ended.
    due: Vec<f64>,
    /// Each task's last part failed.
    retries: Vec<bool>,
    /// Rounds still to be written; failures, evaluations and checkpoints always are.
    left: u64,
}

impl RunTrace {
    /// Begins `path`, or goes on with it.
    pub fn open(path: &Path, names: &[String], lanes: usize, rounds: u64) -> Result<Self> {
        let (trace, offset) = Trace::resume(path, names, lanes)?;
        let (due, retries) = (vec![offset; names.len()], vec![false; names.len()]);
        Ok(Self { trace, clock: Instant::now(), offset, due, retries, left: rounds })
    }

    pub fn now(&self) -> f64 {
        self.offset + micros(self.clock.elapsed())
    }

    /// What concerns all tasks, from `start` until now.
    pub fn add(&mut self, kind: Kind, start: f64, note: String) -> Result<()> {
        let end = self.now();
        self.trace.add(&Span { kind, task: None, lane: 0, due: start, start, end, note })?;
        self.trace.flush()
    }

    /// A round that has just ended.
    pub fn round(&mut self, spans: &RoundSpans) -> Result<()> {
        let end = self.now();
        for &(task, why) in spans.failed {
            self.part(Kind::Failure, task, spans.start, end, format!("round {}: {why}", spans.round))?;
            self.retries[task] = true;
        }
        if self.left == 0 {
            return Ok(());
        }
        self.left -= 1;
        let commit = end - micros(spans.commit);
        let took = spans.groups.iter().map(|group| group.start + group.time).max().unwrap_or_default();
        let mut present: Vec<usize> = Vec::new();
        for GroupSpan { tasks, lane, start, time } in spans.groups {
            let start = commit - micros(took - *start);
            self.on_lane(Kind::Gradient, *lane, tasks, [start, start + micros(*time)], spans.round)?;
            present.extend(tasks);
        }
        present.sort_unstable();
        present.dedup();
        if present.is_empty() { Ok(()) } else { self.on_lane(Kind::Commit, 0, &present, [commit, end], spans.round) }
    }

    /// A quantum that the tasks share: once on the lane, and on each one's own track.
    fn on_lane(&mut self, kind: Kind, lane: usize, tasks: &[usize], [start, end]: [f64; 2], round: u64) -> Result<()> {
        let note = format!("round {round}, {} tasks", tasks.len());
        self.trace.add(&Span { kind, task: None, lane, due: start, start, end, note })?;
        for &task in tasks {
            let retry = if std::mem::take(&mut self.retries[task]) { ", tried again" } else { "" };
            self.part(kind, task, start, end, format!("round {round}{retry}"))?;
        }
        Ok(())
    }

    fn part(&mut self, kind: Kind, task: usize, start: f64, end: f64, note: String) -> Result<()> {
        let due = std::mem::replace(&mut self.due[task], end);
        self.trace.add_to_task(&Span { kind, task: Some(task), lane: 0, due, start, end, note })
    }

    pub fn finish(&mut self) -> Result<()> {
        self.trace.finish()
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
