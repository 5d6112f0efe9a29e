//! The emulated device as tests of whole runs use it, and one that a test tampers with.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use taskloom::machine::driver::{
    Address, Card, Driver, EventId, GraphId, MemoryInfo, Priority, Result, StagingId, StreamId, open_emulated,
};
use taskloom::machine::launch::Launch;

use super::{example, metrics};

pub const EMULATED: &str = "run.device=emulated";

/// Whether this build has an emulated device; says why not.
#[allow(clippy::print_stderr, reason = "says what is skipped")]
pub fn is_there() -> bool {
    open_emulated(0).map_err(|why| eprintln!("skipped: {why}")).is_ok()
}

/// A run for it.
pub fn small() -> PathBuf {
    example("emulated.toml")
}

/// What every evaluation line says of the tasks' losses.
pub fn losses(run: &Path) -> Vec<f64> {
    let lines = metrics(run).into_iter().filter(|line| line["kind"] == "eval");
    let of_line = |line: Value| -> Vec<f64> {
        let tasks = line["tasks"].as_object().expect("scores by task").clone();
        tasks.values().map(|task| task["loss"].as_f64().expect("a loss")).collect()
    };
    lines.flat_map(of_line).collect()
}

/// What a test may answer in the device's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Wait,
    Launch,
    Replay,
    /// Of so many bytes; only an error is taken.
    Allocate(usize),
}

/// Forwards everything to a device but what `instead` answers.
pub struct Tampered<F> {
    pub inner: Box<dyn Driver>,
    pub instead: F,
}

impl<F: FnMut(Operation) -> Option<Result<()>>> Driver for Tampered<F> {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn card(&self) -> Card {
        self.inner.card()
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.inner.memory()
    }
    fn allocate(&mut self, name: &str, bytes: usize) -> Result<Address> {
        let refused = (self.instead)(Operation::Allocate(bytes)).and_then(Result::err);
        refused.map_or_else(|| self.inner.allocate(name, bytes), Err)
    }
    fn free(&mut self, address: Address) {
        self.inner.free(address);
    }
    fn stream(&mut self, priority: Priority) -> Result<StreamId> {
        self.inner.stream(priority)
    }
    fn event(&mut self) -> Result<EventId> {
        self.inner.event()
    }
    fn timer(&mut self) -> Result<EventId> {
        self.inner.timer()
    }
    fn event_done(&mut self, event: EventId) -> Result<bool> {
        self.inner.event_done(event)
    }
    fn elapsed(&mut self, from: EventId, to: EventId) -> Result<Duration> {
        self.inner.elapsed(from, to)
    }
    fn record(&mut self, event: EventId, stream: StreamId) -> Result<()> {
        self.inner.record(event, stream)
    }
    fn wait(&mut self, stream: StreamId, event: EventId) -> Result<()> {
        (self.instead)(Operation::Wait).unwrap_or_else(|| self.inner.wait(stream, event))
    }
    fn staging(&mut self, bytes: usize) -> Result<StagingId> {
        self.inner.staging(bytes)
    }
    fn staging_bytes(&mut self, staging: StagingId) -> Result<&mut [u8]> {
        self.inner.staging_bytes(staging)
    }
    fn copy_in(&mut self, stream: StreamId, to: Address, from: StagingId, bytes: Range<usize>) -> Result<()> {
        self.inner.copy_in(stream, to, from, bytes)
    }
    fn copy_out(&mut self, stream: StreamId, to: StagingId, from: Address, bytes: usize) -> Result<()> {
        self.inner.copy_out(stream, to, from, bytes)
    }
    fn copy(&mut self, stream: StreamId, to: Address, from: Address, bytes: usize) -> Result<()> {
        self.inner.copy(stream, to, from, bytes)
    }
    fn fill(&mut self, stream: StreamId, address: Address, byte: u8, bytes: usize) -> Result<()> {
        self.inner.fill(stream, address, byte, bytes)
    }
    fn launch(&mut self, stream: StreamId, call: &Launch) -> Result<()> {
        (self.instead)(Operation::Launch).unwrap_or_else(|| self.inner.launch(stream, call))
    }
    fn captures(&self) -> bool {
        self.inner.captures()
    }
    fn captures_timers(&self) -> bool {
        self.inner.captures_timers()
    }
    fn begin_capture(&mut self, stream: StreamId) -> Result<()> {
        self.inner.begin_capture(stream)
    }
    fn end_capture(&mut self, stream: StreamId) -> Result<GraphId> {
        self.inner.end_capture(stream)
    }
    fn replay(&mut self, graph: GraphId, stream: StreamId) -> Result<()> {
        (self.instead)(Operation::Replay).unwrap_or_else(|| self.inner.replay(graph, stream))
    }
    fn synchronize(&mut self, stream: StreamId) -> Result<()> {
        self.inner.synchronize(stream)
    }
}
