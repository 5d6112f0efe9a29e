//! The weights that surgery and the loss balancer gave, over time.

use anyhow::Result;
use maud::{Markup, html};

use super::NO_ROUNDS;
use crate::report::chart::lines::{Chart, Series};
use crate::report::curve::Curve;
use crate::report::folder::Run;
use crate::report::history::TaskRounds;
use crate::report::words::{by_number, missing, optional};
use crate::surgery::balance::registry as balancers;
use crate::surgery::methods::registry as methods;

pub fn body(run: &Run) -> Result<Markup> {
    let rounds = &run.history.rounds;
    if rounds.logged == 0 {
        return Ok(missing(NO_ROUNDS));
    }
    let (method, balancer) = (run.method(), run.settings.config.balance.method.as_str());
    let formula = methods::find(method).ok().map(|found| found.formula);
    let balance = balancers::find(balancer).ok().filter(|_| balancer != "equal").map(|found| found.formula);
    let by_block = !rounds.block_weights.is_empty();
    let title = if by_block { format!("Weights of {method}, mean over the blocks") } else { format!("Weights of {method}") };
    let weights = chart(run, &title, |task| &task.weight)?;
    Ok(html! {
        p { b { (method) } @if let Some(formula) = formula { ": " code { (formula) } } }
        @if let Some(formula) = balance { p { b { (balancer) } ": " code { (formula) } } }
        @if weights.0.is_empty() { (missing("The method has no weights to show: it works on single elements of the gradients.")) }
        div.charts { (weights) (chart(run, &format!("Factors of the losses by {balancer}"), |task| &task.factor)?) }
        @if by_block { (table(run)) }
        @if rounds.fallbacks.0 > 0 {
            p.warning { "Its solver fell back in " (rounds.fallbacks.0) " logged rounds, first because " (rounds.fallbacks.1.as_deref().unwrap_or("of an unknown reason")) "." }
        }
    })
}

fn chart(run: &Run, title: &str, curve: fn(&TaskRounds) -> &Curve) -> Result<Markup> {
    let tasks = run.history.tasks();
    let own = tasks.iter().enumerate().filter_map(|(number, task)| Some((number, task, run.history.rounds.tasks.get(task)?)));
    let series = own.map(|(number, task, own)| Series { name: task.clone(), number, points: curve(own).points() });
    Chart { title, x: "round", series: series.collect(), baseline: None, legend: true }.figure()
}

/// Mean over the run, of each block and task.
fn table(run: &Run) -> Markup {
    let tasks = run.history.tasks();
    let mut blocks: Vec<_> = run.history.rounds.block_weights.iter().collect();
    blocks.sort_by(|a, b| by_number(a.0, b.0));
    html! {
        h3 { "Mean weight in each block" }
        div.scroll {
            table {
                thead { tr { th { "Block" } @for task in &tasks { th.n { (task) } } } }
                tbody { @for (block, weights) in blocks {
                    tr { th scope="row" { (block) } @for task in &tasks { td.n { (optional(weights.get(task).and_then(Curve::mean))) } } }
                } }
            }
        }
    }
}
