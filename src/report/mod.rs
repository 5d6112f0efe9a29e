//! `taskloom report`: what run folders hold, as one page that needs nothing else.
//!
//! Read [`folder`] first (what is taken of a run folder), then [`sections`] (one run) and [`compare`] (several): each section makes
//! its part of the page from that alone, and says so where something is missing. [`page`] puts them together.

mod chart;
mod compare;
mod conflicts;
mod curve;
mod folder;
mod history;
mod lines;
mod page;
mod sections;
mod words;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rayon::prelude::*;

use folder::Run;

/// The page about these run folders.
pub fn page(folders: &[PathBuf]) -> Result<String> {
    let mut seen = Vec::new();
    for folder in folders {
        let whole = folder.canonicalize().with_context(|| format!("cannot open {}", folder.display()))?;
        if seen.contains(&whole) {
            bail!("{} is given twice", folder.display());
        }
        seen.push(whole);
    }
    let alone = folders.len() == 1;
    let runs = folders.par_iter().map(|folder| Run::read(folder, alone)).collect::<Result<Vec<Run>>>()?;
    match &runs[..] {
        [] => bail!("no run folder is given"),
        [run] => page::write(&run.name, &sections::all(run)?),
        runs => page::write(&format!("{} runs", runs.len()), &compare::all(runs)?),
    }
}
