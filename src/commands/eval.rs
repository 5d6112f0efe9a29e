//! `taskloom eval`: the scores of a run or a checkpoint on dev or test.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::DeviceArgs;
use crate::data::SplitName;
use crate::machine::memory::Memory;
use crate::observe::console::Console;
use crate::output;
use crate::train::checkpoint;
use crate::train::evaluator::evaluate;
use crate::train::plan::Plan;
use crate::train::run::scale_data;
use crate::train::run_folder::Source;
use crate::train::setup::{load_corpus, load_run, set_threads};

#[derive(clap::Args)]
pub struct Args {
    /// Run folder or checkpoint folder
    path: PathBuf,
    #[arg(long, value_enum, default_value = "dev")]
    split: EvalSplit,
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

pub fn run(args: &Args) -> Result<()> {
    let split = match args.split {
        EvalSplit::Dev => SplitName::Dev,
        EvalSplit::Test => SplitName::Test,
    };
    let driver = args.device.open()?;
    let console = Console::new();
    let source = Source::find(&args.path, &mut |warning| console.say(&format!("warning: {warning}")))?;
    let mut config = load_run(&source.run)?;
    set_threads(config.run.threads)?;
    let mut corpus = load_corpus(&mut config, &console)?;
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
    scores.warnings(&corpus).iter().for_each(|warning| console.say(&format!("warning: {warning}")));
    if args.json {
        output::line(scores.json())?;
    } else {
        output::text(scores.table())?;
    }
    Ok(())
}
