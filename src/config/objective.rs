//! The value of `best.metric`: what makes one evaluation better than another.

use super::metrics::NAMED;
use super::schema::MetricKind;

#[derive(Clone, Debug, PartialEq)]
pub enum Objective {
    /// Over all tasks that report the quantity.
    Over(Fold, Quantity),
    One {
        task: String,
        quantity: Quantity,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    Mean,
    Min,
    Max,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Each task's own first metric.
    Primary,
    Loss,
    Metric(MetricKind),
}

/// What `best.metric` takes, for messages.
pub const FORMS: &str = "`mean(primary)`, `min(primary)`, `mean(loss)`, `max(loss)`, `mean(METRIC)`, `min(METRIC)`, \
                         `TASK.METRIC` or `TASK.loss`";

impl Objective {
    /// Nothing else than [`FORMS`]: the worst loss is the largest, the worst metric the smallest.
    pub fn parse(text: &str) -> Option<Objective> {
        if let Some((fold, rest)) = text.split_once('(') {
            let quantity = quantity(rest.strip_suffix(')')?)?;
            return match (fold, quantity) {
                ("mean", _) => Some(Objective::Over(Fold::Mean, quantity)),
                ("min", Quantity::Primary | Quantity::Metric(_)) => Some(Objective::Over(Fold::Min, quantity)),
                ("max", Quantity::Loss) => Some(Objective::Over(Fold::Max, quantity)),
                _ => None,
            };
        }
        let (task, rest) = text.rsplit_once('.')?;
        let quantity = quantity(rest).filter(|quantity| *quantity != Quantity::Primary && !task.is_empty())?;
        Some(Objective::One { task: task.to_owned(), quantity })
    }
}

fn quantity(name: &str) -> Option<Quantity> {
    match name {
        "primary" => Some(Quantity::Primary),
        "loss" => Some(Quantity::Loss),
        _ => NAMED.iter().find(|(known, _)| *known == name).map(|(_, metric)| Quantity::Metric(*metric)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let over = |fold, quantity| Some(Objective::Over(fold, quantity));
        assert_eq!(Objective::parse("mean(primary)"), over(Fold::Mean, Quantity::Primary));
        assert_eq!(Objective::parse("min(primary)"), over(Fold::Min, Quantity::Primary));
        assert_eq!(Objective::parse("mean(loss)"), over(Fold::Mean, Quantity::Loss));
        assert_eq!(Objective::parse("max(loss)"), over(Fold::Max, Quantity::Loss));
        assert_eq!(Objective::parse("mean(f1)"), over(Fold::Mean, Quantity::Metric(MetricKind::F1)));
        assert_eq!(Objective::parse("min(auroc)"), over(Fold::Min, Quantity::Metric(MetricKind::Auroc)));
    }

    #[test]
    fn a_task_may_have_dots_in_its_name() {
        let expected = Objective::One { task: "a.b".to_owned(), quantity: Quantity::Loss };
        assert_eq!(Objective::parse("a.b.loss"), Some(expected));
    }

    #[test]
    fn nothing_else_is_read() {
        for text in ["", "primary", "mean", "mean(", "mean(x)", "max(primary)", "min(loss)", "a.", ".loss", "a.primary", "a.x"] {
            assert_eq!(Objective::parse(text), None, "{text}");
        }
    }
}
