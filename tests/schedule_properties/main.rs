//! What the scheduler promises.

mod executors;
mod holds;
mod promises;
mod workloads;
