//! The file `taskloom simulate` reads: synthetic tasks, their costs, arrivals and faults.
//!
//! The same machinery as for a run's configuration: every error at once, each at its line and column.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::diagnostic::{Diagnostic, Errors};
use super::keys::kind::Bounds;
use super::keys::{Kind, Section, YEAR_MS, key, optional, required};
use super::suggest::nearest;
use super::{defaults, shape, source};

/// Most tasks of a workload, and quanta of all of them together, of its sweep as many again: two times are kept of each.
pub const MOST_TASKS: usize = 1_000_000;
pub const MOST_QUANTA: u64 = 1_000_000;
/// Pairs of a task and one it depends on.
const MOST_EDGES: usize = 10_000_000;

const TASKS: i64 = MOST_TASKS as i64;
const QUANTA: i64 = MOST_QUANTA as i64;
const MILLIS: Kind = Kind::Float(Bounds::NON_NEGATIVE.up_to(YEAR_MS));
const SOME_MILLIS: Kind = Kind::Float(Bounds::POSITIVE.up_to(YEAR_MS));
const FACTOR: Kind = Kind::Float(Bounds::POSITIVE.up_to(1e6));
const BLOCKS: i64 = 64;

static WORKLOAD: Section = Section {
    keys: &[
        key("schedule", Kind::Section(&SCHEDULE), "{}", "Who runs when."),
        key("memory", Kind::Section(&MEMORY), "{}", "Bytes of the device."),
        optional("sweep", Kind::Section(&SWEEP), "Runs the workload again with other numbers of tasks."),
        key("tasks", Kind::Sections(&TASK), "{}", "One table per class of equal tasks."),
    ],
    later: &[],
};

static SCHEDULE: Section = Section {
    keys: &[
        key("seed", Kind::Int(0, i64::MAX), "42", "Of costs, arrivals and faults."),
        key("mode", Kind::one_of(&["time_sliced", "synchronous"]), "\"time_sliced\"", "Whether tasks commit one by one."),
        key(
            "policy",
            Kind::one_of(&["round_robin", "weighted", "priority", "rms", "edf"]),
            "\"round_robin\"",
            "Order of ready tasks.",
        ),
        key("lanes", Kind::Int(1, 1024), "1", "Quanta in flight at most."),
        key("server_share", Kind::Float(Bounds::UNIT_OPEN), "0.05", "Time of tasks that the policy would pass over."),
        key("blocks", Kind::Int(1, BLOCKS), "1", "Blocks of shared parameters."),
        key("commit_ms", MILLIS, "1.0", "Time of a synchronous commit."),
        key("max_staleness", Kind::Int(0, u32::MAX as i64), "4294967295", "Commits of a block that a gradient may miss."),
        key("on_stale", Kind::one_of(&["recompute", "allow", "refuse"]), "\"recompute\"", "What becomes of a staler one."),
        key("max_retries", Kind::Int(0, 1000), "3", "Failures in a row before a task has failed."),
        key("retry_base_ms", MILLIS, "5000.0", "Wait after the first failure; doubles."),
        key("retry_cap_ms", MILLIS, "60000.0", "Longest wait."),
    ],
    later: &[],
};

static MEMORY: Section = Section {
    keys: &[
        key("device", Kind::Bytes, "0", "What may be reserved; 0 means no limit."),
        key("shared", Kind::Bytes, "0", "Reserved from the start."),
        key("split", Kind::Bool, "true", "Micro-batches may be halved."),
    ],
    later: &[],
};

static SWEEP: Section = Section {
    keys: &[key("concurrency", Kind::List(&Kind::Int(1, TASKS)), "[10, 50, 200]", "Tasks in all, in their proportions.")],
    later: &[],
};

static TASK: Section = Section {
    keys: &[
        key("count", Kind::Int(1, TASKS), "1", "Equal tasks of this class."),
        key("quanta", Kind::Int(1, QUANTA), "100", "Work of each."),
        required("cost_ms", SOME_MILLIS, "Planned time of a quantum."),
        key("spread", Kind::Float(Bounds::UNIT_OPEN), "0.0", "Uniform noise of the time, as a share of it."),
        key("tail_share", Kind::Float(Bounds::UNIT), "0.0", "Share of quanta that take `tail_factor` times as long."),
        key("tail_factor", FACTOR, "10.0", "See `tail_share`."),
        key(
            "arrival",
            Kind::one_of(&["closed", "poisson", "bursty", "periodic", "trace"]),
            "\"closed\"",
            "When quanta become due.",
        ),
        key("think_ms", MILLIS, "0.0", "`closed`: from the end of a quantum to the next."),
        key("gap_ms", SOME_MILLIS, "100.0", "`poisson` and `bursty`: mean time between arrivals."),
        key("burst", Kind::Int(1, QUANTA), "10", "`bursty`: quanta due at once."),
        key("offset_ms", MILLIS, "0.0", "`periodic`: when the first is due."),
        key("at_ms", Kind::List(&MILLIS), "[]", "`trace`: when each is due."),
        key("weight", Kind::Float(Bounds::POSITIVE), "1.0", "Share of the time under `weighted`."),
        key("priority", Kind::Int(-1_000_000, 1_000_000), "0", "The larger goes first under `priority`."),
        optional("period_ms", SOME_MILLIS, "Least time between quanta due; makes the task a deadline task."),
        optional("deadline_ms", SOME_MILLIS, "From being due to the end; the period when absent."),
        key("period", Kind::Int(1, QUANTA), "1", "Synchronous: present every so many rounds."),
        key("write_share", Kind::Float(Bounds::UNIT), "0.5", "Share of quanta that commit; the others read."),
        key("blocks", Kind::List(&Kind::Int(0, BLOCKS - 1)), "[]", "Blocks read and written; empty means all."),
        key("persistent", Kind::Bytes, "0", "Bytes kept from admission to the end."),
        key("scratch", Kind::Bytes, "0", "Bytes of a quantum beside them."),
        key("memory", Kind::Bytes, "0", "Bytes of both at most; 0 means no limit."),
        key("depends_on", Kind::List(&Kind::Text), "[]", "Classes that must be done before."),
        key("timeout_ms", MILLIS, "0.0", "Latency from which a quantum counts as timed out; 0 means never."),
        key("faults", Kind::Section(&FAULTS), "{}", "What goes wrong, as probabilities of a quantum."),
    ],
    later: &[],
};

static FAULTS: Section = Section {
    keys: &[
        key("out_of_memory", Kind::Float(Bounds::UNIT), "0.0", "An allocation fails."),
        key("not_finite", Kind::Float(Bounds::UNIT), "0.0", "A loss is NaN."),
        key("crash", Kind::Float(Bounds::UNIT), "0.0", "Whoever computes dies."),
        key("stall", Kind::Float(Bounds::UNIT), "0.0", "The quantum takes `stall_factor` times as long."),
        key("stall_factor", FACTOR, "10.0", "See `stall`."),
    ],
    later: &[],
};

#[derive(Clone, Debug, Deserialize)]
pub struct Workload {
    pub schedule: Schedule,
    pub memory: Memory,
    pub sweep: Option<Sweep>,
    pub tasks: BTreeMap<String, Task>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Schedule {
    pub seed: u64,
    pub mode: String,
    pub policy: String,
    pub lanes: usize,
    pub server_share: f64,
    pub blocks: usize,
    pub commit_ms: f64,
    pub max_staleness: u32,
    pub on_stale: String,
    pub max_retries: u32,
    pub retry_base_ms: f64,
    pub retry_cap_ms: f64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Memory {
    pub device: u64,
    pub shared: u64,
    pub split: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Sweep {
    pub concurrency: Vec<usize>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Task {
    pub count: usize,
    pub quanta: u64,
    pub cost_ms: f64,
    pub spread: f64,
    pub tail_share: f64,
    pub tail_factor: f64,
    pub arrival: String,
    pub think_ms: f64,
    pub gap_ms: f64,
    pub burst: u64,
    pub offset_ms: f64,
    pub at_ms: Vec<f64>,
    pub weight: f64,
    pub priority: i64,
    pub period_ms: Option<f64>,
    pub deadline_ms: Option<f64>,
    pub period: u64,
    pub write_share: f64,
    pub blocks: Vec<usize>,
    pub persistent: u64,
    pub scratch: u64,
    pub memory: u64,
    pub depends_on: Vec<String>,
    pub timeout_ms: f64,
    pub faults: Faults,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Faults {
    pub out_of_memory: f64,
    pub not_finite: f64,
    pub crash: f64,
    pub stall: f64,
    pub stall_factor: f64,
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
        // The key table and the structs disagree; a test holds them together.
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
        if task.arrival == "trace" && task.at_ms.is_empty() {
            errors.push(error("arrival", "is \"trace\", but `at_ms` is empty".to_owned()));
        }
        if task.at_ms.windows(2).any(|pair| pair[0] > pair[1]) {
            errors.push(error("at_ms", "is not in order".to_owned()));
        }
        if task.arrival == "periodic" && task.period_ms.is_none() {
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
    fn every_key_has_a_field() {
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
