//! Which tasks run when, what memory they have, and what goes wrong on purpose.

use super::COUNT;
use crate::choices::choices;
use crate::config::keys::{Bounds, Kind, YEAR_MS};
use crate::config::table::{FieldType, table};
use crate::schedule::{Policy, policy};

const SECONDS: Bounds = Bounds::NON_NEGATIVE.up_to(YEAR_MS / 1e3);

table! {
    /// Which tasks run when.
    pub struct Schedule = SCHEDULE {
        /// All tasks present in a round commit together, or each round belongs to one task (the least memory).
        mode: ScheduleMode = "synchronous";
        /// Whose round is next: in turn; by the sampler's shares; by `priority`; by period or deadline (`deadline_ms`).
        policy: &'static Policy = "round_robin", only("schedule.mode", ["time_sliced"]);
        /// Share of the time of tasks that `priority`, `rms` or `edf` would pass over.
        server_share: f64 = 0.05 in Bounds::UNIT_OPEN, only("schedule.policy", ["priority", "rms", "edf"]);
        /// The clock that policies and retries go by: what rounds are planned to take (`example_us`), so that equal
        /// configurations have equal orders; or what each took on this machine, which metrics.jsonl and checkpoints record
        /// (lines `measured`), so that a resumed run goes on alike. `auto`: `measured` under `weighted`, whose shares are of
        /// real time, else `planned`.
        clock: ScheduleClock = "auto", only("schedule.mode", ["time_sliced"]);
        /// Planned time of one example.
        example_us: f64 = 100.0 in Bounds::POSITIVE.up_to(1e9);
        /// Commits of other tasks that a task's gradient may miss: so many rounds more are begun before the first of them
        /// commits, and their gradients are computed together, on `lanes` lanes or fused. What each misses follows from the
        /// order alone.
        max_staleness: usize = 0 in 0..=63, only("schedule.mode", ["time_sliced"]);
        feedback: Option<Feedback> = none, only("schedule.policy", ["weighted"]);
        /// Rounds that a device is given before the host has read the first of them, where it solves them by itself (methods
        /// that docs/methods.md calls solved on the device, with equal balancing) and nothing comes between them; 1: the host
        /// reads each before it gives the next. The result is the same to the bit.
        depth: usize = 2 in 1..=2;
        /// Failures in a row after which a task is given up, and with it those that depend on it; the others go on.
        max_retries: u32 = 3 in 0..=1_000_000;
        /// Seconds of planned time until a task whose reader died is tried again; doubles with each further failure in a row.
        retry_base: f64 = 5.0 in SECONDS;
        /// Longest such wait in seconds, up to a tenth of it on top.
        retry_cap: f64 = 60.0 in SECONDS;
        /// Fused groups of a round that are computed at the same time on the CPU: each lane has its share of the worker threads
        /// and its own scratch memory. Where `train.fuse` is 0, a round is cut into as many groups. The result is the same to
        /// the bit.
        lanes: usize = 1 in 1..=64;
    }
}

impl Schedule {
    /// Whether its clock is what rounds took.
    pub fn is_measured(&self) -> bool {
        let weighted = self.policy == &policy::weighted::POLICY;
        self.mode == ScheduleMode::TimeSliced
            && (self.clock == ScheduleClock::Measured || self.clock == ScheduleClock::Auto && weighted)
    }

    /// Time-sliced rounds that are begun before the first of them commits.
    pub fn begun(&self) -> usize {
        self.max_staleness + 1
    }
}

choices! {
    pub enum ScheduleClock { Auto = "auto", Planned = "planned", Measured = "measured" }
}

table! {
    /// Weights that follow the load, e.g. `{ every = 50 }`: after so many rounds each task's weight becomes
    /// 100 (1 - (load x time its rounds took + latency x mean time they waited for their turn)), both relative to the task with
    /// the most, within `min` and `max`.
    pub struct Feedback = FEEDBACK {
        /// Rounds between two changes.
        every: u64 = 50 in 1..=COUNT;
        /// What the time taken counts.
        load: f64 = 0.6 in Bounds::UNIT;
        /// What the time waited counts.
        latency: f64 = 0.4 in Bounds::UNIT;
        /// Least weight, so that no task is forgotten.
        min: f64 = 10.0 in Bounds::POSITIVE.up_to(100.0);
        /// Largest weight.
        max: f64 = 100.0 in Bounds::POSITIVE.up_to(100.0);
    }
}

impl Copy for Feedback {}

impl FieldType for &'static Policy {
    fn kind() -> Kind {
        Kind::one_of(policy::POLICIES.iter().map(|policy| policy.name).collect::<Vec<_>>())
    }
}

choices! {
    pub enum ScheduleMode { Synchronous = "synchronous", TimeSliced = "time_sliced" }
}

table! {
    /// Budgets in bytes.
    pub struct Memory = MEMORY {
        /// What the run's arenas may take; 0 means no limit.
        device: u64 = 0 in Kind::Bytes;
        /// What gives when the run does not fit, in this order whatever the list's. `queue`: the tasks of a round compute one
        /// after another, fewer in a fused group (the same result). `recompute`: `encoder.recompute` of a transformer (the same
        /// result). `split`: first less room for `adaptive` micro-batches to grow, then half the micro-batch and twice the
        /// accumulation (the same within rounding). All make evaluation batches smaller. Empty: the run is refused.
        on_pressure: Vec<String> = [] in Kind::list(Kind::one_of(["queue", "recompute", "split"]));
    }
}

table! {
    /// How often each task is drawn.
    pub struct Sampler = SAMPLER {
        /// By size, p ~ min(n, cap)^(1/temperature); each in turn; or by the tasks' `share`.
        kind: SamplerKind = "proportional";
        /// 1 is by size; the larger, the more even.
        temperature: f64 = 1.0 in Bounds::POSITIVE, only("sampler.kind", ["proportional"]);
        /// Examples counted per task at most; 0 means no cap.
        cap: u64 = 0 in 0..=COUNT, only("sampler.kind", ["proportional"]);
    }
}

choices! {
    pub enum SamplerKind { Proportional = "proportional", RoundRobin = "round_robin", Explicit = "explicit" }
}

table! {
    /// Failures made on purpose, to rehearse what a run does about them; each under a name of your choice.
    pub struct Fault = FAULT {
        /// The task that fails.
        task: String = required;
        /// Its gradient is not a number, an allocation fails, whoever reads for it dies, or its part takes `ms` longer.
        kind: FaultKind = required;
        /// The first round that may be hit, counted from 0.
        round: u64 = 0 in 0..=COUNT;
        /// How often it happens: each time the task takes part from that round on.
        times: u64 = 1 in 1..=COUNT;
        /// Length of a stall in milliseconds.
        ms: f64 = 100.0 in Bounds::NON_NEGATIVE.up_to(YEAR_MS), only(".kind", ["stall"]);
    }
}

choices! {
    pub enum FaultKind { NotFinite = "not_finite", OutOfMemory = "out_of_memory", Crash = "crash", Stall = "stall" }
}
