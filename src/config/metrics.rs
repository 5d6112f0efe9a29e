//! Which metric fits which head.

use super::schema::{HeadKind, MetricKind, Task};

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

pub fn fits(metric: MetricKind, head: HeadKind) -> bool {
    match metric {
        MetricKind::Matthews => head == HeadKind::Classification,
        MetricKind::Accuracy => head != HeadKind::Regression,
        MetricKind::F1 | MetricKind::Auroc => ![HeadKind::Regression, HeadKind::Mlm].contains(&head),
        MetricKind::Pearson | MetricKind::Spearman | MetricKind::Mse | MetricKind::Mae => head == HeadKind::Regression,
    }
}

/// Every metric with its name in a configuration.
pub const NAMED: [(&str, MetricKind); 8] = [
    ("accuracy", MetricKind::Accuracy),
    ("f1", MetricKind::F1),
    ("matthews", MetricKind::Matthews),
    ("pearson", MetricKind::Pearson),
    ("spearman", MetricKind::Spearman),
    ("mse", MetricKind::Mse),
    ("mae", MetricKind::Mae),
    ("auroc", MetricKind::Auroc),
];

pub fn name(metric: MetricKind) -> &'static str {
    NAMED.iter().find(|(_, kind)| *kind == metric).map_or("", |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_metrics_fit_their_head() {
        for head in [HeadKind::Classification, HeadKind::Regression, HeadKind::Multilabel] {
            assert!(usual_metrics(head).iter().all(|metric| fits(*metric, head)));
        }
    }

    #[test]
    fn names_are_those_of_the_configuration() {
        for (name, metric) in NAMED {
            assert_eq!(toml::Value::try_from(metric).unwrap().as_str(), Some(name));
        }
    }
}
