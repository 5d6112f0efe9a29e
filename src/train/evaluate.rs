//! What an evaluation comes to: every metric of every task on a split, on all of it and on each slice.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::config::schema::{HeadKind, MetricKind};
use crate::config::{Quantity, is_error, metrics_of};
use crate::data::{Corpus, Split, Targets, TaskData};
use crate::train::guard::name_examples;
use crate::train::metrics::{Measured, Predictions, Undefined};
use crate::train::overall::{Overall, Reported, mean_primary};

/// One task's values on one set of examples.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    pub examples: usize,
    /// Mean over the observed targets, by the weights of their classes where there are some, labels not smoothed; none where that is no finite number.
    pub loss: Option<f64>,
    /// In the task's order; the first is its primary metric.
    pub metrics: Vec<(MetricKind, Measured)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TaskScores {
    pub all: Scores,
    /// Of regression with several outputs: the metrics of each, by its label.
    pub outputs: Vec<(String, Vec<(MetricKind, Measured)>)>,
    pub slices: BTreeMap<String, Scores>,
    /// Examples whose prediction is infinite or not a number.
    pub not_finite: Vec<u32>,
}

/// All tasks that have the split, by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Name of the split, for messages and documents.
    pub split: &'static str,
    pub tasks: BTreeMap<String, TaskScores>,
}

/// Scores of a task whose split has these logits (examples x outputs), and of each example this loss over so many observed targets, or so much of their classes' weights.
pub(super) fn task_scores(task: &TaskData, split: &Split, logits: &[f32], losses: &[(f64, f64)]) -> TaskScores {
    let logits = unscaled(task, logits);
    let (outputs, logits, targets) = (task.outputs, &logits[..], split.given());
    let scores = |only: Option<&[bool]>| {
        let predictions = Predictions { outputs, logits, targets, only };
        let counted = || (0..losses.len()).filter(|&example| only.is_none_or(|only| only[example]));
        let metrics = metrics_of(&task.settings).iter().map(|&kind| (kind, predictions.metric(kind))).collect();
        Scores { examples: counted().count(), loss: mean_loss(counted().map(|example| losses[example])), metrics }
    };
    debug_assert!(matches!(split.targets, Targets::Class(_) | Targets::Values { .. }));
    let all = Predictions { outputs, logits, targets, only: None };
    let outputs =
        task.settings.label.iter().enumerate().filter(|_| task.settings.head == HeadKind::Regression && task.outputs > 1);
    let of_output = |output| metrics_of(&task.settings).iter().map(|&kind| (kind, all.metric_of_output(kind, output))).collect();
    let outputs = outputs.map(|(output, label)| (label.clone(), of_output(output))).collect();
    let slices = split.slices.iter().map(|(name, only)| (name.clone(), scores(Some(only)))).collect();
    TaskScores { all: scores(None), outputs, slices, not_finite: all.not_finite().map(|example| example as u32).collect() }
}

/// Numbers that are predicted on a scale of their own, on the label's.
fn unscaled<'a>(task: &TaskData, logits: &'a [f32]) -> Cow<'a, [f32]> {
    let Some(scale) = &task.label_scale else { return Cow::Borrowed(logits) };
    let mut logits = logits.to_vec();
    logits.chunks_exact_mut(task.outputs).for_each(|row| scale.undo(row));
    Cow::Owned(logits)
}

/// Of sums of losses over so many observed targets, or so much weight, each.
pub(super) fn mean_loss(losses: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (sum, observed) = losses.fold((0.0, 0.0), |(sum, observed), (loss, own)| (sum + loss, observed + own));
    Some(sum / observed).filter(|mean| mean.is_finite())
}

impl Scores {
    /// Whether the primary metric is at least `target`, or at most, where it is an error; its value then.
    pub fn reaches(&self, target: f64) -> Option<(MetricKind, f64)> {
        let &(kind, value) = self.metrics.first()?;
        let value = value.ok()?;
        let reached = if is_error(kind) { value <= target } else { value >= target };
        reached.then_some((kind, value))
    }

    /// None if the task does not report it.
    pub fn get(&self, quantity: Quantity) -> Option<Reported> {
        let metric = |&(kind, value): &(MetricKind, Measured)| Reported { value: value.ok(), is_error: is_error(kind) };
        match quantity {
            Quantity::Primary => self.metrics.first().map(metric),
            Quantity::Loss => Some(Reported { value: self.loss, is_error: true }),
            Quantity::Metric(kind) => self.metrics.iter().find(|(own, _)| *own == kind).map(metric),
        }
    }

    fn json(&self) -> Map<String, Value> {
        let mut map = metrics_json(&self.metrics);
        map.insert("loss".into(), json!(self.loss));
        map.insert("examples".into(), json!(self.examples));
        map
    }
}

fn metrics_json(metrics: &[(MetricKind, Measured)]) -> Map<String, Value> {
    metrics.iter().map(|(kind, value)| (kind.name().to_owned(), json!(value.ok()))).collect()
}

impl Evaluation {
    /// Scores of the tasks that have a slice, by its name.
    fn by_slice(&self) -> BTreeMap<&str, Vec<&Scores>> {
        let mut slices: BTreeMap<&str, Vec<&Scores>> = BTreeMap::new();
        for (slice, scores) in self.tasks.values().flat_map(|task| &task.slices) {
            slices.entry(slice).or_default().push(scores);
        }
        slices
    }

    /// The document of `eval --json`.
    pub fn json(&self) -> Value {
        let mut tasks = Map::new();
        for (name, scores) in &self.tasks {
            let mut map = scores.all.json();
            let outputs = scores.outputs.iter().map(|(label, metrics)| (label.clone(), Value::Object(metrics_json(metrics))));
            let outputs: Map<String, Value> = outputs.collect();
            if !outputs.is_empty() {
                map.insert("outputs".into(), Value::Object(outputs));
            }
            let own = scores.slices.iter().map(|(slice, scores)| (slice.clone(), Value::Object(scores.json())));
            let own: Map<String, Value> = own.collect();
            if !own.is_empty() {
                map.insert("slices".into(), Value::Object(own));
            }
            tasks.insert(name.clone(), Value::Object(map));
        }
        let mut document = mean_json(self.mean_primary());
        document["split"] = json!(self.split);
        document["tasks"] = Value::Object(tasks);
        let slices = self.by_slice().into_iter();
        let slices: Map<String, Value> =
            slices.map(|(slice, scores)| (slice.to_owned(), mean_json(mean_primary(scores.into_iter())))).collect();
        if !slices.is_empty() {
            document["slices"] = Value::Object(slices);
        }
        document
    }

    /// One line a task and the mean, for people.
    pub fn table(&self) -> String {
        let width = self.tasks.keys().map(String::len).max().unwrap_or(0).max(12);
        let mut text = String::new();
        for (name, scores) in &self.tasks {
            text += &format!("{name:<width$}  {}\n", line(&scores.all));
            for (label, metrics) in &scores.outputs {
                text += &format!("{:<width$}  {}\n", format!("  {label}"), metrics_line(metrics));
            }
            for (slice, scores) in &scores.slices {
                text += &format!("{:<width$}  {}\n", format!("  {slice}"), line(scores));
            }
        }
        text += &format!("{:<width$}  {}\n", "mean primary", mean_line(self.mean_primary()));
        for (slice, scores) in self.by_slice() {
            text += &format!("{:<width$}  {}\n", format!("  {slice}"), mean_line(mean_primary(scores.into_iter())));
        }
        text
    }

    /// What is undefined on the whole split, and why.
    pub fn warnings(&self, corpus: &Corpus) -> Vec<String> {
        let tasks = corpus.tasks.iter().filter_map(|task| Some((task, self.tasks.get(&task.name)?)));
        tasks.flat_map(|(task, scores)| warnings(task, scores, self.split)).collect()
    }
}

/// One line for predictions that are not finite, or one for each undefined metric.
fn warnings(task: &TaskData, scores: &TaskScores, split: &str) -> Vec<String> {
    let name = &task.name;
    if !scores.not_finite.is_empty() {
        let examples = name_examples(split, &scores.not_finite);
        return vec![format!("task {name}: predictions that are not finite on {examples}; its metrics are undefined")];
    }
    let metrics = scores.all.metrics.iter().filter_map(|(kind, value)| Some((kind.name(), value.err()?)));
    metrics.map(|(metric, why)| format!("task {name}: {metric} on {split} is undefined: {}", reason(task, why))).collect()
}

fn reason(task: &TaskData, why: Undefined) -> String {
    let output = |output: usize| task.classes.get(output).or(task.settings.label.get(output)).map_or("", String::as_str);
    match why {
        Undefined::NotFinite => "predictions are not finite".to_owned(),
        Undefined::NoTargets => "there is nothing to compare".to_owned(),
        Undefined::OneClass(class) => format!("all examples are `{}`, or none", output(class)),
        Undefined::SameTargets(column) => format!("`{}` is the same in all examples", output(column)),
        Undefined::SamePredictions(column) => format!("all predictions of `{}` are the same", output(column)),
    }
}

fn mean_json(mean: Overall) -> Value {
    let mut value = json!({ "mean_primary": mean.value });
    if mean.undefined > 0 {
        value["undefined"] = json!(mean.undefined);
    }
    value
}

fn mean_line(mean: Overall) -> String {
    let without = if mean.undefined > 0 { format!("  (undefined for {})", mean.undefined) } else { String::new() };
    format!("{}{without}", shown(mean.value))
}

fn line(scores: &Scores) -> String {
    format!("{}  loss {}  ({} examples)", metrics_line(&scores.metrics), shown(scores.loss), scores.examples)
}

fn metrics_line(metrics: &[(MetricKind, Measured)]) -> String {
    let metric = |(kind, value): &(MetricKind, Measured)| format!("{} {}", kind.name(), shown(value.ok()));
    metrics.iter().map(metric).collect::<Vec<String>>().join("  ")
}

fn shown(value: Option<f64>) -> String {
    value.map_or("undefined".to_owned(), |value| format!("{value:.4}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation() -> Evaluation {
        let scores = |accuracy: f64, loss: f64| Scores {
            examples: 10,
            loss: Some(loss),
            metrics: vec![(MetricKind::Accuracy, Ok(accuracy))],
        };
        let task = |accuracy, loss| TaskScores {
            all: scores(accuracy, loss),
            outputs: Vec::new(),
            slices: BTreeMap::from([("clean".to_owned(), scores(accuracy - 0.1, loss))]),
            not_finite: Vec::new(),
        };
        let tasks = BTreeMap::from([("a".to_owned(), task(0.9, 0.2)), ("b".to_owned(), task(0.7, 0.6))]);
        Evaluation { split: "dev", tasks }
    }

    #[test]
    fn targets_are_reached_from_either_side() {
        let reaches =
            |kind, value, target| Scores { examples: 1, loss: None, metrics: vec![(kind, value)] }.reaches(target).is_some();
        assert!(reaches(MetricKind::Accuracy, Ok(0.5), 0.5) && !reaches(MetricKind::Accuracy, Ok(0.5), 0.6));
        assert!(reaches(MetricKind::Mse, Ok(0.5), 0.6) && !reaches(MetricKind::Mse, Ok(0.5), 0.4));
        assert!(!reaches(MetricKind::Mse, Err(Undefined::NotFinite), 0.6));
    }

    #[test]
    fn the_document_has_the_agreed_fields() {
        let document = evaluation().json();
        assert_eq!(document["split"], "dev");
        assert_eq!(document["tasks"]["a"]["accuracy"], 0.9);
        assert_eq!(document["tasks"]["b"]["slices"]["clean"]["examples"], 10);
        assert!((document["mean_primary"].as_f64().unwrap() - 0.8).abs() < 1e-12);
        assert!((document["slices"]["clean"]["mean_primary"].as_f64().unwrap() - 0.7).abs() < 1e-12);
        assert!(document.get("undefined").is_none());
    }

    #[test]
    fn several_numbers_have_metrics_of_their_own() {
        let mut evaluation = evaluation();
        let own = vec![(MetricKind::R2, Ok(0.25)), (MetricKind::Mse, Err(Undefined::NoTargets))];
        evaluation.tasks.get_mut("a").unwrap().outputs = vec![("height".to_owned(), own)];
        let document = evaluation.json();
        assert_eq!(document["tasks"]["a"]["outputs"], json!({ "height": { "r2": 0.25, "mse": null } }));
        assert!(document["tasks"]["b"].get("outputs").is_none());
        assert!(evaluation.table().contains("  height      r2 0.2500  mse undefined\n"), "{}", evaluation.table());
    }

    #[test]
    fn what_is_undefined_is_null_and_counted() {
        let mut evaluation = evaluation();
        let a = evaluation.tasks.get_mut("a").unwrap();
        a.all = Scores { examples: 10, loss: None, metrics: vec![(MetricKind::Accuracy, Err(Undefined::NotFinite))] };
        let document = evaluation.json();
        assert!(document["tasks"]["a"]["accuracy"].is_null() && document["tasks"]["a"]["loss"].is_null());
        assert_eq!((document["mean_primary"].as_f64(), document["undefined"].as_u64()), (Some(0.7), Some(1)));
        let table = evaluation.table();
        assert!(table.contains("accuracy undefined  loss undefined  (10 examples)"), "{table}");
        assert!(table.contains("0.7000  (undefined for 1)"), "{table}");
    }

    #[test]
    fn losses_without_a_finite_mean_have_none() {
        assert_eq!(mean_loss([(1.0, 2.0), (3.0, 2.0)].into_iter()), Some(1.0));
        assert_eq!(mean_loss([(1.0, 2.0), (f64::INFINITY, 2.0)].into_iter()), None);
        assert_eq!(mean_loss(std::iter::empty()), None);
    }
}
