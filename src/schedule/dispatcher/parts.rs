//! What goes into a dispatcher and comes out of it.

use crate::schedule::access::{Blocks, OnStale, Operation};
use crate::schedule::budget::refusal;
use crate::schedule::graph;
use crate::schedule::retry::Retry;
use crate::schedule::task::Spec;
use crate::schedule::wait::WaitReason;
use crate::schedule::{Nanos, Policy, policy};

/// What holds for all tasks.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub policy: &'static Policy,
    pub lanes: usize,
    /// Share of the time of tasks the policy would pass over.
    pub server_share: f64,
    /// Bytes of the device; 0: no limit.
    pub device: u64,
    /// Of these, taken from the start.
    pub shared: u64,
    /// Commits of a block that a gradient may miss.
    pub max_staleness: u32,
    pub on_stale: OnStale,
    pub retry: Retry,
    pub seed: u64,
    /// Micro-batches may be halved.
    pub split: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: &policy::round_robin::POLICY,
            lanes: 1,
            server_share: 0.05,
            device: 0,
            shared: 0,
            max_staleness: u32::MAX,
            on_stale: OnStale::Recompute,
            retry: Retry::default(),
            seed: 0,
            split: true,
        }
    }
}

/// One quantum's worth of work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Job {
    pub operation: Operation,
    pub blocks: Blocks,
    /// When it became due: latencies and deadlines count from here.
    pub release: Nanos,
    /// Planned time.
    pub cost: Nanos,
    /// Bytes of scratch.
    pub bytes: u64,
}

/// A quantum that has begun.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Started {
    pub task: usize,
    pub lane: usize,
    pub job: Job,
    /// If it did not begin when it could.
    pub waited_for: WaitReason,
}

/// What the caller has to do after a quantum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing is left of the job: submit the next one, or [`Dispatcher::finish`] the task.
    Free { straggler: bool },
    /// The same job is tried again after `wait`; with `halve`, change it by [`Dispatcher::resize`] first.
    Again { trim: bool, halve: bool, wait: Nanos },
    /// Bring the task back to its last commit, then call [`Dispatcher::restored`].
    Restore,
}

/// Counts over the whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub quanta: u64,
    pub deadline_misses: u64,
    pub retries: u64,
    pub rollbacks: u64,
    pub halved: u64,
    pub stragglers: u64,
    pub write_write: u64,
    pub read_write: u64,
    /// Gradients that had missed more commits than they may.
    pub causal: u64,
    /// Gradients of training that were committed although they had missed commits, as `max_staleness` allows.
    pub stale: u64,
}

/// Refuses what cannot be scheduled, with the numbers.
pub(super) fn check(settings: &Settings, specs: &[Spec]) -> Result<(), String> {
    if settings.lanes == 0 {
        return Err("at least one lane is needed".to_owned());
    }
    if let Some(spec) = specs.iter().find(|spec| !(spec.weight.is_finite() && spec.weight > 0.0)) {
        return Err(format!("task {} has weight {}: it must be above 0", spec.name, spec.weight));
    }
    let parents: Vec<Vec<usize>> = specs.iter().map(|spec| spec.parents.clone()).collect();
    if let Some(cycle) = graph::cycles(&parents).first() {
        let names: Vec<&str> = cycle.iter().map(|&task| specs[task].name.as_str()).collect();
        return Err(format!("tasks wait for each other: {}", names.join(" -> ")));
    }
    if let Some(refusal) = specs.iter().find_map(|spec| refusal(spec, settings.device, settings.shared)) {
        return Err(refusal);
    }
    if specs.iter().map(|spec| u128::from(spec.persistent) + u128::from(spec.scratch)).sum::<u128>() > u128::from(u64::MAX / 2) {
        return Err("all tasks together need more bytes than can be counted: lower `persistent` or `scratch`".to_owned());
    }
    (settings.policy.late)(specs, settings.server_share).map_or(Ok(()), |late| Err(late.message))
}
