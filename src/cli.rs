//! What can be typed.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands;

#[derive(Parser)]
#[command(name = "taskloom", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure a part of the program on made-up data
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Subcommand)]
enum Bench {
    /// One training round, stage by stage
    Step(BenchStep),
}

#[derive(Args)]
pub struct BenchStep {
    #[arg(long, value_enum, default_value = "linear")]
    pub encoder: BenchEncoder,
    #[arg(long, default_value_t = 8)]
    pub tasks: usize,
    /// Examples of one task in a round
    #[arg(long, default_value_t = 256)]
    pub batch: usize,
    /// Surgery method
    #[arg(long, default_value = "pcgrad")]
    pub method: String,
    /// Rounds to time, after two to warm up
    #[arg(long, default_value_t = 20)]
    pub runs: usize,
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchEncoder {
    Linear,
    Bag,
}

pub fn run() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Bench(Bench::Step(options)) => commands::bench::step(&options)?,
    }
    Ok(ExitCode::SUCCESS)
}
