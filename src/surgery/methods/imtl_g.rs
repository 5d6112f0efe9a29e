//! IMTL-G: the update whose projections onto all gradients are equally long.
//!
//! Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021. v = G^+ sqrt(diag G), w = v / sum v; w may be
//! negative. As in TorchJD the update is zero where sum v vanishes (|sum v| < 1e-12 for G scaled to unit trace).
//! No parameters.

use super::eigen::Eigen;
use super::linalg::{diagonal, norms};
use super::on_device::{EIGEN_MATRICES, EIGEN_VECTORS};
use super::registry::Descriptor;
use super::{DeviceSolver, Inputs, Method, Needs, Solution};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "imtl_g",
    formula: "v = pinv(G) sqrt(diag G), w = v / sum v",
    needs: Needs::GRAM,
    averages: true,
    params: &[],
    reference: "Liu et al., Towards Impartial Multi-task Learning, ICLR 2021",
    build: |_, _| Ok(Box::new(ImtlG)),
};

struct ImtlG;

impl Method for ImtlG {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let count = inputs.tasks.len();
        let trace: f64 = diagonal(inputs.gram, count).iter().sum();
        if trace == 0.0 {
            return Solution::ok(vec![0.0; count]);
        }
        let gram: Vec<f64> = inputs.gram.iter().map(|value| value / trace).collect();
        let shares = Eigen::symmetric(&gram, count).pseudo_inverse_times(&norms(&gram, count));
        let total: f64 = shares.iter().sum();
        if total.abs() < 1e-12 {
            return Solution::ok(vec![0.0; count]);
        }
        Solution::checked(shares.into_iter().map(|share| share / total).collect())
    }

    fn device_solver(&self) -> Option<DeviceSolver> {
        let (matrices, vectors) = (EIGEN_MATRICES, EIGEN_VECTORS + 2);
        Some(DeviceSolver { matrices, vectors, ..DeviceSolver::new("surgery_imtl_g") })
    }
}

#[cfg(test)]
mod tests {
    use super::super::linalg::times;
    use super::super::testing::{build, gaussian, gram_of, inputs};
    use super::*;

    #[test]
    fn projections_onto_all_gradients_are_equal() {
        let gram = gram_of(&gaussian(5, 20, 4));
        let weights =
            build("imtl_g", serde_json::json!({}), 5).solve(&Inputs { gram: &gram, ..inputs(&[0, 1, 2, 3, 4]) }).weights;
        let lengths: Vec<f64> = times(&gram, &weights).iter().zip(norms(&gram, 5)).map(|(p, n)| p / n).collect();
        assert!(lengths.iter().all(|length| (length / lengths[0] - 1.0).abs() < 1e-12), "{lengths:?}");
    }
}
