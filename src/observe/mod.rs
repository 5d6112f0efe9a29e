//! What a run tells: events to metrics.jsonl and TensorBoard, progress to the terminal, debug messages to stderr.

pub mod board;
pub mod console;
pub mod event;
pub mod metrics_file;
pub mod run_trace;
pub mod tensorboard;
mod terminal;
pub mod timeline;
pub mod trace;
pub mod tracks;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use console::Console;
use event::Event;
use metrics_file::{MetricsFile, Past};
use tensorboard::{HyperParameters, TensorBoard};

use crate::output::Messages;

/// Passes each event to everything that listens.
pub struct Observer {
    pub console: Console,
    metrics: MetricsFile,
    tensorboard: TensorBoard,
}

impl Observer {
    /// Of a new run.
    pub fn create(console: Console, metrics: &Path, folder: &Path, parameters: HyperParameters) -> Result<Self> {
        Ok(Self { console, metrics: MetricsFile::create(metrics)?, tensorboard: TensorBoard::create(folder, parameters)? })
    }

    /// Of a run that goes on from a checkpoint: what came after it is forgotten.
    pub fn resume(console: Console, metrics: &Path, folder: &Path, parameters: HyperParameters, past: Past) -> Result<Self> {
        let mut tensorboard = TensorBoard::begin(folder, parameters)?;
        let metrics = MetricsFile::resume(metrics, past, &mut |line| tensorboard.write(line))?;
        Ok(Self { console, metrics, tensorboard: tensorboard.replace()? })
    }

    pub fn emit(&mut self, event: &Event) -> Result<()> {
        self.console.show(event);
        let line = self.metrics.write(event)?;
        self.tensorboard.write(&line)?;
        self.tensorboard.flush()
    }

    /// As [`Observer::emit`], for a process that begins: metrics.jsonl tells of the first one of a run.
    pub fn start(&mut self, event: &Event) -> Result<()> {
        if self.events() == 0 {
            return self.emit(event);
        }
        self.console.show(event);
        Ok(())
    }

    /// Lines so far about what happens again after a crash.
    pub fn events(&self) -> u64 {
        self.metrics.events()
    }

    /// By round, the times that an earlier process measured after the checkpoint that the run goes on from.
    pub fn take_measured(&mut self) -> BTreeMap<u64, Value> {
        let lines = std::mem::take(&mut self.metrics.measured);
        lines.into_iter().filter_map(|line| Some((line["round"].as_u64()?, line))).collect()
    }

    /// Whether the newest checkpoint told of is that of so many rounds.
    pub fn has_checkpoint(&self, round: u64) -> bool {
        self.metrics.has_checkpoint(round)
    }
}

/// Debug messages on stderr for those who ask: `TASKLOOM_LOG=debug`.
pub fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TASKLOOM_LOG").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Messages).with_target(false).init();
}
