//! When a run evaluates, and what follows from it.
//!
//! Either training waits, or a copy of the parameters is evaluated a few batches after each round. Its outcome then counts after
//! the round in which the last batch was done: that depends on the data alone, so that a run is the same however long it took.

use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Result;

use crate::data::SplitName;
use crate::observe::event::Event;
use crate::observe::trace::Kind;
use crate::train::checkpoint::{self, Best, State, UnderWay};
use crate::train::evaluate::Evaluation;
use crate::train::evaluator::{Evaluator, evaluate};
use crate::train::predictor::Predictor;
use crate::train::round::Trainer;
use crate::train::run::Run;
use crate::train::writer::Written;

impl Run<'_> {
    /// Scores of dev, and of test where `eval.test` asks for it, with the run's best parameters, or its last ones if none were
    /// kept: on the host, as `eval` computes them.
    pub(super) fn final_scores(&mut self) -> Result<Vec<Evaluation>> {
        let best = self.folder.best();
        if self.state.best.is_some() && best.is_dir() {
            checkpoint::read_model(&best, &mut self.trainer.model)?;
        } else {
            self.trainer.fetch_values()?;
        }
        let splits = if self.config.eval.test { &[SplitName::Dev, SplitName::Test][..] } else { &[SplitName::Dev][..] };
        let mut scores = Vec::new();
        for &split in splits {
            scores.push(evaluate(&mut self.trainer.on_host(), self.corpus, split, self.config.eval.batch)?);
        }
        scores.retain(|scores| !scores.tasks.is_empty());
        Ok(scores)
    }

    /// The evaluation that is due: all of it, or its beginning. False if interrupted.
    pub(super) fn evaluate(&mut self) -> Result<bool> {
        // The one before ends first.
        if !self.evaluate_batches(u64::MAX)? {
            return Ok(false);
        }
        if !self.state.stopped_early {
            self.trainer.take_snapshot()?;
            self.evaluator = Some(Evaluator::new(self.corpus, SplitName::Dev, self.config.eval.batch));
            self.state.evaluation = Some(UnderWay { round: self.state.round, batches: 0 });
            let waits = self.config.eval.batches_per_round == 0 || self.is_finished();
            if waits && !self.evaluate_batches(u64::MAX)? {
                // It is due as before.
                (self.evaluator, self.state.evaluation) = (None, None);
                return Ok(false);
            }
        }
        self.state.evaluation_due = false;
        self.unsaved = true;
        Ok(true)
    }

    /// This round's batches of the evaluation under way, if there is one.
    pub(super) fn evaluate_some(&mut self) -> Result<()> {
        self.evaluate_batches(self.config.eval.batches_per_round).map(|_| ())
    }

    /// At most so many batches of the evaluation under way, then its outcome if it is done. False if interrupted, which happens
    /// only where training waits for all of it.
    fn evaluate_batches(&mut self, most: u64) -> Result<bool> {
        let (Some(mut evaluator), Some(mut under_way)) = (self.evaluator.take(), self.state.evaluation) else { return Ok(true) };
        let (start, corpus, stop) = (self.now(), self.corpus, self.stop);
        let is_stopped = || most == u64::MAX && stop.load(Ordering::Relaxed);
        let before = under_way.batches;
        self.trainer.with_snapshot(|trainer| -> Result<()> {
            while !evaluator.is_done(corpus) && under_way.batches - before < most && !is_stopped() {
                evaluator.step(trainer, corpus)?;
                under_way.batches += 1;
            }
            // Training that waits for batches uses what they are computed with.
            let most = if is_stopped() || !trainer.evaluates_beside() { 0 } else { trainer.most_under_way() };
            evaluator.collect(trainer, corpus, most)
        })?;
        self.trace_evaluation(start)?;
        self.unsaved = true;
        if evaluator.is_done(corpus) {
            self.state.evaluation = None;
            self.evaluated(under_way.round, evaluator)?;
            return Ok(true);
        }
        (self.evaluator, self.state.evaluation) = (Some(evaluator), Some(under_way));
        Ok(!is_stopped())
    }

    /// What the last batches took: as a device measured it where it computes them beside rounds, else since `start`.
    fn trace_evaluation(&mut self, start: f64) -> Result<()> {
        if !self.trainer.evaluates_beside() {
            return self.trace_since(Kind::Evaluation, start);
        }
        let (spans, lane, note) = (self.trainer.evaluated(), self.trainer.lanes(), self.after_rounds());
        let Some(trace) = &mut self.trace else { return Ok(()) };
        spans.into_iter().try_for_each(|(began, time)| trace.add_beside(Kind::Evaluation, lane, began, time, note.clone()))
    }

    /// Does again what was done of an evaluation that a checkpoint found under way.
    pub(super) fn catch_up(&mut self) -> Result<()> {
        let Some(under_way) = self.state.evaluation else { return Ok(()) };
        let mut evaluator = Evaluator::new(self.corpus, SplitName::Dev, self.config.eval.batch);
        let corpus = self.corpus;
        let mut again = |trainer: &mut Trainer| (0..under_way.batches).try_for_each(|_| evaluator.step(trainer, corpus));
        self.trainer.with_snapshot(&mut again)?;
        self.evaluator = Some(evaluator);
        Ok(())
    }

    /// Keeps the best parameters and counts towards an early stop; `round` rounds were done when they were copied.
    fn evaluated(&mut self, round: u64, evaluator: Evaluator) -> Result<()> {
        let (seconds, scores) = (evaluator.time.as_secs_f64(), evaluator.finish());
        if scores.tasks.is_empty() {
            return Ok(());
        }
        let objective = scores.objective(&self.objective);
        let is_best = self.state.best.as_ref().is_none_or(|best| objective.beats(best));
        let best = objective.value.filter(|_| is_best);
        match best {
            Some(value) => {
                self.state.best = Some(Best { value, undefined: objective.undefined, round });
                self.state.evaluations_without_best = 0;
                if self.config.best.keep {
                    self.keep_best(round)?;
                }
            }
            None => self.state.evaluations_without_best += 1,
        }
        let patience = self.config.best.patience;
        self.state.stopped_early = patience > 0 && self.state.evaluations_without_best >= patience;
        self.observer.emit(&Event::Evaluation {
            round,
            known: (self.state.round != round).then_some(self.state.round),
            scores: &scores.json(),
            objective: objective.value,
            undefined: objective.undefined,
            best: best.is_some(),
            warnings: &scores.warnings(self.corpus),
            seconds,
        })?;
        self.finish_those_at_target(&scores)
    }

    /// Writes `best/` with the parameters that were evaluated.
    fn keep_best(&mut self, round: u64) -> Result<()> {
        self.trainer.fetch_values()?;
        self.keep_states();
        let state = State { round, ..self.state.clone() };
        self.trainer.exchange();
        let best = Written::begin(self.folder.best(), round, false);
        let written = self.write(best, Instant::now(), &state, false);
        self.trainer.exchange();
        written
    }

    /// A task whose primary metric has reached its target is done.
    fn finish_those_at_target(&mut self, scores: &Evaluation) -> Result<()> {
        let (round, corpus) = (self.state.round, self.corpus);
        for (number, task) in corpus.tasks.iter().enumerate() {
            let (Some(target), Some(scores)) = (task.settings.target, scores.tasks.get(&task.name)) else { continue };
            let Some((metric, value)) = scores.all.reaches(target) else { continue };
            // One that backs off is asked again at the next evaluation.
            if self.order.finish(number) {
                self.state.tasks[number].reached = Some(round);
                let metric = metric.name();
                self.observer.emit(&Event::Target { round, task: &task.name, metric, value, target })?;
            }
        }
        Ok(())
    }

    /// What the trainer and the observer remember beside tensors, for a checkpoint.
    pub(super) fn keep_states(&mut self) {
        self.state.method_state = self.trainer.method_state();
        self.state.balancer_state = self.trainer.solver.balancer.state();
        self.state.conflicts = self.trainer.solver.ledger.state();
        self.state.events = self.observer.events();
    }
}
