//! Metrics of one task's predictions, in f64. Undefined values (a constant prediction's correlation, say) are 0.

use crate::config::schema::MetricKind;
use crate::data::Targets;

/// Predictions of a split: raw head outputs, (examples x outputs).
pub struct Predictions<'a> {
    pub outputs: usize,
    pub logits: &'a [f32],
    pub targets: &'a Targets,
    /// Examples to count; all if absent.
    pub only: Option<&'a [bool]>,
}

impl Predictions<'_> {
    fn examples(&self) -> impl Iterator<Item = usize> {
        let only = self.only;
        (0..self.logits.len() / self.outputs).filter(move |&example| only.is_none_or(|only| only[example]))
    }

    fn row(&self, example: usize) -> &[f32] {
        &self.logits[example * self.outputs..(example + 1) * self.outputs]
    }

    /// Predicted and true class of each example.
    fn classes(&self) -> Vec<(usize, usize)> {
        let Targets::Class(classes) = self.targets else { return Vec::new() };
        self.examples().map(|example| (argmax(self.row(example)), classes[example] as usize)).collect()
    }

    /// Predicted and true value of each observed cell of one output column.
    fn values(&self, output: usize) -> Vec<(f64, f64)> {
        let Targets::Values { dim, values } = self.targets else { return Vec::new() };
        let pair = |example: usize| (f64::from(self.row(example)[output]), f64::from(values[example * dim + output]));
        self.examples().map(pair).filter(|(_, truth)| !truth.is_nan()).collect()
    }

    /// The metric over the examples; over several outputs, their mean.
    pub fn metric(&self, kind: MetricKind) -> f64 {
        match (self.targets, kind) {
            (Targets::Class(_), MetricKind::Accuracy) => mean(self.classes().iter().map(|(p, t)| f64::from(u8::from(p == t)))),
            (Targets::Class(_), MetricKind::F1) => self.class_f1(),
            (Targets::Class(_), MetricKind::Matthews) => matthews(&self.classes(), self.outputs),
            (Targets::Class(_), MetricKind::Auroc) => self.class_auroc(),
            (Targets::Class(_) | Targets::Words, _) => 0.0,
            (Targets::Values { .. }, _) => mean((0..self.outputs).map(|output| column_metric(&self.values(output), kind))),
        }
    }

    /// Two classes: F1 of class 1. More: the mean over classes.
    fn class_f1(&self) -> f64 {
        let pairs = self.classes();
        let of = |class: usize| f1(pairs.iter().map(|&(p, t)| (p == class, t == class)));
        if self.outputs == 2 { of(1) } else { mean((0..self.outputs).map(of)) }
    }

    /// Two classes: by the difference of the logits. More: each class against the rest, averaged.
    fn class_auroc(&self) -> f64 {
        let Targets::Class(classes) = self.targets else { return 0.0 };
        let score = |example: usize, class: usize| {
            let row = self.row(example);
            if self.outputs == 2 { f64::from(row[1]) - f64::from(row[0]) } else { f64::from(row[class]) }
        };
        let of = |class: usize| {
            let truth = |example: usize| f64::from(u8::from(classes[example] as usize == class));
            auroc(&self.examples().map(|example| (score(example, class), truth(example))).collect::<Vec<_>>())
        };
        if self.outputs == 2 { of(1) } else { mean((0..self.outputs).map(of)) }
    }
}

/// Metric of one output column: regression values, or logits against 0 and 1.
fn column_metric(pairs: &[(f64, f64)], kind: MetricKind) -> f64 {
    match kind {
        MetricKind::Accuracy => mean(pairs.iter().map(|(x, y)| f64::from(u8::from((*x > 0.0) == (*y > 0.5))))),
        MetricKind::F1 => f1(pairs.iter().map(|(x, y)| (*x > 0.0, *y > 0.5))),
        MetricKind::Auroc => auroc(pairs),
        MetricKind::Pearson => pearson(pairs),
        MetricKind::Spearman => {
            let predicted = ranks(pairs.iter().map(|pair| pair.0));
            let truth = ranks(pairs.iter().map(|pair| pair.1));
            pearson(&predicted.into_iter().zip(truth).collect::<Vec<_>>())
        }
        MetricKind::Mse => mean(pairs.iter().map(|(x, y)| (x - y) * (x - y))),
        MetricKind::Mae => mean(pairs.iter().map(|(x, y)| (x - y).abs())),
        MetricKind::Matthews => 0.0,
    }
}

/// First index of the largest value.
pub fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = index;
        }
    }
    best
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / count as f64 }
}

/// Harmonic mean of precision and recall of (predicted, true) flags.
fn f1(pairs: impl Iterator<Item = (bool, bool)>) -> f64 {
    let (mut hits, mut marked) = (0.0, 0.0);
    for (predicted, truth) in pairs {
        hits += f64::from(u8::from(predicted && truth));
        marked += f64::from(u8::from(predicted)) + f64::from(u8::from(truth));
    }
    if marked == 0.0 { 0.0 } else { 2.0 * hits / marked }
}

/// Matthews correlation, in Gorodkin's form for any number of classes (Comput. Biol. Chem. 2004).
fn matthews(pairs: &[(usize, usize)], classes: usize) -> f64 {
    let (mut predicted, mut truth) = (vec![0.0; classes], vec![0.0; classes]);
    let mut correct = 0.0;
    for &(p, t) in pairs {
        predicted[p] += 1.0;
        truth[t] += 1.0;
        correct += f64::from(u8::from(p == t));
    }
    let total = pairs.len() as f64;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let spread = (total * total - dot(&predicted, &predicted)) * (total * total - dot(&truth, &truth));
    if spread <= 0.0 { 0.0 } else { (correct * total - dot(&predicted, &truth)) / spread.sqrt() }
}

fn pearson(pairs: &[(f64, f64)]) -> f64 {
    let (mx, my) = (mean(pairs.iter().map(|pair| pair.0)), mean(pairs.iter().map(|pair| pair.1)));
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in pairs {
        xy += (x - mx) * (y - my);
        xx += (x - mx) * (x - mx);
        yy += (y - my) * (y - my);
    }
    if xx == 0.0 || yy == 0.0 { 0.0 } else { xy / (xx * yy).sqrt() }
}

/// Ranks from 1, ties sharing their mean rank.
fn ranks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let values: Vec<f64> = values.collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let tied = order[start..].iter().take_while(|&&other| values[other] == values[order[start]]).count();
        for &index in &order[start..start + tied] {
            ranks[index] = (2 * start + tied + 1) as f64 / 2.0;
        }
        start += tied;
    }
    ranks
}

/// Area under the ROC curve by the rank sum; 0.5 where one class is missing.
fn auroc(pairs: &[(f64, f64)]) -> f64 {
    let ranks = ranks(pairs.iter().map(|pair| pair.0));
    let positive = pairs.iter().filter(|pair| pair.1 > 0.5).count() as f64;
    let negative = pairs.len() as f64 - positive;
    if positive == 0.0 || negative == 0.0 {
        return 0.5;
    }
    let sum: f64 = ranks.iter().zip(pairs).filter(|(_, pair)| pair.1 > 0.5).map(|(rank, _)| rank).sum();
    (sum - positive * (positive + 1.0) / 2.0) / (positive * negative)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values by scikit-learn's and SciPy's definitions, worked out by hand.
    #[test]
    fn two_classes() {
        let targets = Targets::Class(vec![1, 0, 1, 1, 0]);
        // Predicted classes 1, 0, 0, 1, 1: two hits of class 1, one miss, one false alarm.
        let logits = [0.0, 2.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.5];
        let predictions = Predictions { outputs: 2, logits: &logits, targets: &targets, only: None };
        assert_eq!(predictions.metric(MetricKind::Accuracy), 0.6);
        assert!((predictions.metric(MetricKind::F1) - 2.0 / 3.0).abs() < 1e-12);
        assert!((predictions.metric(MetricKind::Matthews) - 1.0 / 6.0).abs() < 1e-12);
        // Scores 2, -1, -1, 1, 0.5 against 1, 0, 1, 1, 0: of 6 pairs 4 in order, 1 tied.
        assert!((predictions.metric(MetricKind::Auroc) - 4.5 / 6.0).abs() < 1e-12);
        let only = [true, true, false, false, false];
        let slice = Predictions { only: Some(&only), ..predictions };
        assert_eq!(slice.metric(MetricKind::Accuracy), 1.0);
    }

    #[test]
    fn regression_with_a_missing_value() {
        let targets = Targets::Values { dim: 1, values: vec![1.0, 2.0, f32::NAN, 4.0] };
        let predictions = Predictions { outputs: 1, logits: &[1.0, 3.0, 9.0, 5.0], targets: &targets, only: None };
        assert!((predictions.metric(MetricKind::Mse) - 2.0 / 3.0).abs() < 1e-12);
        assert!((predictions.metric(MetricKind::Mae) - 2.0 / 3.0).abs() < 1e-12);
        assert!((predictions.metric(MetricKind::Pearson) - 0.981_980_506).abs() < 1e-8);
        assert_eq!(predictions.metric(MetricKind::Spearman), 1.0);
    }

    #[test]
    fn ties_share_a_rank() {
        assert_eq!(ranks([3.0, 1.0, 3.0, 2.0].into_iter()), [3.5, 1.0, 3.5, 2.0]);
    }

    #[test]
    fn a_constant_prediction_has_no_correlation() {
        assert_eq!(pearson(&[(1.0, 1.0), (1.0, 2.0)]), 0.0);
        assert_eq!(matthews(&[(0, 0), (0, 1)], 2), 0.0);
        assert_eq!(auroc(&[(0.0, 1.0), (1.0, 1.0)]), 0.5);
    }
}
