//! What an evaluation comes to: every metric of every task on a split, on all of it and on each slice.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::config::schema::MetricKind;
use crate::config::{Fold, Objective, Quantity, metrics_of};
use crate::data::{Split, SplitName, Targets, TaskData};
use crate::train::metrics::Predictions;

/// One task's values on one set of examples.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    pub examples: usize,
    /// Mean over the observed targets, labels not smoothed.
    pub loss: f64,
    /// In the task's order; the first is its primary metric.
    pub metrics: Vec<(MetricKind, f64)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TaskScores {
    pub all: Scores,
    pub slices: BTreeMap<String, Scores>,
}

/// All tasks that have the split, by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    pub split: SplitName,
    pub tasks: BTreeMap<String, TaskScores>,
}

/// Scores of logits (examples x outputs) and of each example's loss and observed targets; `only` the examples of a slice.
pub(super) fn scores(task: &TaskData, split: &Split, logits: &[f32], losses: &[(f64, usize)], only: Option<&[bool]>) -> Scores {
    let predictions = Predictions { outputs: task.outputs, logits, targets: &split.targets, only };
    let counted = |example: &usize| only.is_none_or(|only| only[*example]);
    let (mut sum, mut observed, mut examples) = (0.0, 0, 0);
    for example in (0..losses.len()).filter(counted) {
        sum += losses[example].0;
        observed += losses[example].1;
        examples += 1;
    }
    let metrics = metrics_of(&task.settings).iter().map(|&kind| (kind, predictions.metric(kind))).collect();
    debug_assert!(matches!(split.targets, Targets::Class(_) | Targets::Values { .. }));
    Scores { examples, loss: if observed == 0 { 0.0 } else { sum / observed as f64 }, metrics }
}

impl Scores {
    pub fn primary(&self) -> f64 {
        self.metrics.first().map_or(0.0, |(_, value)| *value)
    }

    /// Whether the primary metric is at least `target`, or at most, where it is an error.
    pub fn reaches(&self, target: f64) -> bool {
        let reaches = |&(kind, value): &(MetricKind, f64)| if is_error(kind) { value <= target } else { value >= target };
        self.metrics.first().is_some_and(reaches)
    }

    fn get(&self, quantity: Quantity) -> Option<f64> {
        match quantity {
            Quantity::Primary => Some(self.primary()),
            Quantity::Loss => Some(self.loss),
            Quantity::Metric(kind) => self.metrics.iter().find(|(own, _)| *own == kind).map(|(_, value)| *value),
        }
    }

    fn json(&self) -> Map<String, Value> {
        let mut map = Map::new();
        for (kind, value) in &self.metrics {
            map.insert(crate::config::metric_name(*kind).to_owned(), json!(value));
        }
        map.insert("loss".into(), json!(self.loss));
        map.insert("examples".into(), json!(self.examples));
        map
    }
}

impl Evaluation {
    /// The objective's value; none if no task reports it.
    pub fn objective(&self, objective: &Objective) -> Option<f64> {
        match objective {
            Objective::One { task, quantity } => self.tasks.get(task)?.all.get(*quantity),
            Objective::Over(fold, quantity) => {
                let values: Vec<f64> = self.tasks.values().filter_map(|task| task.all.get(*quantity)).collect();
                let first = *values.first()?;
                Some(match fold {
                    Fold::Mean => values.iter().sum::<f64>() / values.len() as f64,
                    Fold::Min => values.iter().copied().fold(first, f64::min),
                    Fold::Max => values.iter().copied().fold(first, f64::max),
                })
            }
        }
    }

    pub fn mean_primary(&self) -> f64 {
        mean(self.tasks.values().map(|task| task.all.primary()))
    }

    /// The document of `eval --json`.
    pub fn json(&self) -> Value {
        let mut tasks = Map::new();
        let mut slices: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (name, scores) in &self.tasks {
            let mut map = scores.all.json();
            let mut own = Map::new();
            for (slice, scores) in &scores.slices {
                own.insert(slice.clone(), Value::Object(scores.json()));
                slices.entry(slice).or_default().push(scores.primary());
            }
            if !own.is_empty() {
                map.insert("slices".into(), Value::Object(own));
            }
            tasks.insert(name.clone(), Value::Object(map));
        }
        let mut document = json!({ "split": self.split.as_str(), "tasks": tasks, "mean_primary": self.mean_primary() });
        if !slices.is_empty() {
            let means: Map<String, Value> = slices
                .into_iter()
                .map(|(slice, values)| (slice.to_owned(), json!({ "mean_primary": mean(values.into_iter()) })))
                .collect();
            document["slices"] = Value::Object(means);
        }
        document
    }

    /// One line a task and the mean, for people.
    pub fn table(&self) -> String {
        let width = self.tasks.keys().map(String::len).max().unwrap_or(0).max(12);
        let mut text = String::new();
        for (name, scores) in &self.tasks {
            text += &format!("{name:<width$}  {}\n", line(&scores.all));
            for (slice, scores) in &scores.slices {
                text += &format!("{:<width$}  {}\n", format!("  {slice}"), line(scores));
            }
        }
        text += &format!("{:<width$}  {:.4}\n", "mean primary", self.mean_primary());
        let names: std::collections::BTreeSet<&String> = self.tasks.values().flat_map(|task| task.slices.keys()).collect();
        for slice in names {
            let values = self.tasks.values().filter_map(|task| task.slices.get(slice)).map(Scores::primary);
            text += &format!("{:<width$}  {:.4}\n", format!("  {slice}"), mean(values));
        }
        text
    }
}

fn line(scores: &Scores) -> String {
    let metrics: Vec<String> =
        scores.metrics.iter().map(|(kind, value)| format!("{} {value:.4}", crate::config::metric_name(*kind))).collect();
    format!("{}  loss {:.4}  ({} examples)", metrics.join("  "), scores.loss, scores.examples)
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// Whether `new` beats `old` under the objective: losses and errors fall, all else rises.
pub fn is_better(objective: &Objective, new: f64, old: f64) -> bool {
    let (Objective::Over(_, quantity) | Objective::One { quantity, .. }) = objective;
    match quantity {
        Quantity::Loss => new < old,
        Quantity::Metric(kind) if is_error(*kind) => new < old,
        _ => new > old,
    }
}

/// The smaller the better.
fn is_error(metric: MetricKind) -> bool {
    matches!(metric, MetricKind::Mse | MetricKind::Mae)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation() -> Evaluation {
        let scores = |accuracy: f64, loss: f64| Scores { examples: 10, loss, metrics: vec![(MetricKind::Accuracy, accuracy)] };
        let task = |accuracy, loss| TaskScores {
            all: scores(accuracy, loss),
            slices: BTreeMap::from([("clean".to_owned(), scores(accuracy - 0.1, loss))]),
        };
        let tasks = BTreeMap::from([("a".to_owned(), task(0.9, 0.2)), ("b".to_owned(), task(0.7, 0.6))]);
        Evaluation { split: SplitName::Dev, tasks }
    }

    #[test]
    fn objectives_fold_over_tasks() {
        let value = |text| evaluation().objective(&Objective::parse(text).unwrap()).unwrap();
        assert!((value("mean(primary)") - 0.8).abs() < 1e-12);
        assert_eq!(value("min(accuracy)"), 0.7);
        assert_eq!(value("max(loss)"), 0.6);
        assert_eq!(value("b.loss"), 0.6);
        assert_eq!(evaluation().objective(&Objective::parse("mean(f1)").unwrap()), None);
    }

    #[test]
    fn losses_fall_and_metrics_rise() {
        assert!(is_better(&Objective::parse("mean(loss)").unwrap(), 0.1, 0.2));
        assert!(is_better(&Objective::parse("a.mae").unwrap(), 0.1, 0.2));
        assert!(is_better(&Objective::parse("mean(primary)").unwrap(), 0.2, 0.1));
    }

    #[test]
    fn targets_are_reached_from_either_side() {
        let scores = |kind| Scores { examples: 1, loss: 0.0, metrics: vec![(kind, 0.5)] };
        assert!(scores(MetricKind::Accuracy).reaches(0.5) && !scores(MetricKind::Accuracy).reaches(0.6));
        assert!(scores(MetricKind::Mse).reaches(0.6) && !scores(MetricKind::Mse).reaches(0.4));
    }

    #[test]
    fn the_document_has_the_agreed_fields() {
        let document = evaluation().json();
        assert_eq!(document["split"], "dev");
        assert_eq!(document["tasks"]["a"]["accuracy"], 0.9);
        assert_eq!(document["tasks"]["b"]["slices"]["clean"]["examples"], 10);
        assert!((document["mean_primary"].as_f64().unwrap() - 0.8).abs() < 1e-12);
        assert!((document["slices"]["clean"]["mean_primary"].as_f64().unwrap() - 0.7).abs() < 1e-12);
    }
}
