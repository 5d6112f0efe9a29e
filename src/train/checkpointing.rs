//! When a run writes checkpoints: after some rounds, and at its end.

use std::time::Instant;

use anyhow::Result;
use serde_json::{Map, Value};

use crate::config::schema::FinalCheckpoint;
use crate::observe::event::Event;
use crate::observe::trace::Kind;
use crate::train::checkpoint::{self, Packed, State};
use crate::train::plan::interval;
use crate::train::run::{End, Run};
use crate::train::writer::Written;

impl Run<'_> {
    fn is_checkpoint_due(&self) -> bool {
        self.is_due(interval(&self.config.checkpoint.every, self.plan.rounds_per_epoch))
    }

    pub(super) fn checkpoint_if_due(&mut self) -> Result<()> {
        if self.is_checkpoint_due() && self.unsaved { self.checkpoint(false) } else { Ok(()) }
    }

    /// Says of the checkpoint that the run goes on from that it is there, if it should be and a killed process did not say so.
    pub(super) fn report_restored(&mut self) -> Result<()> {
        let state = &self.state;
        let is_usual = !state.evaluation_due && (self.is_checkpoint_due() || self.is_finished() || state.stopped_early);
        if self.unsaved || !is_usual || self.observer.has_checkpoint(state.round) {
            return Ok(());
        }
        let path = self.folder.checkpoints().join(checkpoint::folder_name(state.round)).display().to_string();
        self.observer.emit(&Event::Checkpoint {
            round: state.round,
            path: &path,
            seconds: None,
            held_up: None,
            interrupted: false,
        })
    }

    /// Says which keys of the configuration are others from here on.
    pub fn changed(&mut self, changes: &Map<String, Value>) -> Result<()> {
        self.observer.emit(&Event::Changed { round: self.state.round, changes })
    }

    pub(super) fn checkpoint(&mut self, interrupted: bool) -> Result<()> {
        let (start, clock) = (self.now(), Instant::now());
        let path = self.folder.checkpoints().join(checkpoint::folder_name(self.state.round));
        self.trainer.fetch_parameters()?;
        self.trainer.fetch_buffers()?;
        self.keep_states();
        let state = self.state.clone();
        self.write(Written::begin(path, state.round, interrupted), clock, &state, true)?;
        self.unsaved = false;
        self.trace_since(Kind::Checkpoint, start)
    }

    /// Writes a checkpoint of the trainer as it is now, or begins to; training has waited for it since `clock`.
    pub(super) fn write(&mut self, written: Written, clock: Instant, state: &State, with_optimizer: bool) -> Result<()> {
        if self.config.checkpoint.background {
            // Never two copies at a time.
            self.finish_writing()?;
            let quantum = self.trainer.host.quanta.begin_save();
            let packed = Packed::new(&mut self.trainer, state, with_optimizer, self.writer.spare());
            self.trainer.host.quanta.end(quantum);
            return self.writer.start(packed?, Written { held_up: clock.elapsed(), ..written });
        }
        let quantum = self.trainer.host.quanta.begin_save();
        let is_there = checkpoint::write(&written.path, &mut self.trainer, state, with_optimizer);
        let time = self.trainer.host.quanta.end(quantum);
        is_there?;
        self.written(&Written { time, held_up: clock.elapsed(), ..written })
    }

    /// Says that a checkpoint is there, if it has become so since.
    pub(super) fn report_written(&mut self) -> Result<()> {
        if self.writer.is_done() { self.finish_writing() } else { Ok(()) }
    }

    pub(super) fn finish_writing(&mut self) -> Result<()> {
        self.writer.finish()?.map_or(Ok(()), |written| self.written(&written))
    }

    fn written(&mut self, written: &Written) -> Result<()> {
        let Written { path, round, interrupted, time, held_up } = written;
        if *path == self.folder.best() {
            return Ok(());
        }
        checkpoint::prune(&self.folder.checkpoints(), self.config.checkpoint.keep, *round)?;
        let [seconds, held_up] = [time, held_up].map(|time| Some(time.as_secs_f64()));
        let (path, round, interrupted) = (path.display().to_string(), *round, *interrupted);
        self.observer.emit(&Event::Checkpoint { round, path: &path, seconds, held_up, interrupted })
    }

    /// Of a run that has ended, and said so: what `checkpoint.final` leaves.
    pub(super) fn keep_final(&self, end: End) -> Result<()> {
        let drops = self.config.checkpoint.r#final == FinalCheckpoint::Model && end != End::Interrupted;
        if drops { checkpoint::keep_model(&self.folder.checkpoints()) } else { Ok(()) }
    }

    /// Nothing is being written: what is left of writing and of pruning, here or by a killed process, goes.
    pub(super) fn clean_up(&self) -> Result<()> {
        let checkpoints = self.folder.checkpoints();
        checkpoint::prune(&checkpoints, self.config.checkpoint.keep, self.state.round)?;
        checkpoint::clean(&checkpoints)?;
        checkpoint::clean(self.folder.path())
    }
}
