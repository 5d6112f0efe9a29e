//! Uncertainty weighting: each task learns how noisy its loss is.
//!
//! Kendall, Gal & Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018. The combined loss is
//! sum_t L_t exp(-s_t) / 2 + s_t / 2, so c_t = exp(-s_t) / 2; s_t starts at 0 and follows Adam. Parameter: `lr` (0.01).

use serde_json::Value;

use super::super::methods::params::{Param, Range};
use super::adam::Adam;
use super::registry::Descriptor;
use super::{Balancer, Factors, Losses};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "uw",
    formula: "c_t = exp(-s_t)/2; s_t descends on L_t exp(-s_t)/2 + s_t/2",
    params: &[Param::number("lr", 0.01, Range::Positive, "Adam's step for the log variances s")],
    reference: "Kendall et al., Multi-Task Learning Using Uncertainty to Weigh Losses, CVPR 2018",
    build: |params, tasks| Box::new(Uw { log_variances: Adam::new(tasks, params.number("lr"), 0.0) }),
};

struct Uw {
    log_variances: Adam,
}

impl Balancer for Uw {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn factors(&mut self, round: &Losses) -> Factors {
        let factors: Vec<f64> = round.tasks.iter().map(|&task| 0.5 * (-self.log_variances.value(task)).exp()).collect();
        for ((&task, loss), factor) in round.tasks.iter().zip(round.losses).zip(&factors) {
            self.log_variances.step(task, 0.5 - factor * loss);
        }
        Factors::checked(factors)
    }

    fn state(&self) -> Value {
        self.log_variances.save()
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        self.log_variances.restore(DESCRIPTOR.name, state)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{LOSSES, assert_close, build, round};
    use serde_json::json;

    /// TorchJD 0.18, UW(3) with torch.optim.Adam(lr=0.025).
    #[test]
    fn rounds_match_the_reference() {
        let mut balancer = build("uw", json!({"lr": 0.025}));
        let expected = [
            [0.5, 0.5, 0.5],
            [0.5, 0.5126575597495568, 0.4876549562579938],
            [0.5093887698077213, 0.5256519252906479, 0.4757009049574955],
        ];
        for (losses, expected) in LOSSES.iter().zip(expected) {
            assert_close(&balancer.factors(&round(losses)).factors, &expected);
        }
    }
}
