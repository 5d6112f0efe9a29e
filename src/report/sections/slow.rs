//! The quanta that took longest.

use anyhow::Result;
use maud::{Markup, html};

use crate::observe::trace::Kind;
use crate::observe::tracks::{Quantum, Tracks};
use crate::report::folder::Run;
use crate::report::words::{missing, time};

const SHOWN: usize = 10;

/// Names of tasks that share a quantum; the others are counted.
const NAMED: usize = 6;

/// A quantum with those it belonged to.
struct Slow<'a> {
    quantum: &'a Quantum,
    tasks: Vec<&'a Quantum>,
}

pub fn body(run: &Run) -> Result<Markup> {
    let Some(tracks) = &run.tracks else {
        return Ok(missing("There is no trace.json in the run folder (observe.trace_rounds was 0)."));
    };
    let slow = slowest(tracks);
    if slow.is_empty() {
        return Ok(missing("trace.json holds no gradient and no commit."));
    }
    Ok(html! {
        p.note { "Of the gradients and commits in trace.json; evaluations and checkpoints are in the table of lanes." }
        div.scroll {
            table {
                thead { tr { th.n { "Duration" } th { "Quantum" } th { "Lane" } th { "Tasks" } th.n { "Longest wait before" } th { "for" } } }
                tbody { @for slow in &slow { (row(tracks, slow)) } }
            }
        }
    })
}

/// Of the lanes' gradients and commits, the longest first.
fn slowest(tracks: &Tracks) -> Vec<Slow<'_>> {
    let mut found: Vec<&Quantum> =
        tracks.on_lanes.iter().filter(|quantum| matches!(quantum.kind, Kind::Gradient | Kind::Commit)).collect();
    found.sort_by(|a, b| b.time().total_cmp(&a.time()));
    found.truncate(SHOWN);
    // The same quantum on a task's track has the same times.
    let same = |one: &Quantum, other: &Quantum| one.kind == other.kind && one.start == other.start && one.end == other.end;
    let tasks = |quantum| tracks.on_tasks.iter().filter(|other| same(quantum, other)).collect();
    found.into_iter().map(|quantum| Slow { quantum, tasks: tasks(quantum) }).collect()
}

fn row(tracks: &Tracks, slow: &Slow) -> Markup {
    let names: Vec<&str> = slow.tasks.iter().filter_map(|task| tracks.tasks.get(task.track)).map(String::as_str).collect();
    let more = names.len().saturating_sub(NAMED);
    let waits = slow.tasks.iter().filter_map(|task| task.wait.as_ref());
    let wait = waits.max_by(|a, b| a.time.total_cmp(&b.time));
    let lane = tracks.lanes.get(slow.quantum.track).map_or("", String::as_str);
    html! {
        tr {
            td.n { (time(slow.quantum.time())) }
            td { (slow.quantum.kind.name()) ", " (slow.quantum.note) }
            td { (lane) }
            td { (names[..names.len() - more].join(", ")) @if more > 0 { " and " (more) " more" } @if names.is_empty() { "–" } }
            td.n { (wait.map_or_else(|| "–".to_owned(), |wait| time(wait.time))) }
            td { (wait.map_or("–", |wait| wait.reason.as_deref().unwrap_or("not said"))) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::tracks::Wait;

    #[test]
    fn the_longest_comes_first_with_its_tasks() {
        let quantum = |kind, track, start: f64, time: f64| Quantum {
            kind,
            track,
            start,
            end: start + time,
            note: "n".to_owned(),
            wait: None,
        };
        let wait = Some(Wait { time: 7.0, reason: Some("turn".to_owned()) });
        let tracks = Tracks {
            tasks: ["a", "b"].map(str::to_owned).to_vec(),
            lanes: vec!["lane 0".to_owned()],
            on_lanes: vec![
                quantum(Kind::Gradient, 0, 0.0, 5.0),
                quantum(Kind::Commit, 0, 5.0, 9.0),
                quantum(Kind::Evaluation, 0, 20.0, 99.0),
            ],
            on_tasks: vec![quantum(Kind::Commit, 0, 5.0, 9.0), Quantum { wait, ..quantum(Kind::Commit, 1, 5.0, 9.0) }],
        };
        let slow = slowest(&tracks);
        assert_eq!((slow.len(), slow[0].quantum.kind, slow[0].tasks.len()), (2, Kind::Commit, 2));
        let html = row(&tracks, &slow[0]).into_string();
        assert!(["9 µs", "a, b", "7 µs", "turn", "lane 0"].iter().all(|part| html.contains(part)), "{html}");
    }
}
