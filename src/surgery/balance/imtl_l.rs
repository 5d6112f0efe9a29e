//! IMTL-L: each task learns the scale that brings its loss to the common size one.
//!
//! Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021. The combined loss is sum_t exp(s_t) L_t - s_t, so
//! c_t = exp(s_t); s_t starts at 0 and follows Adam. Parameter: `lr` (0.01).

use serde_json::Value;

use super::super::methods::params::{Param, Range};
use super::adam::Adam;
use super::registry::Descriptor;
use super::{Balancer, Factors, Losses};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "imtl_l",
    formula: "c_t = exp(s_t); s_t descends on exp(s_t) L_t - s_t",
    params: &[Param::number("lr", 0.01, Range::Positive, "Adam's step for the log scales s")],
    reference: "Liu et al., Towards Impartial Multi-task Learning, ICLR 2021",
    build: |params, tasks| Box::new(ImtlL { log_scales: Adam::new(tasks, params.number("lr"), 0.0) }),
};

struct ImtlL {
    log_scales: Adam,
}

impl Balancer for ImtlL {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn factors(&mut self, round: &Losses) -> Factors {
        let factors: Vec<f64> = round.tasks.iter().map(|&task| self.log_scales.value(task).exp()).collect();
        for ((&task, loss), factor) in round.tasks.iter().zip(round.losses).zip(&factors) {
            self.log_scales.step(task, factor * loss - 1.0);
        }
        Factors::checked(factors)
    }

    fn state(&self) -> Value {
        self.log_scales.save()
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        self.log_scales.restore(DESCRIPTOR.name, state)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{LOSSES, assert_close, build, round};
    use serde_json::json;

    /// TorchJD 0.18, IMTLL(3) with torch.optim.Adam(lr=0.025).
    #[test]
    fn rounds_match_the_reference() {
        let mut balancer = build("imtl_l", json!({"lr": 0.025}));
        let expected = [
            [1.0, 1.0, 1.0],
            [1.0, 1.0253151200117714, 0.9753099122721601],
            [1.0187775409552686, 1.0513038516132471, 0.9514018094239168],
        ];
        for (losses, expected) in LOSSES.iter().zip(expected) {
            assert_close(&balancer.factors(&round(losses)).factors, &expected);
        }
    }
}
