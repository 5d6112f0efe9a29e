//! GradNorm: keep all weighted gradients at lengths that match the tasks' training rates.
//!
//! Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing", ICML 2018. With n_i = |g_i|, the weighted
//! length G_i = w_i n_i, their mean M and the relative inverse rate r_i = (L_i / L_i(0)) / mean: one gradient step per
//! round on sum_i |G_i - M r_i^alpha|, the target held constant. The weights are w = T softmax(s), as in LibMTL, so they
//! stay positive and sum to T; the step is taken on s and its loss is divided by M, so `lr` does not depend on the
//! gradients' scale. L_i(0) is the loss of the task's first round. A round uses the weights from before its own step.
//! Parameters: `alpha` (1.5), `lr` (0.025). A loss that is not positive leaves the weights as they are, visibly.

use serde_json::{Value, json};

use super::linalg::norms;
use super::params::{Param, Range};
use super::registry::Descriptor;
use super::simplex::softmax;
use super::state::{Saved, pack_all};
use super::{DeviceSolver, Inputs, Method, Needs, Solution, Status};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "gradnorm",
    formula: "w = T softmax(s); s follows -grad of sum_i |w_i n_i - mean(w n) r_i^alpha| / mean(w n), n = sqrt(diag G)",
    needs: Needs::GRAM_AND_LOSSES,
    averages: false,
    params: &[
        Param::number("alpha", 1.5, Range::NonNegative, "how strongly slow tasks are favoured"),
        Param::number("lr", 0.025, Range::Positive, "step of the weights' logits"),
    ],
    reference: "Chen et al., GradNorm, ICML 2018",
    build: |params, tasks| {
        Ok(Box::new(GradNorm {
            alpha: params.number("alpha"),
            lr: params.number("lr"),
            logits: vec![0.0; tasks],
            first_losses: vec![f64::NAN; tasks],
        }))
    },
};

fn kept(loss: f64) -> String {
    format!("gradnorm needs positive losses, found {loss}; kept the weights as they were")
}

struct GradNorm {
    alpha: f64,
    lr: f64,
    /// (tasks) s
    logits: Vec<f64>,
    /// (tasks) L(0); NaN before the task's first round.
    first_losses: Vec<f64>,
}

impl GradNorm {
    fn step(&mut self, inputs: &Inputs, weights: &[f64]) {
        let count = weights.len() as f64;
        let norms = norms(inputs.gram, weights.len());
        let mean = weights.iter().zip(&norms).map(|(w, n)| w * n).sum::<f64>() / count;
        if mean == 0.0 || !mean.is_finite() {
            return;
        }
        let rates: Vec<f64> =
            inputs.tasks.iter().zip(inputs.losses).map(|(&task, loss)| loss / self.first_losses[task]).collect();
        let mean_rate = rates.iter().sum::<f64>() / count;
        // Derivative by w_i, in units of the mean length.
        let pulls: Vec<f64> = (0..weights.len())
            .map(|i| {
                let target = mean * (rates[i] / mean_rate).powf(self.alpha);
                let excess = weights[i] * norms[i] - target;
                if excess == 0.0 { 0.0 } else { excess.signum() * norms[i] / mean }
            })
            .collect();
        let common: f64 = weights.iter().zip(&pulls).map(|(w, pull)| w * pull).sum::<f64>() / count;
        for ((&task, weight), pull) in inputs.tasks.iter().zip(weights).zip(pulls) {
            self.logits[task] -= self.lr * weight * (pull - common);
        }
    }
}

impl Method for GradNorm {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let logits: Vec<f64> = inputs.tasks.iter().map(|&task| self.logits[task]).collect();
        let count = logits.len() as f64;
        let weights: Vec<f64> = softmax(&logits).into_iter().map(|share| share * count).collect();
        if let Some(loss) = inputs.losses.iter().find(|loss| !(**loss > 0.0 && loss.is_finite())) {
            return Solution { weights, status: Status::Fallback(kept(*loss)) };
        }
        for (&task, &loss) in inputs.tasks.iter().zip(inputs.losses) {
            if self.first_losses[task].is_nan() {
                self.first_losses[task] = loss;
            }
        }
        self.step(inputs, &weights);
        Solution::checked(weights)
    }

    fn device_solver(&self) -> Option<DeviceSolver> {
        let numbers = [self.alpha, self.lr, 0.0];
        Some(DeviceSolver { numbers, vectors: 4, fallbacks: &[kept], ..DeviceSolver::new("surgery_gradnorm") })
    }

    fn device_state(&self) -> Vec<f64> {
        [&self.logits[..], &self.first_losses].concat()
    }

    fn set_device_state(&mut self, state: &[f64]) {
        let (logits, first_losses) = state.split_at(self.logits.len());
        self.logits.copy_from_slice(logits);
        self.first_losses.copy_from_slice(first_losses);
    }

    fn state(&self) -> Value {
        json!({ "logits": pack_all(&self.logits), "first_losses": pack_all(&self.first_losses) })
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        let saved = Saved::open(self.name(), state)?;
        let logits = saved.values("logits", self.logits.len())?;
        self.first_losses = saved.values("first_losses", self.first_losses.len())?;
        self.logits = logits;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{build, inputs};
    use super::*;

    #[test]
    fn lengths_become_equal_where_rates_are_equal() {
        let mut method = build("gradnorm", json!({}), 2);
        let gram = [1.0, 0.0, 0.0, 16.0];
        let round = Inputs { gram: &gram, losses: &[1.0, 1.0], ..inputs(&[0, 1]) };
        assert_eq!(method.solve(&round).weights, [1.0, 1.0]);
        let last = (0..300).map(|_| method.solve(&round).weights).last().expect("rounds");
        assert!((last[0] / last[1] - 4.0).abs() < 0.3, "{last:?}");
        assert!((last[0] + last[1] - 2.0).abs() < 1e-12);
    }

    #[test]
    fn the_slower_task_gains_weight() {
        let mut method = build("gradnorm", json!({}), 2);
        let gram = [1.0, 0.0, 0.0, 1.0];
        method.solve(&Inputs { gram: &gram, losses: &[1.0, 1.0], ..inputs(&[0, 1]) });
        let round = Inputs { gram: &gram, losses: &[1.0, 0.1], ..inputs(&[0, 1]) };
        method.solve(&round);
        let weights = method.solve(&round).weights;
        assert!(weights[0] > weights[1], "{weights:?}");
    }

    #[test]
    fn a_negative_loss_is_visible() {
        let mut method = build("gradnorm", json!({}), 1);
        let solution = method.solve(&Inputs { gram: &[1.0], losses: &[-1.0], ..inputs(&[0]) });
        assert!(matches!(solution.status, Status::Fallback(_)));
    }
}
