//! `taskloom schema`: what a configuration file may hold, for editors.

use anyhow::Result;

use crate::config::{run_schema, workload_schema};
use crate::output;

#[derive(clap::Args)]
pub struct Args {
    /// Of the files that `simulate` reads
    #[arg(long)]
    workload: bool,
}

pub fn run(args: &Args) -> Result<()> {
    output::text(if args.workload { workload_schema() } else { run_schema() })
}
