//! Who runs when, on which lane, inside which bytes: a deterministic state machine over a clock it is given.
//!
//! [`dispatcher::Dispatcher`] owns all state. Whoever executes (the training loop, the simulator) hands it jobs, asks for the
//! next quantum, has an [`executor::Executor`] run it, and reports how it ended. It never reads a clock and never allocates device memory, so that
//! the same calls always have the same answers. [`deal`] and [`fuse`] say who takes part in a round and who computes together.

pub mod access;
pub mod budget;
pub mod deadlines;
pub mod dispatcher;
pub mod executor;
pub mod fuse;
pub mod graph;
pub mod log;
pub mod order;
pub mod queue;
pub mod random;
pub mod retry;
pub mod sampler;
pub mod straggler;
pub mod synchronous;
pub mod task;
pub mod time_sliced;

use serde::Deserialize;

/// Time since the start, in nanoseconds of whatever clock the caller keeps.
pub type Nanos = u64;

/// In which order ready tasks run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// In the order of becoming ready.
    #[default]
    RoundRobin,
    /// Time in proportion to weights: stride scheduling (Waldspurger & Weihl, MIT-LCS-TM-528, 1995).
    Weighted,
    /// The highest priority first; the oldest job has a server's share.
    Priority,
    /// The shortest period first (Liu & Layland, JACM 1973); tasks without one share the server's time by weight.
    Rms,
    /// The nearest deadline first; tasks without one share the server's time by weight.
    Edf,
}

impl Policy {
    pub const NAMES: [(&'static str, Policy); 5] = [
        ("round_robin", Policy::RoundRobin),
        ("weighted", Policy::Weighted),
        ("priority", Policy::Priority),
        ("rms", Policy::Rms),
        ("edf", Policy::Edf),
    ];

    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, policy)| *policy == self).map_or("", |(name, _)| name)
    }
}
