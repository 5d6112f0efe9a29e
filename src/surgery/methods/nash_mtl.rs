//! Nash-MTL: the tasks bargain for the update; nobody's relative gain can be raised without a larger relative loss.
//!
//! Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022. G a = 1/a, the unique minimiser of
//! a'Ga / 2 - sum log a, see [`super::bargain`]; then a is shortened to sqrt(a'Ga) <= max_norm. Without a limit the update is
//! sqrt(T) long: the reference divides G by its Frobenius norm but puts the norm back in its constraints.
//! Parameters: `max_norm` (1.0; 0 for no limit), `update_every` (1), rounds between two bargains; between them the
//! last a is used again, limited anew. Where no bargain exists (a convex combination of the gradients vanishes) a
//! ridge makes one and the status says so.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::linalg::quadratic;
use super::on_device::{BARGAIN_MATRICES, BARGAIN_VECTORS};
use super::params::{Param, Range};
use super::registry::Descriptor;
use super::state::{Saved, pack_all};
use super::{DeviceSolver, Inputs, Method, Needs, Solution, Status, bargain, took_mean};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "nash_mtl",
    formula: "G a = 1/a; w = a min(1, max_norm / sqrt(a'Ga))",
    needs: Needs::GRAM,
    averages: false,
    params: &[
        Param::number("max_norm", 1.0, Range::NonNegative, "longest update; 0 for no limit"),
        Param::count("update_every", 1, 1, "rounds from one bargain to the next"),
    ],
    reference: "Navon et al., Multi-Task Learning as a Bargaining Game, ICML 2022",
    build: |params, tasks| {
        Ok(Box::new(NashMtl {
            max_norm: params.number("max_norm"),
            update_every: params.count("update_every"),
            tasks,
            rounds: 0,
            agreed: BTreeMap::new(),
        }))
    },
};

struct NashMtl {
    max_norm: f64,
    update_every: u64,
    /// Tasks of the run.
    tasks: usize,
    /// Rounds solved so far.
    rounds: u64,
    /// The last bargain, by run-wide task, before it was limited to `max_norm`.
    agreed: BTreeMap<usize, f64>,
}

impl NashMtl {
    /// The last bargain, if it is recent enough and every present task took part in it.
    fn cached(&self, tasks: &[usize]) -> Option<Vec<f64>> {
        let due = self.rounds.is_multiple_of(self.update_every);
        if due { None } else { tasks.iter().map(|task| self.agreed.get(task).copied()).collect() }
    }

    fn bargain(&mut self, inputs: &Inputs) -> (Vec<f64>, Status) {
        let count = inputs.tasks.len();
        let Some(found) = bargain::solve(inputs.gram, count, 1.0) else {
            let mean = Solution::mean(count, NOT_CONVERGED);
            return (mean.weights, mean.status);
        };
        self.agreed = inputs.tasks.iter().copied().zip(found.weights.iter().copied()).collect();
        (found.weights, ridge_status(found.ridged))
    }
}

/// Shared with FairGrad, whose equation fails on the same gradients.
pub(super) fn ridge_status(ridged: bool) -> Status {
    if ridged { Status::Fallback(RIDGED.to_owned()) } else { Status::Ok }
}

pub(super) const RIDGED: &str = "the gradients (nearly) cancel, so no bargain exists; solved with a ridge of 1e-8";

const NOT_CONVERGED: &str = "the bargain did not converge";

impl Method for NashMtl {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let (mut weights, status) = match self.cached(inputs.tasks) {
            Some(weights) => (weights, Status::Ok),
            None => self.bargain(inputs),
        };
        self.rounds += 1;
        let norm = quadratic(inputs.gram, &weights).sqrt();
        if self.max_norm > 0.0 && norm > self.max_norm {
            weights.iter_mut().for_each(|weight| *weight *= self.max_norm / norm);
        }
        match status {
            Status::Ok => Solution::checked(weights),
            status => Solution { weights, status },
        }
    }

    fn device_solver(&self) -> Option<DeviceSolver> {
        Some(DeviceSolver {
            numbers: [self.max_norm, self.update_every as f64, 0.0],
            matrices: BARGAIN_MATRICES,
            vectors: BARGAIN_VECTORS + 1,
            fallbacks: &[|_| took_mean(NOT_CONVERGED), |_| RIDGED.to_owned()],
            ..DeviceSolver::new("surgery_nash_mtl")
        })
    }

    /// Rounds, and each task's part of the last bargain: NaN where it has none.
    fn device_state(&self) -> Vec<f64> {
        let agreed = (0..self.tasks).map(|task| self.agreed.get(&task).copied().unwrap_or(f64::NAN));
        std::iter::once(self.rounds as f64).chain(agreed).collect()
    }

    fn set_device_state(&mut self, state: &[f64]) {
        self.rounds = state[0] as u64;
        self.agreed = state[1..].iter().copied().enumerate().filter(|(_, weight)| !weight.is_nan()).collect();
    }

    fn state(&self) -> Value {
        let (tasks, weights): (Vec<usize>, Vec<f64>) = self.agreed.iter().unzip();
        json!({ "rounds": self.rounds, "tasks": tasks, "agreed": pack_all(&weights) })
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        let saved = Saved::open(self.name(), state)?;
        let tasks = saved.indices("tasks")?;
        let weights = saved.values("agreed", tasks.len())?;
        self.rounds = saved.count("rounds")?;
        self.agreed = tasks.into_iter().zip(weights).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{build, gaussian, gram_of, inputs};
    use super::*;

    #[test]
    fn weights_are_kept_between_bargains() {
        let mut method = build("nash_mtl", json!({"update_every": 2}), 3);
        let (first, second) = (gram_of(&gaussian(3, 8, 1)), gram_of(&gaussian(3, 8, 2)));
        let mut round = |gram: &[f64]| method.solve(&Inputs { gram, ..inputs(&[0, 1, 2]) }).weights;
        let (one, two, three) = (round(&first), round(&second), round(&second));
        let same_direction = |a: &[f64], b: &[f64]| (a[0] * b[1] - a[1] * b[0]).abs() < 1e-12;
        assert!(same_direction(&one, &two));
        assert!(!same_direction(&two, &three));
    }

    #[test]
    fn a_newcomer_reopens_the_bargain() {
        let mut method = build("nash_mtl", json!({"update_every": 100}), 3);
        let gram = gram_of(&gaussian(2, 8, 1));
        method.solve(&Inputs { gram: &gram, ..inputs(&[0, 1]) });
        let gram = gram_of(&gaussian(3, 8, 1));
        assert_eq!(method.solve(&Inputs { gram: &gram, ..inputs(&[0, 1, 2]) }).weights.len(), 3);
    }

    #[test]
    fn zero_means_no_limit() {
        let mut method = build("nash_mtl", json!({"max_norm": 0.0}), 3);
        let gram = gram_of(&gaussian(3, 8, 1));
        let weights = method.solve(&Inputs { gram: &gram, ..inputs(&[0, 1, 2]) }).weights;
        assert!((quadratic(&gram, &weights).sqrt() - 3.0_f64.sqrt()).abs() < 1e-12, "{weights:?}");
        let mut method = build("nash_mtl", json!({}), 1);
        assert_eq!(method.solve(&Inputs { gram: &[4.0], ..inputs(&[0]) }).weights, [0.5]);
    }
}
