//! Dynamic weight averaging: more weight for the losses that fall slowly.
//!
//! Liu, Johns & Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019. With a task's mean losses A and B of
//! its last and last but one epochs, c = T softmax(A / B / tau) over the present tasks; 1 in the first two epochs. A task
//! with less history than that counts with the ratio 1. Parameter: `tau` (2).

use serde_json::{Value, json};

use super::super::methods::params::{Param, Range};
use super::super::methods::softmax;
use super::super::methods::state::{Saved, pack_all};
use super::registry::Descriptor;
use super::{Balancer, Factors, Losses};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "dwa",
    formula: "c = T softmax(r/tau), r_t = mean loss of the last epoch / of the one before",
    params: &[Param::number("tau", 2.0, Range::Positive, "temperature: large values are more equal")],
    reference: "Liu, Johns & Davison, End-to-End Multi-Task Learning with Attention, CVPR 2019",
    build: |params, tasks| {
        let blank = vec![f64::NAN; tasks];
        Box::new(Dwa {
            tau: params.number("tau"),
            epoch: 0,
            sums: vec![0.0; tasks],
            rounds: vec![0.0; tasks],
            last: blank.clone(),
            before: blank,
        })
    },
};

struct Dwa {
    tau: f64,
    /// The epoch that `sums` belongs to.
    epoch: u64,
    /// (tasks) losses added up over this epoch, and how many.
    sums: Vec<f64>,
    rounds: Vec<f64>,
    /// (tasks) mean losses of the last epoch and of the one before; NaN where there was none.
    last: Vec<f64>,
    before: Vec<f64>,
}

impl Dwa {
    fn roll_over(&mut self, epoch: u64) {
        self.epoch = epoch;
        for task in 0..self.sums.len() {
            // A task absent for a whole epoch keeps the history it has.
            if self.rounds[task] > 0.0 {
                self.before[task] = self.last[task];
                self.last[task] = self.sums[task] / self.rounds[task];
                (self.sums[task], self.rounds[task]) = (0.0, 0.0);
            }
        }
    }

    fn ratio(&self, task: usize) -> f64 {
        let ratio = self.last[task] / self.before[task];
        if ratio.is_finite() { ratio } else { 1.0 }
    }
}

impl Balancer for Dwa {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn factors(&mut self, round: &Losses) -> Factors {
        if round.epoch != self.epoch {
            self.roll_over(round.epoch);
        }
        let count = round.tasks.len() as f64;
        let logits: Vec<f64> = round.tasks.iter().map(|&task| self.ratio(task) / self.tau).collect();
        for (&task, loss) in round.tasks.iter().zip(round.losses) {
            self.sums[task] += loss;
            self.rounds[task] += 1.0;
        }
        Factors::checked(softmax(&logits).into_iter().map(|share| share * count).collect())
    }

    fn state(&self) -> Value {
        json!({
            "epoch": self.epoch, "sums": pack_all(&self.sums), "rounds": pack_all(&self.rounds),
            "last": pack_all(&self.last), "before": pack_all(&self.before),
        })
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        let saved = Saved::open(DESCRIPTOR.name, state)?;
        let epoch = saved.count("epoch")?;
        let read = |name| saved.values(name, self.sums.len());
        let (sums, rounds, last, before) = (read("sums")?, read("rounds")?, read("last")?, read("before")?);
        *self = Self { tau: self.tau, epoch, sums, rounds, last, before };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{LOSSES, assert_close, build, round};
    use super::*;

    /// TorchJD 0.18, DWA() with one batch per epoch.
    #[test]
    fn epochs_match_the_reference() {
        let mut balancer = build("dwa", json!({}));
        let expected = [
            [1.0, 1.0, 1.0],
            [1.0, 1.0, 1.0],
            [0.9587252031123348, 1.0078800953992304, 1.0333947014884348],
            [1.0116965258642892, 1.1384688047296552, 0.8498346694060559],
        ];
        for (epoch, (losses, expected)) in LOSSES.iter().zip(expected).enumerate() {
            let seen = Losses { epoch: epoch as u64, ..round(losses) };
            assert_close(&balancer.factors(&seen).factors, &expected);
        }
    }
}
