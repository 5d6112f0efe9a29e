//! Every metric: its name, which way is better, and which heads it measures.

use super::schema::{HeadKind, MetricKind, Task};

/// One metric.
pub struct Metric {
    pub kind: MetricKind,
    /// In a configuration and in results.
    pub name: &'static str,
    /// The smaller the better.
    pub is_error: bool,
    /// What it measures.
    pub heads: &'static [HeadKind],
}

const NAMED_CLASSES: &[HeadKind] = &[HeadKind::Classification, HeadKind::Multilabel];
const NUMBERS: &[HeadKind] = &[HeadKind::Regression];

pub const METRICS: [Metric; 8] = [
    Metric {
        kind: MetricKind::Accuracy,
        name: "accuracy",
        is_error: false,
        heads: &[HeadKind::Classification, HeadKind::Multilabel, HeadKind::Mlm],
    },
    Metric { kind: MetricKind::F1, name: "f1", is_error: false, heads: NAMED_CLASSES },
    Metric { kind: MetricKind::Matthews, name: "matthews", is_error: false, heads: &[HeadKind::Classification] },
    Metric { kind: MetricKind::Pearson, name: "pearson", is_error: false, heads: NUMBERS },
    Metric { kind: MetricKind::Spearman, name: "spearman", is_error: false, heads: NUMBERS },
    Metric { kind: MetricKind::Mse, name: "mse", is_error: true, heads: NUMBERS },
    Metric { kind: MetricKind::Mae, name: "mae", is_error: true, heads: NUMBERS },
    Metric { kind: MetricKind::Auroc, name: "auroc", is_error: false, heads: NAMED_CLASSES },
];

fn of(kind: MetricKind) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.kind == kind)
}

/// What a task reports that names no metrics; the first is its primary metric.
pub fn usual_metrics(head: HeadKind) -> &'static [MetricKind] {
    match head {
        HeadKind::Classification => &[MetricKind::Accuracy],
        HeadKind::Regression => &[MetricKind::Pearson, MetricKind::Spearman],
        HeadKind::Multilabel => &[MetricKind::F1, MetricKind::Accuracy],
        HeadKind::Mlm => &[MetricKind::Accuracy],
    }
}

/// What the task reports; the first is its primary metric.
pub fn metrics_of(task: &Task) -> &[MetricKind] {
    if task.metrics.is_empty() { usual_metrics(task.head) } else { &task.metrics }
}

pub fn fits(kind: MetricKind, head: HeadKind) -> bool {
    of(kind).is_some_and(|metric| metric.heads.contains(&head))
}

pub fn name(kind: MetricKind) -> &'static str {
    of(kind).map_or("", |metric| metric.name)
}

/// The smaller the better.
pub fn is_error(kind: MetricKind) -> bool {
    of(kind).is_some_and(|metric| metric.is_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_metrics_fit_their_head() {
        for head in [HeadKind::Classification, HeadKind::Regression, HeadKind::Multilabel, HeadKind::Mlm] {
            assert!(usual_metrics(head).iter().all(|metric| fits(*metric, head)));
        }
    }

    #[test]
    fn names_are_those_of_the_configuration() {
        for metric in METRICS {
            assert_eq!(toml::Value::try_from(metric.kind).unwrap().as_str(), Some(metric.name));
        }
    }
}
