//! Differences between groups, seed by seed: what the seeds have in common cancels.

use std::collections::BTreeMap;

use anyhow::Result;
use maud::{Markup, html};

use super::groups::{Group, Groups, Spread};
use crate::report::folder::{DEV, Metric, Run};
use crate::report::words::{missing, signed, value};

pub fn body(_: &[Run], groups: &Groups) -> Result<Markup> {
    let [first, others @ ..] = &groups.all[..] else { return Ok(missing("There is no run.")) };
    if others.is_empty() {
        return Ok(missing("There is one group only, so that there is nothing to compare."));
    }
    let compared: Vec<&Group> = others.iter().filter(|other| !seeds(first, other).is_empty()).collect();
    if compared.is_empty() {
        return Ok(missing("No other group has a run with a seed of the first group."));
    }
    Ok(html! {
        p {
            "Against " b { (first.label) } ", in runs with the same seed: mean and standard deviation of the differences of the final dev scores, \
             and how many of the seeds got better."
        }
        div.scroll {
            table {
                thead { tr { th { "Task" } @for other in &compared { th.n { (other.label) " (" (seeds(first, other).len()) ")" } } } }
                tbody { @for task in &groups.tasks {
                    (row(task, groups.metric(task), first, &compared, |run| run.final_score(DEV, task)))
                } }
                tfoot { (row("mean", Some(groups.mean_metric()), first, &compared, |run| run.final_mean(DEV))) }
            }
        }
    })
}

/// Seeds of both groups.
fn seeds(one: &Group, other: &Group) -> Vec<u64> {
    let own: BTreeMap<u64, ()> = one.runs.iter().map(|run| (run.settings.config.run.seed, ())).collect();
    let theirs: BTreeMap<u64, ()> = other.runs.iter().map(|run| (run.settings.config.run.seed, ())).collect();
    own.into_keys().filter(|seed| theirs.contains_key(seed)).collect()
}

/// By seed, what `of` is of the first run that has it.
fn by_seed(group: &Group, of: &impl Fn(&Run) -> Option<f64>) -> BTreeMap<u64, f64> {
    let values = group.runs.iter().rev().filter_map(|run| Some((run.settings.config.run.seed, of(run)?)));
    values.collect()
}

fn row(task: &str, metric: Option<Metric>, first: &Group, others: &[&Group], of: impl Fn(&Run) -> Option<f64>) -> Markup {
    let own = by_seed(first, &of);
    let cells = others.iter().map(|other| {
        let theirs = by_seed(other, &of);
        own.iter().filter_map(|(seed, own)| Some(theirs.get(seed)? - own)).collect::<Vec<f64>>()
    });
    html! {
        tr {
            th scope="row" { (task) @if metric.is_some_and(|metric| metric.is_error) { " (lower is better)" } }
            @for differences in cells { (cell(&differences, metric)) }
        }
    }
}

fn cell(differences: &[f64], metric: Option<Metric>) -> Markup {
    let Some(spread) = Spread::of(differences) else { return html! { td.n { "–" } } };
    // As many digits as are written.
    let is_equal = |difference: f64| difference.abs() < 5e-5;
    let is_better = |difference: f64| {
        !is_equal(difference) && metric.is_some_and(|metric| if metric.is_error { difference < 0.0 } else { difference > 0.0 })
    };
    let better = differences.iter().filter(|difference| is_better(**difference)).count();
    let worse = !is_equal(spread.mean) && !is_better(spread.mean);
    html! {
        td.n.better[is_better(spread.mean)].worse[metric.is_some() && worse] {
            (signed(spread.mean))
            @if let Some(deviation) = spread.deviation { span.deviation { " ± " (value(deviation)) } }
            @if metric.is_some() { span.deviation { ", " (better) " of " (spread.count) } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_error_is_better() {
        let cell = |is_error| cell(&[-0.5, -0.25, 0.25], Some(Metric { name: "mse", is_error })).into_string();
        assert!(cell(true).contains("n better") && cell(true).contains("2 of 3"), "{}", cell(true));
        assert!(cell(false).contains("n worse") && cell(false).contains("1 of 3"), "{}", cell(false));
    }
}
