//! What the lanes and the tasks did, and what tasks waited for.

use std::collections::BTreeMap;

use anyhow::Result;
use maud::{Markup, html};

use super::training::single;
use crate::config::schema::ScheduleMode;
use crate::observe::trace::Kind;
use crate::observe::tracks::{Quantum, Tracks};
use crate::report::chart::lines::{Chart, Series};
use crate::report::chart::timeline::{Mark, Timeline, ink};
use crate::report::folder::Run;
use crate::report::lines::TaskEnd;
use crate::report::words::{count, missing, percent, time};

/// Boxes of the picture, and tasks with a row in it.
const MOST_MARKS: usize = 240;
const MOST_ROWS: usize = 32;

pub fn body(run: &Run) -> Result<Markup> {
    let tracks = run.tracks.as_ref().filter(|tracks| !tracks.on_lanes.is_empty());
    Ok(html! {
        p { (policy(run)) }
        @match tracks {
            Some(tracks) => {
                (picture(tracks)?)
                (lanes(tracks))
                (waits(tracks))
            }
            None => (missing("There is no trace.json with quanta in the run folder (observe.trace_rounds was 0), so that lanes and waits are not known.")),
        }
        div.charts {
            (single("Milliseconds of each round", &run.history.rounds.ms, Some(0.0))?)
            (by_task(run)?)
        }
        (deadlines(run))
        (access(run))
    })
}

fn policy(run: &Run) -> String {
    let schedule = &run.settings.config.schedule;
    let sliced = schedule.mode == ScheduleMode::TimeSliced;
    let mode = if sliced { "Time-sliced: each round is one task's" } else { "Synchronous: the tasks of a round commit together" };
    let policy = if sliced { format!(", in the order of the policy {}", schedule.policy.name) } else { String::new() };
    format!("{mode}{policy}. A quantum that has begun runs to its end, so that there are no preemptions within one.")
}

fn picture(tracks: &Tracks) -> Result<Markup> {
    let rows: Vec<String> = tracks.lanes.iter().chain(&tracks.tasks).take(MOST_ROWS).cloned().collect();
    let lanes = tracks.lanes.len();
    let mark = |row: usize, quantum: &Quantum| {
        let due = quantum.start - quantum.wait.as_ref().map_or(0.0, |wait| wait.time);
        Mark { row, kind: quantum.kind, due, start: quantum.start, end: quantum.end }
    };
    let of_lanes = tracks.on_lanes.iter().map(|quantum| mark(quantum.track, quantum));
    let of_tasks = tracks.on_tasks.iter().map(|quantum| mark(lanes + quantum.track, quantum));
    let mut marks: Vec<Mark> = of_lanes.chain(of_tasks).collect();
    marks.retain(|mark| mark.row < rows.len());
    marks.sort_by(|a, b| a.start.total_cmp(&b.start));
    let total = marks.len();
    marks.truncate(MOST_MARKS);
    let to = marks.iter().map(|mark| mark.end).fold(0.0, f64::max);
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| marks.iter().any(|mark| mark.kind == *kind)).collect();
    let drawn = Timeline { rows, marks, from: 0.0, to }.draw()?;
    Ok(html! {
        figure.wide {
            figcaption { "Milliseconds since the first quantum" @if total > MOST_MARKS { ", the first " (time(to)) } "; thin lines are waits" }
            div.scroll { (drawn) }
            ul.legend { @for kind in kinds { li { span.box style=(format!("background:{}", ink(kind).css())) {} (kind.name()) } } }
        }
    })
}

/// How much of the traced time each lane was busy with what.
fn lanes(tracks: &Tracks) -> Markup {
    let span = tracks.on_lanes.iter().map(|quantum| quantum.end).fold(1e-9, f64::max);
    let kinds: Vec<Kind> =
        Kind::ALL.into_iter().filter(|kind| tracks.on_lanes.iter().any(|quantum| quantum.kind == *kind)).collect();
    let of = |lane: usize, kind: Kind| -> Vec<f64> {
        tracks.on_lanes.iter().filter(|quantum| quantum.track == lane && quantum.kind == kind).map(Quantum::time).collect()
    };
    html! {
        div.scroll {
            table {
                thead { tr { th { "Lane" } th { "Quanta" } th.n { "Number" } th.n { "Time" } th.n { "of the traced time" } th.n { "Mean" } th.n { "Longest" } } }
                tbody { @for (lane, name) in tracks.lanes.iter().enumerate() { @for kind in &kinds {
                    @let times = of(lane, *kind);
                    @let sum: f64 = times.iter().sum();
                    @if !times.is_empty() {
                        tr {
                            th scope="row" { (name) }
                            td { (kind.name()) }
                            td.n { (times.len()) }
                            td.n { (time(sum)) }
                            td.n { (percent(sum / span)) }
                            td.n { (time(sum / times.len() as f64)) }
                            td.n { (time(times.iter().copied().fold(0.0, f64::max))) }
                        }
                    }
                } } }
            }
        }
    }
}

/// Waiting in all by task and reason.
fn waits(tracks: &Tracks) -> Markup {
    let mut sums: BTreeMap<(usize, &str), f64> = BTreeMap::new();
    for quantum in &tracks.on_tasks {
        if let Some(wait) = &quantum.wait {
            *sums.entry((quantum.track, wait.reason.as_deref().unwrap_or("not said"))).or_default() += wait.time;
        }
    }
    let mut reasons: Vec<&str> = sums.keys().map(|key| key.1).collect();
    reasons.sort_unstable();
    reasons.dedup();
    html! {
        @if !sums.is_empty() {
            h3 { "Waiting by task, in all" }
            p.note {
                "turn: other tasks' rounds, and the packing of the own one; lane: a group on the same lane; gradients: those of the others \
                 that commit together, or the commit before."
            }
            div.scroll {
                table {
                    thead { tr { th { "Task" } @for reason in &reasons { th.n { (reason) } } } }
                    tbody { @for (number, task) in tracks.tasks.iter().enumerate() {
                        tr { th scope="row" { (task) } @for reason in &reasons {
                            td.n { (sums.get(&(number, *reason)).map_or_else(|| "–".to_owned(), |sum| time(*sum))) }
                        } }
                    } }
                }
            }
        }
    }
}

/// Where rounds are of single tasks, what they took of each.
fn by_task(run: &Run) -> Result<Markup> {
    let rounds = &run.history.rounds;
    if rounds.tasks.values().map(|task| task.rounds).sum::<u64>() > rounds.logged {
        return Ok(html! {});
    }
    let tasks = run.history.tasks();
    let own = tasks.iter().enumerate().filter_map(|(number, task)| Some((number, task, rounds.tasks.get(task)?)));
    let series =
        own.map(|(number, task, own)| Series { name: format!("{task} ({})", own.rounds), number, points: own.ms.points() });
    let title = "Milliseconds of each task's rounds (number of rounds)";
    Chart { title, x: "round", series: series.collect(), baseline: Some(0.0), legend: true }.figure()
}

fn deadlines(run: &Run) -> Markup {
    let ends = run.history.end.iter().flat_map(|end| &end.tasks);
    let own: Vec<(&TaskEnd, u64, u64)> = ends.filter_map(|end| Some((end, end.deadlines_met?, end.deadlines_missed?))).collect();
    html! {
        @if !own.is_empty() {
            h3 { "Deadlines on the wall clock" }
            div.scroll {
                table {
                    thead { tr { th { "Task" } th.n { "Met" } th.n { "Missed" } } }
                    tbody { @for (end, met, missed) in own { tr { th scope="row" { (end.task) } td.n { (met) } td.n { (missed) } } } }
                }
            }
        }
    }
}

fn access(run: &Run) -> Markup {
    let Some(end) = &run.history.end else { return html! {} };
    let schedule = &end.schedule;
    html! {
        p {
            "Conflicts of access on the encoder's blocks: " (schedule.write_write) " quanta waited for one that wrote the same blocks, "
            (schedule.read_write) " for one that read what they write; " (count(schedule.stale, "gradient")) " missed commits of other tasks."
        }
    }
}
