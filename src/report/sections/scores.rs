//! Dev scores: by task over rounds, and before and after.

use std::collections::BTreeMap;

use anyhow::Result;
use maud::{Markup, html};

use crate::report::chart::bars::{Bar, Bars, Row};
use crate::report::chart::ink::Ink;
use crate::report::chart::lines::{Chart, Series};
use crate::report::curve::Curve;
use crate::report::folder::{Metric, Run};
use crate::report::words::{missing, optional, value};

pub fn body(run: &Run) -> Result<Markup> {
    if run.history.evaluations.is_empty() {
        return Ok(missing("metrics.jsonl holds no evaluation: the tasks have no dev split, or none was due yet."));
    }
    Ok(html! {
        div.charts {
            (mean(run)?)
            @for metric in metrics(run) { (by_task(run, metric)?) }
            @for metric in primaries(run) { (before_and_after(run, metric)?) }
        }
        (table(run))
        (finals(run))
    })
}

/// Every metric that some task reports, by name.
fn metrics(run: &Run) -> Vec<&'static str> {
    let tasks = run.history.tasks();
    let names: BTreeMap<&str, ()> = tasks.iter().flat_map(|task| run.metrics(task)).map(|kind| (kind.name(), ())).collect();
    names.into_keys().collect()
}

/// The primary metrics.
pub fn primaries(run: &Run) -> Vec<Metric> {
    let mut found: Vec<Metric> = Vec::new();
    for metric in run.history.tasks().iter().filter_map(|task| run.primary(task)) {
        if !found.contains(&metric) {
            found.push(metric);
        }
    }
    found
}

fn mean(run: &Run) -> Result<Markup> {
    let mut curve = Curve::default();
    for evaluation in &run.history.evaluations {
        curve.add(evaluation.round as f64, evaluation.mean_primary.unwrap_or(f64::NAN));
    }
    let series = vec![Series { name: "mean".to_owned(), number: 0, points: curve.points() }];
    let title = "Mean of the tasks' primary metrics";
    Chart { title, x: "rounds done", series, baseline: None, legend: false }.figure()
}

fn by_task(run: &Run, metric: &str) -> Result<Markup> {
    let curve = |task: &str| {
        let mut curve = Curve::default();
        for evaluation in &run.history.evaluations {
            curve.add(evaluation.round as f64, evaluation.value(task, metric).unwrap_or(f64::NAN));
        }
        curve.points()
    };
    let tasks = run.history.tasks();
    let series = tasks.iter().enumerate().map(|(number, task)| Series { name: task.clone(), number, points: curve(task) });
    let title = &format!("{metric} on dev");
    Chart { title, x: "rounds done", series: series.collect(), baseline: None, legend: true }.figure()
}

fn before_and_after(run: &Run, metric: Metric) -> Result<Markup> {
    let tasks = run.history.tasks();
    let rows = tasks.iter().filter(|task| run.primary(task) == Some(metric)).filter_map(|task| {
        let scores = run.scores(task);
        let (first, best) = (scores.first()?.1, metric.best(scores.iter().map(|score| score.1))?);
        let bar = Bar { value: best, text: value(best), ink: Ink::Positive, behind: Some(first) };
        Some(Row { name: task.clone(), bars: vec![bar] })
    });
    let title = &format!("{}: first evaluation (pale) and best", metric.name);
    Bars { title, rows: rows.collect(), limit: None }.figure()
}

fn table(run: &Run) -> Markup {
    html! {
        div.scroll {
            table {
                thead { tr { th { "Task" } th { "Metric" } th.n { "First" } th.n { "Best" } th.n { "after round" } th.n { "Last" } th.n { "Last loss" } } }
                tbody { @for task in run.history.tasks() { (row(run, &task)) } }
            }
        }
    }
}

/// What the run came to, where it has told: by task, the primary metric on each split.
fn finals(run: &Run) -> Markup {
    let splits: Vec<&str> = run.history.end.iter().flat_map(|end| end.scores.keys()).map(String::as_str).collect();
    if splits.is_empty() {
        return html! {};
    }
    html! {
        h3 { "Final scores" }
        p { "With the parameters that the run kept: the best ones, or the last where none were kept." }
        div.scroll {
            table #final {
                thead { tr { th { "Task" } th { "Metric" } @for split in &splits { th.n { (split) } th.n { (split) " loss" } } } }
                tbody { @for task in run.history.tasks() { tr {
                    th scope="row" { (task) }
                    td { (run.primary(&task).map_or("–", |metric| metric.name)) }
                    @for split in &splits {
                        td.n { (optional(run.final_score(split, &task))) }
                        td.n { (optional(loss(run, split, &task))) }
                    }
                } } }
                tfoot { tr {
                    th scope="row" { "mean" } td {}
                    @for split in &splits { td.n { (optional(run.final_mean(split))) } td {} }
                } }
            }
        }
    }
}

fn loss(run: &Run, split: &str, task: &str) -> Option<f64> {
    run.final_scores(split)?.tasks.get(task)?.get("loss")?.as_f64()
}

fn row(run: &Run, task: &str) -> Markup {
    let metric = run.primary(task);
    let scores = run.scores(task);
    let best = metric.and_then(|metric| metric.best(scores.iter().map(|score| score.1)));
    let at = scores.iter().find(|score| Some(score.1) == best).map_or_else(|| "–".to_owned(), |score| format!("{:.0}", score.0));
    let loss = run.history.evaluations.iter().rev().find_map(|evaluation| evaluation.value(task, "loss"));
    html! {
        tr {
            th scope="row" { (task) }
            td { (metric.map_or("–", |metric| metric.name)) @if metric.is_some_and(|metric| metric.is_error) { " (lower is better)" } }
            td.n { (optional(scores.first().map(|score| score.1))) }
            td.n { (optional(best)) }
            td.n { (at) }
            td.n { (optional(scores.last().map(|score| score.1))) }
            td.n { (optional(loss)) }
        }
    }
}
