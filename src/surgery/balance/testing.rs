//! What the tests of the balancers share.

use serde_json::Value;

use super::{Balancer, Losses, registry};

/// Losses of three tasks over four rounds.
pub const LOSSES: [[f64; 3]; 4] = [[1.0, 0.5, 2.0], [0.8, 0.45, 1.9], [0.7, 0.5, 1.0], [0.6, 0.4, 0.9]];

pub fn build(name: &str, params: Value) -> Box<dyn Balancer> {
    registry::build(name, params.as_object().expect("parameters are a table"), 3).expect("a valid balancer")
}

/// Round 0 of epoch 0 with all three tasks.
pub fn round(losses: &[f64; 3]) -> Losses<'_> {
    Losses { losses, tasks: &[0, 1, 2], round: 0, epoch: 0, seed: 7 }
}

/// Equal up to the rounding of a few dozen operations.
pub fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= 1e-13 * e.abs(), "{found:?} {expected:?}");
    }
}
