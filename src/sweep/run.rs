//! The sweep itself: starts runs until nothing is left to do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use super::child::{Need, Outcome, plan};
use super::folder::SweepFolder;
use super::halving::{Next, Score, Standing, next};
use super::points::Point;
use super::pool::{Finished, Pool};
use super::ranking::{Ranked, Row, Status, rank, score};
use super::summary::Summary;
use super::trial::{Progress, Trial, is_busy};
use crate::config::sweep::Sweep;
use crate::machine::memory::human_bytes;
use crate::observe::board::Board;

const TICK: Duration = Duration::from_millis(100);

/// What a sweep needs to know beside its file.
pub struct Options<'a> {
    pub points: &'a [Point],
    pub trials: Vec<Trial>,
    /// The form of `best.metric` that points are ranked by, and whether it is the better the smaller it is.
    pub objective: String,
    pub is_error: bool,
    /// Runs at a time, and their bytes.
    pub limit: usize,
    pub memory: u64,
    /// Of each run, where it is not for the configuration to say.
    pub threads: Option<usize>,
    /// Bytes of a run count; not so where they are a device's.
    pub counts_bytes: bool,
    /// One of several parts: there is no summary of the whole.
    pub is_shard: bool,
    pub stop: &'a AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Finished,
    Interrupted,
}

/// Runs all that is left to run; the points in their order.
pub fn run(sweep: &Sweep, folder: &SweepFolder, options: &Options) -> Result<(End, Vec<Ranked>)> {
    let mut state = State::new(sweep, folder, options);
    let mut pool = Pool::new(folder, &sweep.config, options);
    let left = state.next().points.len();
    let runs = options.trials.len();
    state.board.say(&format!("{runs} runs of {} points, {left} points to do, {} at a time", options.points.len(), options.limit));
    let mut interrupted = false;
    loop {
        if options.stop.load(Ordering::Relaxed) && !interrupted {
            interrupted = true;
            state.board.say("interrupted: the runs at work write a checkpoint");
            pool.interrupt()?;
        }
        for finished in pool.finished()? {
            state.take(finished)?;
        }
        let waits = !interrupted && state.start(&mut pool)?;
        if pool.is_empty() && !waits {
            break;
        }
        state.show(&pool);
        thread::sleep(TICK);
    }
    state.board.show(&[]);
    let points = state.ranked();
    if !options.is_shard {
        state.write(&points)?;
    }
    Ok((if interrupted { End::Interrupted } else { End::Finished }, points))
}

struct State<'a> {
    sweep: &'a Sweep,
    folder: &'a SweepFolder,
    options: &'a Options<'a>,
    /// By trial.
    progress: Vec<Progress>,
    failures: Vec<Option<String>>,
    needs: Vec<Option<Need>>,
    board: Board,
}

impl<'a> State<'a> {
    fn new(sweep: &'a Sweep, folder: &'a SweepFolder, options: &'a Options<'a>) -> Self {
        let progress: Vec<Progress> = options.trials.iter().map(|trial| Progress::read(&folder.run(trial))).collect();
        let failures = progress.iter().map(|progress| progress.error.clone()).collect();
        Self { sweep, folder, options, failures, needs: vec![None; progress.len()], progress, board: Board::new() }
    }

    /// Numbers of a point's runs.
    fn of_point(&self, point: usize) -> impl Iterator<Item = usize> + '_ {
        let own = move |(number, trial): (usize, &Trial)| (trial.point == point).then_some(number);
        self.options.trials.iter().enumerate().filter_map(own)
    }

    fn is_over(&self, number: usize) -> bool {
        self.progress[number].has_ended || self.failures[number].is_some()
    }

    fn next(&self) -> Next {
        let rounds = |number: usize| if self.is_over(number) { u64::MAX } else { self.progress[number].rounds };
        let scores: Vec<_> = (0..self.options.points.len())
            .map(|point| move |rounds: u64| -> Score { score(self.of_point(point).map(|number| self.value(number, rounds))) })
            .collect();
        let standings: Vec<Standing> = scores
            .iter()
            .enumerate()
            .map(|(point, score)| Standing { rounds: self.of_point(point).map(rounds).min().unwrap_or(u64::MAX), score })
            .collect();
        next(self.sweep.halving.as_ref(), &standings, self.options.is_error)
    }

    fn value(&self, number: usize, rounds: u64) -> Option<f64> {
        if self.failures[number].is_some() { None } else { self.progress[number].value(rounds) }
    }

    /// Starts what there is place for; whether something waits that is not at work here.
    fn start(&mut self, pool: &mut Pool) -> Result<bool> {
        let Next { points, until, .. } = self.next();
        let runs: Vec<usize> = points.iter().flat_map(|&point| self.of_point(point)).collect();
        let mut waits = false;
        for number in runs {
            let is_short = |progress: &Progress| until.is_none_or(|until| progress.rounds < until);
            if pool.has(number) || self.is_over(number) || !is_short(&self.progress[number]) {
                continue;
            }
            waits = true;
            if !pool.has_place() {
                break;
            }
            let trial = &self.options.trials[number];
            if is_busy(&self.folder.run(trial)) {
                continue;
            }
            // Another process may have worked in it.
            self.reread(number);
            if self.is_over(number) || !is_short(&self.progress[number]) {
                continue;
            }
            let Some(need) = self.need(number)? else { continue };
            if !pool.has_room(need.bytes) {
                break;
            }
            let verb = if self.progress[number].has_begun { "resumes" } else { "starts" };
            self.board.say(&format!("{} {verb}{}", trial.name, self.described(trial)));
            pool.start(number, trial, need, until)?;
        }
        Ok(waits)
    }

    fn reread(&mut self, number: usize) {
        self.progress[number] = Progress::read(&self.folder.run(&self.options.trials[number]));
        if self.progress[number].has_ended {
            self.failures[number] = self.progress[number].error.clone();
        }
    }

    /// What the run takes; none if it cannot be, which is its failure.
    fn need(&mut self, number: usize) -> Result<Option<Need>> {
        let point = self.options.trials[number].point;
        if self.needs[number].is_none() {
            // Seeds change no sizes.
            let known = self.of_point(point).find_map(|other| self.needs[other]);
            self.needs[number] = known;
        }
        if self.needs[number].is_none() {
            let planned = plan(&self.sweep.config, &self.options.trials[number])?;
            let counted = planned.map(|need| Need { bytes: if self.options.counts_bytes { need.bytes } else { 0 }, ..need });
            match counted {
                Ok(need) if need.bytes > self.options.memory => {
                    let (needs, has) = (human_bytes(need.bytes), human_bytes(self.options.memory));
                    self.fail(number, format!("needs {needs}, the sweep has {has} (`memory`)"))?;
                }
                Ok(need) => self.needs[number] = Some(need),
                Err(why) => self.fail(number, why)?,
            }
        }
        Ok(self.needs[number])
    }

    fn fail(&mut self, number: usize, why: String) -> Result<()> {
        self.board.say(&format!("{} failed: {why}", self.options.trials[number].name));
        self.failures[number] = Some(why);
        Ok(())
    }

    /// A process has ended.
    fn take(&mut self, finished: Finished) -> Result<()> {
        let Finished { number, outcome, until } = finished;
        self.reread(number);
        let progress = &self.progress[number];
        let is_at_rung = until.is_some_and(|until| progress.rounds >= until);
        let name = &self.options.trials[number].name;
        match outcome {
            Outcome::Failed(why) => self.fail(number, why)?,
            Outcome::Interrupted if is_at_rung => {
                self.board.say(&format!("{name} is at its rung after {} rounds", progress.rounds))
            }
            Outcome::Interrupted if self.options.stop.load(Ordering::Relaxed) => {
                self.board.say(&format!("{name} has a checkpoint after {} rounds", progress.rounds));
            }
            Outcome::Interrupted => self.fail(number, "was interrupted by somebody else".to_owned())?,
            Outcome::Ended if !progress.has_ended => self.fail(number, "ended without its summary.json".to_owned())?,
            Outcome::Ended => {
                let value = progress.value(u64::MAX).map_or("nothing".to_owned(), |value| format!("{value:.4}"));
                self.board.say(&format!("{name} is done after {} rounds: {} {value}", progress.rounds, self.options.objective));
            }
        }
        self.check_scores(until)
    }

    /// A rung without any value says nothing about who is better.
    fn check_scores(&self, until: Option<u64>) -> Result<()> {
        let Some(rounds) = until else { return Ok(()) };
        let mut there = (0..self.progress.len()).filter(|&number| self.failures[number].is_none());
        let all_reached = there.clone().all(|number| self.is_over(number) || self.progress[number].rounds >= rounds);
        if all_reached && there.clone().next().is_some() && there.all(|number| self.value(number, rounds).is_none()) {
            bail!(
                "halving: no run has a value of {} within its first {rounds} rounds: set eval.every to at most {rounds}, and give \
                 the tasks a dev split",
                self.options.objective
            );
        }
        Ok(())
    }

    fn described(&self, trial: &Trial) -> String {
        let values = self.options.points.iter().find(|point| point.number == trial.point).map(Point::sets).unwrap_or_default();
        if values.is_empty() { String::new() } else { format!(": {}", values.join(" ")) }
    }

    fn show(&mut self, pool: &Pool) {
        if !self.board.is_terminal() {
            return;
        }
        let stopped: Vec<usize> = self.next().stopped.into_iter().map(|(point, _)| point).collect();
        let is_stopped = |number: usize| stopped.contains(&self.options.trials[number].point);
        let over = (0..self.progress.len()).filter(|&number| self.is_over(number) || is_stopped(number)).count();
        let failed = self.failures.iter().flatten().count();
        let head = format!("{over} of {} runs are over, {failed} of them failed", self.progress.len());
        let best = self.ranked().into_iter().filter(|point| point.score.mean.is_some()).take(3);
        let best = best.map(|point| {
            let values = point.point.sets().join(" ");
            format!("  best so far: {:.4}  {values}", point.score.mean.unwrap_or_default())
        });
        let lines: Vec<String> = [head].into_iter().chain(best).chain(pool.lines(&self.options.trials)).collect();
        self.board.show(&lines);
    }

    fn ranked(&self) -> Vec<Ranked> {
        let stopped = self.next().stopped;
        let row = |number: usize, rung: Option<u64>| {
            let status = match (&self.failures[number], rung) {
                (Some(why), _) => Status::Failed(why.clone()),
                (None, _) if self.progress[number].has_ended => Status::Done,
                (None, Some(rounds)) => Status::Stopped(rounds),
                (None, None) => Status::Unfinished,
            };
            let (trial, progress) = (self.options.trials[number].clone(), self.progress[number].clone());
            Row { trial, status, progress, value: self.value(number, rung.unwrap_or(u64::MAX)) }
        };
        let points = self.options.points.iter().filter_map(|point| {
            let rung = stopped.iter().find(|(number, _)| *number == point.number).map(|(_, rounds)| *rounds);
            let rows: Vec<Row> = self.of_point(point.number).map(|number| row(number, rung)).collect();
            (!rows.is_empty()).then(|| Ranked::new(point.clone(), rows))
        });
        rank(points.collect(), self.options.is_error)
    }

    fn write(&self, points: &[Ranked]) -> Result<()> {
        Summary { objective: &self.options.objective, points }.write(self.folder)
    }
}
