//! `taskloom train` and `taskloom resume`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::ConfigArgs;
use crate::config::{self, Config};
use crate::data::Corpus;
use crate::failure::INTERRUPTED;
use crate::files::write_whole;
use crate::machine::Device;
use crate::observe::console::Console;
use crate::observe::metrics_file::Past;
use crate::observe::tensorboard::HyperParameters;
use crate::observe::trackio::{Project, RunRow};
use crate::observe::{Listeners, Observer};
use crate::output;
use crate::train::checkpoint;
use crate::train::fit_memory;
use crate::train::plan::Plan;
use crate::train::prefix;
use crate::train::pretrained;
use crate::train::run::{Built, End, Run, check_data, scale_data, unscaled_tasks};
use crate::train::run_folder::{RunFolder, newest_whole};
use crate::train::setup::{change_run, load_corpus, set_threads};

#[derive(clap::Args)]
pub struct TrainArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Folder of the run [default: run.out/run.name, counted up]
    #[arg(long)]
    run_dir: Option<PathBuf>,
    #[command(flatten)]
    end: EndArgs,
}

#[derive(clap::Args)]
struct EndArgs {
    /// Stop once so many rounds are done, as if interrupted: write a checkpoint, exit with 130
    #[arg(long, value_name = "ROUNDS")]
    until: Option<u64>,
}

#[derive(clap::Args)]
pub struct ResumeArgs {
    run_dir: PathBuf,
    /// Change a key from here on, e.g. --set optimizer.lr=1e-4; docs/configuration.md marks those that may change
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    #[command(flatten)]
    end: EndArgs,
}

pub fn train(args: &TrainArgs) -> Result<ExitCode> {
    let resolved = super::check::load(&args.config.config, &args.config.sets)?;
    let (text, origins) = (resolved.to_toml(), json!(resolved.origins()));
    let mut config = resolved.config;
    Device::select(&config.run.device)?;
    set_threads(config.run.threads)?;
    let console = Console::new();
    let mut corpus = load_corpus(&mut config, &console)?;
    corpus.fit_scales()?;
    // Before there is a run folder: a refused run leaves none behind.
    let plan = fit(&mut config, &mut corpus, &console)?;
    let cache = prefix::folder_of(&config)?;
    let project = trackio_project(&config)?;
    let mut built = Built::new(&config, &corpus, &plan)?;
    pretrained::load(&config, &mut built.trainer, &console)?;
    let folder = RunFolder::create(args.run_dir.as_deref(), &config.run.out, &config.run.name)?;
    store_tokenizer(&corpus, &folder)?;
    write_whole(&folder.origins(), &format!("{origins:#}\n"))?;
    // Last: a folder with a configuration is a run that can be resumed.
    write_whole(&folder.config(), &text)?;
    console.say(&format!("run folder {}", folder.path().display()));
    let notes = Console::new();
    let observer = Observer::create(console, &folder.metrics(), folder.path(), listeners(project, &folder)?)?;
    let stop = stop_flag()?;
    let mut run = Run::new(&config, &corpus, &plan, built, &folder, observer, &stop)?;
    run.until = args.end.until;
    if !run.keep_prefix(cache.as_deref(), &notes)? {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    finish(&mut run, &corpus, &notes)
}

pub fn resume(args: &ResumeArgs) -> Result<ExitCode> {
    let folder = RunFolder::open(&args.run_dir)?;
    let (resolved, changes) = change_run(folder.path(), &args.sets)?;
    let text = resolved.to_toml();
    let mut config = resolved.config;
    set_threads(config.run.threads)?;
    let console = Console::new();
    checkpoint::recover(folder.path())?;
    checkpoint::recover(&folder.checkpoints())?;
    let newest = newest_whole(&folder.checkpoints(), &mut |warning| console.say(&format!("warning: {warning}")))?;
    let all = checkpoint::list(&folder.checkpoints()).len();
    // Training again from the start would be silent loss of all that was done; whoever wants that can say so.
    ensure!(
        newest.is_some() || all == 0,
        "none of the {all} checkpoints in {} is whole: restore one from a copy, or remove them to train from the start",
        folder.checkpoints().display()
    );
    let mut corpus = load_corpus(&mut config, &console)?;
    if let Some((_, state)) = &newest {
        check_data(&corpus, state)?;
        let unscaled = unscaled_tasks(&corpus, state);
        if !unscaled.is_empty() {
            console.say(&format!("features of {} stay unscaled, as in the checkpoint", unscaled.join(", ")));
        }
        scale_data(&mut corpus, state)?;
    } else {
        corpus.fit_scales()?;
    }
    let plan = fit(&mut config, &mut corpus, &console)?;
    let cache = prefix::folder_of(&config)?;
    let past = newest.as_ref().map_or(Past::default(), |(_, state)| Past { rounds: state.round, events: state.events });
    console.say(&format!("resuming {} after {} of {} rounds", folder.path().display(), past.rounds, plan.rounds));
    let notes = Console::new();
    let project = trackio_project(&config)?;
    let mut built = Built::new(&config, &corpus, &plan)?;
    if newest.is_none() {
        pretrained::load(&config, &mut built.trainer, &notes)
            .context("the run has no checkpoint yet and starts from the beginning")?;
    }
    let observer = Observer::resume(console, &folder.metrics(), folder.path(), listeners(project, &folder)?, past)?;
    let stop = stop_flag()?;
    let mut run = Run::new(&config, &corpus, &plan, built, &folder, observer, &stop)?;
    run.until = args.end.until;
    if let Some((path, state)) = newest {
        run.restore(&path, state)?;
    }
    if !changes.is_empty() {
        // Said first: a change that was said and not made is asked for again.
        run.changed(&changes)?;
        write_whole(&folder.config(), &text)?;
    }
    if !run.keep_prefix(cache.as_deref(), &notes)? {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    finish(&mut run, &corpus, &notes)
}

/// What somebody set of a run's configuration, but for names and paths: what runs are told apart by.
fn hyper_parameters(folder: &RunFolder) -> Result<HyperParameters> {
    let text = std::fs::read_to_string(folder.origins()).unwrap_or_default();
    // A run of a version that did not write them has none.
    let origins: BTreeMap<String, String> = serde_json::from_str(&text).unwrap_or_default();
    config::scalars(&folder.config(), |key| origins.contains_key(key) && key != "run.name")
}

fn trackio_project(config: &Config) -> Result<Option<Project>> {
    let project = &config.observe.trackio;
    (!project.is_empty()).then(|| Project::open(project)).transpose()
}

/// Who is told of the run in this folder.
fn listeners(project: Option<Project>, folder: &RunFolder) -> Result<Listeners> {
    let run = || -> Result<RunRow> {
        let config = config::scalars(&folder.config(), |_| true)?.into_iter().collect();
        Ok(RunRow { id: folder.trackio_id()?, name: folder.name(), config })
    };
    let trackio = project.map(|project| run().map(|run| project.run(run))).transpose()?;
    Ok(Listeners { parameters: hyper_parameters(folder)?, trackio })
}

/// The plan within the budget; says what had to give for it.
fn fit(config: &mut Config, corpus: &mut Corpus, console: &Console) -> Result<Plan> {
    let (plan, steps) = fit_memory::fit(config, corpus)?;
    steps.iter().for_each(|step| console.say(&format!("memory.device is tight: {step}")));
    plan.check_machine(config)?;
    Ok(plan)
}

/// Trains, then prints the final scores, also where a task has failed.
fn finish(run: &mut Run, corpus: &Corpus, console: &Console) -> Result<ExitCode> {
    if run.run()? == End::Interrupted {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let mut tables = String::new();
    for scores in &run.scores {
        scores.warnings(corpus).iter().for_each(|warning| console.say(&format!("warning: {warning}")));
        tables += &format!("{}\n{}", scores.split, scores.table());
    }
    let printed = output::text(tables);
    run.check_tasks()?;
    printed.map(|()| ExitCode::SUCCESS)
}

/// Raised by SIGINT, SIGTERM, SIGUSR1 and, unless the process was started to outlive its terminal, SIGHUP; a second SIGINT ends the
/// process at once.
pub(super) fn stop_flag() -> Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register_conditional_shutdown(SIGINT, INTERRUPTED.into(), Arc::clone(&stop))
        .context("cannot handle SIGINT")?;
    let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
    for signal in [SIGINT, SIGTERM, SIGUSR1].into_iter().chain(hangup) {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot handle signals")?;
    }
    Ok(stop)
}

/// Whether the process was started with the signal ignored, as `nohup` does; false where the system does not say.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Keeps the tokenizer with the run, so that it goes on and is asked without the file.
fn store_tokenizer(corpus: &Corpus, folder: &RunFolder) -> Result<()> {
    let Some(tokenizer) = &corpus.tokenizer else { return Ok(()) };
    match tokenizer.to_json()? {
        Some(json) => write_whole(&folder.tokenizer(), &json),
        None => Ok(()),
    }
}
