//! The file `taskloom simulate` reads: synthetic tasks, their costs, arrivals and faults.
//!
//! The same machinery as for a run's configuration: every error at once, each at its line and column.

use std::collections::BTreeMap;
use std::path::Path;

use super::diagnostic::{Diagnostic, Errors};
use super::keys::{Bounds, Kind, YEAR_MS};
use super::suggest::nearest;
use super::table::table;
use super::{defaults, shape, source};
use crate::choices::choices;
use crate::schedule::Policy;
use crate::schedule::access::OnStale;

/// Most tasks of a workload, and quanta of all of them together, of its sweep as many again: two times are kept of each.
pub const MOST_TASKS: usize = 1_000_000;
pub const MOST_QUANTA: u64 = 1_000_000;
/// Pairs of a task and one it depends on.
const MOST_EDGES: usize = 10_000_000;

const TASKS: i64 = MOST_TASKS as i64;
const QUANTA: i64 = MOST_QUANTA as i64;
const MILLIS: Bounds = Bounds::NON_NEGATIVE.up_to(YEAR_MS);
const SOME_MILLIS: Bounds = Bounds::POSITIVE.up_to(YEAR_MS);
const FACTOR: Bounds = Bounds::POSITIVE.up_to(1e6);
const BLOCKS: i64 = 64;

table! {
    /// Synthetic tasks, and how they are scheduled.
    pub struct Workload = WORKLOAD {
        schedule: Schedule = {};
        memory: Memory = {};
        sweep: Option<Sweep> = none;
        tasks: BTreeMap<String, Task> = {};
    }
}

table! {
    /// Who runs when.
    pub struct Schedule = SCHEDULE {
        /// Of costs, arrivals and faults.
        seed: u64 = 42 in 0..=i64::MAX;
        /// Whether tasks commit one by one.
        mode: String = "time_sliced" in Kind::one_of(["time_sliced", "synchronous"]);
        /// Order of ready tasks.
        policy: &'static Policy = "round_robin";
        /// Quanta in flight at most.
        lanes: usize = 1 in 1..=1024;
        /// Time of tasks that the policy would pass over.
        server_share: f64 = 0.05 in Bounds::UNIT_OPEN;
        /// Blocks of shared parameters.
        blocks: usize = 1 in 1..=BLOCKS;
        /// Time of a synchronous commit.
        commit_ms: f64 = 1.0 in MILLIS;
        /// Commits of a block that a gradient may miss.
        max_staleness: u32 = 4294967295 in 0..=u32::MAX as i64;
        /// What becomes of a staler one.
        on_stale: OnStale = "recompute";
        /// Failures in a row before a task has failed.
        max_retries: u32 = 3 in 0..=1000;
        /// Wait after the first failure; doubles.
        retry_base_ms: f64 = 5000.0 in MILLIS;
        /// Longest wait.
        retry_cap_ms: f64 = 60000.0 in MILLIS;
    }
}

table! {
    /// Bytes of the device.
    pub struct Memory = MEMORY {
        /// What may be reserved; 0 means no limit.
        device: u64 = 0 in Kind::Bytes;
        /// Reserved from the start.
        shared: u64 = 0 in Kind::Bytes;
        /// Micro-batches may be halved.
        split: bool = true;
    }
}

table! {
    /// Runs the workload again with other numbers of tasks.
    pub struct Sweep = SWEEP {
        /// Tasks in all, in their proportions.
        concurrency: Vec<usize> = [10, 50, 200] in Kind::list(1..=TASKS);
    }
}

table! {
    /// One table per class of equal tasks.
    pub struct Task = TASK {
        /// Equal tasks of this class.
        count: usize = 1 in 1..=TASKS;
        /// Work of each.
        quanta: u64 = 100 in 1..=QUANTA;
        /// Planned time of a quantum.
        cost_ms: f64 = required in SOME_MILLIS;
        /// Uniform noise of the time, as a share of it.
        spread: f64 = 0.0 in Bounds::UNIT_OPEN;
        /// Share of quanta that take `tail_factor` times as long.
        tail_share: f64 = 0.0 in Bounds::UNIT;
        /// See `tail_share`.
        tail_factor: f64 = 10.0 in FACTOR;
        /// When quanta become due.
        arrival: Arrival = "closed";
        /// `closed`: from the end of a quantum to the next.
        think_ms: f64 = 0.0 in MILLIS;
        /// `poisson` and `bursty`: mean time between arrivals.
        gap_ms: f64 = 100.0 in SOME_MILLIS;
        /// `bursty`: quanta due at once.
        burst: u64 = 10 in 1..=QUANTA;
        /// `periodic`: when the first is due.
        offset_ms: f64 = 0.0 in MILLIS;
        /// `trace`: when each is due.
        at_ms: Vec<f64> = [] in Kind::list(MILLIS);
        /// Share of the time under `weighted`.
        weight: f64 = 1.0 in Bounds::POSITIVE;
        /// The larger goes first under `priority`.
        priority: i64 = 0 in -1_000_000..=1_000_000;
        /// Least time between quanta due; makes the task a deadline task.
        period_ms: Option<f64> = none in SOME_MILLIS;
        /// From being due to the end; the period when absent.
        deadline_ms: Option<f64> = none in SOME_MILLIS;
        /// Synchronous: present every so many rounds.
        period: u64 = 1 in 1..=QUANTA;
        /// Share of quanta that commit; the others read.
        write_share: f64 = 0.5 in Bounds::UNIT;
        /// Blocks read and written; empty means all.
        blocks: Vec<usize> = [] in Kind::list(0..=BLOCKS - 1);
        /// Bytes kept from admission to the end.
        persistent: u64 = 0 in Kind::Bytes;
        /// Bytes of a quantum beside them.
        scratch: u64 = 0 in Kind::Bytes;
        /// Bytes of both at most; 0 means no limit.
        memory: u64 = 0 in Kind::Bytes;
        /// Classes that must be done before.
        depends_on: Vec<String> = [];
        /// Latency from which a quantum counts as timed out; 0 means never.
        timeout_ms: f64 = 0.0 in MILLIS;
        faults: Faults = {};
    }
}

table! {
    /// What goes wrong, as probabilities of a quantum.
    pub struct Faults = FAULTS {
        /// An allocation fails.
        out_of_memory: f64 = 0.0 in Bounds::UNIT;
        /// A loss is NaN.
        not_finite: f64 = 0.0 in Bounds::UNIT;
        /// Whoever computes dies.
        crash: f64 = 0.0 in Bounds::UNIT;
        /// The quantum takes `stall_factor` times as long.
        stall: f64 = 0.0 in Bounds::UNIT;
        /// See `stall`.
        stall_factor: f64 = 10.0 in FACTOR;
    }
}

choices! {
    pub enum Arrival {
        Closed = "closed",
        Poisson = "poisson",
        Bursty = "bursty",
        Periodic = "periodic",
        Trace = "trace",
    }
}

impl Workload {
    /// Tasks of each class, in the classes' order; with `concurrency` so many in all, in their proportions, but one of each at
    /// least.
    pub fn counts(&self, concurrency: Option<usize>) -> Vec<usize> {
        let total: usize = self.tasks.values().map(|task| task.count).sum();
        let share = |all: usize, count: usize| ((all * count) as f64 / total as f64).round().max(1.0) as usize;
        self.tasks.values().map(|task| concurrency.map_or(task.count, |all| share(all, task.count))).collect()
    }

    /// Why so many tasks, after simulations of `quanta` in all, are too many to simulate, if they are; else adds their quanta.
    fn excess(&self, counts: &[usize], quanta: &mut u64) -> Option<String> {
        let with_counts = || self.tasks.values().zip(counts);
        let tasks: usize = counts.iter().sum();
        *quanta += with_counts().map(|(task, &count)| count as u64 * task.quanta).sum::<u64>();
        let of_class = |name: &String| self.tasks.keys().position(|other| other == name).map_or(0, |class| counts[class]);
        let edges: usize = with_counts().map(|(task, &count)| count * task.depends_on.iter().map(of_class).sum::<usize>()).sum();
        let found = [
            (tasks as u64, MOST_TASKS as u64, "tasks"),
            (*quanta, MOST_QUANTA, "quanta of all tasks together"),
            (edges as u64, MOST_EDGES as u64, "pairs of a task and one it depends on"),
        ];
        let &(found, most, what) = found.iter().find(|(found, most, _)| found > most)?;
        Some(format!("makes {found} {what}; at most {most} can be simulated"))
    }
}

/// Reads a workload, then `sets` (the texts given to `--set`).
pub fn load(path: &Path, sets: &[String]) -> Result<Workload, Errors> {
    let source::Gathered { mut tree, mut errors, .. } = source::gather(path, sets);
    errors.extend(shape::check(&mut tree, &WORKLOAD));
    let place = tree.place().clone();
    defaults::fill("", &mut tree, &WORKLOAD, &place, &mut errors);
    if !errors.is_empty() {
        return Err(Errors::new(errors));
    }
    let at = |key: &str| tree.get(key).map_or_else(|| place.clone(), |node| node.place().clone());
    let workload: Workload = tree.to_toml().try_into().map_err(|error: toml::de::Error| {
        // A key takes what its field does not.
        Errors::new(vec![Diagnostic::new(place.clone(), "", format!("a bug in taskloom: {}", error.message()))])
    })?;
    if workload.tasks.is_empty() {
        errors.push(Diagnostic::new(place.clone(), "tasks", "there is no task: add a [tasks.NAME]"));
    }
    for (name, task) in &workload.tasks {
        let error = |key: &str, message: String| {
            let key = format!("tasks.{}.{key}", super::tree::quote_key(name));
            Diagnostic::new(at(&key), key, message)
        };
        for parent in task.depends_on.iter().filter(|parent| !workload.tasks.contains_key(*parent)) {
            let unknown = error("depends_on", format!("there is no task `{parent}`"));
            let near = nearest(parent, workload.tasks.keys().map(String::as_str));
            errors.push(near.iter().fold(unknown, |error, near| error.help(format!("did you mean `{near}`?"))));
        }
        for block in task.blocks.iter().filter(|&&block| block >= workload.schedule.blocks) {
            errors.push(error("blocks", format!("there is no block {block}: schedule.blocks is {}", workload.schedule.blocks)));
        }
        if task.arrival == Arrival::Trace && task.at_ms.is_empty() {
            errors.push(error("arrival", "is \"trace\", but `at_ms` is empty".to_owned()));
        }
        if task.at_ms.windows(2).any(|pair| pair[0] > pair[1]) {
            errors.push(error("at_ms", "is not in order".to_owned()));
        }
        if task.arrival == Arrival::Periodic && task.period_ms.is_none() {
            errors.push(error("arrival", "is \"periodic\", but there is no `period_ms`".to_owned()));
        }
    }
    let mut quanta = 0;
    if let Some(excess) = workload.excess(&workload.counts(None), &mut quanta) {
        errors.push(Diagnostic::new(at("tasks"), "tasks", excess).help("lower `count` or `quanta`"));
    }
    quanta = 0;
    for &concurrency in workload.sweep.iter().flat_map(|sweep| &sweep.concurrency) {
        if let Some(excess) = workload.excess(&workload.counts(Some(concurrency)), &mut quanta) {
            let error = Diagnostic::new(at("sweep.concurrency"), "sweep.concurrency", format!("{concurrency} {excess}"));
            errors.push(error.help("lower it, or `quanta`"));
        }
    }
    if errors.is_empty() { Ok(workload) } else { Err(Errors::new(errors)) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Folder, locations};
    use super::*;

    fn load_text(text: &str) -> Result<Workload, Errors> {
        let folder = Folder::new(&[("main.toml", text)]);
        load(&folder.path("main.toml"), &[])
    }

    #[test]
    fn what_is_not_written_has_its_default() {
        let workload = load_text("[sweep]\n[tasks.a]\ncost_ms = 2\nperiod_ms = 5\ndeadline_ms = 4\n").unwrap();
        assert_eq!((workload.tasks["a"].cost_ms, workload.schedule.lanes), (2.0, 1));
        assert_eq!(workload.sweep.unwrap().concurrency, [10, 50, 200]);
    }

    #[test]
    fn every_error_is_found_at_its_place() {
        let text = "[schedule]\npolcy = \"edf\"\n[tasks.a]\ncost_ms = 0\nweight = -1\n[tasks.b]\nperiod_ms = 0\n";
        let errors = load_text(text).unwrap_err();
        let expected = [
            (2, 1, "schedule.polcy"),
            (4, 11, "tasks.a.cost_ms"),
            (5, 10, "tasks.a.weight"),
            (6, 8, "tasks.b.cost_ms"),
            (7, 13, "tasks.b.period_ms"),
        ];
        assert_eq!(locations(&errors), expected);
    }

    #[test]
    fn names_and_blocks_must_be_there() {
        let text =
            "[tasks.train]\ncost_ms = 1\n[tasks.b]\ncost_ms = 1\ndepends_on = \"trian\"\nblocks = [1]\narrival = \"trace\"\n";
        let errors = load_text(text).unwrap_err();
        let keys: Vec<&str> = errors.diagnostics().iter().map(|error| error.key.as_str()).collect();
        assert_eq!(keys, ["tasks.b.depends_on", "tasks.b.blocks", "tasks.b.arrival"], "{errors}");
        assert!(errors.to_string().contains("did you mean `train`?"));
    }
}
