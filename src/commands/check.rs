//! `taskloom check`: every error at once.

use std::path::Path;

use anyhow::Result;

use super::ConfigArgs;
use crate::config::{self, Errors, Resolved};
use crate::data;
use crate::output;
use crate::train::pretrained;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print the resolved configuration, each value with where it comes from
    #[arg(long)]
    print: bool,
}

/// Loads a configuration, completes it with the sizes of `encoder.from`, and holds it against the files it names; all errors
/// of these files together.
pub fn load(path: &Path, sets: &[String]) -> Result<Resolved> {
    let mut resolved = config::load(path, sets)?;
    let mut problems = pretrained::adopt(&mut resolved);
    if problems.is_empty() {
        problems.extend(pretrained::check(&resolved.config));
    }
    problems.extend(data::check_sources(&resolved.config));
    let diagnostics: Vec<_> = problems.into_iter().map(|(key, message)| resolved.diagnostic(&key, message)).collect();
    if diagnostics.is_empty() { Ok(resolved) } else { Err(Errors::new(diagnostics).into()) }
}

pub fn run(args: &Args) -> Result<()> {
    let ConfigArgs { config, sets } = &args.config;
    let resolved = load(config, sets)?;
    if args.print {
        output::text(resolved.print())?;
    } else {
        output::message(format_args!("{}: no errors", config.display()));
    }
    Ok(())
}
