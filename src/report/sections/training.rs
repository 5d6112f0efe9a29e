//! Training losses by task, and what the optimizer did.

use anyhow::Result;
use maud::{Markup, html};

use super::NO_ROUNDS;
use crate::report::chart::lines::{Chart, Series};
use crate::report::curve::Curve;
use crate::report::folder::Run;
use crate::report::words::missing;

pub fn body(run: &Run) -> Result<Markup> {
    let rounds = &run.history.rounds;
    if rounds.logged == 0 {
        return Ok(missing(NO_ROUNDS));
    }
    let tasks = run.history.tasks();
    let own = tasks.iter().enumerate().filter_map(|(number, task)| Some((number, task, rounds.tasks.get(task)?)));
    let losses = own.map(|(number, task, own)| Series { name: task.clone(), number, points: own.loss.points() });
    let losses = Chart { title: "Training loss by task", x: "round", series: losses.collect(), baseline: None, legend: true };
    let stride = rounds.mean_loss.stride();
    Ok(html! {
        @if stride > 1 { p.note { "Each point is the mean of " (stride) " logged rounds in a row (of a task: of those it was in)." } }
        div.charts {
            (losses.figure()?)
            (single("Training loss, mean over the round's tasks", &rounds.mean_loss, None)?)
            (single("Length of the update before clipping", &rounds.norm, Some(0.0))?)
            (single("Learning rate", &rounds.lr, Some(0.0))?)
        }
    })
}

/// A chart of one curve over rounds.
pub fn single(title: &str, curve: &Curve, baseline: Option<f64>) -> Result<Markup> {
    let series = vec![Series { name: String::new(), number: 0, points: curve.points() }];
    Chart { title, x: "round", series, baseline, legend: false }.figure()
}
