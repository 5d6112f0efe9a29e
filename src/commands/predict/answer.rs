//! What a head's logits say, or the encoder's output: as JSON, as fields of a table, and as its typed cells.

use serde_json::{Map, Value, json};

use super::file::Form;
use crate::data::{Cell, Column, Kind};
use crate::model::spec::HeadKind;
use crate::train::checkpoint::TaskState;
use crate::train::metrics::argmax;

/// What a model is asked.
#[derive(Clone, Copy)]
pub enum Question<'a> {
    /// A task's answer.
    Answer(&'a TaskState),
    /// What its head sees: so many numbers of so many texts.
    Embedding { width: usize, texts: usize },
}

impl Question<'_> {
    /// Numbers that the model computes of one example.
    pub fn numbers(&self) -> usize {
        match self {
            Self::Answer(task) => task.kind.rows() * task.outputs,
            Self::Embedding { width, texts } => width * texts,
        }
    }

    /// Its name beside a row's own keys.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Answer(_) => "prediction",
            Self::Embedding { .. } => "embedding",
        }
    }

    /// What these numbers say.
    pub fn describe(&self, numbers: &[f32]) -> Value {
        match self {
            Self::Answer(task) => describe(task, numbers),
            Self::Embedding { texts: 1, .. } => json!(numbers),
            Self::Embedding { width, .. } => numbers.chunks(*width).map(|vector| json!(vector)).collect(),
        }
    }

    /// Names of the fields of a table that hold it; `labels` are the columns that the task learned from.
    pub fn fields(&self, labels: &[String]) -> Vec<String> {
        match self {
            Self::Answer(task) => fields(task, labels),
            Self::Embedding { .. } => (1..=self.numbers()).map(|number| format!("embedding_{number}")).collect(),
        }
    }

    /// Names that it adds to a row's own.
    pub fn names(&self, form: Form, labels: &[String]) -> Vec<String> {
        match form {
            Form::JsonLines => vec![self.key().to_owned()],
            Form::Csv => self.fields(labels),
            Form::Parquet => self.columns(labels).into_iter().map(|column| column.name).collect(),
        }
    }

    /// What [`Question::describe`] gave, as those fields.
    pub fn values(&self, answer: &Value) -> Vec<String> {
        match self {
            Self::Answer(task) => values(task, answer),
            Self::Embedding { texts: 1, .. } => numbers_of(answer).collect(),
            Self::Embedding { .. } => answer.as_array().into_iter().flatten().flat_map(numbers_of).collect(),
        }
    }

    /// Columns of a table with types that hold it: named as [`Question::fields`], but for lists, which are one column.
    pub fn columns(&self, labels: &[String]) -> Vec<Column> {
        let Self::Answer(task) = self else { return vec![Column::new(self.key(), Kind::Floats)] };
        let first = match task.kind {
            HeadKind::Classification | HeadKind::Mlm => Kind::Text,
            HeadKind::Multilabel => Kind::Names,
            HeadKind::Regression | HeadKind::Similarity => Kind::Float,
        };
        let kinds = std::iter::once(first).chain(std::iter::repeat(Kind::Float));
        fields(task, labels).into_iter().zip(kinds).map(|(name, kind)| Column { name, kind }).collect()
    }

    /// What these numbers say, as the cells of those columns.
    pub fn cells(&self, numbers: &[f32]) -> Vec<Cell> {
        match self {
            Self::Answer(task) => cells(task, &describe(task, numbers)),
            Self::Embedding { .. } => vec![Cell::Numbers(numbers.iter().map(|&value| f64::from(value)).collect())],
        }
    }
}

/// The numbers of a list, as text.
fn numbers_of(list: &Value) -> impl Iterator<Item = String> {
    list.as_array().into_iter().flatten().map(text)
}

/// `{"label":..,"probabilities":{..}}`, `{"labels":[..],"probabilities":{..}}`, `{"value":..}`, or `{"cosine":..}`; null where the
/// model computes nothing finite.
fn describe(task: &TaskState, logits: &[f32]) -> Value {
    let named = |probabilities: Vec<f64>| -> Map<String, Value> {
        task.classes.iter().cloned().zip(probabilities.into_iter().map(|p| json!(p))).collect()
    };
    let is_finite = logits.iter().all(|x| x.is_finite());
    match task.kind {
        HeadKind::Classification => {
            let peak = f64::from(logits[argmax(logits)]);
            let weights: Vec<f64> = logits.iter().map(|&x| (f64::from(x) - peak).exp()).collect();
            let total: f64 = weights.iter().sum();
            let probabilities = weights.into_iter().map(|weight| weight / total).collect();
            let label = task.classes.get(argmax(logits)).filter(|_| is_finite);
            json!({ "label": label, "probabilities": named(probabilities) })
        }
        HeadKind::Multilabel => {
            let labels: Vec<&String> = task.classes.iter().zip(logits).filter(|(_, x)| **x > 0.0).map(|(name, _)| name).collect();
            let probabilities = logits.iter().map(|&x| 1.0 / (1.0 + f64::from(-x).exp())).collect();
            json!({ "labels": is_finite.then_some(labels), "probabilities": named(probabilities) })
        }
        HeadKind::Mlm => json!(null),
        HeadKind::Similarity => {
            let (one, other) = logits.split_at(task.outputs);
            let cosine: f64 = one.iter().zip(other).map(|(x, y)| f64::from(x * y)).sum();
            json!({ "cosine": cosine.clamp(-1.0, 1.0) as f32 })
        }
        HeadKind::Regression if logits.len() == 1 => json!({ "value": logits[0] }),
        HeadKind::Regression => json!({ "values": logits }),
    }
}

/// Names of the fields of a table that hold a task's answers; `labels` are the columns it learned from.
fn fields(task: &TaskState, labels: &[String]) -> Vec<String> {
    let own = |prefix: &str, names: &[String]| -> Vec<String> { names.iter().map(|name| format!("{prefix}_{name}")).collect() };
    match task.kind {
        HeadKind::Regression if task.outputs > 1 && labels.len() == task.outputs => own("prediction", labels),
        HeadKind::Regression if task.outputs > 1 => (1..=task.outputs).map(|number| format!("prediction_{number}")).collect(),
        _ => [vec!["prediction".to_owned()], own("probability", &task.classes)].concat(),
    }
}

/// An answer that [`describe`] gave, as those fields; empty where the model computes nothing finite.
fn values(task: &TaskState, answer: &Value) -> Vec<String> {
    parts(task, answer).into_iter().map(text).collect()
}

/// The same with types; missing where the model computes nothing finite.
fn cells(task: &TaskState, answer: &Value) -> Vec<Cell> {
    let cell = |part: &Value| match part {
        Value::String(label) => Cell::Text(label.clone()),
        Value::Array(labels) => Cell::Names(labels.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
        number => number.as_f64().map_or(Cell::Missing, Cell::Float),
    };
    parts(task, answer).into_iter().map(cell).collect()
}

/// The parts of an answer that have a field each.
fn parts<'a>(task: &TaskState, answer: &'a Value) -> Vec<&'a Value> {
    if let Some(values) = answer["values"].as_array() {
        return values.iter().collect();
    }
    let first = ["label", "labels", "value", "cosine"].iter().find_map(|key| answer.get(key)).unwrap_or(&Value::Null);
    let probabilities = task.classes.iter().map(|class| &answer["probabilities"][class.as_str()]);
    [first].into_iter().chain(probabilities).collect()
}

/// A value as the field of a table.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect::<Vec<&str>>().join(";"),
        value => value.to_string(),
    }
}
