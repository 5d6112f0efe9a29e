//! The two methods without surgery: the sum and the mean of the tasks' gradients.

use super::{Inputs, Method, Needs, Solution};

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
}

impl Method for Mean {
    fn name(&self) -> &'static str {
        "mean"
    }

    fn averages(&self) -> bool {
        true
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let count = inputs.tasks.len();
        Solution::ok(vec![1.0 / count as f64; count])
    }
}
