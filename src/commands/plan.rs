//! `taskloom plan`: bytes, rounds and groups of a run, which is not started.

use anyhow::Result;
use serde_json::{Value, json};

use super::ConfigArgs;
use crate::config::Config;
use crate::data::Corpus;
use crate::machine::memory::human_bytes;
use crate::observe::console::Console;
use crate::output;
use crate::schedule::fuse::{Slot, groups};
use crate::schedule::retry::Status;
use crate::train::checkpoint::DiskBytes;
use crate::train::fit_memory;
use crate::train::plan::Plan;
use crate::train::prefix::disk_bytes;
use crate::train::setup::{load_corpus, set_threads};
use crate::train::shapes::{fuse, on_device};

/// Rounds whose groups are shown.
const ROUNDS_SHOWN: u64 = 8;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let mut config = super::check::load(&args.config.config, &args.config.sets)?.config;
    set_threads(config.run.threads)?;
    let document = planned(&mut config)?;
    if args.json {
        output::line(&document)?;
    } else {
        print_text(&document)?;
    }
    let (total, budget) = (document["total_bytes"].as_u64().unwrap_or(0), config.memory.device);
    if budget > 0 && total > budget {
        anyhow::bail!("memory.device allows {}, the run needs {}", human_bytes(budget), human_bytes(total));
    }
    Ok(())
}

/// What is printed, as JSON.
pub fn planned(config: &mut Config) -> Result<Value> {
    let mut corpus = load_corpus(config, &Console::new())?;
    // A run that does not fit is shown as it was asked for, so that the numbers can be seen.
    let asked = config.clone();
    let (plan, steps) = match fit_memory::fit(config, &mut corpus) {
        Ok(fitted) => fitted,
        Err(_) => {
            *config = asked;
            (Plan::new(config, &corpus)?, Vec::new())
        }
    };
    let mut document = document(config, &corpus, &plan)?;
    document["on_pressure"] = json!(steps);
    Ok(document)
}

fn document(config: &Config, corpus: &Corpus, plan: &Plan) -> Result<Value> {
    let buffers = plan.buffers(config)?;
    let total: u64 = buffers.iter().map(|(_, bytes)| bytes).sum();
    let schedule = first_rounds(config, corpus, plan)?;
    let passes = plan.passes(config, corpus)?;
    let task = |(number, task): (usize, &crate::data::TaskData)| {
        json!({
            "name": task.name,
            "examples": task.train.len(),
            "micro_batches_per_round": plan.turns.samplings[number].rate,
            "epochs": passes[number],
            "bytes": plan.task_bytes(number),
        })
    };
    let mut planned = json!({
        "rounds": plan.rounds,
        "rounds_per_epoch": plan.rounds_per_epoch,
        "tasks": corpus.tasks.iter().enumerate().map(task).collect::<Vec<_>>(),
        "mode": if plan.turns.is_sliced { "time_sliced" } else { "synchronous" },
        "first_round_groups": schedule.first().cloned().unwrap_or_default(),
        "first_rounds": schedule,
        "lanes": config.schedule.lanes,
        "buffers": buffers.iter().map(|(name, bytes)| json!({ "name": name, "bytes": bytes })).collect::<Vec<_>>(),
        "total_bytes": total,
        "saved_bytes": plan.saved_bytes(config)?,
        "budget_bytes": config.memory.device,
    });
    let disk = DiskBytes::of(plan, config)?;
    planned["disk"] = json!({
        "checkpoint_bytes": disk.checkpoint,
        "model_bytes": disk.model,
        "run_bytes": disk.run,
        "end_bytes": disk.end,
    });
    if let Some(transformer) = plan.spec.encoder.transformer() {
        let on = transformer.spec.recompute;
        let mut other = config.clone();
        other.encoder.recompute = !on;
        let other: u64 = Plan::new(&other, corpus)?.buffers(&other)?.iter().map(|(_, bytes)| bytes).sum();
        let (with, without) = if on { (total, other) } else { (other, total) };
        planned["recompute"] = json!({ "on": on, "bytes_with": with, "bytes_without": without });
    }
    if config.encoder.cache_frozen && !on_device(config) {
        planned["cache_bytes"] = json!(disk_bytes(corpus, config.eval.test, config.encoder.hidden));
    }
    Ok(planned)
}

/// Fused groups of the first rounds, by the names of their tasks.
fn first_rounds<'a>(config: &Config, corpus: &'a Corpus, plan: &Plan) -> Result<Vec<Vec<Vec<&'a str>>>> {
    let mut order = plan.turns.order()?;
    let mut rounds = Vec::new();
    while let left @ 1.. = plan.rounds.min(ROUNDS_SHOWN).saturating_sub(rounds.len() as u64) {
        let scheduled = order.schedule(left);
        for &task in scheduled.commits.iter().flatten() {
            order.ended(task, Status::Ok, None);
        }
        let micro_batches: Vec<usize> = scheduled.micro_batches.iter().map(|count| count * config.train.accumulate).collect();
        let names = |group: &Vec<Slot>| group.iter().map(|slot| corpus.tasks[slot.task].name.as_str()).collect();
        rounds.push(groups(&micro_batches, fuse(config, plan.limits.present)).iter().map(names).collect());
    }
    Ok(rounds)
}

fn print_text(document: &Value) -> Result<()> {
    output::line(format_args!("{} rounds, {} an epoch", document["rounds"], document["rounds_per_epoch"]))?;
    output::line(format_args!("\n{:<28} {:>10} {:>14} {:>8}", "task", "examples", "micro-batches", "epochs"))?;
    for task in document["tasks"].as_array().into_iter().flatten() {
        output::line(format_args!(
            "{:<28} {:>10} {:>14.2} {:>8.2}",
            task["name"].as_str().unwrap_or_default(),
            task["examples"].as_u64().unwrap_or_default(),
            task["micro_batches_per_round"].as_f64().unwrap_or_default(),
            task["epochs"].as_f64().unwrap_or_default()
        ))?;
    }
    let lanes = match document["lanes"].as_u64() {
        Some(lanes) if lanes > 1 => format!(" on {lanes} lanes"),
        _ => String::new(),
    };
    output::line(format_args!(
        "\n{}{lanes}, the fused groups of the first rounds:",
        document["mode"].as_str().unwrap_or_default()
    ))?;
    for (round, of_round) in document["first_rounds"].as_array().into_iter().flatten().enumerate() {
        let names =
            |group: &Value| group.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
        let groups: Vec<String> = of_round.as_array().into_iter().flatten().map(names).collect();
        output::line(format_args!("  {round:>4}  {}", groups.join(" | ")))?;
    }
    for step in document["on_pressure"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        output::line(format_args!("memory.device is tight: {step}"))?;
    }
    output::line(format_args!("\n{:<48} {:>12}", "buffer (at most)", "bytes"))?;
    for buffer in document["buffers"].as_array().into_iter().flatten() {
        let bytes = buffer["bytes"].as_u64().unwrap_or_default();
        output::line(format_args!("{:<48} {:>12}", buffer["name"].as_str().unwrap_or_default(), human_bytes(bytes)))?;
    }
    let saved = document["saved_bytes"].as_u64().unwrap_or_default();
    if saved > 0 {
        output::line(format_args!("{:<48} {:>12}", "(not kept: the tasks' own dense gradients)", human_bytes(saved)))?;
    }
    output::line(format_args!("{:<48} {:>12}", "all", human_bytes(document["total_bytes"].as_u64().unwrap_or_default())))?;
    if let Some(bytes) = document["cache_bytes"].as_u64() {
        output::line(format_args!("{:<48} {:>12}", "(on disk: states of the frozen prefix)", human_bytes(bytes)))?;
    }
    for (label, key) in [
        ("(on disk: one checkpoint)", "checkpoint_bytes"),
        ("(on disk: the run while it trains)", "run_bytes"),
        ("(on disk: the run once it has ended)", "end_bytes"),
    ] {
        let bytes = document["disk"][key].as_u64().unwrap_or_default();
        output::line(format_args!("{label:<48} {:>12}", human_bytes(bytes)))?;
    }
    let recompute = &document["recompute"];
    let (other, bytes) = match recompute["on"].as_bool() {
        Some(true) => ("false", &recompute["bytes_without"]),
        Some(false) => ("true", &recompute["bytes_with"]),
        None => return Ok(()),
    };
    let label = format!("(all with encoder.recompute = {other})");
    output::line(format_args!("{label:<48} {:>12}", human_bytes(bytes.as_u64().unwrap_or_default())))
}
