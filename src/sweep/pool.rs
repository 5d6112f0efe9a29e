//! Which runs are at work: no more than the cores and the memory of the machine allow.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use super::child::{Need, Outcome, Running, log_file};
use super::folder::SweepFolder;
use super::run::Options;
use super::trial::{Trial, rounds_at_work};

/// A run at work.
struct AtWork {
    running: Running,
    need: Need,
    until: Option<u64>,
}

/// A run that was at work.
pub struct Finished {
    pub number: usize,
    pub outcome: Outcome,
    /// Rounds that it was started for; none: to its end.
    pub until: Option<u64>,
}

/// Runs at work, by their number.
pub struct Pool<'a> {
    folder: &'a SweepFolder,
    config: &'a Path,
    /// Runs at a time, and the bytes of all of them.
    limit: usize,
    memory: u64,
    threads: Option<usize>,
    running: BTreeMap<usize, AtWork>,
}

impl<'a> Pool<'a> {
    pub fn new(folder: &'a SweepFolder, config: &'a Path, options: &Options) -> Self {
        let Options { limit, memory, threads, .. } = *options;
        Self { folder, config, limit, memory, threads, running: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    pub fn has(&self, number: usize) -> bool {
        self.running.contains_key(&number)
    }

    pub fn has_place(&self) -> bool {
        self.running.len() < self.limit
    }

    /// Whether a run of so many bytes can start now.
    pub fn has_room(&self, bytes: u64) -> bool {
        let taken: u64 = self.running.values().map(|run| run.need.bytes).sum();
        self.has_place() && taken.saturating_add(bytes) <= self.memory
    }

    pub fn start(&mut self, number: usize, trial: &Trial, need: Need, until: Option<u64>) -> Result<()> {
        let log = log_file(self.folder.path(), trial)?;
        let mut trial = trial.clone();
        trial.sets.extend(self.threads.map(|threads| format!("run.threads={threads}")));
        let running = Running::start(self.config, &self.folder.run(&trial), &trial, log, until)?;
        self.running.insert(number, AtWork { running, need, until });
        Ok(())
    }

    /// Those that have come to their end since.
    pub fn finished(&mut self) -> Result<Vec<Finished>> {
        let mut found = Vec::new();
        for (&number, run) in &mut self.running {
            let until = run.until;
            found.extend(run.running.outcome()?.map(|outcome| Finished { number, outcome, until }));
        }
        found.iter().for_each(|finished| drop(self.running.remove(&finished.number)));
        Ok(found)
    }

    pub fn interrupt(&self) -> Result<()> {
        self.running.values().try_for_each(|run| run.running.interrupt())
    }

    /// A line for each run at work.
    pub fn lines(&self, trials: &[Trial]) -> Vec<String> {
        let line = |(&number, run): (&usize, &AtWork)| {
            let trial = &trials[number];
            let rounds = rounds_at_work(&self.folder.run(trial)).unwrap_or(0);
            format!("{:<28} {rounds:>8} of {} rounds", trial.name, run.need.rounds)
        };
        self.running.iter().map(line).collect()
    }
}

/// An error of the sweep ends its runs as an interruption does.
impl Drop for Pool<'_> {
    fn drop(&mut self) {
        let _ = self.interrupt();
        self.running.values_mut().for_each(|run| run.running.wait());
    }
}
