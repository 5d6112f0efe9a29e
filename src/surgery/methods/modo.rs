//! MoDo: one projected gradient step per round on the simplex, unbiased because its two factors are two batches.
//!
//! Fernando et al., "Three-Way Trade-Off in Multi-Objective Learning", JMLR 2024.
//! w <- project(w - gamma (J1 J2' w + rho w)), starting from 1/T. Parameters: `gamma` (0.1), `rho` (0.1).

use serde_json::Value;

use super::linalg::times;
use super::params::{Param, Range};
use super::registry::Descriptor;
use super::state::Shares;
use super::{Inputs, Method, Needs, Solution, Status, simplex};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "modo",
    formula: "w = project_simplex(w - gamma (J1 J2' w + rho w))",
    needs: Needs::SECOND_BATCH,
    averages: true,
    params: &[
        Param::number("gamma", 0.1, Range::Positive, "step of the weights"),
        Param::number("rho", 0.1, Range::NonNegative, "pull toward equal weights"),
    ],
    reference: "Fernando et al., Three-Way Trade-Off in Multi-Objective Learning, JMLR 2024",
    build: |params, tasks| {
        Ok(Box::new(MoDo { gamma: params.number("gamma"), rho: params.number("rho"), shares: Shares::uniform(tasks) }))
    },
};

struct MoDo {
    gamma: f64,
    rho: f64,
    shares: Shares,
}

impl Method for MoDo {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let shares = self.shares.present(inputs.tasks);
        let products = times(inputs.cross_gram, &shares);
        let stepped: Vec<f64> =
            shares.iter().zip(products).map(|(w, product)| w - self.gamma * (product + self.rho * w)).collect();
        let solution = Solution::checked(simplex::project(&stepped));
        if solution.status == Status::Ok {
            self.shares.set_present(inputs.tasks, &solution.weights);
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

    /// TorchJD 0.18, MoDoWeighting() called twice on [[1, 2], [-3, 4]].
    #[test]
    fn two_rounds_match_the_reference() {
        let mut method = build("modo", json!({}), 2);
        let round = Inputs { cross_gram: &[1.0, 2.0, -3.0, 4.0], ..inputs(&[0, 1]) };
        let expected = [[0.45, 0.55], [0.4155, 0.5845]];
        for expected in expected {
            let weights = method.solve(&round).weights;
            assert!((weights[0] - expected[0]).abs() < 1e-15, "{weights:?}");
            assert!((weights[1] - expected[1]).abs() < 1e-15, "{weights:?}");
        }
    }
}
