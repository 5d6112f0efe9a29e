//! What a simulation is made of: tasks with synthetic costs, arrivals and faults.

use crate::schedule::Nanos;
use crate::schedule::access::Blocks;
use crate::schedule::dispatcher::Settings;
use crate::schedule::random::Random;
use crate::schedule::task::Spec;

/// Whether tasks commit together or one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// In rounds: every task present brings one gradient, then all are committed at once.
    Synchronous,
    /// Every task commits for itself.
    #[default]
    TimeSliced,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Synchronous => "synchronous",
            Mode::TimeSliced => "time_sliced",
        }
    }
}

/// A simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    pub settings: Settings,
    pub mode: Mode,
    /// Synchronous: time of the commit that ends a round.
    pub commit: Nanos,
    /// Names of the classes that latencies are reported by.
    pub classes: Vec<String>,
    pub tasks: Vec<SimTask>,
    /// Blocks of parameters.
    pub blocks: usize,
}

/// One synthetic task.
#[derive(Clone, Debug, PartialEq)]
pub struct SimTask {
    pub spec: Spec,
    pub class: usize,
    /// Work to do.
    pub quanta: u64,
    pub cost: Cost,
    pub arrival: Arrival,
    /// Share of the quanta that commit; the others read.
    pub write_share: f64,
    pub blocks: Blocks,
    pub faults: Faults,
    /// Latency from which a job counts as timed out; 0: never.
    pub timeout: Nanos,
    /// Synchronous: present every so many rounds.
    pub every: u64,
}

/// How long quanta take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Planned time.
    pub base: Nanos,
    /// Uniform noise around it, as a share of it.
    pub spread: f64,
    /// Share of the quanta that take `tail_factor` times as long.
    pub tail_share: f64,
    pub tail_factor: f64,
}

impl Cost {
    pub fn fixed(base: Nanos) -> Self {
        Self { base, spread: 0.0, tail_share: 0.0, tail_factor: 1.0 }
    }

    pub fn draw(&self, random: &mut Random) -> Nanos {
        let mut cost = self.base as f64;
        if self.spread > 0.0 {
            cost *= 1.0 + self.spread * (2.0 * random.uniform() - 1.0);
        }
        if random.chance(self.tail_share) {
            cost *= self.tail_factor;
        }
        (cost as Nanos).max(1)
    }

    /// Longest a quantum can take without a fault.
    pub fn most(&self) -> Nanos {
        let tail = if self.tail_share > 0.0 { self.tail_factor.max(1.0) } else { 1.0 };
        (self.base as f64 * (1.0 + self.spread) * tail).ceil() as Nanos
    }
}

/// When jobs become due.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrival {
    /// The next one `think` after the last is done.
    Closed { think: Nanos },
    /// Independent of each other, at this mean distance.
    Poisson { gap: Nanos },
    /// `size` at once, the bursts independent of each other at this mean distance.
    Bursty { gap: Nanos, size: u64 },
    /// Every so often, the first at `offset`.
    Periodic { period: Nanos, offset: Nanos },
    /// At these times.
    Trace(Vec<Nanos>),
}

/// Probabilities, per quantum, of what goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    pub out_of_memory: f64,
    pub not_finite: f64,
    pub crash: f64,
    /// A quantum that takes `stall_factor` times as long.
    pub stall: f64,
    pub stall_factor: f64,
}
