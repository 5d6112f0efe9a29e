//! ConFIG: the direction with the same positive cosine to every gradient, as long as the gradients along it add up to.
//!
//! Liu, Chu & Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks", ICLR 2025. With
//! D = diag(norms) and the cosines C = D^-1 G D^-1: a = D^-1 C^+ 1, u = sum a_i g_i / |sum a_i g_i|, and
//! d = (sum_i g_i . u) u. Rows of zeros have no direction and no part. No parameters.

use super::eigen::Eigen;
use super::linalg::{dot, norms, quadratic, times};
use super::on_device::{EIGEN_MATRICES, EIGEN_VECTORS};
use super::registry::Descriptor;
use super::{DeviceSolver, Inputs, Method, Needs, Solution};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "config",
    formula: "C = cosines; a = D^-1 pinv(C) 1; u = J'a/|J'a|; d = (sum_i g_i.u) u",
    needs: Needs::GRAM,
    averages: false,
    params: &[],
    reference: "Liu et al., ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks, ICLR 2025",
    build: |_, _| Ok(Box::new(Config)),
};

/// Shortest direction, in units of the normalised gradients, that still counts as one (PyTorch's `normalize`).
const SHORTEST: f64 = 1e-12;

struct Config;

impl Method for Config {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let count = inputs.tasks.len();
        let norms = norms(inputs.gram, count);
        let inverse: Vec<f64> = norms.iter().map(|norm| if *norm > 0.0 { norm.recip() } else { 0.0 }).collect();
        let cosines: Vec<f64> =
            (0..count * count).map(|at| inputs.gram[at] * inverse[at / count] * inverse[at % count]).collect();
        let parts = Eigen::symmetric(&cosines, count).pseudo_inverse_times(&vec![1.0; count]);
        let length = quadratic(&cosines, &parts).sqrt().max(SHORTEST);
        let gain = dot(&norms, &times(&cosines, &parts)) / length;
        Solution::checked(parts.iter().zip(&inverse).map(|(part, unit)| gain * part * unit / length).collect())
    }

    fn device_solver(&self) -> Option<DeviceSolver> {
        let (matrices, vectors) = (EIGEN_MATRICES + 1, EIGEN_VECTORS + 6);
        Some(DeviceSolver { matrices, vectors, ..DeviceSolver::new("surgery_config") })
    }
}
