//! The schedule of a training run as it happens, for `trace.json`.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::trace::{Kind, Span, Trace};
use crate::schedule::wait::WaitReason;

/// A quantum of a round as it was computed.
pub struct QuantumSpan {
    pub tasks: Vec<usize>,
    pub lane: usize,
    /// Since the round's computation began.
    pub start: Duration,
    pub time: Duration,
}

/// A committed round as it was computed, or several that were computed together.
pub struct ComputedRounds {
    pub began: Instant,
    /// The gradients of each fused group.
    pub groups: Vec<QuantumSpan>,
    /// In order.
    pub commits: Vec<QuantumSpan>,
}

/// Writes the spans of a run. Times are microseconds since the run was started first, the time between processes left out.
pub struct RunTrace {
    trace: Trace,
    clock: Instant,
    offset: f64,
    /// When each task's last span ended.
    due: Vec<f64>,
    /// When the last commit ended: a device may have begun a round before the host took it up, but not before this.
    committed: f64,
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
        Ok(Self { trace, clock: Instant::now(), offset, due, committed: offset, retries, left: rounds })
    }

    pub fn now(&self) -> f64 {
        self.offset + micros(self.clock.elapsed())
    }

    /// What concerns all tasks, from `start` until now.
    pub fn add(&mut self, kind: Kind, start: f64, note: String) -> Result<()> {
        let end = self.now();
        self.trace.add(&Span { kind, task: None, lane: 0, due: start, start, end, waited_for: None, note })?;
        self.trace.flush()
    }

    /// What a device computed in a lane of its own beside rounds.
    pub fn add_beside(&mut self, kind: Kind, lane: usize, began: Instant, time: Duration, note: String) -> Result<()> {
        let start = self.offset + micros(began.saturating_duration_since(self.clock));
        self.trace.add(&Span { kind, task: None, lane, due: start, start, end: start + micros(time), waited_for: None, note })
    }

    /// Whether the next round's quanta are written.
    pub fn writes_rounds(&self) -> bool {
        self.left > 0
    }

    /// A round that was begun at `start` and has just ended: what was committed, and the tasks whose part failed, with the reason.
    pub fn round(&mut self, round: u64, start: f64, computed: Option<&ComputedRounds>, failed: &[(usize, &str)]) -> Result<()> {
        let end = self.now();
        for &(task, why) in failed {
            self.part(Kind::Failure, task, [start, end], WaitReason::Turn, format!("round {round}: {why}"))?;
            self.retries[task] = true;
        }
        if self.left == 0 {
            return Ok(());
        }
        self.left -= 1;
        let Some(ComputedRounds { began, groups, commits }) = computed else { return Ok(()) };
        let began = self.offset + micros(began.saturating_duration_since(self.clock));
        // A device measures on a clock of its own.
        let earliest = self.committed.min(end);
        let within = |time: Duration| (began + micros(time)).clamp(earliest, end);
        let on_lane = |number: usize| groups[..number].iter().any(|other| other.lane == groups[number].lane);
        let gradients = groups.iter().enumerate();
        let gradients = gradients
            .map(|(number, group)| (Kind::Gradient, group, if on_lane(number) { WaitReason::Lane } else { WaitReason::Turn }));
        for (kind, quantum, waited_for) in
            gradients.chain(commits.iter().map(|commit| (Kind::Commit, commit, WaitReason::Gradients)))
        {
            let times = [within(quantum.start), within(quantum.start + quantum.time)];
            self.on_lane(kind, quantum, times, waited_for, round)?;
            self.committed = times[1];
        }
        Ok(())
    }

    /// A quantum that the tasks share: once on the lane, and on each one's own track.
    fn on_lane(
        &mut self,
        kind: Kind,
        quantum: &QuantumSpan,
        [start, end]: [f64; 2],
        waited_for: WaitReason,
        round: u64,
    ) -> Result<()> {
        let &QuantumSpan { ref tasks, lane, .. } = quantum;
        let note = format!("round {round}, {} tasks", tasks.len());
        self.trace.add(&Span { kind, task: None, lane, due: start, start, end, waited_for: None, note })?;
        for &task in tasks {
            let retry = if std::mem::take(&mut self.retries[task]) { ", tried again" } else { "" };
            self.part(kind, task, [start, end], waited_for, format!("round {round}{retry}"))?;
        }
        Ok(())
    }

    fn part(&mut self, kind: Kind, task: usize, [start, end]: [f64; 2], waited_for: WaitReason, note: String) -> Result<()> {
        let due = std::mem::replace(&mut self.due[task], end);
        self.trace.add_to_task(&Span { kind, task: Some(task), lane: 0, due, start, end, waited_for: Some(waited_for), note })
    }

    pub fn finish(&mut self) -> Result<()> {
        self.trace.finish()
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
