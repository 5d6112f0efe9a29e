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
pub mod feedback;
pub mod fuse;
pub mod graph;
pub mod log;
pub mod order;
pub mod policy;
pub mod queue;
pub mod random;
pub mod retry;
pub mod sampler;
pub mod straggler;
pub mod synchronous;
pub mod task;
pub mod time_sliced;
pub mod wait;

pub use policy::Policy;

/// Time since the start, in nanoseconds of whatever clock the caller keeps.
pub type Nanos = u64;
