//! Random loss weighting: new random weights every round, as a baseline that is hard to beat.
//!
//! Lin et al., "Reasonable Effectiveness of Random Weighting", TMLR 2022. c = softmax of standard normals, summing to ONE
//! as in the paper and TorchJD (so T times smaller than equal weighting). Drawn from (seed, round, task). No parameters.

use super::super::methods::{random, softmax};
use super::registry::Descriptor;
use super::{Balancer, Factors, Losses};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "rlw",
    formula: "c = softmax(standard normals)",
    params: &[],
    reference: "Lin et al., Reasonable Effectiveness of Random Weighting, TMLR 2022",
    build: |_, _| Box::new(Rlw),
};

struct Rlw;

impl Balancer for Rlw {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn factors(&mut self, round: &Losses) -> Factors {
        let draw = |&task: &usize| random::normal(random::bits(round.seed, round.round, task as u64));
        Factors::ok(softmax(&round.tasks.iter().map(draw).collect::<Vec<f64>>()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{build, round};
    use super::*;
    use serde_json::json;

    #[test]
    fn weights_are_drawn_anew_each_round_and_sum_to_one() {
        let mut balancer = build("rlw", json!({}));
        let mut draw = |at| balancer.factors(&Losses { round: at, ..round(&[1.0; 3]) }).factors;
        assert_eq!(draw(4), draw(4));
        assert_ne!(draw(4), draw(5));
        assert!((draw(4).iter().sum::<f64>() - 1.0).abs() < 1e-15);
    }
}
