//! The shortest period first (Liu & Layland, JACM 1973); tasks without one share the server's time by weight.

use super::Policy;
use crate::schedule::deadlines::late_under_rms;

pub static POLICY: Policy = Policy {
    name: "rms",
    key: |task| task.deadline.map(|_| task.period),
    by_weight: false,
    serves_oldest: false,
    late: late_under_rms,
};
