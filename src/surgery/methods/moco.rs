//! MoCo: surgery on moving averages of the gradients, which corrects the bias of noisy batches.
//!
//! Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning", ICLR 2023; normalisation and schedules as in
//! LibMTL. In round k = 1, 2, ...: y_t <- y_t - beta_k (y_t - L_t g_t / (|g_t| + 1e-8)); w <- softmax(w - gamma_k (Y Y' +
//! rho I) w), from 1/T; the update is sum_t w_t y_t. beta_k = beta / k^beta_sigma, gamma_k likewise. Parameters: `beta`
//! (0.5), `beta_sigma` (0.5), `gamma` (0.1), `gamma_sigma` (0.5), `rho` (0).

use serde_json::{Value, json};

use super::linalg::{norms, times};
use super::params::{Param, Range};
use super::registry::Descriptor;
use super::rows::RowPass;
use super::simplex::softmax;
use super::state::{Saved, Shares};
use super::{Inputs, Method, Needs, Solution, Status};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "moco",
    formula: "y_t = y_t - beta_k (y_t - L_t g_t/|g_t|); w = softmax(w - gamma_k (Y Y' + rho I) w); d = sum_t w_t y_t",
    needs: Needs { row_state: true, ..Needs::GRAM_AND_LOSSES },
    averages: true,
    params: &[
        Param::number("beta", 0.5, Range::Unit, "how fast y follows the gradients"),
        Param::number("beta_sigma", 0.5, Range::NonNegative, "decay of beta over rounds"),
        Param::number("gamma", 0.1, Range::Positive, "step of the weights"),
        Param::number("gamma_sigma", 0.5, Range::NonNegative, "decay of gamma over rounds"),
        Param::number("rho", 0.0, Range::NonNegative, "pull toward equal weights"),
    ],
    reference: "Fernando et al., Mitigating Gradient Bias in Multi-objective Learning, ICLR 2023",
    build: |params, tasks| {
        Ok(Box::new(MoCo {
            beta: Schedule { start: params.number("beta"), decay: params.number("beta_sigma") },
            gamma: Schedule { start: params.number("gamma"), decay: params.number("gamma_sigma") },
            rho: params.number("rho"),
            rounds: 0,
            shares: Shares::uniform(tasks),
        }))
    },
};

struct Schedule {
    start: f64,
    decay: f64,
}

impl Schedule {
    fn at(&self, round: u64) -> f64 {
        self.start / (round as f64).powf(self.decay)
    }
}

struct MoCo {
    beta: Schedule,
    gamma: Schedule,
    rho: f64,
    /// Rounds begun so far.
    rounds: u64,
    shares: Shares,
}

impl Method for MoCo {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn row_pass(&mut self, inputs: &Inputs) -> Option<RowPass> {
        self.rounds += 1;
        let beta = self.beta.at(self.rounds);
        let norms = norms(inputs.gram, inputs.tasks.len());
        let add = norms.iter().zip(inputs.losses).map(|(norm, loss)| beta * loss / (norm + 1e-8)).collect();
        Some(RowPass::Blend { keep: 1.0 - beta, add })
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let shares = self.shares.present(inputs.tasks);
        let gamma = self.gamma.at(self.rounds.max(1));
        let products = times(inputs.row_sums, &shares);
        let logits: Vec<f64> = shares.iter().zip(products).map(|(w, product)| w - gamma * (product + self.rho * w)).collect();
        let solution = Solution::checked(softmax(&logits));
        if solution.status == Status::Ok {
            self.shares.set_present(inputs.tasks, &solution.weights);
        }
        solution
    }

    fn state(&self) -> Value {
        json!({ "rounds": self.rounds, "shares": self.shares.save() })
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        let saved = Saved::open(DESCRIPTOR.name, state)?;
        let rounds = saved.count("rounds")?;
        self.shares.restore(DESCRIPTOR.name, saved.field("shares")?)?;
        self.rounds = rounds;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{build, inputs};
    use super::*;

    /// By hand, round 1: y = 0.5 (L g/|g|) = (1, 0), (0, 0.5); logits 1/2 - 0.1 (1, 0.25)/2; softmax.
    #[test]
    fn the_first_round_follows_the_formula() {
        let mut method = build("moco", json!({}), 2);
        let round = Inputs { gram: &[9.0, 0.0, 0.0, 4.0], losses: &[2.0, 1.0], ..inputs(&[0, 1]) };
        let pass = method.row_pass(&round).expect("row state");
        let (mut left, mut right) = ([0.0_f64; 2], [0.0_f64; 2]);
        let mut sums = vec![0.0; 4];
        pass.apply(&[&[3.0, 0.0], &[0.0, 2.0]], &mut [left.as_mut_slice(), &mut right], &mut sums);
        assert!((left[0] - 1.0).abs() < 1e-8 && (right[1] - 0.5).abs() < 1e-8, "{left:?} {right:?}");
        let weights = method.solve(&Inputs { row_sums: &sums, ..round }).weights;
        let expected = 1.0 / (1.0 + f64::exp(0.05 - 0.0125));
        assert!((weights[0] - expected).abs() < 1e-8, "{weights:?}");
    }
}
