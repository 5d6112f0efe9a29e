//! Geometric loss strategy: descend on the geometric mean of the losses.
//!
//! Chennupati et al., "MultiNet++", CVPRW 2019. With M = (prod_t L_t)^(1/T), c_t = M / (T L_t). No parameters. A loss
//! that is not positive has no geometric mean: then the factors are equal, visibly.

use super::registry::Descriptor;
use super::{Balancer, Factors, Losses, not_positive};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "gls",
    formula: "c_t = M/(T L_t), M = geometric mean of the losses",
    params: &[],
    reference: "Chennupati et al., MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy, CVPRW 2019",
    build: |_, _| Box::new(Gls),
};

struct Gls;

impl Balancer for Gls {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn factors(&mut self, round: &Losses) -> Factors {
        let count = round.losses.len();
        if let Some(fault) = not_positive(DESCRIPTOR.name, round.losses) {
            return Factors::equal(count, fault);
        }
        // Through logarithms: the product of many losses leaves the range of f64.
        let mean_log = round.losses.iter().map(|loss| loss.ln()).sum::<f64>() / count as f64;
        Factors::checked(round.losses.iter().map(|loss| (mean_log - loss.ln()).exp() / count as f64).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::methods::Status;
    use super::super::testing::{LOSSES, assert_close, build, round};
    use serde_json::json;

    /// TorchJD 0.18, GeometricMean().
    #[test]
    fn factors_match_the_reference() {
        let factors = build("gls", json!({})).factors(&round(&LOSSES[0])).factors;
        assert_close(&factors, &[1.0 / 3.0, 2.0 / 3.0, 1.0 / 6.0]);
    }

    #[test]
    fn a_loss_of_zero_is_visible() {
        let found = build("gls", json!({})).factors(&round(&[1.0, 0.0, 1.0]));
        assert_eq!(found.factors, [1.0, 1.0, 1.0]);
        assert!(matches!(found.status, Status::Fallback(_)));
    }
}
