//! GradVac: like PCGrad, but toward a running target of each pair's cosine rather than toward zero.
//!
//! Wang et al., "Gradient Vaccine", ICLR 2021. Row i starts as c = e_i and visits the others j in its order. With the
//! cosine phi of its current vector v to the original g_j and the target psi_ij: where phi < psi,
//! c_j += |v| (psi sqrt(1-phi^2) - phi sqrt(1-psi^2)) / (|g_j| sqrt(1-psi^2)); and on every visit, corrected or not,
//! psi_ij <- (1-beta) psi_ij + beta phi. Targets start at zero and belong to pairs of run-wide tasks. The result is
//! the SUM of the corrected rows. Parameters: `beta` (0.5), `eps` (1e-8, added to the denominators), `order` (random).

use serde_json::{Value, json};

use super::linalg::{dot, norms};
use super::params::{Param, Range};
use super::pcgrad::{ORDER, Order};
use super::registry::Descriptor;
use super::state::{Saved, pack_all};
use super::{DeviceSolver, Inputs, Method, Needs, Solution};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "gradvac",
    formula: "as pcgrad, but lifts cos(v, g_j) to psi_ij; psi_ij = (1-beta) psi_ij + beta cos(v, g_j) on every visit",
    needs: Needs::GRAM,
    averages: false,
    params: &[
        Param::number("beta", 0.5, Range::Unit, "how fast the target follows the cosines seen"),
        Param::number("eps", 1e-8, Range::NonNegative, "added to the denominators"),
        ORDER,
    ],
    reference: "Wang et al., Gradient Vaccine, ICLR 2021",
    build: |params, tasks| {
        Ok(Box::new(GradVac {
            beta: params.number("beta"),
            eps: params.number("eps"),
            order: Order::parse(params.choice("order")),
            tasks,
            targets: vec![0.0; tasks * tasks],
        }))
    },
};

struct GradVac {
    beta: f64,
    eps: f64,
    order: Order,
    /// Tasks of the run.
    tasks: usize,
    /// (tasks x tasks) psi
    targets: Vec<f64>,
}

impl GradVac {
    /// Coefficients of row `row` after its visits, in terms of the original gradients.
    fn vaccinate(&mut self, inputs: &Inputs, norms: &[f64], row: usize, order: &[usize]) -> Vec<f64> {
        let count = norms.len();
        let gram_row = |j: usize| &inputs.gram[j * count..(j + 1) * count];
        let mut part = vec![0.0; count];
        part[row] = 1.0;
        // products[j] = v . g_j
        let mut products = gram_row(row).to_vec();
        for &other in order.iter().filter(|&&other| other != row) {
            let length = dot(&products, &part).max(0.0).sqrt();
            let cosine = ratio(products[other], length * norms[other] + self.eps);
            let target = &mut self.targets[inputs.tasks[row] * self.tasks + inputs.tasks[other]];
            if cosine < *target {
                let sine = |cosine: f64| (1.0 - cosine * cosine).max(0.0).sqrt();
                let lift = length * (*target * sine(cosine) - cosine * sine(*target));
                let added = ratio(lift, norms[other] * sine(*target) + self.eps);
                part[other] += added;
                products.iter_mut().zip(gram_row(other)).for_each(|(product, g)| *product += added * g);
            }
            *target = (1.0 - self.beta) * *target + self.beta * cosine;
        }
        part
    }
}

/// a / b, and 0 where both vanish (a row of zeros with eps = 0).
fn ratio(numerator: f64, denominator: f64) -> f64 {
    if denominator == 0.0 { 0.0 } else { numerator / denominator }
}

impl Method for GradVac {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let count = inputs.tasks.len();
        let norms = norms(inputs.gram, count);
        let mut weights = vec![0.0; count];
        let mut order = Vec::with_capacity(count);
        for row in 0..count {
            self.order.fill(&mut order, inputs, row);
            let part = self.vaccinate(inputs, &norms, row, &order);
            weights.iter_mut().zip(part).for_each(|(weight, part)| *weight += part);
        }
        Solution::checked(weights)
    }

    fn device_solver(&self) -> Option<DeviceSolver> {
        let numbers = [self.beta, self.eps, 0.0];
        Some(DeviceSolver { numbers, order: Some(self.order), matrices: 2, ..DeviceSolver::new("surgery_gradvac") })
    }

    fn device_state(&self) -> Vec<f64> {
        self.targets.clone()
    }

    fn set_device_state(&mut self, state: &[f64]) {
        self.targets.copy_from_slice(state);
    }

    fn state(&self) -> Value {
        json!({ "targets": pack_all(&self.targets) })
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        self.targets = Saved::open(self.name(), state)?.values("targets", self.targets.len())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{build, inputs};
    use super::*;

    /// The targets belong to run-wide tasks: a round of tasks 0 and 2 leaves the pairs with task 1 alone.
    #[test]
    fn targets_follow_the_tasks_not_the_rows() {
        let mut method = build("gradvac", json!({"order": "fixed"}), 3);
        method.solve(&Inputs { gram: &[1.0, 0.5, 0.5, 1.0], ..inputs(&[0, 2]) });
        let state = method.state();
        let targets = Saved::open("gradvac", &state).and_then(|saved| saved.values("targets", 9)).expect("saved");
        let touched: Vec<usize> = (0..9).filter(|&at| targets[at] != 0.0).collect();
        assert_eq!(touched, [2, 6]);
    }
}
