//! FAMO: weights that let all losses fall at the same rate, learned from the losses before and after each step.
//!
//! Liu et al., "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023. With z = softmax(w) over the present tasks the
//! round descends on c sum_t z_t log L_t, c = 1 / sum_t (z_t / L_t) held constant: c_t = c z_t / L_t. After the step the
//! same examples' losses L' give delta_t = log L_t - log L'_t, and w takes an Adam step along the gradient of
//! z . delta. Parameters: `lr` (0.025), `gamma` (1e-3), the decay of w. A loss that is not positive has no logarithm: then
//! the factors are equal and nothing is learned, visibly.

use serde_json::{Value, json};

use super::super::methods::params::{Param, Range};
use super::super::methods::softmax;
use super::super::methods::state::{Saved, pack_all};
use super::adam::Adam;
use super::registry::Descriptor;
use super::{Balancer, Factors, Losses, not_positive};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "famo",
    formula: "z = softmax(w); c_t = z_t/L_t / sum_s (z_s/L_s); after the step w follows -grad of z.(log L - log L')",
    params: &[
        Param::number("lr", 0.025, Range::Positive, "Adam's step for the logits w"),
        Param::number("gamma", 1e-3, Range::NonNegative, "decay of the logits"),
    ],
    reference: "Liu et al., FAMO: Fast Adaptive Multitask Optimization, NeurIPS 2023",
    build: |params, tasks| {
        Box::new(Famo { logits: Adam::new(tasks, params.number("lr"), params.number("gamma")), before: vec![f64::NAN; tasks] })
    },
};

/// Added to each loss, as in the reference.
const EPS: f64 = 1e-8;

struct Famo {
    logits: Adam,
    /// (tasks) losses of the round whose step is under way; NaN where there is none.
    before: Vec<f64>,
}

impl Balancer for Famo {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn factors(&mut self, round: &Losses) -> Factors {
        self.before.fill(f64::NAN);
        if let Some(fault) = not_positive(DESCRIPTOR.name, round.losses) {
            return Factors::equal(round.losses.len(), fault);
        }
        for (&task, &loss) in round.tasks.iter().zip(round.losses) {
            self.before[task] = loss;
        }
        let shares = softmax(&self.logits.values(round.tasks));
        let rates: Vec<f64> = shares.iter().zip(round.losses).map(|(share, loss)| share / (loss + EPS)).collect();
        let total: f64 = rates.iter().sum();
        Factors::checked(rates.into_iter().map(|rate| rate / total).collect())
    }

    fn wants_losses_after_step(&self) -> bool {
        true
    }

    fn after_step(&mut self, round: &Losses) {
        let shares = softmax(&self.logits.values(round.tasks));
        let before = round.tasks.iter().map(|&task| self.before[task]);
        let gains: Vec<f64> = before.zip(round.losses).map(|(before, after)| (before + EPS).ln() - (after + EPS).ln()).collect();
        // One unknown gain leaves the mean unknown, so Adam skips the whole step.
        let mean: f64 = shares.iter().zip(&gains).map(|(share, gain)| share * gain).sum();
        for ((&task, share), gain) in round.tasks.iter().zip(&shares).zip(&gains) {
            self.logits.step(task, share * (gain - mean));
        }
        self.before.fill(f64::NAN);
    }

    fn state(&self) -> Value {
        json!({ "logits": self.logits.save(), "before": pack_all(&self.before) })
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        let saved = Saved::open(DESCRIPTOR.name, state)?;
        let before = saved.values("before", self.before.len())?;
        self.logits.restore(DESCRIPTOR.name, saved.field("logits")?)?;
        self.before = before;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{LOSSES, assert_close, build, round};
    use serde_json::json;

    /// TorchJD 0.18, FAMO(3).
    #[test]
    fn rounds_match_the_reference() {
        let mut balancer = build("famo", json!({}));
        let expected = [
            [0.2857142871428571, 0.5714285685714285, 0.14285714428571428],
            [0.30197186858410363, 0.5643631655082253, 0.13366496590767124],
            [0.3100644512276828, 0.4652934934353623, 0.2246420553369548],
        ];
        for (at, expected) in expected.iter().enumerate() {
            assert_close(&balancer.factors(&round(&LOSSES[at])).factors, expected);
            balancer.after_step(&round(&LOSSES[at + 1]));
        }
    }

    #[test]
    fn a_bad_loss_teaches_nothing() {
        let mut balancer = build("famo", json!({}));
        balancer.factors(&round(&[1.0, -1.0, 1.0]));
        balancer.after_step(&round(&[1.0, 1.0, 1.0]));
        assert_close(&balancer.factors(&round(&[1.0; 3])).factors, &[1.0 / 3.0; 3]);
    }
}
