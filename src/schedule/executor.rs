//! Where quanta run: the lanes of a processor on its own clock, or a simulated machine on a virtual one.

use std::marker::PhantomData;

use super::Nanos;
use super::retry::Status;

/// A quantum that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub lane: usize,
    /// Time it took.
    pub cost: Nanos,
    pub status: Status,
}

/// Runs what a [`super::dispatcher::Dispatcher`] starts, on the lane it names. A lane has one quantum at a time, and memory of its
/// own: what a quantum may use was reserved before, so that none can exceed it.
pub trait Executor {
    /// What a quantum consists of.
    type Work;

    /// Time since it began.
    fn now(&self) -> Nanos;

    /// Begins a quantum on a lane that is free.
    fn submit(&mut self, lane: usize, work: Self::Work);

    /// The quantum in flight that ends first, once it has ended, but none that ends after `until`: then it is `until` now. None at
    /// once if there is nothing to wait for.
    fn wait(&mut self, until: Option<Nanos>) -> Option<Ended>;
}

/// Another executor's lanes, whose work `make` makes of this one's.
pub struct Making<'e, E, W, F: FnMut(W) -> E::Work>
where
    E: Executor,
{
    lanes: &'e mut E,
    make: F,
    work: PhantomData<W>,
}

impl<'e, E: Executor, W, F: FnMut(W) -> E::Work> Making<'e, E, W, F> {
    pub fn new(lanes: &'e mut E, make: F) -> Self {
        Self { lanes, make, work: PhantomData }
    }
}

impl<E: Executor, W, F: FnMut(W) -> E::Work> Executor for Making<'_, E, W, F> {
    type Work = W;

    fn now(&self) -> Nanos {
        self.lanes.now()
    }

    fn submit(&mut self, lane: usize, work: W) {
        self.lanes.submit(lane, (self.make)(work));
    }

    fn wait(&mut self, until: Option<Nanos>) -> Option<Ended> {
        self.lanes.wait(until)
    }
}
