//! DualProj: project the mean gradient onto the cone of directions that hurt no task.
//!
//! Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017. w minimises v' H v over
//! v >= 1/T, with H = G / trace(G) + reg_eps I. Parameters: `norm_eps` (1e-4), `reg_eps` (1e-4), see
//! [`super::projection`].

use super::projection::{NORM_EPS, Projector, REG_EPS};
use super::registry::Descriptor;
use super::{DeviceSolver, Inputs, Method, Needs, Solution, took_mean};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "dualproj",
    formula: "w = argmin { v'Hv : v >= 1/T }, H = G/trace(G) + reg_eps I",
    needs: Needs::GRAM,
    averages: true,
    params: &[NORM_EPS, REG_EPS],
    reference: "Lopez-Paz & Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017",
    build: |params, _| Ok(Box::new(DualProj { norm_eps: params.number("norm_eps"), reg_eps: params.number("reg_eps") })),
};

const NOT_CONVERGED: &str = "the projection did not converge";

struct DualProj {
    norm_eps: f64,
    reg_eps: f64,
}

impl Method for DualProj {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let count = inputs.tasks.len();
        let projector = Projector::new(inputs.gram, count, self.norm_eps, self.reg_eps);
        match projector.project(&vec![1.0 / count as f64; count]) {
            Some(weights) => Solution::checked(weights),
            None => Solution::mean(count, NOT_CONVERGED),
        }
    }

    fn device_solver(&self) -> Option<DeviceSolver> {
        Some(DeviceSolver {
            numbers: [self.norm_eps, self.reg_eps, 0.0],
            matrices: 1,
            vectors: 10,
            fallbacks: &[|_| took_mean(NOT_CONVERGED)],
            ..DeviceSolver::new("surgery_dualproj")
        })
    }
}
