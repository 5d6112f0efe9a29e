//! `taskloom schema`: what a configuration file may hold, for editors.

use anyhow::Result;

use crate::config::{run_schema, sweep_schema, workload_schema};
use crate::output;

#[derive(clap::Args)]
pub struct Args {
    /// Of the files that `simulate` reads
    #[arg(long, conflicts_with = "sweep")]
    workload: bool,
    /// Of the files that `sweep` reads
    #[arg(long)]
    sweep: bool,
}

pub fn run(args: &Args) -> Result<()> {
    output::text(match args {
        Args { workload: true, .. } => workload_schema(),
        Args { sweep: true, .. } => sweep_schema(),
        _ => run_schema(),
    })
}
