//! A machine whose quanta take as long as they are said to.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::schedule::Nanos;
use crate::schedule::executor::{Ended, Executor};
use crate::schedule::retry::Status;

/// What a quantum will come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// The number behind the last task stands for the commit of a synchronous round.
    pub task: usize,
    /// Time it takes.
    pub cost: Nanos,
    /// How it ends.
    pub status: Status,
}

/// Lanes over a virtual clock, which moves only by [`Executor::wait`].
#[derive(Default)]
pub struct Machine {
    now: Nanos,
    /// By end, then in the order of submission.
    ends: BinaryHeap<Reverse<(Nanos, u64, u32)>>,
    submitted: u64,
    /// By lane.
    running: Vec<Option<Drawn>>,
}

impl Machine {
    pub fn new(lanes: usize) -> Self {
        Self { running: vec![None; lanes], ..Self::default() }
    }
}

impl Executor for Machine {
    type Work = Drawn;

    fn now(&self) -> Nanos {
        self.now
    }

    fn submit(&mut self, lane: usize, work: Drawn) {
        self.running[lane] = Some(work);
        self.ends.push(Reverse((self.now.saturating_add(work.cost), self.submitted, lane as u32)));
        self.submitted += 1;
    }

    fn wait(&mut self, until: Option<Nanos>) -> Option<Ended> {
        let first = self.ends.peek().map(|&Reverse((end, ..))| end).filter(|&end| until.is_none_or(|until| end <= until));
        let Some(end) = first else {
            self.now = self.now.max(until.unwrap_or(0));
            return None;
        };
        self.now = self.now.max(end);
        let Reverse((_, _, lane)) = self.ends.pop()?;
        let Drawn { cost, status, .. } = self.running[lane as usize].take()?;
        Some(Ended { lane: lane as usize, cost, status })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quanta_end_in_their_order_and_the_clock_goes_along() {
        let mut machine = Machine::new(2);
        let work = |cost| Drawn { task: 0, cost, status: Status::Ok };
        assert_eq!((machine.wait(None), machine.now()), (None, 0));
        machine.submit(0, work(30));
        machine.submit(1, work(10));
        assert_eq!((machine.wait(Some(5)), machine.now()), (None, 5));
        assert_eq!(machine.wait(Some(10)), Some(Ended { lane: 1, cost: 10, status: Status::Ok }));
        machine.submit(1, work(20));
        let lanes = [(); 2].map(|()| machine.wait(None).expect("two are running").lane);
        assert_eq!((lanes, machine.now()), ([0, 1], 30));
    }
}
