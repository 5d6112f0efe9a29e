//! What a run tells: events to metrics.jsonl and TensorBoard, progress to the terminal, debug messages to stderr.

pub mod console;
pub mod event;
pub mod metrics_file;
pub mod run_trace;
pub mod tensorboard;
pub mod timeline;
pub mod trace;

use anyhow::Result;

use console::Console;
use event::Event;
use metrics_file::MetricsFile;
use tensorboard::TensorBoard;

/// Passes each event to everything that listens.
pub struct Observer {
    pub console: Console,
    metrics: MetricsFile,
    tensorboard: TensorBoard,
}

impl Observer {
    pub fn new(console: Console, metrics: MetricsFile, tensorboard: TensorBoard) -> Self {
        Self { console, metrics, tensorboard }
    }

    pub fn emit(&mut self, event: &Event) -> Result<()> {
        self.console.show(event);
        self.tensorboard.write(event)?;
        self.metrics.write(event)
    }
}

/// Debug messages on stderr for those who ask: `TASKLOOM_LOG=debug`.
pub fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TASKLOOM_LOG").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}
