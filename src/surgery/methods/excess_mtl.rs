//! ExcessMTL: more weight for the tasks furthest from their own optimum, estimated to second order.
//!
//! He et al., "Robust Multi-Task Learning with Excess Risks", ICML 2024. With S_t += g_t^2 (elementwise), the excess of a
//! task is x_t = sum_p g_tp^2 / sqrt(S_tp + 1e-7), relative to its own baseline: x_t / (x_t(0) + 1e-7), and
//! w <- softmax(log w + eta x), from 1/T. During `n_warmup_steps` rounds the weights stay and baselines are averaged;
//! without warmup a task's first excess is its baseline and counts raw that once, as in TorchJD. Parameters:
//! `robust_step_size` (1.0, eta), `n_warmup_steps` (0).

use serde_json::{Value, json};

use super::params::{Param, Range};
use super::registry::Descriptor;
use super::rows::RowPass;
use super::simplex::softmax;
use super::state::{Saved, Shares, pack_all};
use super::{Inputs, Method, Needs, Solution, Status};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "excess_mtl",
    formula: "S_t += g_t^2; x_t = sum g_t^2/sqrt(S_t) / x_t(0); w = softmax(log w + eta x)",
    needs: Needs { row_state: true, ..Needs::NOTHING },
    averages: true,
    params: &[
        Param::number("robust_step_size", 1.0, Range::Positive, "step eta of the weights' logarithms"),
        Param::count("n_warmup_steps", 0, 0, "rounds of equal weights over which baselines are averaged"),
    ],
    reference: "He et al., Robust Multi-Task Learning with Excess Risks, ICML 2024",
    build: |params, tasks| {
        Ok(Box::new(ExcessMtl {
            eta: params.number("robust_step_size"),
            warmup: params.count("n_warmup_steps"),
            rounds: 0,
            shares: Shares::uniform(tasks),
            baselines: vec![0.0; tasks],
            seen: vec![0.0; tasks],
        }))
    },
};

/// Keeps square roots and baselines away from zero, as in the reference.
const EPS: f64 = 1e-7;

struct ExcessMtl {
    eta: f64,
    warmup: u64,
    rounds: u64,
    shares: Shares,
    /// (tasks) sum of the excesses that make up the baseline.
    baselines: Vec<f64>,
    /// (tasks) how many they are; whole numbers.
    seen: Vec<f64>,
}

impl ExcessMtl {
    fn add_to_baseline(&mut self, task: usize, excess: f64) {
        self.baselines[task] += excess;
        self.seen[task] += 1.0;
    }

    /// The task's excess relative to its baseline; raw where this very excess becomes the baseline.
    fn relative(&mut self, task: usize, excess: f64) -> f64 {
        if self.seen[task] == 0.0 {
            self.add_to_baseline(task, excess);
            return excess;
        }
        excess / (self.baselines[task] / self.seen[task] + EPS)
    }
}

impl Method for ExcessMtl {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn row_pass(&mut self, _inputs: &Inputs) -> Option<RowPass> {
        Some(RowPass::Squares { eps: EPS })
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        self.rounds += 1;
        let shares = self.shares.present(inputs.tasks);
        let excesses = inputs.tasks.iter().copied().zip(inputs.row_sums.iter().copied());
        if self.rounds <= self.warmup {
            excesses.for_each(|(task, excess)| self.add_to_baseline(task, excess));
            return Solution::ok(shares);
        }
        let logits: Vec<f64> =
            excesses.zip(&shares).map(|((task, x), share)| share.ln() + self.eta * self.relative(task, x)).collect();
        let solution = Solution::checked(softmax(&logits));
        if solution.status == Status::Ok {
            self.shares.set_present(inputs.tasks, &solution.weights);
        }
        solution
    }

    fn state(&self) -> Value {
        let (baselines, seen) = (pack_all(&self.baselines), pack_all(&self.seen));
        json!({ "rounds": self.rounds, "shares": self.shares.save(), "baselines": baselines, "seen": seen })
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        let saved = Saved::open(DESCRIPTOR.name, state)?;
        let rounds = saved.count("rounds")?;
        let baselines = saved.values("baselines", self.baselines.len())?;
        let seen = saved.values("seen", self.seen.len())?;
        self.shares.restore(DESCRIPTOR.name, saved.field("shares")?)?;
        (self.rounds, self.baselines, self.seen) = (rounds, baselines, seen);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{build, inputs};
    use super::*;

    fn rounds(warmup: u64) -> Vec<Vec<f64>> {
        let mut method = build("excess_mtl", json!({ "n_warmup_steps": warmup }), 2);
        let first = [vec![1.0, 2.0, -1.0], vec![0.5, -0.5, 3.0]];
        let second = [vec![0.5, 1.0, 0.0], vec![2.0, -0.5, 1.0]];
        let mut buffers = [[0.0; 3]; 2];
        let mut solve = |rows: &[Vec<f64>; 2]| {
            let round = inputs(&[0, 1]);
            let pass = method.row_pass(&round).expect("row state");
            let mut sums = vec![0.0; pass.sums_len(2)];
            let [left, right] = &mut buffers;
            pass.apply(&[rows[0].as_slice(), &rows[1]], &mut [left.as_mut_slice(), right], &mut sums);
            method.solve(&Inputs { row_sums: &sums, ..round }).weights
        };
        vec![solve(&first), solve(&second), solve(&first)]
    }

    /// TorchJD 0.18, ExcessMTL(n_warmup_steps=0 and 1).
    #[test]
    fn rounds_match_the_reference() {
        let cold = [
            [0.5000000229166536, 0.4999999770833464],
            [0.3811166391325774, 0.6188833608674227],
            [0.395117354270223, 0.6048826457297771],
        ];
        let warm = [[0.5, 0.5], [0.3811166175114716, 0.6188833824885286], [0.39511733236193625, 0.6048826676380638]];
        for (warmup, expected) in [(0, cold), (1, warm)] {
            for (found, expected) in rounds(warmup).iter().flatten().zip(expected.iter().flatten()) {
                assert!((found - expected).abs() < 1e-14, "warmup {warmup}: {found} {expected}");
            }
        }
    }
}
