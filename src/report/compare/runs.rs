//! Which runs these are, and how they are grouped.

use anyhow::Result;
use maud::{Markup, html};

use super::groups::Groups;
use crate::report::folder::Run;
use crate::report::words::{optional, seconds};

pub fn body(runs: &[Run], groups: &Groups) -> Result<Markup> {
    Ok(html! {
        p {
            (runs.len()) " runs in " (groups.all.len()) " group" @if groups.all.len() != 1 { "s" }
            ": runs whose configuration differs in seed and name only are of one group. "
            code { "taskloom report RUN_DIR" } " shows one run whole: its conflicts, weights, schedule, memory and faults."
        }
        div.scroll {
            table {
                thead { tr {
                    th { "Run" } th { "Group" } th.n { "Seed" } th.n { "Rounds" } th.n { "Time" } th.n { "Last objective" } th.n { "Lost rounds" } th { "End" }
                } }
                tbody { @for run in runs { (row(run, &groups.all[groups.of_run(run)].label)) } }
            }
        }
    })
}

fn row(run: &Run, group: &str) -> Markup {
    let history = &run.history;
    let end = history.end.as_ref();
    let lost: u64 = end.iter().flat_map(|end| &end.tasks).map(|task| task.rounds_lost).sum();
    html! {
        tr {
            th scope="row" { (run.name) }
            td { (group) }
            td.n { (run.settings.config.run.seed) }
            td.n { (end.map(|end| end.round).or(history.rounds.last.map(|last| last + 1)).unwrap_or(0)) }
            td.n { (end.map_or_else(|| "–".to_owned(), |end| seconds(end.seconds))) }
            td.n { (optional(history.evaluations.last().and_then(|evaluation| evaluation.objective))) }
            td.n { (lost) }
            td { (end.map_or("has not ended", |end| end.reason.as_str())) }
        }
    }
}
