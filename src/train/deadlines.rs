//! Deadlines of a run on the wall clock: which were met, which missed, and which cannot be met at what rounds really take.

use std::time::Duration;

use anyhow::Result;

use crate::observe::event::Event;
use crate::schedule::Nanos;
use crate::schedule::task::State;
use crate::train::isolation::Done;
use crate::train::run::Run;

/// Rounds between two looks at whether the deadlines can be met.
const LOOK: u64 = 64;

/// One task's: a round is due `span` after the one before was due, or after it ended, if that was later.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Deadline {
    span: Duration,
    due: Option<Duration>,
    met: u64,
    missed: u64,
}

impl Deadline {
    fn new(span: Duration) -> Self {
        Self { span, due: None, met: 0, missed: 0 }
    }

    /// A round has ended at `now`.
    fn ended(&mut self, now: Duration) {
        let due = self.due.unwrap_or(now);
        *if now <= due { &mut self.met } else { &mut self.missed } += 1;
        self.due = Some(due.max(now) + self.span);
    }
}

/// The deadlines of a run since its process began.
pub struct Deadlines {
    /// By task.
    own: Vec<Option<Deadline>>,
    /// By task: time of its rounds, and their number.
    times: Vec<(Duration, u32)>,
    warned: bool,
}

impl Deadlines {
    /// `spans` in milliseconds, of tasks that have one.
    pub fn new(spans: impl Iterator<Item = Option<f64>>) -> Self {
        let deadline = |ms: f64| Deadline::new(Duration::from_secs_f64(ms / 1e3));
        let own: Vec<_> = spans.map(|ms| ms.map(deadline)).collect();
        Self { times: vec![Default::default(); own.len()], own, warned: false }
    }

    /// Rounds of the task that ended in time, and later; none where it has no deadline.
    pub fn of(&self, task: usize) -> Option<[u64; 2]> {
        self.own[task].map(|own| [own.met, own.missed])
    }

    fn any(&self) -> bool {
        self.own.iter().any(Option::is_some)
    }

    /// (tasks) mean time of a round, in nanoseconds; none of a task without any so far.
    fn costs(&self) -> Vec<Option<Nanos>> {
        let mean = |&(time, count): &(Duration, u32)| (count > 0).then(|| (time / count.max(1)).as_nanos() as Nanos);
        self.times.iter().map(mean).collect()
    }
}

impl Run<'_> {
    /// From here on, tasks that may run have something due.
    pub(super) fn start_deadlines(&mut self) {
        let now = self.started.elapsed();
        for (task, own) in self.deadlines.own.iter_mut().enumerate() {
            let Some(own) = own else { continue };
            match self.order.state(task) {
                State::Done | State::Failed => own.due = None,
                _ if self.order.is_waiting(task) => {}
                _ => _ = own.due.get_or_insert(now + own.span),
            }
        }
    }

    /// Rounds were committed, each after the time it took; a warning, once, where deadlines cannot be met so.
    pub(super) fn end_deadlines(&mut self, committed: &[(&Done, Duration)]) -> Result<()> {
        if !self.deadlines.any() {
            return Ok(());
        }
        let now = self.started.elapsed();
        for (done, time) in committed {
            for &task in &done.tasks {
                let (sum, count) = &mut self.deadlines.times[task];
                (*sum, *count) = (*sum + *time, *count + 1);
                self.deadlines.own[task].iter_mut().for_each(|own| own.ended(now));
            }
        }
        let missed = self.deadlines.own.iter().flatten().any(|own| own.missed > 0);
        if self.deadlines.warned || !missed || !self.state.round.is_multiple_of(LOOK) {
            return Ok(());
        }
        let Some(message) = self.plan.turns.late(&self.deadlines.costs()) else { return Ok(()) };
        self.deadlines.warned = true;
        let message = format!("at what rounds take on this machine, {message}");
        self.observer.emit(&Event::Late { round: self.state.round, message: &message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_round_moves_the_next_ones() {
        let ms = Duration::from_millis;
        let mut own = Deadline { due: Some(ms(10)), ..Deadline::new(ms(10)) };
        [ms(4), ms(19), ms(33)].into_iter().for_each(|now| own.ended(now));
        assert_eq!((own.met, own.missed, own.due), (2, 1, Some(ms(43))));
        own.ended(ms(43));
        assert_eq!((own.met, own.missed), (3, 1));
    }
}
