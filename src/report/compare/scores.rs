//! Final scores by task and group: mean and standard deviation over seeds.

use anyhow::Result;
use maud::{Markup, html};

use super::groups::{Group, Groups, Spread};
use crate::report::folder::{DEV, Metric, Run};
use crate::report::words::{missing, value};

pub fn body(runs: &[Run], groups: &Groups) -> Result<Markup> {
    let splits: Vec<&str> =
        [DEV, "test"].into_iter().filter(|split| runs.iter().any(|run| run.final_mean(split).is_some())).collect();
    if splits.is_empty() {
        return Ok(missing("No run has an evaluation in its metrics.jsonl."));
    }
    Ok(html! {
        p {
            "What each run came to with the parameters that it kept; on dev, of a run that has not ended, its last evaluation. Mean and \
             standard deviation over the runs of a group. The best mean of a task is bold."
        }
        @for split in splits {
            h3 { (split) }
            div.scroll {
                table id=(format!("scores-{split}")) {
                    thead { tr { th { "Task" } th { "Metric" } @for group in &groups.all { th.n { (group.label) " (" (group.runs.len()) ")" } } } }
                    tbody { @for task in &groups.tasks { (row(task, groups.metric(task), groups, |run| run.final_score(split, task))) } }
                    tfoot { (row("mean", Some(groups.mean_metric()), groups, |run| run.final_mean(split))) }
                }
            }
        }
    })
}

fn row(task: &str, metric: Option<Metric>, groups: &Groups, of: impl Fn(&Run) -> Option<f64>) -> Markup {
    let spread = |group: &Group| Spread::of(&group.runs.iter().filter_map(|run| of(run)).collect::<Vec<f64>>());
    let spreads: Vec<Option<Spread>> = groups.all.iter().map(spread).collect();
    let best = metric.and_then(|metric| metric.best(spreads.iter().flatten().map(|spread| spread.mean)));
    html! {
        tr {
            th scope="row" { (task) }
            td { @if task != metric.map_or("", |metric| metric.name) { (metric.map_or("", |metric| metric.name)) } @if metric.is_some_and(|metric| metric.is_error) { " (lower is better)" } }
            @for spread in &spreads {
                @match spread {
                    Some(spread) => td.n.best[groups.all.len() > 1 && Some(spread.mean) == best] { (written(spread)) },
                    None => td.n { "–" },
                }
            }
        }
    }
}

/// `0.8500 ± 0.0100`.
fn written(spread: &Spread) -> Markup {
    html! { (value(spread.mean)) @if let Some(deviation) = spread.deviation { span.deviation { " ± " (value(deviation)) } } }
}
