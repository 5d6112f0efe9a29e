//! Trimmed mean: per parameter, the mean of the gradients without the `trim` largest and the `trim` smallest.
//!
//! Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018. Parameter: `trim` (1). A round with fewer than
//! 2 trim + 1 tasks trims as many as leave one or two, visibly.

use multiversion::multiversion;

use super::columns::{Columnwise, Draws, Rule, TILE};
use super::params::Param;
use super::registry::Descriptor;
use super::{Inputs, Method, Needs, Solution, Status};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "trimmed_mean",
    formula: "per column: mean of the T - 2 trim middle values",
    needs: Needs::ELEMENTWISE,
    averages: true,
    params: &[Param::count("trim", 1, 0, "values dropped at each end")],
    reference: "Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018",
    build: |params, tasks| {
        let method = TrimmedMean { trim: params.count("trim") };
        match method.shortage(tasks) {
            Some(shortage) => Err(shortage),
            None => Ok(Box::new(method)),
        }
    },
};

struct TrimmedMean {
    trim: u64,
}

impl TrimmedMean {
    /// Values dropped at each end of `count`.
    fn trimmed(&self, count: usize) -> usize {
        usize::try_from(self.trim).unwrap_or(usize::MAX).min((count - 1) / 2)
    }

    fn shortage(&self, rows: usize) -> Option<String> {
        let least = self.trim.saturating_mul(2).saturating_add(1);
        (least > rows as u64).then(|| format!("trimmed_mean with trim = {} needs {least} tasks, found {rows}", self.trim))
    }
}

impl Columnwise for TrimmedMean {
    fn rule(&self) -> Rule {
        Rule::TrimmedMean { trim: self.trim }
    }

    fn settle(&self, tile: &mut [[f64; TILE]], count: usize, _draws: &Draws, out: &mut [f64; TILE]) {
        let trim = self.trimmed(count);
        sum_of_middle(tile, trim, out);
        out.iter_mut().for_each(|sum| *sum /= (count - 2 * trim) as f64);
    }

    /// As many as can be trimmed; one more that is not adds nothing to the sum.
    fn zeros(&self, absent: usize) -> usize {
        usize::try_from(self.trim.saturating_mul(2)).unwrap_or(usize::MAX).min(absent)
    }
}

/// Sum of each column without its `trim` smallest and largest values, which are moved to the ends by exchanges.
#[multiversion(targets("x86_64+avx2+fma"))]
fn sum_of_middle(tile: &mut [[f64; TILE]], trim: usize, out: &mut [f64; TILE]) {
    let count = tile.len();
    for pass in 0..trim {
        for row in pass..count - pass - 1 {
            exchange(tile, row);
        }
        for row in (pass..count - pass - 2).rev() {
            exchange(tile, row);
        }
    }
    *out = [0.0; TILE];
    for row in &tile[trim..count - trim] {
        out.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
}

/// Puts each column's larger value of two neighbouring rows into the second.
#[inline(always)]
fn exchange(tile: &mut [[f64; TILE]], row: usize) {
    let (a, b) = (tile[row], tile[row + 1]);
    for column in 0..TILE {
        let swap = b[column] < a[column];
        tile[row][column] = if swap { b[column] } else { a[column] };
        tile[row + 1][column] = if swap { a[column] } else { b[column] };
    }
}

impl Method for TrimmedMean {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let status = match self.shortage(inputs.tasks.len()) {
            Some(shortage) => Status::Fallback(format!("{shortage}; trimmed fewer")),
            None => Status::Ok,
        };
        Solution { weights: Vec::new(), status }
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
    fn the_ends_are_dropped() {
        assert_eq!(column(&TrimmedMean { trim: 1 }, &[9.0, 1.0, -50.0, 2.0, 3.0], 0), 2.0);
        assert_eq!(column(&TrimmedMean { trim: 2 }, &[9.0, 1.0, -50.0, 2.0, 3.0, 70.0, 2.5], 0), 2.5);
        assert_eq!(column(&TrimmedMean { trim: 0 }, &[9.0, 1.0], 0), 5.0);
    }

    #[test]
    fn too_few_rows_leave_the_median() {
        assert_eq!(column(&TrimmedMean { trim: 3 }, &[5.0, 1.0, 2.0], 0), 2.0);
        assert_eq!(column(&TrimmedMean { trim: 3 }, &[5.0], 0), 5.0);
    }
}
