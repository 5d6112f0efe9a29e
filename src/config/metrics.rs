//! Every metric: which way is better, and which heads it measures.

use super::schema::{HeadKind, MetricKind, Task};

/// What a task reports that names no metrics; the first is its primary metric.
pub fn usual_metrics(head: HeadKind) -> &'static [MetricKind] {
    match head {
        HeadKind::Classification => &[MetricKind::Accuracy],
        HeadKind::Regression => &[MetricKind::Pearson, MetricKind::Spearman],
        HeadKind::Multilabel => &[MetricKind::F1, MetricKind::Accuracy],
        HeadKind::Mlm => &[MetricKind::Accuracy],
        HeadKind::Similarity => &[MetricKind::Accuracy, MetricKind::Cosine],
    }
}

/// What the task reports; the first is its primary metric.
pub fn metrics_of(task: &Task) -> &[MetricKind] {
    if task.metrics.is_empty() { usual_metrics(task.head) } else { &task.metrics }
}

/// Whether the metric measures such a head.
pub fn fits(kind: MetricKind, head: HeadKind) -> bool {
    match kind {
        MetricKind::Accuracy => head != HeadKind::Regression,
        MetricKind::F1 | MetricKind::MacroF1 | MetricKind::Precision | MetricKind::Recall | MetricKind::Auroc => {
            matches!(head, HeadKind::Classification | HeadKind::Multilabel)
        }
        MetricKind::Cosine => head == HeadKind::Similarity,
        MetricKind::Matthews | MetricKind::BalancedAccuracy => head == HeadKind::Classification,
        MetricKind::Pearson | MetricKind::Spearman | MetricKind::R2 | MetricKind::Mse | MetricKind::Rmse | MetricKind::Mae => {
            head == HeadKind::Regression
        }
    }
}

/// The smaller the better.
pub fn is_error(kind: MetricKind) -> bool {
    matches!(kind, MetricKind::Mse | MetricKind::Rmse | MetricKind::Mae)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choices::Choice;

    #[test]
    fn usual_metrics_fit_their_head() {
        for head in HeadKind::ALL {
            assert!(usual_metrics(*head).iter().all(|metric| fits(*metric, *head)));
        }
    }
}
