//! A trace read back: what each lane and each task did, and what it waited for.

use serde::Deserialize;

use super::trace::{Kind, LANES, TASKS};

/// All that a trace.json shows; times in microseconds from its first quantum on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tracks {
    pub tasks: Vec<String>,
    pub lanes: Vec<String>,
    /// Of the lanes, as they were written.
    pub on_lanes: Vec<Quantum>,
    /// Of the tasks; one that several tasks share is there for each.
    pub on_tasks: Vec<Quantum>,
}

/// A quantum on one track.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantum {
    pub kind: Kind,
    /// Index of the lane or the task.
    pub track: usize,
    pub start: f64,
    pub end: f64,
    /// Said beside it, e.g. the round.
    pub note: String,
    /// Of a task's: the wait before it.
    pub wait: Option<Wait>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Wait {
    pub time: f64,
    /// The name of a [`Wait`](crate::schedule::wait::WaitReason); none where the trace does not say.
    pub reason: Option<String>,
}

impl Quantum {
    pub fn time(&self) -> f64 {
        self.end - self.start
    }
}

#[derive(Deserialize)]
struct Event {
    ph: String,
    name: String,
    pid: u32,
    #[serde(default)]
    tid: usize,
    #[serde(default)]
    ts: f64,
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: Args,
}

#[derive(Default, Deserialize)]
struct Args {
    #[serde(default)]
    name: String,
    #[serde(default)]
    note: String,
    #[serde(rename = "for")]
    reason: Option<String>,
}

impl Tracks {
    /// Reads the text of a trace; a killed process leaves its last line cut and the list open.
    pub fn read(text: &str) -> Self {
        let mut tracks = Self::default();
        let mut waits: Vec<Option<Wait>> = Vec::new();
        for event in text.lines().filter_map(|line| serde_json::from_str::<Event>(line.trim_end_matches(',')).ok()) {
            tracks.take(event, &mut waits);
        }
        tracks.on_lanes.retain(|quantum| quantum.track < tracks.lanes.len());
        let all = || tracks.on_lanes.iter().chain(&tracks.on_tasks);
        let first = all().map(|quantum| quantum.start).fold(f64::INFINITY, f64::min);
        for quantum in tracks.on_lanes.iter_mut().chain(&mut tracks.on_tasks) {
            (quantum.start, quantum.end) = (quantum.start - first, quantum.end - first);
        }
        tracks
    }

    /// `waits`: by task, the wait before its next quantum.
    fn take(&mut self, event: Event, waits: &mut Vec<Option<Wait>>) {
        let Event { ph, name, pid, tid: track, ts: start, dur, args } = event;
        match (ph.as_str(), name.as_str(), pid) {
            // Titles come in order.
            ("M", "thread_name", LANES) => self.lanes.push(args.name),
            ("M", "thread_name", TASKS) => {
                self.tasks.push(args.name);
                waits.push(None);
            }
            ("X", "wait", TASKS) if track < waits.len() => waits[track] = Some(Wait { time: dur, reason: args.reason }),
            ("X", name, LANES | TASKS) => {
                // On a lane the task's name follows.
                let Some(kind) = name.split(' ').next().and_then(Kind::find) else { return };
                let mut quantum = Quantum { kind, track, start, end: start + dur, note: args.note, wait: None };
                if pid == LANES {
                    self.on_lanes.push(quantum);
                } else if let Some(wait) = waits.get_mut(track) {
                    quantum.wait = wait.take();
                    self.on_tasks.push(quantum);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::{Span, Trace};
    use super::*;
    use crate::schedule::wait::WaitReason;

    #[test]
    fn lanes_tasks_and_waits_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        let names = ["books".to_owned(), "dvd".to_owned()];
        let mut trace = Trace::create(&path, &names, 2).unwrap();
        let note = "round 0".to_owned();
        let span = Span {
            kind: Kind::Gradient,
            task: Some(1),
            lane: 1,
            due: 10.0,
            start: 13.0,
            end: 20.0,
            waited_for: Some(WaitReason::Lane),
            note: note.clone(),
        };
        trace.add(&span).unwrap();
        trace.add_to_task(&Span { task: Some(0), due: 13.0, ..span.clone() }).unwrap();
        trace.finish().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let tracks = Tracks::read(&text[..text.len() - 2]);
        assert_eq!((&tracks.tasks[..], &tracks.lanes[..]), (&names[..], &["lane 0".to_owned(), "lane 1".to_owned()][..]));
        let quantum = |track, wait| Quantum { kind: Kind::Gradient, track, start: 0.0, end: 7.0, note: note.clone(), wait };
        assert_eq!(tracks.on_lanes, [quantum(1, None)]);
        let wait = Wait { time: 3.0, reason: Some("lane".to_owned()) };
        assert_eq!(tracks.on_tasks, [quantum(1, Some(wait)), quantum(0, None)]);
        assert_eq!(Tracks::read("no trace"), Tracks::default());
    }
}
