//! MGDA: the shortest vector in the convex hull of the gradients, by Frank-Wolfe.
//!
//! Desideri 2012; the solver is Algorithm 2 of Sener & Koltun, "Multi-Task Learning as Multi-Objective Optimization",
//! NeurIPS 2018: from w = 1/T, move toward the vertex t with the least (G w)_t by the exact line search.
//! Parameters: `epsilon` (1e-3), the step at which to stop; `max_iters` (100).

use super::linalg::{dot, times};
use super::params::{Param, Range};
use super::registry::Descriptor;
use super::{DeviceSolver, Inputs, Method, Needs, Solution};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "mgda",
    formula: "w = argmin { w'Gw : w >= 0, sum w = 1 } by Frank-Wolfe",
    needs: Needs::GRAM,
    averages: true,
    params: &[
        Param::number("epsilon", 1e-3, Range::Positive, "step length at which the iteration stops"),
        Param::steps("max_iters", 100, "most Frank-Wolfe steps"),
    ],
    reference: "Sener & Koltun, Multi-Task Learning as Multi-Objective Optimization, NeurIPS 2018",
    build: |params, _| Ok(Box::new(Mgda { epsilon: params.number("epsilon"), max_iters: params.count("max_iters") })),
};

struct Mgda {
    epsilon: f64,
    max_iters: u64,
}

impl Method for Mgda {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let count = inputs.tasks.len();
        let mut weights = vec![1.0 / count as f64; count];
        for _ in 0..self.max_iters {
            let products = times(inputs.gram, &weights);
            let vertex = first_least(&products);
            let square = inputs.gram[vertex * count + vertex];
            let step = line_search(products[vertex], dot(&weights, &products), square);
            weights.iter_mut().for_each(|weight| *weight *= 1.0 - step);
            weights[vertex] += step;
            if step < self.epsilon {
                break;
            }
        }
        Solution::checked(weights)
    }

    fn device_solver(&self) -> Option<DeviceSolver> {
        let numbers = [self.epsilon, self.max_iters as f64, 0.0];
        Some(DeviceSolver { numbers, vectors: 1, ..DeviceSolver::new("surgery_mgda") })
    }
}

/// Step from u toward v that makes the vector shortest, from u.v, u.u and v.v.
fn line_search(cross: f64, from: f64, to: f64) -> f64 {
    if to <= cross {
        1.0
    } else if from <= cross {
        0.0
    } else {
        (from - cross) / (from + to - 2.0 * cross)
    }
}

fn first_least(values: &[f64]) -> usize {
    (1..values.len()).fold(0, |least, i| if values[i] < values[least] { i } else { least })
}
