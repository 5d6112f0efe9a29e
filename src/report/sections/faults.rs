//! What went wrong or was changed on the way, what was done about it, and how each task came out.

use anyhow::Result;
use maud::{Markup, html};

use crate::report::folder::Run;
use crate::report::lines::{Incident, TaskEnd};
use crate::report::words::optional;

pub fn body(run: &Run) -> Result<Markup> {
    let history = &run.history;
    let faults = &run.settings.config.faults;
    let fallbacks = history.end.as_ref().map(|end| &end.fallbacks).filter(|fallbacks| !fallbacks.is_empty());
    Ok(html! {
        @if !faults.is_empty() { p.note { "The configuration makes failures on purpose: " (faults.keys().cloned().collect::<Vec<_>>().join(", ")) "." } }
        @if history.incidents.is_empty() {
            p { "Nothing went wrong, and nothing was changed on the way." }
        } @else {
            div.scroll {
                table {
                    thead { tr { th.n { "Round" } th { "What" } th { "Task" } th { "What happened, and what was done" } } }
                    tbody { @for incident in &history.incidents {
                        tr { td.n { (incident.round) } td { (incident.kind) } td { (incident.task.as_deref().unwrap_or("–")) } td { (told(incident)) } }
                    } }
                }
            }
            @if history.more_incidents > 0 { p.note { "And " (history.more_incidents) " more in metrics.jsonl." } }
        }
        @for (name, rounds) in fallbacks.into_iter().flatten() { p.warning { (name) " fell back in " (rounds) " rounds." } }
        (tasks(run))
    })
}

fn told(incident: &Incident) -> String {
    let message = incident.message.clone().unwrap_or_default();
    match incident.kind.as_str() {
        "failure" => {
            let state = incident.state.as_deref().map_or_else(String::new, |state| format!(" (then {state})"));
            format!("{message}{state}")
        }
        "adapted" => {
            let micro_batch = incident.micro_batch.map_or_else(String::new, |size| format!("micro-batch of {size}"));
            let time = incident.ms.map_or_else(String::new, |ms| format!(", after a group of {ms:.1} ms"));
            let straggler = if incident.straggler == Some(true) { ", halved as a straggler" } else { "" };
            format!("{micro_batch}{time}{straggler}")
        }
        "target" => {
            let metric = incident.metric.as_deref().unwrap_or_default();
            format!("done: {metric} {} reaches the target {}", optional(incident.value), optional(incident.target))
        }
        "changed" => {
            let changes = incident.changes.iter().flatten();
            let changes: Vec<String> = changes.map(|(key, change)| format!("{key}: {} to {}", change.from, change.to)).collect();
            format!("resume --set changed {}", changes.join(", "))
        }
        "reweighted" => {
            let weights = incident.weights.iter().flatten();
            let weights: Vec<String> = weights.map(|(task, weight)| format!("{task} {}", optional(*weight))).collect();
            format!("weights follow the load: {}", weights.join(", "))
        }
        _ => message,
    }
}

fn tasks(run: &Run) -> Markup {
    let Some(end) = &run.history.end else { return html! {} };
    html! {
        h3 { "How each task came out" }
        div.scroll {
            table {
                thead { tr {
                    th { "Task" } th { "State" } th.n { "Rounds" } th.n { "Lost" } th.n { "Retries" } th.n { "Rollbacks" } th.n { "Micro-batch" }
                    th { "Last error" }
                } }
                tbody { @for task in &end.tasks { (task_row(task)) } }
            }
        }
    }
}

fn task_row(task: &TaskEnd) -> Markup {
    html! {
        tr {
            th scope="row" { (task.task) }
            td { (task.state) }
            td.n { (task.rounds) }
            td.n { (task.rounds_lost) }
            td.n { (task.retries) }
            td.n { (task.rollbacks) }
            td.n { (task.micro_batch) }
            td { (task.last_error.as_deref().unwrap_or("–")) }
        }
    }
}
