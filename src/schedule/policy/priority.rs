//! The highest priority first; the oldest job has a server's share.

use super::{Policy, never_late};

pub static POLICY: Policy = Policy {
    name: "priority",
    // Flips the order and the sign bit: the largest i64 becomes 0.
    key: |task| Some(!(task.priority as u64 ^ (1 << 63))),
    by_weight: false,
    serves_oldest: true,
    late: never_late,
};
