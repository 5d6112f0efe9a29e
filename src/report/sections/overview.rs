//! What the run was and how it went, at a glance.

use anyhow::Result;
use maud::{Markup, html};

use crate::machine::memory::human_bytes;
use crate::report::folder::Run;
use crate::report::words::{count, missing, optional, seconds};

pub fn body(run: &Run) -> Result<Markup> {
    let facts = facts(run);
    let failures = failures(run);
    Ok(html! {
        @if run.history.start.is_none() && run.history.rounds.logged == 0 { (missing("metrics.jsonl is not there or empty: the run has not begun.")) }
        dl.facts { @for (name, fact) in &facts { div { dt { (name) } dd { (fact) } } } }
        p { (ending(run)) }
        @if !failures.is_empty() { p.warning { (failures) } }
    })
}

fn facts(run: &Run) -> Vec<(&'static str, String)> {
    let config = &run.settings.config;
    let history = &run.history;
    let mut facts = Vec::new();
    facts.push(("Surgery", format!("{} by {}", run.method(), config.surgery.granularity.name())));
    if config.balance.method != "equal" {
        facts.push(("Loss balance", config.balance.method.clone()));
    }
    facts.push(("Encoder", format!("{}, hidden {}", config.encoder.kind.name(), config.encoder.hidden)));
    if !history.tasks().is_empty() {
        facts.push(("Tasks", history.tasks().len().to_string()));
    }
    let done = history.end.as_ref().map(|end| end.round).or(history.rounds.last.map(|last| last + 1));
    if let Some(done) = done {
        let planned = history.start.as_ref().map_or_else(String::new, |start| format!(" of {}", start.rounds));
        facts.push(("Rounds", format!("{done}{planned}")));
    }
    if let Some(end) = &history.end {
        facts.push(("Time of the last process", seconds(end.seconds)));
        facts.push(("Peak memory of the process", human_bytes(end.peak_bytes)));
    }
    if let Some(start) = &history.start {
        facts.push(("Device", format!("{}, {}", start.device, count(start.threads as u64, "thread"))));
    }
    facts.push(("Seed", config.run.seed.to_string()));
    let mut evaluations = history.evaluations.iter().rev();
    if let Some(best) = evaluations.find(|evaluation| evaluation.best) {
        let objective = format!("{} after {} rounds", optional(best.objective), best.round);
        facts.push(("Best objective", format!("{} {objective}", config.best.metric)));
    }
    facts
}

fn ending(run: &Run) -> String {
    match &run.history.end {
        Some(end) => format!("The run ended after {}: {}.", count(end.round, "round"), end.reason),
        None => "metrics.jsonl has no line about an end: the run is going on, or was killed.".to_owned(),
    }
}

fn failures(run: &Run) -> String {
    let ends = run.history.end.iter().flat_map(|end| &end.tasks);
    let failed: Vec<&str> = ends.filter(|task| task.state == "failed").map(|task| task.task.as_str()).collect();
    if failed.is_empty() { String::new() } else { format!("Failed: {}.", failed.join(", ")) }
}
