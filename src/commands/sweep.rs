//! `taskloom sweep`: many runs of one configuration.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};

use super::check;
use super::train::stop_flag;
use crate::config::sweep::{LoadedSweep, load_sweep};
use crate::failure::{INTERRUPTED, Stopped};
use crate::limits::{MemoryLimits, cores};
use crate::output;
use crate::sweep::{End, Options, Status, Summary, SweepFolder, Trial, points, run, trials};

#[derive(clap::Args)]
pub struct Args {
    /// Sweep file: docs/sweep.md
    sweep: PathBuf,
    /// Set a key of the sweep file, e.g. --set parallel=2
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Every n-th run, from the i-th on, counted from 0
    #[arg(long, value_name = "I/N", value_parser = shard)]
    shard: Option<(usize, usize)>,
    /// Print what would be run, and how it is set
    #[arg(long)]
    dry_run: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// `2/8`
fn shard(text: &str) -> Result<(usize, usize), String> {
    let refuse = || format!("\"{text}\" is no I/N with I below N, as in 0/8");
    let (own, all) = text.split_once('/').ok_or_else(refuse)?;
    let (own, all) = (own.parse().map_err(|_| refuse())?, all.parse().map_err(|_| refuse())?);
    if own < all { Ok((own, all)) } else { Err(refuse()) }
}

pub fn sweep(args: &Args) -> Result<ExitCode> {
    let loaded = load_sweep(&args.sweep, &args.sets)?;
    let sweep = &loaded.sweep;
    if args.shard.is_some() && sweep.halving.is_some() {
        bail!("--shard: halving compares all runs with each other: leave [halving] out, or run the sweep in one piece");
    }
    let points = points(sweep);
    let every = trials(sweep, &points);
    loaded.check_runs(every.iter().map(|trial| &trial.sets[..]))?;
    let first = check::load(&sweep.config, &every[0].sets)?.config;
    let limit = sweep.parallel.min(cores());
    let (own, all) = args.shard.unwrap_or((0, 1));
    let trials: Vec<Trial> = every.iter().skip(own).step_by(all).cloned().collect();
    if args.dry_run {
        return dry_run(&trials);
    }
    let is_host = ["auto", "cpu"].contains(&first.run.device.as_str());
    let stop = stop_flag()?;
    let folder = SweepFolder::open(&out(&args.sweep, sweep.out.as_deref()), args.shard.is_some())?;
    folder.keep(&every)?;
    let memory = if sweep.memory > 0 { sweep.memory } else { MemoryLimits::read().free() };
    let options = Options {
        points: &points,
        trials,
        objective: first.best.metric.clone(),
        is_error: first.objective_is_error(),
        limit,
        memory,
        threads: threads(&loaded, first.run.threads, limit),
        counts_bytes: is_host,
        is_shard: args.shard.is_some(),
        stop: &stop,
    };
    let (end, ranked) = run(sweep, &folder, &options)?;
    let summary = Summary { objective: &options.objective, points: &ranked };
    output::text(if args.json { format!("{:#}\n", summary.json(&folder)) } else { summary.table() })?;
    if end == End::Interrupted {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let rows = ranked.iter().flat_map(|point| &point.rows);
    let failed = rows.filter(|row| matches!(row.status, Status::Failed(_))).count();
    if failed > 0 {
        let advice = format!("{} has what they said; the same command tries them again", folder.path().join("logs").display());
        return Err(Stopped(format!("{failed} of {} runs failed: {advice}", options.trials.len())).into());
    }
    Ok(ExitCode::SUCCESS)
}

/// Threads of each run: runs at a time share the cores, unless somebody says otherwise.
fn threads(loaded: &LoadedSweep, asked: usize, limit: usize) -> Option<usize> {
    let is_varied = loaded.sweep.parameters.contains_key("run.threads");
    (asked == 0 && !is_varied && limit > 1).then(|| (cores() / limit).max(1))
}

fn out(file: &Path, asked: Option<&Path>) -> PathBuf {
    let stem = file.file_stem().unwrap_or_default();
    asked.map_or_else(|| Path::new("sweeps").join(stem), Path::to_owned)
}

fn dry_run(trials: &[Trial]) -> Result<ExitCode> {
    for trial in trials {
        output::line(format_args!("{}  {}", trial.name, trial.sets.join(" ")))?;
    }
    Ok(ExitCode::SUCCESS)
}
