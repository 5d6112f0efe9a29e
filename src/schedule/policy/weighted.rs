//! Time in proportion to weights: stride scheduling (Waldspurger & Weihl, MIT-LCS-TM-528, 1995).

use super::{Policy, never_late};

pub static POLICY: Policy =
    Policy { name: "weighted", key: |task| Some(task.pass), by_weight: true, serves_oldest: false, late: never_late };
