//! The training loop.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::config::{Config, Objective};
use crate::data::Corpus;
use crate::data::cursor::{Cursor, ExampleStream};
use crate::failure::Stopped;
use crate::machine::Device;
use crate::machine::memory::Memory;
use crate::observe::Observer;
use crate::observe::console::Console;
use crate::observe::event::BufferBytes;
use crate::observe::run_trace::RunTrace;
use crate::observe::trace::Kind;
use crate::schedule::order::{Order, Record, Scheduled};
use crate::train::ahead::Ahead;
use crate::train::batch::Share;
use crate::train::checkpoint::{self, State};
use crate::train::deadlines::Deadlines;
use crate::train::evaluate::Evaluation;
use crate::train::evaluator::Evaluator;
use crate::train::faults::InjectedFaults;
use crate::train::isolation::{Attempt, Done, Work};
use crate::train::plan::{Plan, interval};
use crate::train::prefix::keep_states;
use crate::train::rates::rates;
use crate::train::round::Trainer;
use crate::train::run_folder::RunFolder;
use crate::train::shapes::fuse;
use crate::train::state::{check_counts, fresh_state};
pub use crate::train::state::{check_data, scale_data, unscaled_tasks};
use crate::train::writer::Writer;

/// A run in progress.
pub struct Run<'a> {
    pub(super) config: &'a Config,
    pub(super) corpus: &'a Corpus,
    pub(super) plan: &'a Plan,
    pub(super) folder: &'a RunFolder,
    pub(super) observer: Observer,
    pub(super) trace: Option<RunTrace>,
    pub(super) stop: &'a AtomicBool,
    /// Stops as if it were interrupted then, once so many rounds are done.
    pub until: Option<u64>,
    pub trainer: Trainer,
    pub(super) state: State,
    pub(super) streams: Vec<ExampleStream>,
    /// Whose round is next, and how the tasks stand.
    pub(super) order: Order,
    pub(super) objective: Objective,
    pub(super) started: Instant,
    pub(super) buffers: Vec<BufferBytes>,
    /// By round, lines about times that an earlier process measured after the checkpoint this one began with.
    pub(super) recorded: BTreeMap<u64, Value>,
    pub(super) deadlines: Deadlines,
    /// Rounds that the last step went on by.
    advanced: u64,
    /// Something happened since the newest checkpoint.
    pub(super) unsaved: bool,
    pub(super) writer: Writer,
    /// The evaluation that `state` says is under way.
    pub(super) evaluator: Option<Evaluator>,
    /// Of a run that has ended: the splits' scores with its best parameters, or its last ones if none were kept.
    pub scores: Vec<Evaluation>,
}

/// A run's trainer in its memory.
pub struct Built {
    pub trainer: Trainer,
    buffers: Vec<BufferBytes>,
}

impl Built {
    /// Takes all the memory of a run, so that one without enough of it fails before it has a folder.
    pub fn new(config: &Config, corpus: &Corpus, plan: &Plan) -> Result<Self> {
        let driver = Device::select(&config.run.device)?.open()?;
        // With a device the budget is the device's; what the host then maps and never writes takes no memory.
        let mut memory = if driver.is_some() { Memory::mapped() } else { Memory::new(config.memory.device) };
        let mut trainer = plan.trainer(config, &mut memory)?;
        let mut buffers = memory.buffers().to_vec();
        if let Some(driver) = driver {
            buffers = plan.buffers(config)?;
            trainer.accelerate(driver, &plan.limits, &plan.start)?;
            trainer.load_data(corpus)?;
        }
        let buffers = buffers.into_iter().map(|(name, bytes)| BufferBytes { name, bytes }).collect();
        Ok(Self { trainer, buffers })
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Finished,
    StoppedEarly,
    Interrupted,
}

impl<'a> Run<'a> {
    pub fn new(
        config: &'a Config,
        corpus: &'a Corpus,
        plan: &'a Plan,
        built: Built,
        folder: &'a RunFolder,
        mut observer: Observer,
        stop: &'a AtomicBool,
    ) -> Result<Self> {
        let Built { trainer, buffers } = built;
        let objective = Objective::parse(&config.best.metric).context("best.metric cannot be read")?;
        let state = fresh_state(corpus, &trainer);
        let started = Instant::now();
        let names: Vec<String> = corpus.tasks.iter().map(|task| task.name.clone()).collect();
        let rounds = config.observe.trace_rounds;
        let trace = (rounds > 0).then(|| RunTrace::open(&folder.trace(), &names, trainer.tracks(), rounds)).transpose()?;
        let recorded = observer.take_measured();
        let mut run = Self {
            config,
            corpus,
            plan,
            folder,
            observer,
            trace,
            stop,
            until: None,
            trainer,
            state,
            streams: Vec::new(),
            order: plan.turns.order()?,
            objective,
            started,
            buffers,
            recorded,
            deadlines: Deadlines::new(corpus.tasks.iter().map(|task| task.settings.deadline_ms)),
            advanced: 1,
            unsaved: true,
            writer: Writer::default(),
            evaluator: None,
            scores: Vec::new(),
        };
        run.streams = run.example_streams();
        Ok(run)
    }

    /// Goes back to where a checkpoint stands; [`check_data`] has to hold.
    pub fn restore(&mut self, path: &Path, state: State) -> Result<()> {
        check_counts(self.config, self.corpus, self.plan, &state)
            .and_then(|()| checkpoint::read_tensors(path, &mut self.trainer, &state))
            .with_context(|| format!("cannot resume from {}", path.display()))?;
        self.trainer.send_parameters()?;
        self.state = state;
        self.unsaved = false;
        self.streams = self.example_streams();
        let reached = self.state.reached();
        let record = Record { incidents: &self.state.incidents, finished: &reached, took: &self.state.took };
        self.advanced = self.order.replay(self.state.round, record, &mut |_, _| {});
        Ok(())
    }

    /// Keeps what a frozen prefix makes of the texts, if the run should; false if interrupted. The parameters have to be those that the
    /// run goes on with.
    pub fn keep_prefix(&mut self, folder: Option<&Path>, console: &Console) -> Result<bool> {
        keep_states(&mut self.trainer, self.corpus, &self.config.eval, folder, console, self.stop)
    }

    /// Each task's examples, from where it stands.
    fn example_streams(&self) -> Vec<ExampleStream> {
        let tasks = self.corpus.tasks.iter().zip(&self.state.tasks).enumerate();
        let seed = self.config.run.seed;
        tasks.map(|(number, (task, state))| ExampleStream::new(seed, number as u32, task.train.len(), state.cursor)).collect()
    }

    /// Trains to the end, to an early stop, or to an interruption. Configuration and data are known to be good by now, so
    /// that every error is a [`Stopped`].
    pub fn run(&mut self) -> Result<End> {
        let end = self.train();
        // What is being written is kept, however training ended.
        let written = self.finish_writing().and_then(|()| self.clean_up());
        let ended = end.and_then(|end| written.map(|()| end)).and_then(|end| {
            let seconds = self.started.elapsed().as_secs_f64();
            if end != End::Interrupted {
                self.scores = self.final_scores()?;
            }
            self.report(end, seconds)?;
            self.keep_final(end)?;
            Ok(end)
        });
        ended.map_err(|error| {
            let known = error.chain().any(|cause| cause.is::<Stopped>());
            if known { error } else { Stopped(format!("{error:#}")).into() }
        })
    }

    fn train(&mut self) -> Result<End> {
        self.clean_up()?;
        self.announce()?;
        self.report_restored()?;
        self.catch_up()?;
        let fuse = fuse(self.config, self.plan.limits.present);
        thread::scope(|scope| {
            // Faults are injected where a batch is packed in its round.
            let ahead = self.trainer.is_accelerated() && self.config.faults.is_empty();
            let start = || Ahead::start(scope, self.corpus, self.plan.spec.clone(), fuse, self.example_streams());
            let mut ahead = ahead.then(start);
            self.rounds(ahead.as_mut())
        })
    }

    fn rounds(&mut self, mut ahead: Option<&mut Ahead>) -> Result<End> {
        let end = loop {
            if self.state.evaluation_due && !self.evaluate()? {
                break End::Interrupted;
            }
            if self.state.stopped_early {
                break End::StoppedEarly;
            }
            if self.is_finished() {
                break End::Finished;
            }
            self.checkpoint_if_due()?;
            // A round that the device has begun is the next one in any case.
            if (self.stop.load(Ordering::Relaxed) || self.is_past(self.state.round)) && !self.trainer.is_ahead() {
                break End::Interrupted;
            }
            self.round(ahead.as_deref_mut())?;
            self.evaluate_some()?;
            self.report_written()?;
        };
        if self.unsaved {
            self.checkpoint(end == End::Interrupted)?;
        }
        Ok(end)
    }

    pub(super) fn is_finished(&self) -> bool {
        self.state.round >= self.plan.rounds || self.order.is_over()
    }

    /// Whether so many rounds are all that is asked for.
    fn is_past(&self, rounds: u64) -> bool {
        self.until.is_some_and(|until| rounds >= until)
    }

    /// One round: draw, compute, commit; or say why not. While it is computed, those that should follow are packed, and the next is laid
    /// out.
    fn round(&mut self, mut ahead: Option<&mut Ahead>) -> Result<()> {
        let clock = Instant::now();
        let (round, corpus, config, plan) = (self.state.round, self.corpus, self.config, self.plan);
        let start = self.now();
        let before: Vec<Cursor> = self.state.tasks.iter().map(|task| task.cursor).collect();
        self.start_deadlines();
        let scheduled = self.order.schedule(plan.rounds - round);
        let shares = self.draw(&scheduled.micro_batches);
        let present: Vec<usize> = shares.iter().map(|share| share.task).collect();
        let named = |name: &str| present.iter().copied().find(|&task| corpus.tasks[task].name == name);
        let injected = InjectedFaults::of(&config.faults, &mut self.state.faults, round, named);
        let commits = self.state.commits;
        let rates = |round, before| rates(&config.optimizer, round, plan.rounds, commits + before);
        let purpose = self.trainer.purpose(config.run.seed, round);
        let foreseen = ahead.as_deref_mut().is_some_and(|ahead| ahead.foresaw(&shares, purpose));
        let packed = self.trainer.expected(foreseen);
        if let Some(ahead) = ahead.as_deref_mut() {
            self.foresee(ahead, &scheduled, purpose);
            self.trainer.expect(ahead.take_next(), self.is_followed(&scheduled).then(|| rates(round + 1, 1)));
        }
        let fuse = fuse(config, plan.limits.present);
        let work = Work { corpus, fuse, purpose, rates: &rates, injected: &injected, packed: Cell::new(packed) };
        let traced = self.trace.as_ref().is_some_and(RunTrace::writes_rounds);
        let shared_out = plan.turns.is_measured && scheduled.commits.len() > 1;
        self.trainer.time_quanta(traced || shared_out || self.adapts());
        let attempt = work.attempt(&mut self.trainer, shares, &scheduled.commits)?;
        if let Some(ahead) = ahead.filter(|_| !attempt.is_whole()) {
            ahead.forget();
        }
        let times = Self::times(&scheduled, &attempt, clock.elapsed());
        let committed: Vec<(&Done, Duration)> =
            attempt.done.iter().map(|done| (done, times[(done.round - round) as usize])).collect();
        for &(done, time) in &committed {
            self.committed(done, rates(done.round, 0).lr, time)?;
        }
        self.trace_round(round, start, &attempt)?;
        let measured = self.measure(&scheduled, &attempt, &times)?;
        for (round, measured) in (round..).zip(&measured) {
            self.adapt(round, measured)?;
        }
        self.settle(&scheduled, &before, &attempt, &measured)?;
        self.advanced = scheduled.commits.len().max(1) as u64;
        self.state.round += self.advanced;
        self.report_reweighted()?;
        self.end_deadlines(&committed)?;
        self.unsaved = true;
        self.state.evaluation_due = self.is_finished() || self.is_due(interval(&config.eval.every, plan.rounds_per_epoch));
        Ok(())
    }

    /// Whether what happens every so many rounds happens after the last step.
    pub(super) fn is_due(&self, every: Option<u64>) -> bool {
        is_between(every, self.state.round.saturating_sub(self.advanced), self.state.round)
    }

    /// Whether the round that is foreseen follows this one for certain where this one commits: nothing reads the parameters between
    /// them, and nothing that was measured decides who is next.
    fn is_followed(&self, scheduled: &Scheduled) -> bool {
        let (round, epoch, schedule) = (self.state.round, self.plan.rounds_per_epoch, &self.config.schedule);
        let due = |every| is_between(interval(every, epoch), round, round + 1);
        schedule.depth > 1
            && round + 1 < self.plan.rounds
            && scheduled.commits.len() == 1
            && schedule.max_staleness == 0
            && schedule.feedback.is_none()
            && !self.plan.turns.is_measured
            && !self.adapts()
            && self.evaluator.as_ref().is_none_or(|own| own.outlasts(self.corpus, self.config.eval.batches_per_round))
            && !due(&self.config.eval.every)
            && !due(&self.config.checkpoint.every)
            && !self.stop.load(Ordering::Relaxed)
            && !self.is_past(round + 1)
    }

    /// The trace's clock.
    pub(super) fn now(&self) -> f64 {
        self.trace.as_ref().map_or(0.0, RunTrace::now)
    }

    fn trace_round(&mut self, round: u64, start: f64, attempt: &Attempt) -> Result<()> {
        let Some(trace) = &mut self.trace else { return Ok(()) };
        let failed: Vec<(usize, &str)> = attempt.failures.iter().map(|failure| (failure.task, failure.why.as_str())).collect();
        trace.round(round, start, attempt.computed.as_ref(), &failed)
    }

    pub(super) fn after_rounds(&self) -> String {
        format!("after {} rounds", self.state.round)
    }

    pub(super) fn trace_since(&mut self, kind: Kind, start: f64) -> Result<()> {
        let note = self.after_rounds();
        self.trace.as_mut().map_or(Ok(()), |trace| trace.add(kind, start, note))
    }

    /// The examples of each present task; moves the cursors.
    fn draw(&mut self, micro_batches: &[usize]) -> Vec<Share> {
        let mut streams = std::mem::take(&mut self.streams);
        let shares = self.shares(&mut streams, micro_batches);
        self.streams = streams;
        for &Share { task, .. } in &shares {
            self.state.tasks[task].cursor = self.streams[task].cursor();
        }
        shares
    }
}

/// Whether something that happens after every so many rounds does so after the first of two counts of them, up to the second.
fn is_between(every: Option<u64>, first: u64, last: u64) -> bool {
    every.is_some_and(|every| last / every > first / every)
}
