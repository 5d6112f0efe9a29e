//! Forward and backward of a round: every fused group, on one lane or several, and the losses that come of it.

use std::collections::BTreeSet;
use std::time::Instant;

use super::lanes::Quantum;
use super::round::{Anomaly, Engine};
use crate::model::network::{Batch, Part, Randomness};
use crate::surgery::balance::Factors;

impl Engine {
    /// Private gradients of every present task; mean losses, and what the balancer makes of them. Gradients that are only
    /// added up are scaled by it on the way, others later.
    pub(super) fn forward_backward(
        &mut self,
        batch: &Batch,
        tasks: &[usize],
        round: u64,
    ) -> Result<(Vec<f64>, Factors), Anomaly> {
        let random = self.randomness(round);
        let early = !self.gradients.stored && self.balancer.name() != "equal";
        let mut factors = None;
        if early && batch.groups.len() > 1 {
            // How far back a loss counts is known once all of them are: one more pass forward instead of T rows of J.
            let losses = self.losses(batch, tasks, round)?;
            factors = Some(self.balance(&losses, tasks, round));
        }
        let mut means = MeanLosses::new(tasks.len());
        self.quanta.clear();
        if self.gradients.stored {
            self.separate_gradients(batch, random, &mut means)?;
        } else {
            self.added_gradients(batch, tasks, round, &mut means, early.then_some(&mut factors))?;
        }
        self.network.row_gradients(batch, &mut self.gradients, tasks.len());
        let losses = means.means();
        let factors = match factors {
            Some(factors) => factors,
            None => self.balance(&losses, tasks, round),
        };
        Ok((losses, factors))
    }

    /// Each task's gradient in its own row of J; groups without a common task on all lanes at once.
    fn separate_gradients(&mut self, batch: &Batch, random: Randomness, means: &mut MeanLosses) -> Result<(), Anomaly> {
        let begun = Instant::now();
        for wave in waves(batch) {
            let before = begun.elapsed();
            let own = self.gradients.split(&self.network, batch, &wave);
            let (network, weights) = (&self.network, self.parameters.weights());
            let jobs = wave.iter().zip(own).collect();
            let done = self.lanes.run(&mut self.arenas, jobs, |scratch, (parts, gradients)| {
                network.forward(weights, batch, parts, scratch, Some(random));
                let losses = network.losses(parts, scratch);
                if losses.iter().all(|loss| loss.is_finite()) {
                    network.backward(weights, batch, parts, scratch, gradients, random);
                }
                losses
            });
            for (parts, (losses, quantum)) in wave.into_iter().zip(done) {
                means.book(parts, losses)?;
                self.quanta.push(Quantum { start: before + quantum.start, ..quantum });
            }
        }
        Ok(())
    }

    /// The tasks' gradients added up in one row, group after group. With a place for the balancer's `factors` they are scaled by
    /// them on the way; where there are several groups, the factors are known by now.
    fn added_gradients(
        &mut self,
        batch: &Batch,
        tasks: &[usize],
        round: u64,
        means: &mut MeanLosses,
        mut factors: Option<&mut Option<Factors>>,
    ) -> Result<(), Anomaly> {
        let random = self.randomness(round);
        let begun = Instant::now();
        for group in &batch.groups {
            let start = begun.elapsed();
            let parts = &batch.parts[group.clone()];
            self.forward(batch, parts, random, means)?;
            if let Some(factors) = factors.as_deref_mut() {
                if factors.is_none() {
                    *factors = Some(self.balance(&means.means(), tasks, round));
                }
                let known = &factors.as_ref().expect("just made").factors;
                self.network.scale_logit_gradients(parts, &mut self.arenas[0], known);
            }
            let gradients = self.gradients.of_group(&self.network, batch, parts);
            self.network.backward(self.parameters.weights(), batch, parts, &mut self.arenas[0], gradients, random);
            self.quanta.push(Quantum { lane: 0, start, time: begun.elapsed() - start });
        }
        Ok(())
    }

    /// One group's losses; its logit gradients are left in the scratch.
    fn forward(&mut self, batch: &Batch, parts: &[Part], random: Randomness, means: &mut MeanLosses) -> Result<(), Anomaly> {
        self.network.forward(self.parameters.weights(), batch, parts, &mut self.arenas[0], Some(random));
        let losses = self.network.losses(parts, &mut self.arenas[0]);
        means.book(parts, losses)
    }

    /// Mean losses of the round's examples under the parameters as they are now.
    pub(super) fn losses(&mut self, batch: &Batch, tasks: &[usize], round: u64) -> Result<Vec<f64>, Anomaly> {
        let mut means = MeanLosses::new(tasks.len());
        for group in &batch.groups {
            self.forward(batch, &batch.parts[group.clone()], self.randomness(round), &mut means)?;
        }
        Ok(means.means())
    }
}

/// The groups of a batch in order, cut where a task comes again: those of one wave do not depend on each other.
fn waves(batch: &Batch) -> Vec<Vec<&[Part]>> {
    let mut waves = vec![Vec::new()];
    let mut seen = BTreeSet::new();
    for group in &batch.groups {
        let parts = &batch.parts[group.clone()];
        if parts.iter().any(|part| seen.contains(&part.task)) {
            seen.clear();
            waves.push(Vec::new());
        }
        seen.extend(parts.iter().map(|part| part.task));
        waves.last_mut().expect("there is one").push(parts);
    }
    waves
}

/// Losses of a round as they come in, group by group.
struct MeanLosses {
    sums: Vec<f64>,
    observed: Vec<usize>,
}

impl MeanLosses {
    fn new(count: usize) -> Self {
        Self { sums: vec![0.0; count], observed: vec![0; count] }
    }

    /// A group's losses, unless one of them is not finite.
    fn book(&mut self, parts: &[Part], losses: Vec<f64>) -> Result<(), Anomaly> {
        for (part, loss) in parts.iter().zip(losses) {
            if !loss.is_finite() {
                return Err(Anomaly { task: Some(part.task), what: "loss", value: loss });
            }
            self.sums[part.present] += loss;
            self.observed[part.present] += part.targets.observed();
        }
        Ok(())
    }

    /// (T)
    fn means(&self) -> Vec<f64> {
        self.sums.iter().zip(&self.observed).map(|(sum, &count)| sum / count.max(1) as f64).collect()
    }
}
