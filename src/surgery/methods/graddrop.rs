//! GradDrop: per parameter, keep only the gradients of one sign, drawn by how much the tasks agree on it.
//!
//! Chen et al., "Just Pick a Sign", NeurIPS 2020. With the purity P = (1 + sum g / sum |g|) / 2 and U uniform in [0, 1):
//! P > U keeps the positive gradients, P < U the negative ones. Of what is dropped, the share `leak` (0) passes.
//! U is a function of (seed, round, column). A column of zeros stays zero.

use multiversion::multiversion;

use super::columns::{Columnwise, Draws, Rule, TILE};
use super::params::{Param, Range};
use super::registry::Descriptor;
use super::{Inputs, Method, Needs, Solution};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "graddrop",
    formula: "per column: P = (1 + sum g/sum |g|)/2; U < P keeps g > 0, U > P keeps g < 0; dropped g pass by leak",
    needs: Needs::ELEMENTWISE,
    averages: false,
    params: &[Param::number("leak", 0.0, Range::Unit, "share of a dropped gradient that passes")],
    reference: "Chen et al., Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout, NeurIPS 2020",
    build: |params, _| Ok(Box::new(GradDrop { leak: params.number("leak") })),
};

struct GradDrop {
    leak: f64,
}

impl Columnwise for GradDrop {
    fn rule(&self) -> Rule {
        Rule::GradDrop { leak: self.leak }
    }

    fn settle(&self, tile: &mut [[f64; TILE]], _count: usize, draws: &Draws, out: &mut [f64; TILE]) {
        drop_signs(tile, draws, self.leak, out);
    }
}

/// Sums of the positive and of the negative gradients of each column, of which one is kept whole.
#[multiversion(targets("x86_64+avx2+fma"))]
fn drop_signs(tile: &[[f64; TILE]], draws: &Draws, leak: f64, out: &mut [f64; TILE]) {
    let (mut positive, mut negative) = ([0.0; TILE], [0.0; TILE]);
    for row in tile {
        for column in 0..TILE {
            positive[column] += row[column].max(0.0);
            negative[column] += row[column].min(0.0);
        }
    }
    for column in 0..TILE {
        let (positive, negative) = (positive[column], negative[column]);
        let draw = draws.uniform(column);
        // (1 + (p + n) / (p - n)) / 2 = p / (p - n), compared without the division; a column of zeros compares equal.
        let threshold = draw * (positive - negative);
        let share = |kept: bool| if kept { 1.0 } else { leak };
        out[column] = share(positive > threshold) * positive + share(positive < threshold) * negative;
    }
}

impl Method for GradDrop {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn solve(&mut self, _inputs: &Inputs) -> Solution {
        Solution::ok(Vec::new())
    }

    fn columnwise(&self) -> Option<&dyn Columnwise> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::column;
    use super::*;

    #[test]
    fn agreeing_signs_always_pass() {
        let rule = GradDrop { leak: 0.0 };
        for number in 0..100 {
            assert_eq!(column(&rule, &[1.0, 2.0], number), 3.0);
            assert_eq!(column(&rule, &[-1.0, -2.0], number), -3.0);
            assert_eq!(column(&rule, &[0.0, 0.0], number), 0.0);
        }
    }

    /// A column (3, -1) keeps 3 with probability 3/4: mean 3 * 3/4 - 1/4 = 2, standard error sqrt(3) / sqrt(n).
    #[test]
    fn signs_are_drawn_by_their_purity() {
        let rule = GradDrop { leak: 0.0 };
        let draws = 40_000;
        let sum: f64 = (0..draws).map(|number| column(&rule, &[3.0, -1.0], number)).sum();
        assert!((sum / draws as f64 - 2.0).abs() < 5.0 * (3.0 / draws as f64).sqrt());
    }

    #[test]
    fn a_full_leak_is_the_sum() {
        assert_eq!(column(&GradDrop { leak: 1.0 }, &[3.0, -1.0], 77), 2.0);
    }
}
