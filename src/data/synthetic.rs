//! The built-in source: tasks with planted relations, made from the seed.
//!
//! Every task is linear in standard normal features, y_t = x . w_t + noise, with unit vectors w_t: in an `agree` pair their
//! cosine is 0.9, in an `oppose` pair -0.9, and all other pairs are orthogonal. While heads are equal, the tasks' gradients
//! at the start have just these cosines. A classification task sees only whether y_t is positive.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::split::{Corpus, Inputs, LoadReport, Split, Targets, TaskData};
use super::store::FeatureStore;
use crate::config::schema::{Config, HeadKind, Synthetic, Task};
use crate::config::synthetic_names;
use crate::ops::philox::{Keyed, Stream};

/// |cosine| of the two tasks of a pair.
const PAIR_COSINE: f64 = 0.9;

/// Adds an entry to `tasks` for each synthetic task that has none.
pub fn expand(config: &mut Config) -> Result<()> {
    let Some(synthetic) = &config.synthetic else { return Ok(()) };
    let needed = tasks(synthetic);
    ensure!(
        synthetic.features >= needed,
        "synthetic.features: {} are too few for {needed} directions; two per pair and one per lone task are needed",
        synthetic.features
    );
    for name in synthetic_names(synthetic) {
        let mut settings = config.tasks.get(&name).unwrap_or(&config.task_defaults).clone();
        let is_made = matches!(settings.head, HeadKind::Regression | HeadKind::Classification);
        ensure!(is_made, "tasks.{name}.head: synthetic tasks are regression or classification");
        settings.synthetic = Some(name.clone());
        config.tasks.insert(name, settings);
    }
    Ok(())
}

/// What making the examples takes: bytes of them, and products of the planted directions with each other.
pub fn cost(synthetic: &Synthetic) -> (u64, u64) {
    let tasks = tasks(synthetic) as u64;
    let examples =
        [synthetic.train, synthetic.dev, synthetic.test].iter().fold(0u64, |sum, &count| sum.saturating_add(count as u64));
    let values = tasks.saturating_mul(examples).saturating_mul(synthetic.features as u64 + 1);
    (values.saturating_mul(4), (tasks * tasks).saturating_mul(synthetic.features as u64))
}

fn tasks(synthetic: &Synthetic) -> usize {
    2 * (synthetic.agree + synthetic.oppose) + synthetic.alone
}

/// Makes the examples of every synthetic task and adds them to the corpus.
pub fn load(config: &Config, corpus: &mut Corpus) -> Result<()> {
    let Some(synthetic) = &config.synthetic else { return Ok(()) };
    if let Some(dim) = corpus.feature_dim {
        ensure!(dim == synthetic.features, "synthetic.features is {}, the other tasks have {dim}", synthetic.features);
    }
    corpus.feature_dim = Some(synthetic.features);
    let weights = planted(synthetic, config.run.seed);
    for (number, (name, weight)) in synthetic_names(synthetic).into_iter().zip(weights).enumerate() {
        let settings = config.tasks.get(&name).with_context(|| format!("synthetic task {name} has no settings"))?.clone();
        let source = Source { synthetic, settings: &settings, seed: config.run.seed, task: number as u32, weight };
        corpus.tasks.push(source.task(name.clone())?);
    }
    corpus.tasks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(())
}

/// One unit vector per task, in the order of [`synthetic_names`].
fn planted(synthetic: &Synthetic, seed: u64) -> Vec<Vec<f64>> {
    let count = tasks(synthetic);
    let directions = orthonormal(count, synthetic.features, seed);
    let mut free = directions.into_iter();
    let mut next = || free.next().unwrap_or_default();
    let mut weights = Vec::with_capacity(count);
    for pair in 0..synthetic.agree + synthetic.oppose {
        let cosine = if pair < synthetic.agree { PAIR_COSINE } else { -PAIR_COSINE };
        let (first, other) = (next(), next());
        let rest = (1.0 - cosine * cosine).sqrt();
        weights.push(first.clone());
        weights.push(first.iter().zip(&other).map(|(a, b)| cosine * a + rest * b).collect());
    }
    weights.extend((0..synthetic.alone).map(|_| next()));
    weights
}

/// Gram-Schmidt on normal draws.
fn orthonormal(count: usize, dim: usize, seed: u64) -> Vec<Vec<f64>> {
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(count);
    for vector in 0..count {
        let random = Keyed::new(seed, Stream::Synthetic, u32::MAX, 0, vector as u32);
        let mut own: Vec<f64> = (0..dim as u32).map(|i| random.normal(i)).collect();
        for other in &basis {
            let along: f64 = own.iter().zip(other).map(|(a, b)| a * b).sum();
            own.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
        }
        let norm = own.iter().map(|a| a * a).sum::<f64>().sqrt();
        basis.push(own.into_iter().map(|a| a / norm).collect());
    }
    basis
}

struct Source<'a> {
    synthetic: &'a Synthetic,
    settings: &'a Task,
    seed: u64,
    task: u32,
    weight: Vec<f64>,
}

impl Source<'_> {
    fn task(&self, name: String) -> Result<TaskData> {
        let classification = self.settings.head == HeadKind::Classification;
        let classes = if classification { vec!["negative".to_owned(), "positive".to_owned()] } else { Vec::new() };
        let optional = |split, len| (len > 0).then(|| self.split(split, len));
        let identity = format!("{name} {} {:?} {:?}", self.seed, self.synthetic, self.settings.head);
        let mut task = TaskData {
            name,
            settings: self.settings.clone(),
            outputs: if classification { 2 } else { 1 },
            classes,
            train: self.split(0, self.synthetic.train),
            dev: optional(1, self.synthetic.dev),
            test: optional(2, self.synthetic.test),
            report: LoadReport::default(),
            fingerprint: *blake3::hash(identity.as_bytes()).as_bytes(),
            feature_scale: None,
            label_scale: None,
            class_weights: None,
        };
        task.weigh_classes()?;
        Ok(task)
    }

    fn split(&self, split: u32, len: usize) -> Split {
        let dim = self.synthetic.features;
        let mut features = Vec::with_capacity(len * dim);
        let mut values = Vec::with_capacity(len);
        for example in 0..len as u32 {
            let random = Keyed::new(self.seed, Stream::Synthetic, split, self.task, example);
            let mut y = self.synthetic.noise * random.normal(dim as u32);
            for (position, weight) in self.weight.iter().enumerate() {
                let x = random.normal(position as u32);
                features.push(x as f32);
                y += x * weight;
            }
            values.push(y as f32);
        }
        let targets = match self.settings.head {
            HeadKind::Classification => Targets::Class(values.iter().map(|&y| u32::from(y > 0.0)).collect()),
            _ => Targets::Values { dim: 1, values },
        };
        let inputs = Inputs::Features(FeatureStore::from_values(dim, features));
        Split { inputs, targets, unscaled: None, slices: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_are_planted() {
        let synthetic = Synthetic { agree: 1, oppose: 1, alone: 1, features: 8, train: 10, dev: 0, test: 0, noise: 0.1 };
        let weights = planted(&synthetic, 4);
        let cosine = |a: usize, b: usize| weights[a].iter().zip(&weights[b]).map(|(x, y)| x * y).sum::<f64>();
        assert!((cosine(0, 1) - 0.9).abs() < 1e-12);
        assert!((cosine(2, 3) + 0.9).abs() < 1e-12);
        for (a, b) in [(0, 2), (0, 4), (1, 3), (3, 4)] {
            assert!(cosine(a, b).abs() < 1e-12);
        }
    }
}
