//! The value of `best.metric`: what makes one evaluation better than another.

use super::metrics::is_error;
use super::metrics::metrics_of;
use super::schema::{Config, MetricKind};
use crate::choices::Choice;

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
    /// The worst task's: the smallest score, the largest loss or error.
    Worst,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Each task's own first metric.
    Primary,
    Loss,
    Metric(MetricKind),
}

/// What `best.metric` takes, for messages.
pub const FORMS: &str = "`mean(primary)`, `min(primary)`, `mean(loss)`, `max(loss)`, `mean(METRIC)`, `min(METRIC)` \
                         (of mse, rmse and mae: `max`), `TASK.METRIC` or `TASK.loss`";

impl Objective {
    /// Nothing else than [`FORMS`].
    pub fn parse(text: &str) -> Option<Objective> {
        if let Some((fold, rest)) = text.split_once('(') {
            let quantity = quantity(rest.strip_suffix(')')?)?;
            return match fold {
                "mean" => Some(Objective::Over(Fold::Mean, quantity)),
                fold if fold == worst(quantity) => Some(Objective::Over(Fold::Worst, quantity)),
                _ => None,
            };
        }
        let (task, rest) = text.rsplit_once('.')?;
        let quantity = quantity(rest).filter(|quantity| *quantity != Quantity::Primary && !task.is_empty())?;
        Some(Objective::One { task: task.to_owned(), quantity })
    }
}

impl Config {
    /// Whether `best.metric` is the better the smaller it is; of primary metrics only where all are errors.
    pub fn objective_is_error(&self) -> bool {
        let named = if self.tasks.is_empty() { vec![&self.task_defaults] } else { self.tasks.values().collect() };
        match Objective::parse(&self.best.metric) {
            Some(Objective::Over(_, Quantity::Primary)) => {
                named.iter().all(|task| metrics_of(task).first().is_some_and(|&kind| is_error(kind)))
            }
            Some(Objective::Over(_, quantity) | Objective::One { quantity, .. }) => quantity.is_error(),
            None => false,
        }
    }
}

impl Quantity {
    /// The smaller the better; of primary metrics each task's own says.
    fn is_error(self) -> bool {
        match self {
            Quantity::Primary => false,
            Quantity::Loss => true,
            Quantity::Metric(kind) => is_error(kind),
        }
    }
}

/// What the value of the worst task is among those of all.
fn worst(quantity: Quantity) -> &'static str {
    if quantity.is_error() { "max" } else { "min" }
}

/// The form that `text` was probably meant to be, where it asks for the best task instead of the worst.
pub fn meant(text: &str) -> Option<String> {
    let (fold, name) = text.strip_suffix(')')?.split_once('(')?;
    let quantity = quantity(name).filter(|_| fold == "min" || fold == "max")?;
    Some(format!("{}({name})", worst(quantity)))
}

fn quantity(name: &str) -> Option<Quantity> {
    match name {
        "primary" => Some(Quantity::Primary),
        "loss" => Some(Quantity::Loss),
        _ => MetricKind::named(name).map(Quantity::Metric),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let over = |fold, quantity| Some(Objective::Over(fold, quantity));
        assert_eq!(Objective::parse("mean(primary)"), over(Fold::Mean, Quantity::Primary));
        assert_eq!(Objective::parse("min(primary)"), over(Fold::Worst, Quantity::Primary));
        assert_eq!(Objective::parse("mean(loss)"), over(Fold::Mean, Quantity::Loss));
        assert_eq!(Objective::parse("max(loss)"), over(Fold::Worst, Quantity::Loss));
        assert_eq!(Objective::parse("mean(f1)"), over(Fold::Mean, Quantity::Metric(MetricKind::F1)));
        assert_eq!(Objective::parse("min(auroc)"), over(Fold::Worst, Quantity::Metric(MetricKind::Auroc)));
    }

    #[test]
    fn a_task_may_have_dots_in_its_name() {
        let expected = Objective::One { task: "a.b".to_owned(), quantity: Quantity::Loss };
        assert_eq!(Objective::parse("a.b.loss"), Some(expected));
    }

    #[test]
    fn nothing_else_is_read() {
        for text in ["", "primary", "mean", "mean(", "mean(x)", "max(f1)", "a.", ".loss", "a.primary", "a.x"] {
            assert_eq!(Objective::parse(text), None, "{text}");
        }
    }
}
