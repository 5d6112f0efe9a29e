//! First and best dev score of each task, in each group.

use anyhow::Result;
use maud::{Markup, html};

use super::groups::{Group, Groups, Spread};
use crate::report::chart::bars::{Bar, Bars, Row};
use crate::report::chart::ink::{HUES, Ink};
use crate::report::folder::{Metric, Run};
use crate::report::words::{missing, value};

pub fn body(runs: &[Run], groups: &Groups) -> Result<Markup> {
    if runs.iter().all(|run| run.history.evaluations.is_empty()) {
        return Ok(missing("No run has an evaluation in its metrics.jsonl."));
    }
    let mut metrics: Vec<Metric> = Vec::new();
    for metric in groups.tasks.iter().filter_map(|task| groups.metric(task)) {
        if !metrics.contains(&metric) {
            metrics.push(metric);
        }
    }
    Ok(html! {
        p { "Pale: the first evaluation. Solid: the best one. Means over the runs of a group." }
        ul.legend { @for (number, group) in groups.all.iter().enumerate() {
            li { span.box style=(format!("background:{}", Ink::Series(number % HUES).css())) {} (group.label) }
        } }
        div.charts { @for metric in metrics { (chart(groups, metric)?) } }
    })
}

fn chart(groups: &Groups, metric: Metric) -> Result<Markup> {
    let row = |task: &String| {
        let bars = groups.all.iter().enumerate().filter_map(|(number, group)| bar(group, number, task, metric));
        Row { name: task.clone(), bars: bars.collect() }
    };
    let tasks = groups.tasks.iter().filter(|task| groups.metric(task) == Some(metric));
    let title = format!("{} on dev{}", metric.name, if metric.is_error { " (lower is better)" } else { "" });
    Bars { title: &title, rows: tasks.map(row).collect(), limit: None }.figure()
}

fn bar(group: &Group, number: usize, task: &str, metric: Metric) -> Option<Bar> {
    let scores: Vec<Vec<(f64, f64)>> = group.runs.iter().map(|run| run.scores(task)).collect();
    let first: Vec<f64> = scores.iter().filter_map(|scores| Some(scores.first()?.1)).collect();
    let best: Vec<f64> = scores.iter().filter_map(|scores| metric.best(scores.iter().map(|score| score.1))).collect();
    let (first, best) = (Spread::of(&first)?.mean, Spread::of(&best)?.mean);
    Some(Bar { value: best, text: value(best), ink: Ink::Series(number % HUES), behind: Some(first) })
}
