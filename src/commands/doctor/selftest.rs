//! A short training on the device beside the same one on the CPU: every stage of a round, and losses that have to agree.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Finding, Status};

/// Five small tasks, PCGrad, AdamW, three evaluations: seconds on any device.
const CONFIG: &str = include_str!("../../../configs/emulated.toml");

/// What bf16 leaves of a loss after 60 rounds; the CPU with other threads differs by nothing.
const TOLERANCE: f64 = 0.02;

/// Predicting nothing gives 1.
const LEARNED: f64 = 0.5;

pub fn finding(device: &str) -> Finding {
    let clock = Instant::now();
    let (status, text) = match compare(device) {
        Ok(text) => (Status::Ok, format!("{text}, {:.1} s", clock.elapsed().as_secs_f64())),
        Err(why) => (Status::Failed, format!("{device}: {why:#}")),
    };
    Finding { name: "self-test", status, text }
}

fn compare(device: &str) -> Result<String> {
    let place = tempfile::tempdir().context("cannot make a temporary folder")?;
    let config = place.path().join("selftest.toml");
    std::fs::write(&config, CONFIG).context("cannot write a configuration")?;
    let reference = losses(&config, "cpu", &place.path().join("cpu"))?;
    for (task, loss) in reference.last().into_iter().flatten() {
        ensure!(*loss < LEARNED, "the CPU did not learn: the loss of {task} is {loss:.4}, at most {LEARNED} is expected");
    }
    let theirs = losses(&config, device, &place.path().join("device"))?;
    ensure!(theirs.len() == reference.len(), "{} evaluations, the CPU has {}", theirs.len(), reference.len());
    let mut worst = 0.0;
    for (number, (theirs, reference)) in (1..).zip(theirs.iter().zip(&reference)) {
        for ((task, loss), (_, expected)) in theirs.iter().zip(reference) {
            let difference = (loss - expected).abs() / expected.abs().max(1e-6);
            if difference.is_nan() || difference > TOLERANCE {
                bail!("the loss of {task} at evaluation {number} is {loss}, on the CPU {expected}");
            }
            worst = difference.max(worst);
        }
    }
    Ok(format!("60 rounds on {device} agree with the CPU to {worst:.1e} (at most {TOLERANCE})"))
}

/// Dev losses by task of every evaluation. In a process of its own: a device that breaks ends only that.
fn losses(config: &Path, device: &str, run: &Path) -> Result<Vec<Vec<(String, f64)>>> {
    let own = std::env::current_exe().context("this program's own file cannot be found")?;
    let mut command = Command::new(own);
    command.arg("train").arg(config).arg("--run-dir").arg(run);
    command.args(["--set", &format!("run.device={device}")]).stdin(Stdio::null());
    let output = command.output().context("cannot start a process")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let why = said.lines().rev().find_map(|line| line.strip_prefix("error: ")).map(str::to_owned);
        bail!("{}", why.unwrap_or_else(|| format!("the training ended with {}", output.status)));
    }
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).context("the training left no metrics.jsonl")?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(|line| line["kind"] == "eval");
    let by_task = |line: Value| -> Result<Vec<(String, f64)>> {
        let tasks = line["tasks"].as_object().context("an evaluation has no tasks")?;
        let loss = |(task, scores): (&String, &Value)| {
            let loss = scores["loss"].as_f64().with_context(|| format!("the loss of {task} is not finite"))?;
            Ok((task.clone(), loss))
        };
        tasks.iter().map(loss).collect()
    };
    lines.map(by_task).collect()
}
