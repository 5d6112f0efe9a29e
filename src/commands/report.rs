//! `taskloom report`: one HTML file about one run, or several side by side.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{output, report};

#[derive(clap::Args)]
pub struct Args {
    /// Run folders
    #[arg(required = true, value_name = "RUN_DIR")]
    runs: Vec<PathBuf>,
    /// Where to write it [default: report.html, of one run in its folder, of several in the current one]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let page = report::page(&args.runs)?;
    let out = match (&args.out, &args.runs[..]) {
        (Some(out), _) => out.clone(),
        (None, [run]) => run.join("report.html"),
        (None, _) => PathBuf::from("report.html"),
    };
    std::fs::write(&out, page).with_context(|| format!("cannot write {}", out.display()))?;
    output::line(out.display())
}
