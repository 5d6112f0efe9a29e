//! What a run does about tasks whose part of a round failed, and what it says of them at its end.

use anyhow::Result;

use crate::data::cursor::Cursor;
use crate::failure::Stopped;
use crate::observe::event::{Event, ScheduleEnd, TaskEnd};
use crate::schedule::order::{Incident, Scheduled, Verdict};
use crate::schedule::retry::Status;
use crate::schedule::task::State;
use crate::train::guard::{Guard, describe, what_happened};
use crate::train::isolation::{Attempt, Failure};
use crate::train::measured::Measured;
use crate::train::run::{End, Run};

impl<'a> Run<'a> {
    /// Books how each task's part of the rounds ended, by commit. `before`: the tasks' cursors as of the last round; `measured`: what
    /// is known of each round. An error once there is no hope left, see [`Guard`].
    pub(super) fn settle(
        &mut self,
        scheduled: &Scheduled,
        before: &[Cursor],
        attempt: &Attempt,
        measured: &[Measured],
    ) -> Result<()> {
        let mut verdicts = Vec::new();
        for ((round, tasks), measured) in (self.state.round..).zip(&scheduled.commits).zip(measured) {
            let failed = verdicts.len();
            for &task in tasks {
                let failure = attempt.failures.iter().find(|failure| failure.task == task);
                let status = failure.map_or(Status::Ok, |failure| failure.status);
                let verdict = self.order.ended(task, status, measured.cost());
                match failure {
                    None => self.state.tasks[task].taken += 1,
                    Some(failure) => verdicts.push((round, failure, verdict)),
                }
            }
            let lost = !attempt.done.iter().any(|done| done.round == round);
            self.state.dropped_rounds += u64::from(lost && (attempt.anomaly.is_some() || verdicts.len() > failed));
        }
        let lost = attempt.done.is_empty() && (attempt.anomaly.is_some() || !verdicts.is_empty());
        let anomaly = if lost { self.not_finite(attempt)? } else { None };
        for (round, failure, verdict) in &verdicts {
            let reported = anomaly.is_some() && failure.status == Status::NotFinite;
            self.set_back(*round, failure, verdict, before[failure.task], reported)?;
        }
        match anomaly {
            Some(message) => self.guard(&message, attempt.anomaly.is_some()),
            None => Ok(()),
        }
    }

    /// Reports a round without a commit in which something was not finite; the message.
    fn not_finite(&mut self, attempt: &Attempt) -> Result<Option<String>> {
        let first = attempt.failures.iter().find(|failure| failure.status == Status::NotFinite);
        let (task, what) = match (&attempt.anomaly, first) {
            (Some(anomaly), _) => (None, what_happened(anomaly, &[])),
            (None, Some(failure)) => (Some(self.name(failure.task)), failure.why.clone()),
            (None, None) => return Ok(None),
        };
        let round = self.state.round;
        let message = describe(task, &what, round);
        self.observer.emit(&Event::Anomaly { round, task, message: &message })?;
        Ok(Some(message))
    }

    fn guard(&mut self, message: &str, nobodys: bool) -> Result<()> {
        let hopeless = nobodys || (0..self.corpus.tasks.len()).all(|task| self.order.failures(task) > 0);
        let mut guard = Guard { in_a_row: self.state.bad_rounds };
        let verdict = guard.failed(message, self.config.train.max_bad_rounds, hopeless);
        self.state.bad_rounds = guard.in_a_row;
        Ok(verdict?)
    }

    /// Brings a task back to its last commit. Its head, its moments and the sampler are as they were then, since nothing of a failed
    /// part is committed and random numbers follow from round and example; its place in the data is not.
    fn set_back(
        &mut self,
        round: u64,
        failure: &Failure,
        verdict: &Verdict,
        cursor: Cursor,
        already_reported: bool,
    ) -> Result<()> {
        let Failure { task, status, why } = failure;
        let task = *task;
        self.streams[task].seek(cursor);
        self.state.incidents.push(Incident { round, task, status: *status });
        let own = &mut self.state.tasks[task];
        own.cursor = cursor;
        own.failures.lost += 1;
        own.failures.last_error = Some(why.clone());
        match verdict {
            Verdict::Again { halve, .. } => {
                own.failures.retries += 1;
                own.failures.halved += u32::from(*halve);
            }
            Verdict::RolledBack | Verdict::Failed(_) => own.failures.rollbacks += 1,
            Verdict::Fine => {}
        }
        if let Verdict::Failed(all) = verdict {
            let error = format!("depends on {}, which failed", self.name(task));
            for &other in all.iter().filter(|&&other| other != task) {
                self.state.tasks[other].failures.last_error = Some(error.clone());
            }
        }
        let message = format!("task {} failed in round {round}: {why}: {}", self.name(task), self.remedy(task, verdict));
        self.observer.emit(&Event::Failure {
            round,
            task: &self.corpus.tasks[task].name,
            status: status.name(),
            message: &message,
            state: self.order.state(task).name(),
            failures_in_a_row: self.order.failures(task),
            already_reported: already_reported && !matches!(verdict, Verdict::Failed(_)),
        })
    }

    fn remedy(&self, task: usize, verdict: &Verdict) -> String {
        match verdict {
            Verdict::Fine => String::new(),
            Verdict::Again { halve: true, .. } => format!("tried again in micro-batches of {}", self.micro_batch(task)),
            Verdict::Again { wait: 0, .. } => "tried again".to_owned(),
            Verdict::Again { wait, .. } => format!("tried again after {:.1} s of planned time", *wait as f64 / 1e9),
            Verdict::RolledBack => "back to its last commit, then tried again".to_owned(),
            Verdict::Failed(all) => {
                let others: Vec<&str> = all.iter().filter(|&&other| other != task).map(|&other| self.name(other)).collect();
                let others = if others.is_empty() { String::new() } else { format!(", and with it {}", others.join(", ")) };
                format!("given up after {} failures in a row{others}", self.order.failures(task))
            }
        }
    }

    /// Examples of the task's micro-batch, which failures may have halved.
    pub(super) fn micro_batch(&self, task: usize) -> usize {
        (self.examples(task) >> self.state.tasks[task].failures.halved).max(1)
    }

    fn name(&self, task: usize) -> &'a str {
        &self.corpus.tasks[task].name
    }

    pub(super) fn every_task_failed(&self) -> bool {
        (0..self.corpus.tasks.len()).all(|task| self.order.state(task) == State::Failed)
    }

    /// Conflicts of access, of which none but stale gradients can be where commits wait for all gradients.
    pub(super) fn schedule_end(&self) -> ScheduleEnd {
        let counts = self.trainer.host.quanta.counts();
        let stale = self.order.counts().stale;
        ScheduleEnd { write_write: counts.write_write, read_write: counts.read_write, stale }
    }

    /// How each task came out of a run that ended so.
    pub(super) fn task_ends(&self, end: End) -> Vec<TaskEnd> {
        let state = |task: usize| match self.order.state(task) {
            State::Pending if self.order.is_waiting(task) => "waiting",
            State::Pending if end != End::Interrupted => State::Done.name(),
            other => other.name(),
        };
        let task_end = |(number, task): (usize, &crate::train::checkpoint::TaskState)| TaskEnd {
            task: task.name.clone(),
            state: state(number),
            rounds: task.taken,
            rounds_lost: task.failures.lost,
            retries: task.failures.retries,
            rollbacks: task.failures.rollbacks,
            micro_batch: self.micro_batch(number),
            deadlines_met: self.deadlines.of(number).map(|[met, _]| met),
            deadlines_missed: self.deadlines.of(number).map(|[_, missed]| missed),
            last_error: task.failures.last_error.clone(),
        };
        self.state.tasks.iter().enumerate().map(task_end).collect()
    }

    /// An error that names the tasks that have failed, if any has.
    pub fn check_tasks(&self) -> Result<(), Stopped> {
        let failed: Vec<String> = (0..self.corpus.tasks.len())
            .filter(|&task| self.order.state(task) == State::Failed)
            .map(|task| {
                let why = self.state.tasks[task].failures.last_error.as_deref().unwrap_or("no reason known");
                format!("{} ({why})", self.corpus.tasks[task].name)
            })
            .collect();
        if failed.is_empty() {
            return Ok(());
        }
        Err(Stopped(format!("{} of {} tasks failed: {}", failed.len(), self.corpus.tasks.len(), failed.join(", "))))
    }
}
