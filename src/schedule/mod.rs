//! Who takes part in a round, and who computes together: pure functions of counters.

pub mod deal;
pub mod fuse;
