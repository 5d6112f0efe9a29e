//! In the order of becoming ready.

use super::{Policy, never_late};

pub static POLICY: Policy =
    Policy { name: "round_robin", key: |task| Some(task.ticket), by_weight: false, serves_oldest: false, late: never_late };
