//! The nearest deadline first; tasks without one share the server's time by weight.

use super::Policy;
use crate::schedule::deadlines::late_under_edf;

pub static POLICY: Policy =
    Policy { name: "edf", key: |task| task.deadline, by_weight: false, serves_oldest: false, late: late_under_edf };
