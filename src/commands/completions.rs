//! `taskloom completions` and `taskloom man`: what shells and `man` know of the program.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap_complete::Shell;

use crate::output;

#[derive(clap::Args)]
pub struct Args {
    /// For which shell
    shell: Shell,
}

#[derive(clap::Args)]
pub struct ManArgs {
    /// Write a page for the program and one for each command into this folder [default: print the program's own]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// The completion script of `program`.
pub fn run(args: &Args, mut program: clap::Command) -> Result<()> {
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    output::text(String::from_utf8_lossy(&script))
}

/// The manual pages of `program`.
pub fn man(args: &ManArgs, program: clap::Command) -> Result<()> {
    let Some(out) = &args.out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(program).render(&mut page).context("the page cannot be written")?;
        return output::text(String::from_utf8_lossy(&page));
    };
    let write = || {
        std::fs::create_dir_all(out)?;
        clap_mangen::generate_to(program, out)
    };
    write().with_context(|| format!("cannot write manual pages into {}", out.display()))?;
    output::line(out.display())
}
