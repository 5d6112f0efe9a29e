//! Weights of a task's classes: as its settings list them, or by how rare each is in the training rows.

use anyhow::{Context, Result, ensure};

use super::split::{Targets, TaskData};
use super::suggest::list;
use crate::config::schema::{ClassWeights, NamedClassWeights};

impl TaskData {
    /// Takes the weights that the settings ask for: those of a list, or n / (k * count) of each of k classes among n training
    /// rows, as scikit-learn's `compute_class_weight("balanced")`.
    pub(super) fn weigh_classes(&mut self) -> Result<()> {
        let (Some(asked), Targets::Class(rows)) = (&self.settings.class_weights, &self.train.targets) else { return Ok(()) };
        let weights = match asked {
            ClassWeights::List(weights) => weights.iter().map(|&weight| weight as f32).collect(),
            ClassWeights::Named(NamedClassWeights::Balanced) => {
                balanced(rows, &self.classes).with_context(|| format!("task `{}`", self.name))?
            }
        };
        self.take_class_weights(Some(weights))
    }

    /// Takes weights from elsewhere, such as a checkpoint, which have to be one for each class.
    pub fn take_class_weights(&mut self, weights: Option<Vec<f32>>) -> Result<()> {
        if let Some(weights) = &weights {
            let (name, classes) = (&self.name, list(&self.classes));
            let (found, expected) = (weights.len(), self.classes.len());
            ensure!(
                found == expected,
                "task `{name}`: class_weights has {found} numbers, the classes are these {expected}: {classes}"
            );
            let sound =
                weights.iter().all(|weight| weight.is_finite() && *weight >= 0.0) && weights.iter().any(|&weight| weight > 0.0);
            ensure!(sound, "task `{name}`: class_weights has to be of finite numbers of at least 0, one of them above it");
        }
        self.class_weights = weights.map(Into::into);
        Ok(())
    }
}

fn balanced(rows: &[u32], classes: &[String]) -> Result<Vec<f32>> {
    let mut counts = vec![0u64; classes.len()];
    rows.iter().for_each(|&class| counts[class as usize] += 1);
    if let Some(missing) = counts.iter().position(|&count| count == 0) {
        anyhow::bail!(
            "class_weights = \"balanced\": no training row has the class `{}`, so nothing says how rare it is; list the weights",
            classes[missing]
        );
    }
    Ok(counts.iter().map(|&count| (rows.len() as f64 / (classes.len() as f64 * count as f64)) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// scikit-learn 1.7: compute_class_weight("balanced", classes=[0, 1, 2], y=[0, 0, 0, 0, 0, 0, 1, 1, 2]).
    #[test]
    fn balanced_is_scikit_learns() {
        let classes = ["a", "b", "c"].map(str::to_owned);
        assert_eq!(balanced(&[0, 0, 2, 0, 1, 0, 0, 1, 0], &classes).unwrap(), [0.5, 1.5, 3.0]);
        let error = balanced(&[0, 0, 2], &classes).unwrap_err().to_string();
        assert!(error.contains("no training row has the class `b`"), "{error}");
    }
}
