//! Trimmed mean: per parameter, the mean of the gradients without the `trim` largest and the `trim` smallest.
//!
//! Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018. Parameter: `trim` (1). A round with fewer than
//! 2 trim + 1 tasks trims as many as leave one or two, visibly.

use super::columns::Columnwise;
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
    fn shortage(&self, rows: usize) -> Option<String> {
        let least = self.trim.saturating_mul(2).saturating_add(1);
        (least > rows as u64).then(|| format!("trimmed_mean with trim = {} needs {least} tasks, found {rows}", self.trim))
    }
}

impl Columnwise for TrimmedMean {
    fn column(&self, gradients: &mut [f64], _bits: u64) -> f64 {
        gradients.sort_unstable_by(f64::total_cmp);
        let count = gradients.len();
        let trim = usize::try_from(self.trim).unwrap_or(usize::MAX).min((count - 1) / 2);
        let kept = &gradients[trim..count - trim];
        kept.iter().sum::<f64>() / kept.len() as f64
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
    use super::*;

    #[test]
    fn the_ends_are_dropped() {
        assert_eq!(TrimmedMean { trim: 1 }.column(&mut [9.0, 1.0, -50.0, 2.0, 3.0], 0), 2.0);
    }

    #[test]
    fn too_few_rows_leave_the_median() {
        assert_eq!(TrimmedMean { trim: 3 }.column(&mut [5.0, 1.0, 2.0], 0), 2.0);
        assert_eq!(TrimmedMean { trim: 3 }.column(&mut [5.0], 0), 5.0);
    }
}
