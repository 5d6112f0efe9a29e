//! Writes checkpoints while training goes on, one at a time.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::train::checkpoint::{Packed, SpareBuffers};

/// The checkpoint being written, if there is one.
#[derive(Default)]
pub struct Writer {
    current: Option<(JoinHandle<Result<SpareBuffers>>, Instant, Written)>,
    /// Memory of the one before.
    spare: SpareBuffers,
}

/// A checkpoint that is there.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub path: PathBuf,
    /// Rounds it holds.
    pub round: u64,
    /// See [`Event::Checkpoint`](crate::observe::event::Event::Checkpoint).
    pub interrupted: bool,
    pub time: Duration,
    /// As long training stood still for it.
    pub held_up: Duration,
}

impl Written {
    /// One that is not there yet.
    pub fn begin(path: PathBuf, round: u64, interrupted: bool) -> Self {
        Self { path, round, interrupted, time: Duration::ZERO, held_up: Duration::ZERO }
    }
}

impl Writer {
    /// Memory that the next one may be copied into.
    pub fn spare(&mut self) -> SpareBuffers {
        std::mem::take(&mut self.spare)
    }

    /// Begins; the one before has to be [`Writer::finish`]ed.
    pub fn start(&mut self, packed: Packed, written: Written) -> Result<()> {
        assert!(self.current.is_none(), "one checkpoint at a time");
        let own = written.path.clone();
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(move || packed.write(&own));
        self.current = Some((thread.context("cannot start a thread that writes checkpoints")?, Instant::now(), written));
        Ok(())
    }

    /// Whether [`Writer::finish`] would not have to wait.
    pub fn is_done(&self) -> bool {
        self.current.as_ref().is_some_and(|(thread, ..)| thread.is_finished())
    }

    /// Waits for the one being written; an error if it could not be.
    pub fn finish(&mut self) -> Result<Option<Written>> {
        let Some((thread, clock, written)) = self.current.take() else { return Ok(None) };
        let died = |_| anyhow!("the thread that wrote {} died; earlier checkpoints are untouched", written.path.display());
        self.spare = thread.join().map_err(died)??;
        Ok(Some(Written { time: clock.elapsed(), ..written }))
    }
}
