//! Aligned-MTL: replace the gradients by the nearest orthogonal set of one common length, then average.
//!
//! Senushkin et al., "Independent Component Alignment for Multi-Task Learning", CVPR 2023. With G = V L V' over its
//! numerical rank, w = s V L^(-1/2) V' 1/T. Parameter: `scale_mode` (min): s^2 is the smallest, the (lower) median or the
//! mean (rmse) eigenvalue. The preference is 1/T as in TorchJD, so the update is T times shorter than LibMTL's.

use super::eigen::Eigen;
use super::on_device::{EIGEN_MATRICES, EIGEN_VECTORS};
use super::params::Param;
use super::registry::Descriptor;
use super::{DeviceSolver, Inputs, Method, Needs, Solution};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "aligned_mtl",
    formula: "G = V L V'; w = s V L^(-1/2) V' 1/T, s^2 = min, median or mean of L",
    needs: Needs::GRAM,
    averages: true,
    params: &[Param::choice(
        "scale_mode",
        "min",
        &["min", "median", "rmse"],
        "which eigenvalue gives the common length: smallest, lower median, or mean",
    )],
    reference: "Senushkin et al., Independent Component Alignment for Multi-Task Learning, CVPR 2023",
    build: |params, _| {
        let scale = match params.choice("scale_mode") {
            "median" => Scale::Median,
            "rmse" => Scale::Rmse,
            _ => Scale::Min,
        };
        Ok(Box::new(AlignedMtl { scale }))
    },
};

enum Scale {
    Min,
    Median,
    Rmse,
}

struct AlignedMtl {
    scale: Scale,
}

impl Method for AlignedMtl {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let count = inputs.tasks.len();
        let mean = vec![1.0 / count as f64; count];
        let eigen = Eigen::symmetric(inputs.gram, count);
        let rank = eigen.rank();
        if rank == 0 {
            return Solution::ok(mean);
        }
        // Descending, so the lower of two middle values is the later one.
        let square = match self.scale {
            Scale::Min => eigen.values[rank - 1],
            Scale::Median => eigen.values[rank / 2],
            Scale::Rmse => eigen.values[..rank].iter().sum::<f64>() / rank as f64,
        };
        Solution::checked(eigen.apply(|value| (square / value).sqrt(), &mean))
    }

    fn device_solver(&self) -> Option<DeviceSolver> {
        let mode = match self.scale {
            Scale::Min => 0.0,
            Scale::Median => 1.0,
            Scale::Rmse => 2.0,
        };
        let (matrices, vectors) = (EIGEN_MATRICES, EIGEN_VECTORS + 2);
        Some(DeviceSolver { numbers: [mode, 0.0, 0.0], matrices, vectors, ..DeviceSolver::new("surgery_aligned_mtl") })
    }
}
