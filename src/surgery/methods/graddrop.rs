//! GradDrop: per parameter, keep only the gradients of one sign, drawn by how much the tasks agree on it.
//!
//! Chen et al., "Just Pick a Sign", NeurIPS 2020. With the purity P = (1 + sum g / sum |g|) / 2 and U uniform in [0, 1):
//! P > U keeps the positive gradients, P < U the negative ones. Of what is dropped, the share `leak` (0) passes.
//! U is a function of (seed, round, column). A column of zeros stays zero.

use super::columns::Columnwise;
use super::params::{Param, Range};
use super::registry::Descriptor;
use super::{Inputs, Method, Needs, Solution, random};

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
    fn column(&self, gradients: &mut [f64], bits: u64) -> f64 {
        let positive: f64 = gradients.iter().filter(|g| **g > 0.0).sum();
        let negative: f64 = gradients.iter().filter(|g| **g < 0.0).sum();
        if positive == negative {
            return 0.0;
        }
        // (1 + (p + n) / (p - n)) / 2 = p / (p - n)
        let purity = positive / (positive - negative);
        let draw = random::uniform(bits);
        let share = |kept: bool| if kept { 1.0 } else { self.leak };
        share(purity > draw) * positive + share(purity < draw) * negative
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
    use super::*;

    #[test]
    fn agreeing_signs_always_pass() {
        let rule = GradDrop { leak: 0.0 };
        for bits in [0, 1 << 63, u64::MAX] {
            assert_eq!(rule.column(&mut [1.0, 2.0], bits), 3.0);
            assert_eq!(rule.column(&mut [-1.0, -2.0], bits), if bits == 0 { 0.0 } else { -3.0 });
            assert_eq!(rule.column(&mut [0.0, 0.0], bits), 0.0);
        }
    }

    /// A column (3, -1) keeps 3 with probability 3/4: mean 3 * 3/4 - 1/4 = 2, standard error sqrt(3) / sqrt(n).
    #[test]
    fn signs_are_drawn_by_their_purity() {
        let rule = GradDrop { leak: 0.0 };
        let draws = 40_000;
        let sum: f64 = (0..draws).map(|column| rule.column(&mut [3.0, -1.0], random::bits(1, 2, column))).sum();
        assert!((sum / draws as f64 - 2.0).abs() < 5.0 * (3.0 / draws as f64).sqrt());
    }

    #[test]
    fn a_full_leak_is_the_sum() {
        assert_eq!(GradDrop { leak: 1.0 }.column(&mut [3.0, -1.0], 77), 2.0);
    }
}
