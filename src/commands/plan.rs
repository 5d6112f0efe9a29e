//! `taskloom plan`: bytes, rounds and groups of a run, which is not started.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use crate::config::Config;
use crate::data::Corpus;
use crate::device::memory::human_bytes;
use crate::observe::console::Console;
use crate::schedule::deal::deal;
use crate::schedule::fuse::groups;
use crate::train::plan::Plan;
use crate::train::session::{load_corpus, set_threads};

pub fn run(path: &Path, sets: &[String], json: bool) -> Result<()> {
    let mut config = super::check::load(path, sets)?.config;
    set_threads(config.run.threads)?;
    let corpus = load_corpus(&mut config, &Console::new())?;
    let plan = Plan::new(&config, &corpus)?;
    let document = document(&config, &corpus, &plan)?;
    if json {
        println!("{document}");
    } else {
        print_text(&document);
    }
    let (total, budget) = (document["total_bytes"].as_u64().unwrap_or(0), config.memory.device);
    if budget > 0 && total > budget {
        anyhow::bail!("memory.device allows {}, the run needs {}", human_bytes(budget), human_bytes(total));
    }
    Ok(())
}

fn document(config: &Config, corpus: &Corpus, plan: &Plan) -> Result<Value> {
    let buffers = plan.buffers(config)?;
    let total: u64 = buffers.iter().map(|(_, bytes)| bytes).sum();
    let first = deal(&plan.players, 0, &vec![0; plan.players.len()]);
    let micro_batches: Vec<usize> = first.iter().map(|count| count * config.train.accumulate).collect();
    let names = |group: &Vec<crate::schedule::fuse::Slot>| -> Vec<&str> {
        group.iter().map(|slot| corpus.tasks[slot.task].name.as_str()).collect()
    };
    let groups: Vec<Vec<&str>> = groups(&micro_batches, config.train.fuse).iter().map(names).collect();
    let task = |(number, task): (usize, &crate::data::TaskData)| {
        json!({
            "name": task.name,
            "examples": task.train.len(),
            "micro_batches_per_round": plan.players[number].rate,
            "epochs": plan.passes(config, corpus, number),
            "bytes": plan.task_bytes(number),
        })
    };
    Ok(json!({
        "rounds": plan.rounds,
        "rounds_per_epoch": plan.rounds_per_epoch,
        "tasks": corpus.tasks.iter().enumerate().map(task).collect::<Vec<_>>(),
        "first_round_groups": groups,
        "lanes": 1,
        "buffers": buffers.iter().map(|(name, bytes)| json!({ "name": name, "bytes": bytes })).collect::<Vec<_>>(),
        "total_bytes": total,
        "saved_bytes": plan.saved_bytes(config)?,
        "budget_bytes": config.memory.device,
    }))
}

fn print_text(document: &Value) {
    println!("{} rounds, {} an epoch", document["rounds"], document["rounds_per_epoch"]);
    println!("\n{:<28} {:>10} {:>14} {:>8}", "task", "examples", "micro-batches", "epochs");
    for task in document["tasks"].as_array().into_iter().flatten() {
        println!(
            "{:<28} {:>10} {:>14.2} {:>8.2}",
            task["name"].as_str().unwrap_or_default(),
            task["examples"].as_u64().unwrap_or_default(),
            task["micro_batches_per_round"].as_f64().unwrap_or_default(),
            task["epochs"].as_f64().unwrap_or_default()
        );
    }
    println!("\nfused groups of the first round, on one lane:");
    for group in document["first_round_groups"].as_array().into_iter().flatten() {
        let names: Vec<&str> = group.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        println!("  {}", names.join(" "));
    }
    println!("\n{:<48} {:>12}", "buffer (at most)", "bytes");
    for buffer in document["buffers"].as_array().into_iter().flatten() {
        let bytes = buffer["bytes"].as_u64().unwrap_or_default();
        println!("{:<48} {:>12}", buffer["name"].as_str().unwrap_or_default(), human_bytes(bytes));
    }
    let saved = document["saved_bytes"].as_u64().unwrap_or_default();
    if saved > 0 {
        println!("{:<48} {:>12}", "(not kept: the tasks' own dense gradients)", human_bytes(saved));
    }
    println!("{:<48} {:>12}", "all", human_bytes(document["total_bytes"].as_u64().unwrap_or_default()));
}
