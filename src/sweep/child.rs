//! A run as a process of its own: what becomes of it ends no other.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use super::log;
use super::trial::Trial;
use crate::failure::INTERRUPTED;

/// This program, in a process group of its own: a Ctrl-C in the terminal goes to the sweep alone, which passes it on.
fn program() -> Result<Command> {
    let own = std::env::current_exe().context("this program's own file cannot be found")?;
    let mut command = Command::new(own);
    command.stdin(Stdio::null()).process_group(0);
    Ok(command)
}

/// What a run takes, as `plan` counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    pub bytes: u64,
    pub rounds: u64,
}

/// Asks `plan` in a process of its own, whose memory is free again afterwards; Err: why the run cannot be.
pub fn plan(config: &Path, trial: &Trial) -> Result<Result<Need, String>> {
    let mut command = program()?;
    command.arg("plan").arg(config).arg("--json");
    command.args(trial.sets.iter().flat_map(|set| ["--set", set]));
    let output = command.output().context("cannot start a process")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = said.lines().rev().find_map(|line| line.strip_prefix("error: ")).or(said.lines().last());
        return Ok(Err(line.unwrap_or("plan failed").to_owned()));
    }
    let plan: Value = serde_json::from_slice(&output.stdout).context("plan printed no JSON")?;
    let number = |key: &str| plan[key].as_u64().with_context(|| format!("plan printed no {key}"));
    Ok(Ok(Need { bytes: number("total_bytes")?, rounds: number("rounds")? }))
}

/// A run at work.
pub struct Running {
    child: Child,
    log: PathBuf,
    /// Length of the log before.
    from: u64,
}

/// How a run at work came out.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    Ended,
    /// It can be resumed.
    Interrupted,
    Failed(String),
}

impl Running {
    /// Starts a run, or goes on with one that has a folder.
    pub fn start(config: &Path, folder: &Path, trial: &Trial, log: PathBuf, until: Option<u64>) -> Result<Self> {
        let mut command = program()?;
        if folder.join("config.toml").is_file() {
            command.arg("resume").arg(folder);
        } else {
            command.arg("train").arg(config).arg("--run-dir").arg(folder);
            command.args(trial.sets.iter().flat_map(|set| ["--set", set]));
        }
        command.args(until.iter().flat_map(|rounds| ["--until".to_owned(), rounds.to_string()]));
        let (file, from) = log::open(&log)?;
        let twin = file.try_clone().with_context(|| format!("cannot write {}", log.display()))?;
        let child = command.stdout(file).stderr(twin).spawn().context("cannot start a process")?;
        Ok(Self { child, log, from })
    }

    /// None while it is at work.
    pub fn outcome(&mut self) -> Result<Option<Outcome>> {
        let status = self.child.try_wait().context("cannot wait for a process")?;
        Ok(status.map(|status| self.meaning(status)))
    }

    fn meaning(&self, status: ExitStatus) -> Outcome {
        match status.code() {
            Some(0) => Outcome::Ended,
            Some(code) if code == i32::from(INTERRUPTED) => Outcome::Interrupted,
            _ => Outcome::Failed(log::error_in(&self.log, self.from, status)),
        }
    }

    /// Until it has ended, however it does.
    pub fn wait(&mut self) {
        let _ = self.child.wait();
    }

    /// Asks for a checkpoint and an end.
    #[allow(unsafe_code, reason = "the standard library sends no other signal than SIGKILL")]
    pub fn interrupt(&self) -> Result<()> {
        let id = libc::pid_t::try_from(self.child.id()).context("a process number is too large")?;
        // SAFETY: takes numbers only. The child has not been waited for, so that its number is still its own.
        match unsafe { libc::kill(id, libc::SIGTERM) } {
            0 => Ok(()),
            _ => Err(anyhow!(std::io::Error::last_os_error())).context("cannot signal a run"),
        }
    }
}

/// Where a run's words go.
pub fn log_file(out: &Path, trial: &Trial) -> Result<PathBuf> {
    let folder = out.join("logs");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder.join(format!("{}.log", trial.name)))
}
