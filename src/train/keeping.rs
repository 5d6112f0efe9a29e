//! When a run writes checkpoints: after some rounds, and at its end.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use crate::observe::event::Event;
use crate::observe::trace::Kind;
use crate::train::checkpoint::{self, Packed, State};
use crate::train::plan::interval;
use crate::train::run::Run;
use crate::train::writer::Written;

impl Run<'_> {
    pub(super) fn checkpoint_if_due(&mut self) -> Result<()> {
        let due = interval(&self.config.checkpoint.every, self.plan.rounds_per_epoch);
        let round = self.state.round;
        let due = round > 0 && due.is_some_and(|every| round.is_multiple_of(every));
        if due && self.unsaved { self.checkpoint() } else { Ok(()) }
    }

    pub(super) fn checkpoint(&mut self) -> Result<()> {
        let start = self.now();
        let path = self.folder.checkpoints().join(checkpoint::folder_name(self.state.round));
        self.engine.fetch_parameters()?;
        self.keep_states();
        let state = self.state.clone();
        self.write(&path, &state, true)?;
        self.unsaved = false;
        self.trace_since(Kind::Checkpoint, start)
    }

    /// Writes a checkpoint of the engine as it is now, or begins to.
    pub(super) fn write(&mut self, path: &Path, state: &State, with_optimizer: bool) -> Result<()> {
        if self.config.checkpoint.background {
            // Never two copies at a time.
            self.finish_writing()?;
            let packed = Packed::new(&mut self.engine, state, with_optimizer)?;
            return self.writer.start(packed, path, state.round);
        }
        let clock = Instant::now();
        checkpoint::write(path, &mut self.engine, state, with_optimizer)?;
        self.written(&Written { path: path.to_owned(), round: state.round, time: clock.elapsed() })
    }

    /// Says that a checkpoint is there, if it has become so since.
    pub(super) fn report_written(&mut self) -> Result<()> {
        if self.writer.is_done() { self.finish_writing() } else { Ok(()) }
    }

    pub(super) fn finish_writing(&mut self) -> Result<()> {
        self.writer.finish()?.map_or(Ok(()), |written| self.written(&written))
    }

    fn written(&mut self, written: &Written) -> Result<()> {
        let Written { path, round, time } = written;
        if *path == self.folder.best() {
            return Ok(());
        }
        checkpoint::prune(&self.folder.checkpoints(), self.config.checkpoint.keep)?;
        let path = path.display().to_string();
        self.observer.emit(&Event::Checkpoint { round: *round, path: &path, seconds: time.as_secs_f64() })
    }
}
