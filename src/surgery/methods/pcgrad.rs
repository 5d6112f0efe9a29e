//! PCGrad: project each gradient off those it conflicts with, then add up.
//!
//! Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020. Row i starts as c = e_i and visits the other tasks
//! j in its order: where c . G[:, j] < 0 it loses its part along the ORIGINAL g_j,
//! c_j -= (c . G[:, j]) / G_jj. The result is the SUM of the projected rows, w = sum_i c^(i); j = i is skipped, as in TorchJD.

use super::params::Param;
use super::random::shuffle;
use super::registry::Descriptor;
use super::{DeviceSolver, Inputs, Method, Needs, Solution};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "pcgrad",
    formula: "c(i) = e_i; for j in order: if c(i).G[:,j] < 0: c(i)_j -= c(i).G[:,j] / G_jj; w = sum_i c(i)",
    needs: Needs::GRAM,
    averages: false,
    params: &[ORDER],
    reference: "Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020",
    build: |params, _| Ok(Box::new(PcGrad { order: Order::parse(params.choice("order")) })),
};

/// Shared with GradVac, which visits pairs the same way.
pub(super) const ORDER: Param = Param::choice(
    "order",
    "random",
    &["random", "fixed"],
    "in which order a row visits the others: a fresh permutation per row and round, or 0, 1, ..., T-1",
);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A fresh permutation per row and round, drawn from the run's seed.
    Random,
    /// 0, 1, ..., T-1 for every row.
    Fixed,
}

impl Order {
    pub(super) fn parse(text: &str) -> Self {
        if text == "fixed" { Self::Fixed } else { Self::Random }
    }

    /// Writes row `row`'s order into `order`: the caller's where it fixes one, else by this rule.
    pub(super) fn fill(self, order: &mut Vec<usize>, inputs: &Inputs, row: usize) {
        match inputs.orders {
            Some(orders) => order.clone_from(&orders[row]),
            None => *order = self.visits(inputs.tasks.len(), inputs.seed, inputs.round, row),
        }
    }

    /// Row `row`'s order among `count`.
    pub fn visits(self, count: usize, seed: u64, round: u64, row: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        if self == Self::Random {
            shuffle(&mut order, seed, round, row as u64);
        }
        order
    }
}

pub struct PcGrad {
    pub order: Order,
}

impl Method for PcGrad {
    fn name(&self) -> &'static str {
        "pcgrad"
    }

    fn needs(&self) -> Needs {
        Needs::GRAM
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let count = inputs.tasks.len();
        let mut weights = vec![0.0; count];
        let mut order = Vec::with_capacity(count);
        for row in 0..count {
            self.order.fill(&mut order, inputs, row);
            for (weight, part) in weights.iter_mut().zip(project(inputs.gram, count, row, &order)) {
                *weight += part;
            }
        }
        Solution::ok(weights)
    }

    fn device_solver(&self) -> Option<DeviceSolver> {
        Some(DeviceSolver { order: Some(self.order), matrices: 2, ..DeviceSolver::new("surgery_pcgrad") })
    }
}

/// Coefficients of row `row` after its projections, in terms of the original gradients.
fn project(gram: &[f64], count: usize, row: usize, order: &[usize]) -> Vec<f64> {
    let gram_row = |task: usize| &gram[task * count..(task + 1) * count];
    let mut part = vec![0.0; count];
    part[row] = 1.0;
    // products[j] = c . G[:, j]
    let mut products = gram_row(row).to_vec();
    for &other in order.iter().filter(|&&other| other != row) {
        if products[other] < 0.0 {
            let removed = products[other] / gram_row(other)[other];
            part[other] -= removed;
            products.iter_mut().zip(gram_row(other)).for_each(|(product, g)| *product -= removed * g);
        }
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    fn solve(gram: &[f64], count: usize, order: Order, round: u64) -> Vec<f64> {
        let tasks: Vec<usize> = (0..count).collect();
        let inputs = Inputs { gram, round, ..super::super::testing::inputs(&tasks) };
        PcGrad { order }.solve(&inputs).weights
    }

    /// J = [[-4, 1, 1], [6, 1, 1]]: the update of the reference libraries is (0.5848, 3.8012, 3.8012).
    #[test]
    fn two_opposed_rows_match_the_reference() {
        let weights = solve(&[18.0, -22.0, -22.0, 38.0], 2, Order::Random, 0);
        let update = [-4.0 * weights[0] + 6.0 * weights[1], weights[0] + weights[1]];
        assert!((update[0] - 0.584_795).abs() < 1e-6, "{update:?}");
        assert!((update[1] - 3.801_170).abs() < 1e-6, "{update:?}");
    }

    #[test]
    fn agreeing_rows_are_summed() {
        assert_eq!(solve(&[2.0, 1.0, 1.0, 3.0], 2, Order::Fixed, 0), [1.0, 1.0]);
    }

    #[test]
    fn a_zero_row_stays_finite() {
        assert_eq!(solve(&[0.0, 0.0, 0.0, 1.0], 2, Order::Random, 3), [1.0, 1.0]);
    }
}
