//! Adam on one number per task: what uncertainty weighting, IMTL-L and FAMO learn their numbers with.

use serde_json::{Value, json};

use super::super::methods::state::{Saved, pack_all};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;

/// Kingma & Ba 2015, one learned number per task of the run. A task's moments and step count move only in its rounds.
pub struct Adam {
    lr: f64,
    /// Added to the gradient as weight_decay * value (L2, not decoupled), as in `torch.optim.Adam`.
    weight_decay: f64,
    /// (tasks) the learned numbers.
    values: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
    /// (tasks) steps taken; whole numbers.
    steps: Vec<f64>,
}

impl Adam {
    pub fn new(tasks: usize, lr: f64, weight_decay: f64) -> Self {
        let zeros = || vec![0.0; tasks];
        Self { lr, weight_decay, values: zeros(), first: zeros(), second: zeros(), steps: zeros() }
    }

    pub fn value(&self, task: usize) -> f64 {
        self.values[task]
    }

    pub fn values(&self, tasks: &[usize]) -> Vec<f64> {
        tasks.iter().map(|&task| self.values[task]).collect()
    }

    /// One descent step of `task`'s number. A gradient that is not finite is skipped: it would stay in the moments.
    pub fn step(&mut self, task: usize, gradient: f64) {
        if !gradient.is_finite() {
            return;
        }
        let gradient = gradient + self.weight_decay * self.values[task];
        self.steps[task] += 1.0;
        self.first[task] = BETA1 * self.first[task] + (1.0 - BETA1) * gradient;
        self.second[task] = BETA2 * self.second[task] + (1.0 - BETA2) * gradient * gradient;
        let first = self.first[task] / (1.0 - BETA1.powf(self.steps[task]));
        let second = self.second[task] / (1.0 - BETA2.powf(self.steps[task]));
        self.values[task] -= self.lr * first / (second.sqrt() + EPS);
    }

    pub fn save(&self) -> Value {
        json!({
            "values": pack_all(&self.values), "first": pack_all(&self.first),
            "second": pack_all(&self.second), "steps": pack_all(&self.steps),
        })
    }

    pub fn restore(&mut self, owner: &str, state: &Value) -> Result<(), String> {
        let saved = Saved::open(owner, state)?;
        let read = |name| saved.values(name, self.values.len());
        let (values, first, second, steps) = (read("values")?, read("first")?, read("second")?, read("steps")?);
        *self = Self { values, first, second, steps, ..*self };
        Ok(())
    }
}
