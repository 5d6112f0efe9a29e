//! The heat map: cosines of all pairs of tasks, by block, with a slider over the run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use maud::{Markup, PreEscaped, html};

use crate::report::folder::Run;
use crate::report::lines::{ConflictMaps, Map};
use crate::report::words::by_number;

/// Rows of the map; where there are more tasks, those that conflict most are shown.
const MOST_TASKS: usize = 32;

/// Tasks whose cells have room for their numbers.
const WRITTEN: usize = 8;

/// Numbers that the page carries at most: steps are left out where blocks and pairs are many.
const MOST_NUMBERS: usize = 250_000;

const WHOLE: &str = "whole encoder";

/// A cosine of one.
const ONE: f64 = 10_000.0;

/// Cosines of the pairs (i, j), i < j, row by row, as parts of [`ONE`]; none where the two were not together.
type Cells = Vec<Option<i32>>;

pub fn map(run: &Run) -> Markup {
    let tasks = shown_tasks(run);
    let pairs = pairs(tasks.len());
    let maps = run.history.conflicts.maps();
    let mut blocks: Vec<&str> =
        maps.iter().flat_map(|map| map.blocks.keys()).map(String::as_str).collect::<BTreeSet<_>>().into_iter().collect();
    blocks.sort_by(|a, b| by_number(a, b));
    let most = (MOST_NUMBERS / ((1 + blocks.len()) * pairs.max(1))).max(2);
    let maps = spread(&maps, most);
    let parts: Vec<Vec<Cells>> =
        std::iter::once("").chain(blocks.iter().copied()).map(|part| steps(&maps, part, &tasks)).collect();
    let scales: Vec<f64> = parts.iter().map(|steps| scale(steps)).collect();
    let rounds: Vec<u64> = maps.iter().map(|map| map.round).collect();
    let Some(last) = parts[0].last() else { return html! {} };
    html! {
        div.heat.large[tasks.len() > WRITTEN] {
            div.controls {
                @if !blocks.is_empty() {
                    label { "Block " select {
                        option selected { (WHOLE) }
                        @for block in &blocks { option { (block) } }
                    } }
                }
                label.slider { "Round " input type="range" min="0" max=(rounds.len() - 1) value=(rounds.len() - 1) step="1"; }
            }
            p.caption { "Cosines of gradients, moving mean up to round " b.round { (rounds.last().copied().unwrap_or(0)) } ", " b.part { (WHOLE) } }
            (table(&tasks, last, scales[0]))
            (scale_bar(scales[0]))
            p.readout aria-live="polite" {}
            @if run.history.tasks().len() > tasks.len() {
                p.note { "The " (tasks.len()) " of " (run.history.tasks().len()) " tasks that conflict most." }
            }
            script type="application/json" { (PreEscaped(data(&rounds, &parts, &scales, tasks.len() <= WRITTEN))) }
        }
    }
}

fn pairs(tasks: usize) -> usize {
    tasks * tasks.saturating_sub(1) / 2
}

/// In the run's order.
fn shown_tasks(run: &Run) -> Vec<String> {
    let conflicts = &run.history.conflicts.tasks;
    let mut tasks: Vec<String> = run.history.tasks();
    tasks.retain(|task| conflicts.contains_key(task));
    if tasks.len() > MOST_TASKS {
        let share = |task: &String| conflicts[task].share().unwrap_or(0.0);
        let mut by_share = tasks.clone();
        by_share.sort_by(|a, b| share(b).total_cmp(&share(a)));
        let most: BTreeSet<String> = by_share.into_iter().take(MOST_TASKS).collect();
        tasks.retain(|task| most.contains(task));
    }
    tasks
}

/// Where the colours end: a round number that nearly all cosines of the part are within. The first steps, which are
/// means of few rounds, would make the others pale.
fn scale(steps: &[Cells]) -> f64 {
    let mut sizes: Vec<i32> = steps.iter().flatten().flatten().map(|cosine| cosine.abs()).collect();
    sizes.sort_unstable();
    let most = sizes.get(sizes.len() * 95 / 100).copied().unwrap_or(0);
    [0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 0.7]
        .into_iter()
        .find(|scale| ONE * scale >= f64::from(most))
        .unwrap_or(1.0)
}

/// At most so many, evenly spread, the last one among them.
fn spread(maps: &[ConflictMaps], most: usize) -> Vec<&ConflictMaps> {
    let stride = maps.len().div_ceil(most).max(1);
    let last = maps.len().saturating_sub(1);
    maps.iter().enumerate().filter(|(number, _)| (last - number).is_multiple_of(stride)).map(|(_, map)| map).collect()
}

/// The cells of a part of the encoder (the whole one has no name) at each step.
fn steps(maps: &[&ConflictMaps], part: &str, tasks: &[String]) -> Vec<Cells> {
    let of = |map: &ConflictMaps| map.parts().find(|(name, _)| *name == part).map(|(_, found)| cells(found, &map.tasks, tasks));
    let none = vec![None; pairs(tasks.len())];
    maps.iter().map(|map| of(map).unwrap_or_else(|| none.clone())).collect()
}

fn cells(map: &Map, present: &[String], tasks: &[String]) -> Cells {
    let places: BTreeMap<&str, usize> = present.iter().enumerate().map(|(place, name)| (name.as_str(), place)).collect();
    let cosine = |one: &String, other: &String| {
        let (i, j) = (places.get(one.as_str())?, places.get(other.as_str())?);
        let cosine = (*map.mean_cosines.get(*i)?.get(*j)?)?;
        Some((ONE * cosine.clamp(-1.0, 1.0)).round() as i32)
    };
    tasks.iter().enumerate().flat_map(|(i, one)| tasks[i + 1..].iter().map(move |other| cosine(one, other))).collect()
}

fn table(tasks: &[String], cells: &Cells, scale: f64) -> Markup {
    let count = tasks.len();
    // Where the pair (i, j), i < j, lies in the list.
    let place = |i: usize, j: usize| i * (2 * count - i - 1) / 2 + j - i - 1;
    let cell = |i: usize, j: usize| cells.get(place(i.min(j), i.max(j))).copied().flatten();
    html! {
        div.scroll {
            table.map {
                thead { tr { td {} @for number in 1..=count { th scope="col" { (number) } } } }
                tbody {
                    @for (i, task) in tasks.iter().enumerate() {
                        tr {
                            th scope="row" data-name=(task) { span.number { (i + 1) } " " (task) }
                            @for j in 0..count {
                                @if i == j { td.self {} } @else { (coloured(cell(i, j), scale, count <= WRITTEN)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn coloured(cosine: Option<i32>, scale: f64, written: bool) -> Markup {
    let Some(cosine) = cosine else { return html! { td.none {} } };
    let cosine = f64::from(cosine) / ONE;
    html! {
        td style=(format!("--v:{:.3}", (cosine / scale).clamp(-1.0, 1.0))) { @if written { (format!("{cosine:.2}").replace('-', "−")) } }
    }
}

fn scale_bar(scale: f64) -> Markup {
    html! {
        p.scale {
            span { "conflict −" span.end { (scale) } } span.bar aria-hidden="true" {} span { "+" span.end { (scale) } " agreement" }
        }
    }
}

/// For the script: no names, so that nothing in it has to be escaped.
fn data(rounds: &[u64], parts: &[Vec<Cells>], scales: &[f64], written: bool) -> String {
    let mut text = format!(
        "{{\"one\":{ONE},\"scales\":{scales:?},\"written\":{written},\"whole\":\"{WHOLE}\",\"rounds\":{rounds:?},\"parts\":["
    );
    for (number, steps) in parts.iter().enumerate() {
        text += if number == 0 { "[" } else { ",[" };
        for (step, cells) in steps.iter().enumerate() {
            text += if step == 0 { "[" } else { ",[" };
            for (place, cell) in cells.iter().enumerate() {
                let comma = if place == 0 { "" } else { "," };
                let written = match cell {
                    Some(cosine) => write!(text, "{comma}{cosine}"),
                    None => write!(text, "{comma}null"),
                };
                debug_assert!(written.is_ok(), "a string takes what is written");
            }
            text.push(']');
        }
        text.push(']');
    }
    text + "]}"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_span_the_cosines_that_occur() {
        let cells = |cosine: i32| vec![Some(cosine), Some(-cosine), None];
        assert_eq!([scale(&[cells(30)]), scale(&[cells(600)]), scale(&[cells(9000)]), scale(&[])], [0.01, 0.07, 1.0, 0.01]);
        let mut steps = vec![cells(300); 60];
        steps.push(cells(8000));
        assert_eq!(scale(&steps), 0.03);
    }

    #[test]
    fn cells_are_the_pairs_of_the_shown_tasks() {
        let mean_cosines = vec![vec![Some(1.0), Some(-0.25)], vec![Some(-0.25), Some(1.0)]];
        let present = ["c", "a"].map(str::to_owned);
        let tasks = ["a", "b", "c"].map(str::to_owned);
        let found = cells(&Map { mean_cosines }, &present, &tasks);
        assert_eq!(found, [None, Some(-2500), None]);
        let html = table(&tasks, &found, 0.5).into_string();
        assert_eq!((html.matches("--v:-0.500").count(), html.matches("td class=\"none\"").count()), (2, 4), "{html}");
        let data: serde_json::Value = serde_json::from_str(&data(&[3], &[vec![found]], &[0.5], true)).unwrap();
        assert_eq!(data["parts"], serde_json::json!([[[null, -2500, null]]]));
    }
}
