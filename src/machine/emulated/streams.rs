//! Queues of the emulated device, and what waits in them.

use std::collections::VecDeque;
use std::ops::Range;

use super::clock::Clock;
use super::machine::Moment;
use crate::machine::driver::{Address, EventId, StagingId};

#[derive(Clone, Debug)]
pub enum Work {
    CopyIn { to: Address, from: StagingId, bytes: Range<usize> },
    CopyOut { to: StagingId, from: Address, bytes: usize },
    Copy { to: Address, from: Address, bytes: usize },
    Fill { address: Address, byte: u8, bytes: usize },
    Launch { kernel: &'static str, grid: [u32; 3], threads: u32, shared: u32, arguments: Vec<u64> },
    Record(EventId),
    Wait(EventId),
}

impl Work {
    pub fn staging(&self) -> Option<StagingId> {
        match self {
            Self::CopyIn { from, .. } => Some(*from),
            Self::CopyOut { to, .. } => Some(*to),
            _ => None,
        }
    }

    /// Virtual nanoseconds that it takes: one for each thread of a launch, one for every 16 bytes of a copy, none for an event.
    pub fn nanos(&self) -> u64 {
        match self {
            Self::CopyIn { bytes, .. } => bytes.len().div_ceil(16) as u64,
            Self::CopyOut { bytes, .. } | Self::Copy { bytes, .. } | Self::Fill { bytes, .. } => bytes.div_ceil(16) as u64,
            Self::Launch { grid, threads, .. } => grid.iter().chain([threads]).map(|&size| u64::from(size)).product(),
            Self::Record(_) | Self::Wait(_) => 0,
        }
    }
}

/// An operation in its stream's queue.
pub struct Queued {
    pub work: Work,
    pub moment: Moment,
}

#[derive(Default)]
pub struct Stream {
    pub queue: VecDeque<Queued>,
    /// Operations given to it so far.
    pub given: u32,
    /// Operations done.
    pub done: u32,
    /// What its next operation is known to follow.
    pub clock: Clock,
}

#[derive(Default)]
pub struct Event {
    pub timed: bool,
    /// It was recorded last in a capture, and is no timer: a card knows nothing of it then.
    pub captured: bool,
    /// The clock of its stream when it was recorded last, if it was.
    pub recorded: Option<Clock>,
}
