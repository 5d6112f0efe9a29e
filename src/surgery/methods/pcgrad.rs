//! PCGrad: project each gradient off those it conflicts with, then add up.
//!
//! Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020. Row i starts as c = e_i and visits the other tasks
//! j in its order: where c . G[:, j] < 0 it loses its part along the ORIGINAL g_j,
//! c_j -= (c . G[:, j]) / G_jj. The result is the SUM of the projected rows, w = sum_i c^(i); j = i is skipped, as in TorchJD.

use super::{Inputs, Method, Needs, Solution};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A fresh permutation per row and round, drawn from the run's seed.
    Random,
    /// 0, 1, ..., T-1 for every row.
    Fixed,
}

pub struct PcGrad {
    pub order: Order,
}

impl Method for PcGrad {
    fn name(&self) -> &'static str {
        "pcgrad"
    }

    fn needs(&self) -> Needs {
        Needs { gram: true, losses: false }
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let count = inputs.tasks.len();
        let mut weights = vec![0.0; count];
        let mut order: Vec<usize> = (0..count).collect();
        for row in 0..count {
            if let Some(orders) = inputs.orders {
                order.clone_from(&orders[row]);
            } else if self.order == Order::Random {
                shuffle(&mut order, inputs.seed, inputs.round, row as u64);
            }
            for (weight, part) in weights.iter_mut().zip(project(inputs.gram, count, row, &order)) {
                *weight += part;
            }
        }
        Solution::ok(weights)
    }
}

/// Coefficients of row `row` after its projections, in terms of the original gradients.
fn project(gram: &[f64], count: usize, row: usize, order: &[usize]) -> Vec<f64> {
    let mut part = vec![0.0; count];
    part[row] = 1.0;
    for &other in order.iter().filter(|&&other| other != row) {
        let column = &gram[other * count..(other + 1) * count];
        let product: f64 = part.iter().zip(column).map(|(c, g)| c * g).sum();
        if product < 0.0 {
            part[other] -= product / column[other];
        }
    }
    part
}

/// Fisher-Yates over 0..n, a pure function of its key: the same round shuffles the same way after a resume.
fn shuffle(order: &mut [usize], seed: u64, round: u64, row: u64) {
    for (position, slot) in order.iter_mut().enumerate() {
        *slot = position;
    }
    let mut state = mix(mix(mix(seed) ^ round) ^ row);
    for last in (1..order.len()).rev() {
        state = mix(state);
        // The high half of a 64 x 64 product maps to 0..=last with a bias below 2^-50 for any real T.
        let pick = ((state as u128 * (last as u128 + 1)) >> 64) as usize;
        order.swap(last, pick);
    }
}

/// SplitMix64's step and finalizer (Steele, Lea & Flood 2014).
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn solve(gram: &[f64], count: usize, order: Order, round: u64) -> Vec<f64> {
        let tasks: Vec<usize> = (0..count).collect();
        let inputs = Inputs { gram, losses: &[], tasks: &tasks, round, seed: 7, orders: None };
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

    #[test]
    fn orders_repeat_for_a_round_and_change_between_rounds() {
        let shuffled = |round| {
            let mut order = vec![0; 16];
            shuffle(&mut order, 7, round, 2);
            order
        };
        assert_eq!(shuffled(5), shuffled(5));
        assert_ne!(shuffled(5), shuffled(6));
        let mut sorted = shuffled(5);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..16).collect::<Vec<_>>());
    }
}
