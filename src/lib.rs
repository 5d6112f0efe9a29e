//! Taskloom trains one shared encoder on many tasks at once and resolves their conflicts over gradients, memory and time.
//!
//! Read [`train::run`] first, then [`train::round`]: the loop and one round of it. Rooms and who may import whom are
//! checked by `tests/layers.rs`.

pub mod choices;
pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod failure;
pub mod files;
pub mod limits;
pub mod machine;
pub mod model;
pub mod observe;
pub mod ops;
pub mod output;
pub mod random;
pub mod report;
pub mod schedule;
pub mod simulate;
pub mod suggest;
pub mod surgery;
pub mod sweep;
pub mod train;
