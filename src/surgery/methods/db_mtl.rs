//! DB-MTL: gradients of the log losses, all stretched to the longest of them.
//!
//! Lin et al., "Dual-Balancing for Multi-Task Learning", 2023, without the moving average of the gradients (beta = 0),
//! which would need P numbers per task. The gradient of log L_i is h_i = g_i / L_i; the update is
//! sum_i (max_j |h_j| / |h_i|) h_i, so w_i = max_j |h_j| / |g_i|. Rows of zeros get weight 0. No parameters. Where a
//! loss is not positive its logarithm does not exist: then all raw gradients are stretched to the longest, visibly.

use super::linalg::norms;
use super::registry::Descriptor;
use super::{DeviceSolver, Inputs, Method, Needs, Solution, Status};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "db_mtl",
    formula: "h_i = g_i/L_i; w_i = max_j |h_j| / |g_i|",
    needs: Needs::GRAM_AND_LOSSES,
    averages: false,
    params: &[],
    reference: "Lin et al., Dual-Balancing for Multi-Task Learning, 2023 (beta = 0)",
    build: |_, _| Ok(Box::new(DbMtl)),
};

struct DbMtl;

fn stretched(loss: f64) -> String {
    format!("db_mtl needs positive losses, found {loss}; stretched the raw gradients instead")
}

impl Method for DbMtl {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let norms = norms(inputs.gram, inputs.tasks.len());
        let fault = inputs.losses.iter().find(|loss| !(**loss > 0.0 && loss.is_finite()));
        let longest = match fault {
            None => norms.iter().zip(inputs.losses).map(|(norm, loss)| norm / loss).fold(0.0, f64::max),
            Some(_) => norms.iter().copied().fold(0.0, f64::max),
        };
        let weights = norms.iter().map(|norm| if *norm > 0.0 { longest / norm } else { 0.0 }).collect();
        let mut solution = Solution::checked(weights);
        if let (Some(loss), Status::Ok) = (fault, &solution.status) {
            solution.status = Status::Fallback(stretched(*loss));
        }
        solution
    }

    fn device_solver(&self) -> Option<DeviceSolver> {
        Some(DeviceSolver { vectors: 1, fallbacks: &[stretched], ..DeviceSolver::new("surgery_db_mtl") })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{build, inputs};
    use super::*;
    use serde_json::json;

    #[test]
    fn all_parts_get_the_longest_length() {
        let gram = [4.0, 0.0, 0.0, 9.0];
        // |h| = 2 / 0.5 = 4 and 3 / 3 = 1.
        let round = Inputs { gram: &gram, losses: &[0.5, 3.0], ..inputs(&[0, 1]) };
        assert_eq!(build("db_mtl", json!({}), 2).solve(&round).weights, [2.0, 4.0 / 3.0]);
    }

    #[test]
    fn a_zero_loss_is_visible_and_finite() {
        let round = Inputs { gram: &[4.0, 0.0, 0.0, 0.0], losses: &[0.0, 3.0], ..inputs(&[0, 1]) };
        let solution = build("db_mtl", json!({}), 2).solve(&round);
        assert_eq!(solution.weights, [1.0, 0.0]);
        assert!(matches!(solution.status, Status::Fallback(_)));
    }
}
