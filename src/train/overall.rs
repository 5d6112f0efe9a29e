//! One value over tasks: what `best.metric` asks for, and the mean of the primary metrics.

use crate::config::{Fold, Objective, Quantity};
use crate::train::checkpoint::Best;
use crate::train::evaluate::{Evaluation, Scores};

/// One value over the tasks that report what it is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overall {
    /// Over the tasks in which it is defined; none if there are none.
    pub value: Option<f64>,
    /// Tasks left out because theirs is undefined.
    pub undefined: usize,
    /// The smaller the better.
    pub is_error: bool,
}

/// A task's value, if it is defined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reported {
    pub value: Option<f64>,
    pub is_error: bool,
}

impl Overall {
    /// Over each scores' `quantity`, where it is reported. Among errors and losses only, the result is one too; beside others, they
    /// count as negative numbers.
    pub fn of<'a>(fold: Fold, quantity: Quantity, scores: impl Iterator<Item = &'a Scores>) -> Overall {
        let reported: Vec<Reported> = scores.filter_map(|scores| scores.get(quantity)).collect();
        let is_error = reported.iter().all(|one| one.is_error);
        let turned = |one: &Reported| one.value.map(|value| if one.is_error && !is_error { -value } else { value });
        let defined: Vec<f64> = reported.iter().filter_map(turned).collect();
        let value = match fold {
            Fold::Mean => (!defined.is_empty()).then(|| defined.iter().sum::<f64>() / defined.len() as f64),
            Fold::Worst => defined.iter().copied().reduce(if is_error { f64::max } else { f64::min }),
        };
        Overall { value, undefined: reported.len() - defined.len(), is_error }
    }

    /// Whether this is better than the best so far: undefined for fewer tasks, or for as many and the better value.
    pub fn beats(&self, best: &Best) -> bool {
        let better = |value| if self.is_error { value < best.value } else { value > best.value };
        self.value.is_some_and(|value| self.undefined < best.undefined || (self.undefined == best.undefined && better(value)))
    }
}

impl Evaluation {
    /// The objective's value; without one where no task reports it.
    pub fn objective(&self, objective: &Objective) -> Overall {
        let all = || self.tasks.values().map(|task| &task.all);
        match objective {
            Objective::Over(fold, quantity) => Overall::of(*fold, *quantity, all()),
            Objective::One { task, quantity } => {
                let one = self.tasks.get(task).map(|task| &task.all);
                Overall::of(Fold::Mean, *quantity, one.into_iter())
            }
        }
    }

    pub fn mean_primary(&self) -> Overall {
        mean_primary(self.tasks.values().map(|task| &task.all))
    }
}

pub fn mean_primary<'a>(scores: impl Iterator<Item = &'a Scores>) -> Overall {
    Overall::of(Fold::Mean, Quantity::Primary, scores)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::schema::MetricKind;
    use crate::train::evaluate::TaskScores;
    use crate::train::metrics::Undefined;

    /// One task `a`, `b`, ... by primary metric and its value; losses are 0.2, 0.4, ...
    fn evaluation(primaries: &[(MetricKind, f64)]) -> Evaluation {
        let task = |(number, &(kind, value)): (usize, &(MetricKind, f64))| {
            let value = if value.is_nan() { Err(Undefined::NotFinite) } else { Ok(value) };
            let all = Scores { examples: 10, loss: Some(0.2 * (number + 1) as f64), metrics: vec![(kind, value)] };
            let name = char::from(b'a' + number as u8).to_string();
            (name, TaskScores { all, outputs: Vec::new(), slices: BTreeMap::new(), not_finite: Vec::new() })
        };
        Evaluation { split: "dev", tasks: primaries.iter().enumerate().map(task).collect() }
    }

    fn overall(text: &str, primaries: &[(MetricKind, f64)]) -> Overall {
        evaluation(primaries).objective(&Objective::parse(text).unwrap())
    }

    const SCORES: [(MetricKind, f64); 2] = [(MetricKind::Accuracy, 0.9), (MetricKind::Accuracy, 0.7)];
    const ERRORS: [(MetricKind, f64); 2] = [(MetricKind::Mse, 0.5), (MetricKind::Mae, 2.5)];
    const MIXED: [(MetricKind, f64); 2] = [(MetricKind::Mse, 0.5), (MetricKind::Accuracy, 0.7)];

    #[test]
    fn objectives_fold_over_the_tasks_that_report_them() {
        for (text, tasks, value, is_error) in [
            ("mean(primary)", SCORES, 0.8, false),
            ("min(primary)", SCORES, 0.7, false),
            ("min(accuracy)", SCORES, 0.7, false),
            ("max(loss)", SCORES, 0.4, true),
            ("b.loss", SCORES, 0.4, true),
            ("a.accuracy", SCORES, 0.9, false),
            ("mean(primary)", ERRORS, 1.5, true),
            ("min(primary)", ERRORS, 2.5, true),
            ("max(mse)", ERRORS, 0.5, true),
            ("b.mae", ERRORS, 2.5, true),
            ("mean(primary)", MIXED, 0.1, false),
            ("min(primary)", MIXED, -0.5, false),
            ("mean(accuracy)", MIXED, 0.7, false),
        ] {
            let found = overall(text, &tasks);
            assert!((found.value.unwrap() - value).abs() < 1e-12 && found.is_error == is_error, "{text}: {found:?}");
        }
        assert_eq!(overall("mean(f1)", &SCORES).value, None);
    }

    #[test]
    fn the_better_value_is_the_smaller_error_and_the_larger_score() {
        let beats = |is_error, value, undefined, best: (f64, usize)| {
            let best = Best { value: best.0, undefined: best.1, round: 0 };
            Overall { value, undefined, is_error }.beats(&best)
        };
        assert!(beats(true, Some(0.1), 0, (0.2, 0)) && !beats(true, Some(0.2), 0, (0.1, 0)));
        assert!(beats(false, Some(0.2), 0, (0.1, 0)) && !beats(false, Some(0.1), 0, (0.1, 0)));
        assert!(!beats(false, Some(0.9), 1, (0.1, 0)), "a task that is undefined is worse than any that is not");
        assert!(beats(false, Some(0.1), 0, (0.9, 1)));
        assert!(beats(false, Some(0.2), 1, (0.1, 1)));
        assert!(!beats(true, None, 1, (0.1, 1)));
    }

    #[test]
    fn what_is_undefined_is_left_out_and_counted() {
        let tasks = [(MetricKind::Pearson, f64::NAN), (MetricKind::Accuracy, 0.7)];
        assert_eq!(overall("mean(primary)", &tasks), Overall { value: Some(0.7), undefined: 1, is_error: false });
        assert_eq!(overall("min(primary)", &tasks), Overall { value: Some(0.7), undefined: 1, is_error: false });
        assert_eq!(overall("a.pearson", &tasks), Overall { value: None, undefined: 1, is_error: false });
    }
}
