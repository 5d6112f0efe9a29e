//! SDMGrad: a min-norm direction kept near the mean gradient, from two independent batches.
//!
//! Xiao, Ban & Ji, "Direction-oriented Multi-objective Learning", NeurIPS 2023. With A = J1 J2' / (m^2 + 1e-8), m the
//! mean square root of A's (non-negative) diagonal: `n_iter` steps w <- project(w - lr v), v <- momentum v + A (w +
//! lambda 1/T); then (w + lambda 1/T) / (1 + lambda). w stays for the next round. Parameters: `lr` (10), `momentum`
//! (0.5), `n_iter` (20), `lambda` (0.3).

use serde_json::Value;

use super::linalg::{norms, times};
use super::params::{Param, Range};
use super::registry::Descriptor;
use super::state::Shares;
use super::{Inputs, Method, Needs, Solution, Status, simplex};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "sdmgrad",
    formula: "v = momentum v + J1 J2' (w + lambda/T) / m^2; w = project_simplex(w - lr v); weights (w + lambda/T)/(1+lambda)",
    needs: Needs::SECOND_BATCH,
    averages: true,
    params: &[
        Param::number("lr", 10.0, Range::Positive, "step of the inner iteration"),
        Param::number("momentum", 0.5, Range::BelowOne, "momentum of the inner iteration"),
        Param::steps("n_iter", 20, "inner steps per round"),
        Param::number("lambda", 0.3, Range::NonNegative, "pull toward the mean gradient"),
    ],
    reference: "Xiao, Ban & Ji, Direction-oriented Multi-objective Learning, NeurIPS 2023",
    build: |params, tasks| {
        Ok(Box::new(SdmGrad {
            lr: params.number("lr"),
            momentum: params.number("momentum"),
            n_iter: params.count("n_iter"),
            lambda: params.number("lambda"),
            shares: Shares::uniform(tasks),
        }))
    },
};

struct SdmGrad {
    lr: f64,
    momentum: f64,
    n_iter: u64,
    lambda: f64,
    shares: Shares,
}

impl SdmGrad {
    /// The inner iteration from `point` on the scaled cross Gram.
    fn iterate(&self, scaled: &[f64], mut point: Vec<f64>) -> Vec<f64> {
        let pull = self.lambda / point.len() as f64;
        let mut velocity = vec![0.0; point.len()];
        for _ in 0..self.n_iter {
            let drawn: Vec<f64> = point.iter().map(|w| w + pull).collect();
            for (v, slope) in velocity.iter_mut().zip(times(scaled, &drawn)) {
                *v = self.momentum * *v + slope;
            }
            let stepped: Vec<f64> = point.iter().zip(&velocity).map(|(w, v)| w - self.lr * v).collect();
            point = simplex::project(&stepped);
        }
        point
    }
}

impl Method for SdmGrad {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let count = inputs.tasks.len();
        let scale = norms(inputs.cross_gram, count).iter().sum::<f64>() / count as f64;
        let scaled: Vec<f64> = inputs.cross_gram.iter().map(|value| value / (scale * scale + 1e-8)).collect();
        let point = self.iterate(&scaled, self.shares.present(inputs.tasks));
        let pull = self.lambda / count as f64;
        let solution = Solution::checked(point.iter().map(|w| (w + pull) / (1.0 + self.lambda)).collect());
        if solution.status == Status::Ok {
            self.shares.set_present(inputs.tasks, &point);
        }
        solution
    }

    fn state(&self) -> Value {
        self.shares.save()
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        self.shares.restore(DESCRIPTOR.name, state)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{build, inputs};
    use super::*;
    use serde_json::json;

    /// TorchJD 0.18, SDMGradWeighting(lr=0.1, n_iter=5) called twice.
    #[test]
    fn two_rounds_match_the_reference() {
        let mut method = build("sdmgrad", json!({"lr": 0.1, "n_iter": 5}), 3);
        let cross_gram = [2.0, 0.5, -1.0, -0.3, 1.0, 0.2, 0.7, -0.4, 3.0];
        let round = Inputs { cross_gram: &cross_gram, ..inputs(&[0, 1, 2]) };
        let expected = [
            [0.34595209519426573, 0.45751792774921013, 0.19652997705652406],
            [0.29150774917641087, 0.5253361673535044, 0.1831560834700847],
        ];
        for expected in expected {
            for (found, expected) in method.solve(&round).weights.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-14, "{found} {expected}");
            }
        }
    }
}
