//! Micro-batches that follow the measured time of the groups their tasks are in.
//!
//! The sizes are in the checkpoint, so that a resumed run goes on with those it had; what it measures from then on is its own.

use std::time::Duration;

use anyhow::Result;

use crate::config::schema;
use crate::observe::event::Event;
use crate::schedule::straggler::Adaptive;
use crate::train::attempt::Attempt;
use crate::train::run::Run;

impl Run<'_> {
    /// Examples of a task's micro-batch, before failures halve it.
    pub(super) fn examples(&self, task: usize) -> usize {
        self.state.tasks[task].micro_batch.unwrap_or_else(|| {
            let size = self.config.train.micro_batch;
            self.corpus.tasks[task].settings.adaptive.map_or(size, |rule| size.clamp(rule.min, rule.max))
        })
    }

    /// The next sizes of the tasks of a committed round: a task's quantum is the slowest group that it was in. Two in a row that
    /// took more than three times what is usual halve it at once.
    pub(super) fn adapt(&mut self, attempt: &Attempt) -> Result<()> {
        let Some((present, _)) = &attempt.done else { return Ok(()) };
        for &task in present {
            let Some(rule) = self.corpus.tasks[task].settings.adaptive else { continue };
            let groups = attempt.groups.iter().filter(|group| group.tasks.contains(&task));
            let time = groups.map(|group| group.time).max().unwrap_or(Duration::ZERO);
            let ms = time.as_secs_f64() * 1e3;
            let size = self.examples(task);
            let straggler = self.watches[task].add(time.as_nanos() as u64);
            let next = next_size(rule, size, ms, straggler);
            if next == size {
                continue;
            }
            self.state.tasks[task].micro_batch = Some(next);
            let name = &self.corpus.tasks[task].name;
            self.observer.emit(&Event::Adapted { round: self.state.round, task: name, micro_batch: next, ms, straggler })?;
        }
        Ok(())
    }
}

fn next_size(rule: schema::Adaptive, size: usize, ms: f64, straggler: bool) -> usize {
    let schema::Adaptive { target_ms, grow, shrink, min, max } = rule;
    if straggler { (size / 2).max(min) } else { Adaptive { target_ms, grow, shrink, min, max }.next(size, ms) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_straggler_is_halved_whatever_its_time() {
        let rule = schema::Adaptive { target_ms: 50.0, grow: 1.1, shrink: 0.9, min: 5, max: 64 };
        assert_eq!(next_size(rule, 32, 10.0, true), 16);
        assert_eq!(next_size(rule, 8, 10.0, true), 5);
        assert_eq!(next_size(rule, 32, 10.0, false), 36);
        assert_eq!(next_size(rule, 32, 45.0, false), 32);
        assert_eq!(next_size(rule, 32, 60.0, false), 28);
    }
}
