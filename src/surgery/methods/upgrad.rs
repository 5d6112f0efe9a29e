//! UPGrad: project each gradient onto the cone of directions that hurt no task, then average.
//!
//! Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization", 2024. w = sum_i v(i), where v(i) minimises
//! v' H v over v >= e_i / T and H = G / trace(G) + reg_eps I. Parameters: `norm_eps` (1e-4), `reg_eps` (1e-4), see
//! [`super::projection`].

use super::projection::{NORM_EPS, Projector, REG_EPS};
use super::registry::Descriptor;
use super::{Inputs, Method, Needs, Solution};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "upgrad",
    formula: "w = sum_i argmin { v'Hv : v >= e_i/T }, H = G/trace(G) + reg_eps I",
    needs: Needs::GRAM,
    averages: true,
    params: &[NORM_EPS, REG_EPS],
    reference: "Quinton & Rey, Jacobian Descent for Multi-Objective Optimization, 2024",
    build: |params, _| Ok(Box::new(UpGrad { norm_eps: params.number("norm_eps"), reg_eps: params.number("reg_eps") })),
};

struct UpGrad {
    norm_eps: f64,
    reg_eps: f64,
}

impl Method for UpGrad {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let count = inputs.tasks.len();
        let projector = Projector::new(inputs.gram, count, self.norm_eps, self.reg_eps);
        let mut weights = vec![0.0; count];
        let mut preference = vec![0.0; count];
        for row in 0..count {
            preference[row] = 1.0 / count as f64;
            let Some(projected) = projector.project(&preference) else {
                return Solution::mean(count, format_args!("the projection of row {row} did not converge"));
            };
            preference[row] = 0.0;
            weights.iter_mut().zip(projected).for_each(|(weight, part)| *weight += part);
        }
        Solution::checked(weights)
    }
}
