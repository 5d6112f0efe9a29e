//! What a run says: when it begins, of each round that was committed, and at its end.

use std::time::Duration;

use anyhow::Result;

use crate::files::write_whole;
use crate::machine::memory::peak_resident;
use crate::observe::event::{ByTask, Event, RoundEvent, Weights};
use crate::observe::run_trace::RunTrace;
use crate::surgery::methods::Status;
use crate::train::guard::Guard;
use crate::train::isolation::Done;
use crate::train::run::{End, Run};

/// Conflicting pairs named at the end.
const MOST_PAIRS: usize = 5;

/// Contested blocks named at the end.
const MOST_BLOCKS: usize = 5;

impl Run<'_> {
    pub(super) fn announce(&mut self) -> Result<()> {
        let names: Vec<&str> = self.corpus.tasks.iter().map(|task| task.name.as_str()).collect();
        let device = self.trainer.device_name();
        let device = device.as_str();
        let threads = rayon::current_num_threads();
        let (round, rounds, buffers) = (self.state.round, self.plan.rounds, &self.buffers);
        let bytes = buffers.iter().map(|buffer| buffer.bytes).sum();
        self.observer.start(&Event::Start { round, rounds, tasks: &names, device, threads, bytes, buffers })
    }

    pub(super) fn committed(&mut self, done: &Done, lr: f64, time: Duration) -> Result<()> {
        let Done { round, tasks, committed: done } = done;
        let round = *round;
        self.state.commits += 1;
        let mut guard = Guard { in_a_row: self.state.bad_rounds };
        guard.committed();
        self.state.bad_rounds = guard.in_a_row;
        let names: Vec<&str> = tasks.iter().map(|&task| self.corpus.tasks[task].name.as_str()).collect();
        if let Some(conflicts) = &done.conflicts {
            let means = self.trainer.solver.ledger.cosines(tasks);
            let blocks = &self.trainer.blocks.names;
            self.observer.emit(&Event::conflict(round, &names, conflicts, blocks, &means))?;
        }
        let fallback = fallback(&done.status).or(fallback(&done.balance.status));
        for (name, status) in [(&self.state.method, &done.status), (&self.state.balancer, &done.balance.status)] {
            if *status != Status::Ok {
                *self.state.fallbacks.entry(name.clone()).or_default() += 1;
            }
        }
        if fallback.is_none() && !round.is_multiple_of(self.config.observe.log_every) {
            return Ok(());
        }
        let by_task = |values| ByTask { tasks: &names, values };
        self.observer.emit(&Event::Round(RoundEvent {
            round,
            epoch: (round + 1) as f64 / self.plan.rounds_per_epoch as f64,
            lr,
            losses: by_task(&done.losses),
            factors: (self.state.balancer != "equal").then(|| by_task(&done.balance.factors)),
            weights: Weights::new(&names, &self.trainer.blocks.names, &done.weights),
            norm: done.norm,
            clip: done.clip,
            fallback,
            ms: time.as_secs_f64() * 1e3,
        }))
    }

    /// summary.json, and the last lines of what observes; training took so many seconds.
    pub(super) fn report(&mut self, end: End, seconds: f64) -> Result<()> {
        let reason = match end {
            End::Finished if self.every_task_failed() => "every task has failed",
            End::Finished => "finished",
            End::StoppedEarly => "stopped early: no better evaluation within best.patience",
            End::Interrupted => "interrupted; continue with `taskloom resume`",
        };
        let names: Vec<&str> = self.corpus.tasks.iter().map(|task| task.name.as_str()).collect();
        let conflicts = self.trainer.solver.ledger.worst(MOST_PAIRS);
        let end_event = Event::End {
            round: self.state.round,
            reason,
            seconds,
            peak_bytes: peak_resident(),
            conflicts: conflicts.into_iter().map(|pair| pair.named(&names)).collect(),
            blocks: self.trainer.solver.ledger.contested(&self.trainer.blocks.names, MOST_BLOCKS),
            fallbacks: &self.state.fallbacks,
            schedule: self.schedule_end(),
            tasks: self.task_ends(end),
            scores: self.scores.iter().map(|scores| (scores.split, scores.json())).collect(),
        };
        write_whole(&self.folder.summary(), &format!("{:#}\n", end_event.json()))?;
        self.observer.emit(&end_event)?;
        self.trace.as_mut().map_or(Ok(()), RunTrace::finish)
    }
}

/// Why a solver fell back, if it did.
fn fallback(status: &Status) -> Option<&str> {
    match status {
        Status::Ok => None,
        Status::Fallback(reason) => Some(reason),
    }
}
