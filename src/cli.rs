//! What can be typed: the subcommands. The options of each stand beside its command.

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::{
    bench, check, completions, doctor, eval, export, methods, plan, predict, report, schema, simulate, surgery, sweep, train,
};
use crate::failure::BAD_INPUT;
use crate::observe;
use crate::output;

/// Version, and what was built in.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (cuda: ", env!("TASKLOOM_CUDA"), ")");

/// Train one shared encoder on many tasks at once
#[derive(Parser)]
#[command(name = "taskloom", version = VERSION)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Report every error of a configuration at once
    Check(check::Args),
    /// Show bytes, rounds and groups of a run without starting it
    Plan(plan::Args),
    /// Train; SIGINT, SIGTERM, SIGHUP or SIGUSR1 finish the round, write a checkpoint and exit with 130
    Train(train::TrainArgs),
    /// Continue a run from its newest whole checkpoint
    Resume(train::ResumeArgs),
    /// Make many runs of one configuration: a grid or random values of some keys, and seeds; docs/sweep.md
    Sweep(sweep::Args),
    /// Score a run (its best parameters) or one checkpoint
    Eval(eval::Args),
    /// Answer texts (or features as JSON lists), from --text or one a line from stdin
    Predict(predict::Args),
    /// Write a trained transformer as a Hugging Face folder, with its heads
    Export(export::Args),
    /// Write one HTML page about a run, or about several side by side; it needs no network
    Report(report::Args),
    /// Solve surgery problems: JSON lines from stdin to stdout, or one Jacobian from a safetensors file
    Surgery(surgery::Args),
    /// Describe every surgery method and loss balancer
    Methods(methods::Args),
    /// Print the JSON schema of configuration files, for editors with Taplo: `#:schema PATH` as a file's first line
    Schema(schema::Args),
    /// Say what this program and this machine can do, and try a device
    Doctor(doctor::Args),
    /// Print the completion script of a shell
    Completions(completions::Args),
    /// Print the manual page, or write those of all commands
    Man(completions::ManArgs),
    /// Run the scheduler on synthetic tasks over a virtual clock
    Simulate(simulate::Args),
    /// Measure a part of the program on synthetic data
    #[command(subcommand)]
    Bench(bench::Bench),
}

pub fn run() -> Result<ExitCode> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => return tell(&answer),
    };
    observe::init_logging();
    match cli.command {
        Command::Train(args) => return train::train(&args),
        Command::Resume(args) => return train::resume(&args),
        Command::Sweep(args) => return sweep::sweep(&args),
        Command::Check(args) => check::run(&args)?,
        Command::Plan(args) => plan::run(&args)?,
        Command::Eval(args) => eval::run(&args)?,
        Command::Predict(args) => predict::run(&args)?,
        Command::Export(args) => export::run(&args)?,
        Command::Report(args) => report::run(&args)?,
        Command::Surgery(args) => surgery::run(&args)?,
        Command::Methods(args) => methods::run(&args)?,
        Command::Schema(args) => schema::run(&args)?,
        Command::Doctor(args) => doctor::run(&args)?,
        Command::Completions(args) => completions::run(&args, Cli::command())?,
        Command::Man(args) => completions::man(&args, Cli::command())?,
        Command::Simulate(args) => simulate::run(&args)?,
        Command::Bench(part) => bench::run(&part)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Help and version are results; what is wrong with the words typed is a message.
fn tell(answer: &clap::Error) -> Result<ExitCode> {
    let printed = answer.print();
    if answer.use_stderr() {
        return Ok(ExitCode::from(BAD_INPUT));
    }
    output::written(printed)?;
    Ok(ExitCode::SUCCESS)
}
