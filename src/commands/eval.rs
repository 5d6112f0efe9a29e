//! `taskloom eval`: the scores of a run or a checkpoint on dev or test, or on any file with labels.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::DeviceArgs;
use crate::data::{Corpus, SplitName};
use crate::machine::memory::Memory;
use crate::observe::console::Console;
use crate::output;
use crate::train::checkpoint;
use crate::train::evaluate::Evaluation;
use crate::train::evaluator::evaluate;
use crate::train::labelled_file::labelled;
use crate::train::plan::Plan;
use crate::train::restore::{Stored, stored_model};
use crate::train::run::scale_data;
use crate::train::run_folder::Source;
use crate::train::setup::{load_corpus, load_model, load_run, report, set_threads};

#[derive(clap::Args)]
pub struct Args {
    /// Run folder or checkpoint folder
    path: PathBuf,
    #[arg(long, value_enum, default_value = "dev")]
    split: EvalSplit,
    /// Score this file instead (JSON lines, TSV, CSV, Parquet), on every task whose columns it has; needs no other data
    #[arg(long, conflicts_with = "split")]
    file: Option<PathBuf>,
    /// Of the file, score this task only
    #[arg(long, requires = "file")]
    task: Option<String>,
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum EvalSplit {
    Dev,
    Test,
}

/// Rows of a file that are computed at a time.
const ROWS: usize = 16;

pub fn run(args: &Args) -> Result<()> {
    let console = Console::new();
    let (scores, corpus) = match &args.file {
        Some(file) => of_file(args, file, &console)?,
        None => of_split(args, &console)?,
    };
    scores.warnings(&corpus).iter().for_each(|warning| console.say(&format!("warning: {warning}")));
    if args.json { output::line(scores.json()) } else { output::text(scores.table()) }
}

fn of_file(args: &Args, file: &Path, console: &Console) -> Result<(Evaluation, Corpus)> {
    let driver = args.device.open()?;
    let source = Source::find(&args.path, &mut |warning| console.say(&format!("warning: {warning}")))?;
    let config = load_model(&source.run)?;
    set_threads(config.run.threads)?;
    let corpus = labelled(&config, &source.state, file, args.task.as_deref())?;
    report(&corpus, console);
    let Stored { model, mut scratch, limits, .. } = stored_model(&config, &source, ROWS)?;
    if let Some(found) = corpus.feature_dim {
        let expected = model.network.spec.encoder.inputs();
        ensure!(found == expected, "{}: found {found} features, the model takes {expected}", file.display());
    }
    let mut predictor = args.device.predictor(driver, &model, &mut scratch, &limits)?;
    let scores = evaluate(&mut *predictor, &corpus, SplitName::Dev, ROWS)?;
    drop(predictor);
    Ok((Evaluation { split: "file", ..scores }, corpus))
}

fn of_split(args: &Args, console: &Console) -> Result<(Evaluation, Corpus)> {
    let split = match args.split {
        EvalSplit::Dev => SplitName::Dev,
        EvalSplit::Test => SplitName::Test,
    };
    let driver = args.device.open()?;
    let source = Source::find(&args.path, &mut |warning| console.say(&format!("warning: {warning}")))?;
    let mut config = load_run(&source.run)?;
    set_threads(config.run.threads)?;
    let mut corpus = load_corpus(&mut config, console)?;
    let plan = Plan::new(&config, &corpus)?;
    let ours: Vec<(&str, usize)> = corpus.tasks.iter().map(|task| (task.name.as_str(), task.outputs)).collect();
    let theirs: Vec<(&str, usize)> = source.state.tasks.iter().map(|task| (task.name.as_str(), task.outputs)).collect();
    ensure!(ours == theirs, "the data now has the tasks {ours:?}, the checkpoint was trained on {theirs:?}");
    scale_data(&mut corpus, &source.state)?;
    let (mut model, mut scratch) = plan.model(&mut Memory::unlimited())?;
    checkpoint::read_model(&source.checkpoint, &mut model)?;
    let mut predictor = args.device.predictor(driver, &model, &mut scratch, &plan.limits)?;
    let scores = evaluate(&mut *predictor, &corpus, split, config.eval.batch)?;
    ensure!(!scores.tasks.is_empty(), "no task has a {} split", split.as_str());
    drop(predictor);
    Ok((scores, corpus))
}
