//! Curves of all runs, one over the other.

use anyhow::Result;
use maud::{Markup, html};

use super::groups::Groups;
use crate::report::chart::lines::{Chart, Series};
use crate::report::curve::Curve;
use crate::report::folder::Run;
use crate::report::words::missing;

/// Tasks with a chart of their own.
const MOST_TASKS: usize = 32;

type Points = Vec<(f64, f64)>;

pub fn body(runs: &[Run], groups: &Groups) -> Result<Markup> {
    if runs.iter().all(|run| run.history.evaluations.is_empty() && run.history.rounds.logged == 0) {
        return Ok(missing("No run has a round or an evaluation in its metrics.jsonl."));
    }
    let chart = |title: &str, x: &str, of: &dyn Fn(&Run) -> Points| overlaid(title, x, runs, groups, of);
    Ok(html! {
        p { "Each line is a run, each colour a group." }
        div.charts {
            (chart("Mean of the tasks' primary metrics on dev", "rounds done", &mean_scores)?)
            (chart("Training loss, mean over the round's tasks", "round", &|run| run.history.rounds.mean_loss.points())?)
            (chart("Share of pairs that conflict", "round", &|run| run.history.conflicts.share.points())?)
            (chart("Milliseconds of each round", "round", &|run| run.history.rounds.ms.points())?)
        }
        h3 { "Dev scores by task" }
        div.charts.small {
            @for task in groups.tasks.iter().take(MOST_TASKS) {
                @let metric = groups.metric(task).map_or("primary metric", |metric| metric.name);
                (chart(&format!("{task}: {metric}"), "rounds done", &|run| run.scores(task))?)
            }
        }
        @if groups.tasks.len() > MOST_TASKS { p.note { "The first " (MOST_TASKS) " of " (groups.tasks.len()) " tasks." } }
    })
}

fn mean_scores(run: &Run) -> Points {
    let mut curve = Curve::default();
    for evaluation in &run.history.evaluations {
        curve.add(evaluation.round as f64, evaluation.mean_primary.unwrap_or(f64::NAN));
    }
    curve.points()
}

fn overlaid(title: &str, x: &str, runs: &[Run], groups: &Groups, of: &dyn Fn(&Run) -> Points) -> Result<Markup> {
    let series = runs.iter().map(|run| {
        let number = groups.of_run(run);
        Series { name: groups.all[number].label.clone(), number, points: of(run) }
    });
    Chart { title, x, series: series.collect(), baseline: None, legend: true }.figure()
}
