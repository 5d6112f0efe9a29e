//! Whose gradient surgery shortened, and for whose sake.

use anyhow::Result;
use maud::{Markup, html};

use crate::report::chart::bars::{Bar, Bars, Row};
use crate::report::chart::ink::Ink;
use crate::report::chart::lines::{Chart, Series};
use crate::report::conflicts::TaskConflicts;
use crate::report::folder::Run;
use crate::report::words::{missing, optional, percent, signed};

pub fn body(run: &Run) -> Result<Markup> {
    let conflicts = &run.history.conflicts;
    if conflicts.lines == 0 {
        return Ok(missing("It is read off the conflict lines of metrics.jsonl, of which there are none."));
    }
    let tasks = run.history.tasks();
    let own: Vec<(usize, &String, &TaskConflicts)> =
        tasks.iter().enumerate().filter_map(|(number, task)| Some((number, task, conflicts.tasks.get(task)?))).collect();
    let changed = own.iter().any(|(_, _, own)| own.change.points().iter().any(|point| point.1.abs() > 1e-12));
    let series =
        own.iter().map(|(number, task, own)| Series { name: (*task).clone(), number: *number, points: own.change.points() });
    let over_time = Chart {
        title: "Change of weight by surgery, over time",
        x: "round",
        series: series.collect(),
        baseline: Some(0.0),
        legend: true,
    };
    Ok(html! {
        p {
            "How far surgery changed the weight of each task's gradient in the update: below zero the task yielded, and got less than it would \
             have without surgery."
        }
        @if changed {
            div.charts { (bars(&own)?) (over_time.figure()?) }
        } @else {
            (missing("Surgery changed no weight in the recorded rounds."))
        }
        (table(&own))
    })
}

fn bars(own: &[(usize, &String, &TaskConflicts)]) -> Result<Markup> {
    let row = |(_, task, own): &(usize, &String, &TaskConflicts)| {
        let change = own.change.mean()?;
        let ink = if change < 0.0 { Ink::Negative } else { Ink::Positive };
        Some(Row { name: (*task).clone(), bars: vec![Bar { value: change, text: signed(change), ink, behind: None }] })
    };
    Bars { title: "Mean change of weight by surgery", rows: own.iter().filter_map(row).collect(), limit: None }.figure()
}

fn table(own: &[(usize, &String, &TaskConflicts)]) -> Markup {
    html! {
        div.scroll {
            table {
                thead { tr {
                    th { "Task" } th.n { "Recorded rounds" } th.n { "in which it yielded" } th.n { "Pairs in conflict" }
                    th.n { "Mean gradient norm" } th { "Most opposed to" } th.n { "Mean cosine" }
                } }
                tbody { @for (_, task, own) in own {
                    tr {
                        th scope="row" { (task) }
                        td.n { (own.lines) }
                        td.n { (percent(own.yielded as f64 / own.lines as f64)) }
                        td.n { (own.share().map_or_else(|| "–".to_owned(), percent)) }
                        td.n { (optional(own.norm.mean())) }
                        td { (own.opponent().map_or("nobody", |opponent| opponent.0)) }
                        td.n { (own.opponent().map_or_else(|| "–".to_owned(), |opponent| signed(opponent.1))) }
                    }
                } }
            }
        }
    }
}
