//! `taskloom simulate --replay`: the schedule of a run, by what the run recorded.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Args, write};
use crate::failure::Stopped;
use crate::observe::console::Console;
use crate::observe::timeline;
use crate::observe::trace::read;
use crate::output;
use crate::train::fit_memory;
use crate::train::replay::{self, Difference};
use crate::train::run::check_data;
use crate::train::run_folder::newest_whole;
use crate::train::setup::{load_corpus, load_run};

/// The schedule of a run once more. Exit code 3 where a decision is another one.
pub fn run(run: &Path, args: &Args) -> Result<()> {
    let console = Console::new();
    let mut config = load_run(run)?;
    let newest = newest_whole(&run.join("checkpoints"), &mut |warning| console.say(&format!("warning: {warning}")))?;
    let (_, state) = newest.with_context(|| format!("{} has no whole checkpoint, which knows what happened", run.display()))?;
    let mut corpus = load_corpus(&mut config, &console)?;
    check_data(&corpus, &state)?;
    let (plan, _) = fit_memory::fit(&mut config, &mut corpus)?;
    let replayed = replay::replay(&corpus, &plan, &state, &run.join("metrics.jsonl"))?;
    let tasks = corpus.tasks.iter().zip(&replayed.tasks).map(|(task, &(rounds, micros))| {
        let ms = plan.turns.is_measured.then_some(micros as f64 / 1e3);
        json!({ "task": task.name, "rounds": rounds, "ms": ms })
    });
    let difference =
        replayed.difference.as_ref().map(|found| json!({ "round": found.round, "run": found.run, "replay": found.replay }));
    let document = json!({
        "rounds": replayed.rounds,
        "compared": replayed.compared,
        "stale": replayed.stale,
        "difference": difference,
        "tasks": tasks.collect::<Vec<_>>(),
    });
    if let Some(picture) = &args.svg {
        let trace = run.join("trace.json");
        let text = std::fs::read_to_string(&trace).with_context(|| format!("cannot read {}", trace.display()))?;
        let (names, spans) = read(&text);
        write(picture, &timeline::svg(&spans, &names, args.svg_ms))?;
    }
    if args.json {
        output::line(&document)?;
    } else {
        print_text(&document)?;
    }
    match replayed.difference {
        None => Ok(()),
        Some(Difference { round, run, replay }) => {
            let (run, replay) = (run.join(", "), replay.join(", "));
            Err(Stopped(format!("round {round} belonged to {run} in the run, and belongs to {replay} in the replay")).into())
        }
    }
}

fn print_text(document: &Value) -> Result<()> {
    output::line(format_args!("{:<28} {:>8} {:>12}", "task", "rounds", "ms"))?;
    for task in document["tasks"].as_array().into_iter().flatten() {
        let ms = task["ms"].as_f64().map_or("-".to_owned(), |ms| format!("{ms:.1}"));
        output::line(format_args!("{:<28} {:>8} {ms:>12}", task["task"].as_str().unwrap_or_default(), task["rounds"]))?;
    }
    let same = if document["difference"].is_null() { "the same decisions" } else { "other decisions" };
    let (rounds, compared) = (&document["rounds"], &document["compared"]);
    output::line(format_args!("{rounds} rounds replayed: {same} ({compared} lines of metrics.jsonl compared)"))
}
