//! `taskloom check`: every error at once.

use std::path::Path;

use anyhow::Result;

use crate::config::{self, Errors, Resolved};
use crate::data;

/// Loads a configuration and holds it against the files it names; all errors of both together.
pub fn load(path: &Path, sets: &[String]) -> Result<Resolved> {
    let resolved = config::load(path, sets)?;
    let problems = data::check_sources(&resolved.config);
    let diagnostics: Vec<_> = problems.into_iter().map(|(key, message)| resolved.diagnostic(&key, message)).collect();
    if diagnostics.is_empty() { Ok(resolved) } else { Err(Errors::new(diagnostics).into()) }
}

pub fn run(path: &Path, sets: &[String], print: bool) -> Result<()> {
    let resolved = load(path, sets)?;
    if print {
        print!("{}", resolved.print());
    } else {
        eprintln!("{}: no errors", path.display());
    }
    Ok(())
}
