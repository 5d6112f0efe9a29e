//! The two methods without surgery: the sum and the mean of the tasks' gradients.

use super::registry::Descriptor;
use super::{DeviceSolver, Inputs, Method, Needs, Solution};

pub(super) const SUM: Descriptor = Descriptor {
    name: "sum",
    formula: "w_i = 1",
    needs: Needs::NOTHING,
    averages: false,
    params: &[],
    reference: "one backward pass of the summed losses",
    build: |_, _| Ok(Box::new(Sum)),
};

pub(super) const MEAN: Descriptor = Descriptor {
    name: "mean",
    formula: "w_i = 1/T",
    needs: Needs::NOTHING,
    averages: true,
    params: &[],
    reference: "one backward pass of the averaged losses",
    build: |_, _| Ok(Box::new(Mean)),
};

/// d = sum_i g_i: what a single backward pass of the summed losses gives.
pub struct Sum;

/// d = (1/T) sum_i g_i over the T tasks present.
pub struct Mean;

impl Method for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        Solution::ok(vec![1.0; inputs.tasks.len()])
    }

    fn device_solver(&self) -> Option<DeviceSolver> {
        Some(DeviceSolver::new("surgery_uniform"))
    }
}

impl Method for Mean {
    fn name(&self) -> &'static str {
        "mean"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let count = inputs.tasks.len();
        Solution::ok(vec![1.0 / count as f64; count])
    }

    fn device_solver(&self) -> Option<DeviceSolver> {
        Some(DeviceSolver { numbers: [1.0, 0.0, 0.0], ..DeviceSolver::new("surgery_uniform") })
    }
}
