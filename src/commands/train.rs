//! `taskloom train` and `taskloom resume`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};

use crate::config::Config;
use crate::data::{Corpus, SplitName};
use crate::device::Device;
use crate::failure::INTERRUPTED;
use crate::observe::Observer;
use crate::observe::console::Console;
use crate::observe::metrics_file::MetricsFile;
use crate::observe::tensorboard::TensorBoard;
use crate::train::checkpoint;
use crate::train::plan::Plan;
use crate::train::prefix;
use crate::train::pressure;
use crate::train::pretrained;
use crate::train::run::{End, Run, check_data};
use crate::train::run_folder::{RunFolder, newest_whole};
use crate::train::session::{load_corpus, load_run, set_threads};

pub fn train(path: &Path, sets: &[String], run_dir: Option<&Path>) -> Result<ExitCode> {
    let resolved = super::check::load(path, sets)?;
    let text = resolved.to_toml();
    let mut config = resolved.config;
    Device::select(&config.run.device)?;
    set_threads(config.run.threads)?;
    let console = Console::new();
    let mut corpus = load_corpus(&mut config, &console)?;
    // Before there is a run folder: a refused run leaves none behind.
    let plan = fit(&mut config, &mut corpus, &console)?;
    let cache = config.encoder.cache_frozen.then(prefix::folder).transpose()?;
    let folder = RunFolder::create(run_dir, &config.run.out, &config.run.name)?;
    store_tokenizer(&corpus, &folder)?;
    // Last: a folder with a configuration is a run that can be resumed.
    write(&folder.config(), &text)?;
    console.say(&format!("run folder {}", folder.path().display()));
    let notes = Console::new();
    let observer = Observer::new(console, MetricsFile::create(&folder.metrics())?, TensorBoard::create(folder.path())?);
    let stop = stop_flag()?;
    let mut run = Run::new(&config, &corpus, &plan, &folder, observer, &stop)?;
    pretrained::load(&config, &mut run.engine, &notes)?;
    if !run.keep_prefix(cache.as_deref(), &notes)? {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    finish(&mut run, &corpus, config.eval.test, &notes)
}

pub fn resume(path: &Path) -> Result<ExitCode> {
    let folder = RunFolder::open(path)?;
    let mut config = load_run(folder.path())?;
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
    }
    let plan = fit(&mut config, &mut corpus, &console)?;
    let cache = config.encoder.cache_frozen.then(prefix::folder).transpose()?;
    let (done, due) = newest.as_ref().map_or((0, false), |(_, state)| (state.round, state.evaluation_due));
    console.say(&format!("resuming {} after {done} of {} rounds", folder.path().display(), plan.rounds));
    let notes = Console::new();
    let observer =
        Observer::new(console, MetricsFile::resume(&folder.metrics(), done, due)?, TensorBoard::create(folder.path())?);
    checkpoint::prune(&folder.checkpoints(), usize::MAX)?;
    let stop = stop_flag()?;
    let mut run = Run::new(&config, &corpus, &plan, &folder, observer, &stop)?;
    match newest {
        Some((path, state)) => run.restore(&path, state)?,
        None => pretrained::load(&config, &mut run.engine, &notes)
            .context("the run has no checkpoint yet and starts from the beginning")?,
    }
    if !run.keep_prefix(cache.as_deref(), &notes)? {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    finish(&mut run, &corpus, config.eval.test, &notes)
}

/// The plan within the budget; says what had to give for it.
fn fit(config: &mut Config, corpus: &mut Corpus, console: &Console) -> Result<Plan> {
    let (plan, steps) = pressure::fit(config, corpus)?;
    steps.iter().for_each(|step| console.say(&format!("memory.device is tight: {step}")));
    plan.check_machine(config)?;
    Ok(plan)
}

/// Trains, then prints the final scores, also where a task has failed.
fn finish(run: &mut Run, corpus: &Corpus, test: bool, console: &Console) -> Result<ExitCode> {
    if run.run()? == End::Interrupted {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let splits = if test { &[SplitName::Dev, SplitName::Test][..] } else { &[SplitName::Dev][..] };
    for &split in splits {
        match run.final_scores(split)? {
            Some(scores) if !scores.tasks.is_empty() => {
                scores.warnings(corpus).iter().for_each(|warning| console.say(&format!("warning: {warning}")));
                print!("{}\n{}", split.as_str(), scores.table());
            }
            _ => {}
        }
    }
    run.check_tasks()?;
    Ok(ExitCode::SUCCESS)
}

/// Raised by SIGINT, SIGTERM and SIGUSR1; a second SIGINT ends the process at once.
fn stop_flag() -> Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register_conditional_shutdown(SIGINT, INTERRUPTED.into(), Arc::clone(&stop))
        .context("cannot handle SIGINT")?;
    for signal in [SIGINT, SIGTERM, SIGUSR1] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot handle signals")?;
    }
    Ok(stop)
}

/// Keeps the tokenizer with the run, so that it goes on and is asked without the file.
fn store_tokenizer(corpus: &Corpus, folder: &RunFolder) -> Result<()> {
    let Some(tokenizer) = &corpus.tokenizer else { return Ok(()) };
    match tokenizer.to_json()? {
        Some(json) => write(&folder.tokenizer(), &json),
        None => Ok(()),
    }
}

/// Writes beside and renames: a kill leaves the whole file or none.
fn write(path: &Path, text: &str) -> Result<()> {
    let scratch = path.with_extension("new");
    let written = std::fs::write(&scratch, text).and_then(|()| std::fs::rename(&scratch, path));
    written.with_context(|| format!("cannot write {}", path.display()))
}
