//! What a run tells: events to metrics.jsonl, TensorBoard and Trackio, progress to the terminal, debug messages to stderr.

pub mod board;
pub mod console;
pub mod event;
pub mod metrics_file;
pub mod run_trace;
mod scalars;
pub mod tensorboard;
mod terminal;
pub mod timeline;
pub mod trace;
pub mod trackio;
pub mod tracks;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use console::Console;
use event::Event;
use metrics_file::{MetricsFile, Past};
use tensorboard::{HyperParameters, TensorBoard};
use trackio::Trackio;

use crate::output::Messages;

/// Passes each event to everything that listens.
pub struct Observer {
    pub console: Console,
    metrics: MetricsFile,
    tensorboard: TensorBoard,
    trackio: Option<Trackio>,
}

/// Who listens beside the console and metrics.jsonl.
#[derive(Default)]
pub struct Listeners {
    /// Of TensorBoard.
    pub parameters: HyperParameters,
    pub trackio: Option<Trackio>,
}

impl Observer {
    /// Of a new run.
    pub fn create(
        console: Console,
        metrics: &Path,
        folder: &Path,
        Listeners { parameters, mut trackio }: Listeners,
    ) -> Result<Self> {
        trackio.as_mut().map_or(Ok(()), Trackio::begin)?;
        let trackio = trackio.map(Trackio::replace).transpose()?;
        Ok(Self {
            console,
            metrics: MetricsFile::create(metrics)?,
            tensorboard: TensorBoard::create(folder, parameters)?,
            trackio,
        })
    }

    /// Of a run that goes on from a checkpoint: what came after it is forgotten.
    pub fn resume(
        console: Console,
        metrics: &Path,
        folder: &Path,
        Listeners { parameters, mut trackio }: Listeners,
        past: Past,
    ) -> Result<Self> {
        let mut tensorboard = TensorBoard::begin(folder, parameters)?;
        trackio.as_mut().map_or(Ok(()), Trackio::begin)?;
        let metrics = MetricsFile::resume(metrics, past, &mut |line| {
            tensorboard.write(line)?;
            trackio.as_mut().map_or(Ok(()), |trackio| trackio.rewrite(line))
        })?;
        let trackio = trackio.map(Trackio::replace).transpose()?;
        Ok(Self { console, metrics, tensorboard: tensorboard.replace()?, trackio })
    }

    pub fn emit(&mut self, event: &Event) -> Result<()> {
        self.console.show(event);
        let line = self.metrics.write(event)?;
        self.tensorboard.write(&line)?;
        self.tensorboard.flush()?;
        if let Some(problem) = self.trackio.as_mut().and_then(|trackio| trackio.write(&line)) {
            self.console.say(&format!("warning: {problem}"));
        }
        Ok(())
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
