//! Smooth Tchebycheff scalarization: descend on a smooth maximum of the losses, each relative to its own start.
//!
//! Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", ICML 2024; warmup, logarithms and
//! the factor T as in LibMTL. For `warmup` epochs the sum of log losses (c_t = 1 / L_t); through the next epoch too, while
//! the reference N_t = mean loss is taken; after it T mu log sum_t exp(log(L_t / N_t) / mu), so
//! c = T softmax(log(L / N) / mu) / L. A task without a reference yet counts with L / N = 1. Parameters: `mu` (1),
//! `warmup` (4). A loss that is not positive has no logarithm: then the factors are equal, visibly.

use serde_json::{Value, json};

use super::super::methods::params::{Param, Range};
use super::super::methods::softmax;
use super::super::methods::state::{Saved, pack_all};
use super::registry::Descriptor;
use super::{Balancer, Factors, Losses, not_positive};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "stch",
    formula: "c = T softmax(log(L/N)/mu) / L, N = mean losses of epoch `warmup`; 1/L before",
    params: &[
        Param::number("mu", 1.0, Range::Positive, "smoothness: small values follow the worst task alone"),
        Param::count("warmup", 4, 0, "epochs of plain log losses before the reference epoch"),
    ],
    reference: "Lin et al., Smooth Tchebycheff Scalarization for Multi-Objective Optimization, ICML 2024",
    build: |params, tasks| {
        Box::new(Stch {
            mu: params.number("mu"),
            warmup: params.count("warmup"),
            sums: vec![0.0; tasks],
            rounds: vec![0.0; tasks],
        })
    },
};

struct Stch {
    mu: f64,
    warmup: u64,
    /// (tasks) losses of the reference epoch added up, and how many.
    sums: Vec<f64>,
    rounds: Vec<f64>,
}

impl Stch {
    /// log(L / N), 0 where there is no N.
    fn log_ratio(&self, task: usize, loss: f64) -> f64 {
        if self.rounds[task] > 0.0 { (loss * self.rounds[task] / self.sums[task]).ln() } else { 0.0 }
    }
}

impl Balancer for Stch {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn factors(&mut self, round: &Losses) -> Factors {
        let count = round.losses.len();
        if let Some(fault) = not_positive(DESCRIPTOR.name, round.losses) {
            return Factors::equal(count, fault);
        }
        let present = round.tasks.iter().zip(round.losses);
        if round.epoch <= self.warmup {
            if round.epoch == self.warmup {
                for (&task, loss) in present {
                    self.sums[task] += loss;
                    self.rounds[task] += 1.0;
                }
            }
            return Factors::checked(round.losses.iter().map(|loss| loss.recip()).collect());
        }
        let logits: Vec<f64> = present.map(|(&task, &loss)| self.log_ratio(task, loss) / self.mu).collect();
        let shares = softmax(&logits);
        Factors::checked(shares.iter().zip(round.losses).map(|(share, loss)| count as f64 * share / loss).collect())
    }

    fn state(&self) -> Value {
        json!({ "sums": pack_all(&self.sums), "rounds": pack_all(&self.rounds) })
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        let saved = Saved::open(DESCRIPTOR.name, state)?;
        let sums = saved.values("sums", self.sums.len())?;
        self.rounds = saved.values("rounds", self.rounds.len())?;
        self.sums = sums;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, build, round};
    use super::*;

    #[test]
    fn after_warmup_the_worst_relative_task_leads() {
        let mut balancer = build("stch", json!({"warmup": 0}));
        assert_close(&balancer.factors(&round(&[1.0, 2.0, 4.0])).factors, &[1.0, 0.5, 0.25]);
        let later = Losses { epoch: 1, ..round(&[1.0, 1.0, 1.0]) };
        // exp(log ratio) = 1, 1/2, 1/4; their shares 4/7, 2/7, 1/7.
        assert_close(&balancer.factors(&later).factors, &[12.0 / 7.0, 6.0 / 7.0, 3.0 / 7.0]);
    }
}
