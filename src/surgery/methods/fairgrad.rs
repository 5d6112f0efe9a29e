//! FairGrad: alpha-fair allocation of the gains among the tasks.
//!
//! Ban & Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024. G w = w^(-1/alpha), w > 0, see
//! [`super::bargain`]. Parameter: `alpha` (1.0); 0 is the mean, 1 proportional fairness, large values max-min fairness.
//! The update is neither scaled by T nor clipped, as in TorchJD.

use super::nash_mtl::{RIDGED, ridge_status};
use super::on_device::{BARGAIN_MATRICES, BARGAIN_VECTORS};
use super::params::{Param, Range};
use super::registry::Descriptor;
use super::{DeviceSolver, Inputs, Method, Needs, Solution, Status, bargain, took_mean};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "fairgrad",
    formula: "G w = w^(-1/alpha), w > 0; alpha = 0: w_i = 1/T",
    needs: Needs::GRAM,
    averages: false,
    params: &[Param::number("alpha", 1.0, Range::NonNegative, "0 mean, 1 proportional, large max-min fairness")],
    reference: "Ban & Ji, Fair Resource Allocation in Multi-Task Learning, ICML 2024",
    build: |params, _| Ok(Box::new(FairGrad { alpha: params.number("alpha") })),
};

const NOT_CONVERGED: &str = "the allocation did not converge";

struct FairGrad {
    alpha: f64,
}

impl Method for FairGrad {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let count = inputs.tasks.len();
        if self.alpha == 0.0 {
            return Solution::ok(vec![1.0 / count as f64; count]);
        }
        match bargain::solve(inputs.gram, count, 1.0 / self.alpha) {
            Some(found) => {
                let solution = Solution::checked(found.weights);
                if solution.status == Status::Ok { Solution { status: ridge_status(found.ridged), ..solution } } else { solution }
            }
            None => Solution::mean(count, NOT_CONVERGED),
        }
    }

    fn device_solver(&self) -> Option<DeviceSolver> {
        Some(DeviceSolver {
            numbers: [self.alpha, 0.0, 0.0],
            matrices: BARGAIN_MATRICES,
            vectors: BARGAIN_VECTORS,
            fallbacks: &[|_| took_mean(NOT_CONVERGED), |_| RIDGED.to_owned()],
            ..DeviceSolver::new("surgery_fairgrad")
        })
    }
}
