//! Micro-batches that follow the measured time of the groups their tasks are in.
//!
//! The sizes are in the checkpoint, and the times that they came from are recorded: see [`super::measured`].

use anyhow::Result;

use crate::config::schema::Adaptive;
use crate::observe::event::Event;
use crate::train::measured::Measured;
use crate::train::run::Run;

impl Run<'_> {
    /// Whether the times of groups decide anything.
    pub(super) fn adapts(&self) -> bool {
        self.corpus.tasks.iter().any(|task| task.settings.adaptive.is_some())
    }

    /// Examples of a task's micro-batch, before failures halve it.
    pub(super) fn examples(&self, task: usize) -> usize {
        self.state.tasks[task].micro_batch.unwrap_or_else(|| {
            let size = self.config.train.micro_batch;
            self.corpus.tasks[task].settings.adaptive.map_or(size, |rule| size.clamp(rule.min, rule.max))
        })
    }

    /// The next sizes of the tasks of a committed round, each by the slowest group that it was in. Two in a row that took more than
    /// three times what is usual halve it at once.
    pub(super) fn adapt(&mut self, round: u64, measured: &Measured) -> Result<()> {
        for (&task, &micros) in &measured.groups {
            let Some(rule) = self.corpus.tasks[task].settings.adaptive else { continue };
            let ms = f64::from(micros) / 1e3;
            let size = self.examples(task);
            let straggler = self.state.tasks[task].watch.add(1000 * u64::from(micros));
            let next = next_size(rule, size, ms, straggler);
            if next == size {
                continue;
            }
            self.state.tasks[task].micro_batch = Some(next);
            let name = &self.corpus.tasks[task].name;
            self.observer.emit(&Event::Adapted { round, task: name, micro_batch: next, ms, straggler })?;
        }
        Ok(())
    }
}

/// Examples of the next micro-batch after one of `size` took `ms`. Between 0.8 and 1 of the target nothing changes, so
/// that noise does not move it.
fn next_size(rule: Adaptive, size: usize, ms: f64, straggler: bool) -> usize {
    let next = if straggler {
        size / 2
    } else if ms > rule.target_ms {
        // At least one fewer.
        ((size as f64 * rule.shrink).floor() as usize).min(size - 1)
    } else if ms < 0.8 * rule.target_ms {
        ((size as f64 * rule.grow).ceil() as usize).max(size + 1)
    } else {
        size
    };
    next.clamp(rule.min, rule.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_straggler_is_halved_whatever_its_time() {
        let rule = Adaptive { target_ms: 50.0, grow: 1.1, shrink: 0.9, min: 5, max: 64 };
        assert_eq!(next_size(rule, 32, 10.0, true), 16);
        assert_eq!(next_size(rule, 8, 10.0, true), 5);
        assert_eq!(next_size(rule, 32, 10.0, false), 36);
        assert_eq!(next_size(rule, 32, 45.0, false), 32);
        assert_eq!(next_size(rule, 32, 60.0, false), 28);
    }

    #[test]
    fn a_micro_batch_finds_its_target() {
        let rule = Adaptive { target_ms: 50.0, grow: 1.1, shrink: 0.9, min: 1, max: 256 };
        let next = |size: usize, ms_per_example: f64| next_size(rule, size, size as f64 * ms_per_example, false);
        let settle = |ms_per_example: f64| (0..200).fold(32, |size, _| next(size, ms_per_example));
        assert!((40..=50).contains(&settle(1.0)), "{}", settle(1.0));
        assert_eq!(settle(0.001), 256);
        assert_eq!(settle(1e6), 1);
    }
}
