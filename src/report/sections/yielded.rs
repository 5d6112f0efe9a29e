//! Whose gradient had to give way, and to whom.

use anyhow::Result;
use maud::{Markup, html};

use crate::report::chart::bars::{Bar, Bars, Row};
use crate::report::chart::ink::Ink;
use crate::report::chart::lines::{Chart, Series};
use crate::report::conflicts::TaskConflicts;
use crate::report::folder::Run;
use crate::report::history::TaskRounds;
use crate::report::words::{missing, optional, percent, signed, signed_percent};

pub fn body(run: &Run) -> Result<Markup> {
    let tasks = run.history.tasks();
    let own = tasks.iter().enumerate().filter_map(|(number, task)| Some((number, task, run.history.rounds.tasks.get(task)?)));
    let rounds: Vec<(usize, &String, &TaskRounds)> = own.collect();
    let conflicts = tasks.iter().filter_map(|task| Some((task, run.history.conflicts.tasks.get(task)?))).collect::<Vec<_>>();
    let shares = shares(&rounds)?;
    Ok(html! {
        @if shares.0.is_empty() {
            (missing("No logged round has weights of several tasks, so that no task could yield to another."))
        } @else {
            p {
                "A task's weight in the update against an equal share of all weights of its round: below zero it yielded to the others, \
                 above it was made up for."
            }
            div.charts { (shares) (over_time(&rounds)?) }
        }
        @if conflicts.is_empty() {
            (missing("Whose gradients conflicted is read off the conflict lines of metrics.jsonl, of which there are none."))
        } @else {
            (table(&conflicts))
        }
    })
}

/// Mean over the run, where tasks were together.
fn shares(rounds: &[(usize, &String, &TaskRounds)]) -> Result<Markup> {
    let row = |(_, task, own): &(usize, &String, &TaskRounds)| {
        let change = own.relative.mean()?;
        let ink = if change < 0.0 { Ink::Negative } else { Ink::Positive };
        Some(Row { name: (*task).clone(), bars: vec![Bar { value: change, text: signed_percent(change), ink, behind: None }] })
    };
    Bars { title: "Weight against an equal share, mean over the run", rows: rounds.iter().filter_map(row).collect(), limit: None }
        .figure()
}

fn over_time(rounds: &[(usize, &String, &TaskRounds)]) -> Result<Markup> {
    let curve = |own: &TaskRounds| own.relative.points().into_iter().map(|(round, change)| (round, 100.0 * change)).collect();
    let series = rounds.iter().map(|(number, task, own)| Series { name: (*task).clone(), number: *number, points: curve(own) });
    let title = "Weight against an equal share, in percent";
    Chart { title, x: "round", series: series.collect(), baseline: Some(0.0), legend: true }.figure()
}

fn table(own: &[(&String, &TaskConflicts)]) -> Markup {
    html! {
        p.note { "In the rounds with a conflict line. The change by surgery is against the weight without surgery." }
        div.scroll {
            table {
                thead { tr {
                    th { "Task" } th.n { "Rounds" } th.n { "Pairs in conflict" } th { "Most opposed to" } th.n { "Mean cosine" }
                    th.n { "Mean gradient norm" } th.n { "Mean change by surgery" } th.n { "Rounds with less weight" }
                } }
                tbody { @for (task, own) in own {
                    tr {
                        th scope="row" { (task) }
                        td.n { (own.lines) }
                        td.n { (own.share().map_or_else(|| "–".to_owned(), percent)) }
                        td { (own.opponent().map_or("nobody", |opponent| opponent.0)) }
                        td.n { (own.opponent().map_or_else(|| "–".to_owned(), |opponent| signed(opponent.1))) }
                        td.n { (optional(own.norm.mean())) }
                        td.n { (own.change.mean().map_or_else(|| "–".to_owned(), signed)) }
                        td.n { (percent(own.yielded as f64 / own.lines as f64)) }
                    }
                } }
            }
        }
    }
}
