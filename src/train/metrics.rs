//! Metrics of one task's predictions, in f64, with the values of scikit-learn and SciPy; undefined where those have none.

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

/// Why a metric has no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undefined {
    /// A prediction is infinite or not a number.
    NotFinite,
    /// No example has a target.
    NoTargets,
    /// Of this class or label there are examples only, or none.
    OneClass(usize),
    /// All targets, or all predictions, of this output are the same.
    SameTargets(usize),
    SamePredictions(usize),
}

/// A metric's value, if it has one.
pub type Measured = Result<f64, Undefined>;

impl Predictions<'_> {
    fn examples(&self) -> impl Iterator<Item = usize> {
        let only = self.only;
        (0..self.logits.len() / self.outputs).filter(move |&example| only.is_none_or(|only| only[example]))
    }

    fn row(&self, example: usize) -> &[f32] {
        &self.logits[example * self.outputs..(example + 1) * self.outputs]
    }

    /// Examples with a prediction that is infinite or not a number.
    pub fn not_finite(&self) -> impl Iterator<Item = usize> {
        self.examples().filter(|&example| !self.row(example).iter().all(|x| x.is_finite()))
    }

    /// The metric over the examples; over several outputs, their mean.
    pub fn metric(&self, kind: MetricKind) -> Measured {
        if self.not_finite().next().is_some() {
            return Err(Undefined::NotFinite);
        }
        match self.targets {
            Targets::Class(classes) => self.of_classes(classes, kind),
            Targets::Values { dim, values } => self.of_values(*dim, values, kind),
            Targets::Words | Targets::Pairs => Err(Undefined::NoTargets),
        }
    }

    fn of_classes(&self, truth: &[u32], kind: MetricKind) -> Measured {
        let pairs: Vec<(usize, usize)> =
            self.examples().map(|example| (argmax(self.row(example)), truth[example] as usize)).collect();
        if pairs.is_empty() {
            return Err(Undefined::NoTargets);
        }
        match kind {
            MetricKind::Accuracy => mean(pairs.iter().map(|(p, t)| share(p == t))),
            MetricKind::BalancedAccuracy => self.balanced_accuracy(&pairs),
            MetricKind::Precision => self.second_or_mean(&pairs, precision),
            MetricKind::Recall => self.second_or_mean(&pairs, recall),
            MetricKind::F1 => self.second_or_mean(&pairs, f1),
            MetricKind::MacroF1 => self.over_classes(&pairs, f1),
            MetricKind::Matthews => Ok(matthews(&pairs, self.outputs)),
            MetricKind::Auroc => self.class_auroc(truth),
            // Of numbers, or of pairs; `check` refuses them.
            MetricKind::Pearson
            | MetricKind::Spearman
            | MetricKind::R2
            | MetricKind::Mse
            | MetricKind::Rmse
            | MetricKind::Mae
            | MetricKind::Cosine => Err(Undefined::NoTargets),
        }
    }

    /// Two classes: of class 1. More: the mean over the classes.
    fn second_or_mean(&self, pairs: &[(usize, usize)], of: fn(Hits) -> f64) -> Measured {
        if self.outputs == 2 { Ok(of(Hits::of_class(pairs, 1))) } else { self.over_classes(pairs, of) }
    }

    /// The mean over the classes that are predicted or true of some example.
    fn over_classes(&self, pairs: &[(usize, usize)], of: fn(Hits) -> f64) -> Measured {
        let hits = (0..self.outputs).map(|class| Hits::of_class(pairs, class));
        mean(hits.filter(|hits| hits.predicted + hits.truth > 0.0).map(of))
    }

    /// The mean recall of the classes that are true of some example.
    fn balanced_accuracy(&self, pairs: &[(usize, usize)]) -> Measured {
        let hits = (0..self.outputs).map(|class| Hits::of_class(pairs, class));
        mean(hits.filter(|hits| hits.truth > 0.0).map(recall))
    }

    /// Two classes: of class 1. More: each class against the rest, averaged. Examples are ordered by probability.
    fn class_auroc(&self, truth: &[u32]) -> Measured {
        let of = |class: usize| {
            let pair = |example: usize| (log_odds(self.row(example), class), share(truth[example] as usize == class));
            auroc(&self.examples().map(pair).collect::<Vec<_>>()).ok_or(Undefined::OneClass(class))
        };
        if self.outputs == 2 {
            return of(1);
        }
        mean((0..self.outputs).map(of).collect::<Result<Vec<f64>, _>>()?.into_iter())
    }

    /// Outputs that no example has a target of are left out.
    fn of_values(&self, dim: usize, truth: &[f32], kind: MetricKind) -> Measured {
        let columns = (0..self.outputs).map(|output| (output, self.column(dim, truth, output)));
        let columns = columns.filter(|(_, pairs)| !pairs.is_empty());
        let values = columns.map(|(output, pairs)| of_column(&pairs, kind, output)).collect::<Result<Vec<f64>, _>>()?;
        mean(values.into_iter())
    }

    /// The metric of one output of a task that predicts numbers.
    pub fn metric_of_output(&self, kind: MetricKind, output: usize) -> Measured {
        if self.not_finite().next().is_some() {
            return Err(Undefined::NotFinite);
        }
        let Targets::Values { dim, values } = self.targets else { return Err(Undefined::NoTargets) };
        let pairs = self.column(*dim, values, output);
        if pairs.is_empty() { Err(Undefined::NoTargets) } else { of_column(&pairs, kind, output) }
    }

    /// (prediction, target) of an output, where there is a target.
    fn column(&self, dim: usize, truth: &[f32], output: usize) -> Vec<(f64, f64)> {
        let pair = |example: usize| (f64::from(self.row(example)[output]), f64::from(truth[example * dim + output]));
        self.examples().map(pair).filter(|(_, truth)| !truth.is_nan()).collect()
    }
}

/// Metric of one output column, which has targets: regression values, or logits against 0 and 1.
fn of_column(pairs: &[(f64, f64)], kind: MetricKind, output: usize) -> Measured {
    match kind {
        MetricKind::Accuracy => mean(pairs.iter().map(|(x, y)| share((*x > 0.0) == (*y > 0.5)))),
        MetricKind::F1 | MetricKind::MacroF1 => Ok(f1(Hits::of_label(pairs))),
        MetricKind::Precision => Ok(precision(Hits::of_label(pairs))),
        MetricKind::Recall => Ok(recall(Hits::of_label(pairs))),
        MetricKind::Auroc => auroc(pairs).ok_or(Undefined::OneClass(output)),
        MetricKind::Pearson => correlation(pairs, output, pearson),
        MetricKind::Spearman => correlation(pairs, output, |pairs| {
            let predicted = ranks(pairs.iter().map(|pair| pair.0));
            let truth = ranks(pairs.iter().map(|pair| pair.1));
            pearson(&predicted.into_iter().zip(truth).collect::<Vec<_>>())
        }),
        MetricKind::R2 => r2(pairs, output),
        MetricKind::Mse => mean_squared(pairs),
        MetricKind::Rmse => mean_squared(pairs).map(f64::sqrt),
        MetricKind::Mae => mean(pairs.iter().map(|(x, y)| (x - y).abs())),
        // Of classes, or of pairs; `check` refuses them.
        MetricKind::Matthews | MetricKind::BalancedAccuracy | MetricKind::Cosine => Err(Undefined::NoTargets),
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

/// 1 of what is so, 0 of what is not.
fn share(so: bool) -> f64 {
    f64::from(u8::from(so))
}

fn mean(values: impl Iterator<Item = f64>) -> Measured {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { Err(Undefined::NoTargets) } else { Ok(sum / count as f64) }
}

/// log p / (1 - p) of a class's softmax probability p: rises with it, and never rounds to 0 or 1 as it does.
fn log_odds(row: &[f32], class: usize) -> f64 {
    let others = || row.iter().enumerate().filter(|(other, _)| *other != class).map(|(_, &x)| f64::from(x));
    let peak = others().fold(f64::NEG_INFINITY, f64::max);
    f64::from(row[class]) - peak - others().map(|x| (x - peak).exp()).sum::<f64>().ln()
}

/// Examples of which one class or label is predicted, is true, or both.
#[derive(Clone, Copy)]
struct Hits {
    predicted: f64,
    truth: f64,
    both: f64,
}

impl Hits {
    /// Of (predicted, true) flags.
    fn count(flags: impl Iterator<Item = (bool, bool)>) -> Self {
        flags.fold(Self { predicted: 0.0, truth: 0.0, both: 0.0 }, |hits, (predicted, truth)| Self {
            predicted: hits.predicted + share(predicted),
            truth: hits.truth + share(truth),
            both: hits.both + share(predicted && truth),
        })
    }

    /// Of (predicted, true) classes.
    fn of_class(pairs: &[(usize, usize)], class: usize) -> Self {
        Self::count(pairs.iter().map(|&(p, t)| (p == class, t == class)))
    }

    /// Of logits against 0 and 1.
    fn of_label(pairs: &[(f64, f64)]) -> Self {
        Self::count(pairs.iter().map(|(x, y)| (*x > 0.0, *y > 0.5)))
    }
}

/// 0 where there is nothing to divide by.
fn ratio(of: f64, by: f64) -> f64 {
    if by == 0.0 { 0.0 } else { of / by }
}

fn precision(hits: Hits) -> f64 {
    ratio(hits.both, hits.predicted)
}

fn recall(hits: Hits) -> f64 {
    ratio(hits.both, hits.truth)
}

/// Harmonic mean of precision and recall.
fn f1(hits: Hits) -> f64 {
    ratio(2.0 * hits.both, hits.predicted + hits.truth)
}

fn mean_squared(pairs: &[(f64, f64)]) -> Measured {
    mean(pairs.iter().map(|(x, y)| (x - y) * (x - y)))
}

/// Coefficient of determination. Targets that do not vary leave nothing to explain: 1 where they are met, else 0.
fn r2(pairs: &[(f64, f64)], output: usize) -> Measured {
    if pairs.len() < 2 {
        return Err(Undefined::SameTargets(output));
    }
    let center = mean(pairs.iter().map(|pair| pair.1))?;
    let spread: f64 = pairs.iter().map(|(_, y)| (y - center) * (y - center)).sum();
    let left: f64 = pairs.iter().map(|(x, y)| (x - y) * (x - y)).sum();
    match (spread == 0.0, left == 0.0) {
        (true, true) => Ok(1.0),
        (true, false) => Ok(0.0),
        (false, _) => Ok(1.0 - left / spread),
    }
}

/// Matthews correlation, in Gorodkin's form for any number of classes (Comput. Biol. Chem. 2004); 0 where only one class is
/// predicted, or true.
fn matthews(pairs: &[(usize, usize)], classes: usize) -> f64 {
    let (mut predicted, mut truth) = (vec![0.0; classes], vec![0.0; classes]);
    let mut correct = 0.0;
    for &(p, t) in pairs {
        predicted[p] += 1.0;
        truth[t] += 1.0;
        correct += share(p == t);
    }
    let total = pairs.len() as f64;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let spread = (total * total - dot(&predicted, &predicted)) * (total * total - dot(&truth, &truth));
    if spread <= 0.0 { 0.0 } else { (correct * total - dot(&predicted, &truth)) / spread.sqrt() }
}

/// A correlation of values that vary.
fn correlation(pairs: &[(f64, f64)], output: usize, of: impl Fn(&[(f64, f64)]) -> f64) -> Measured {
    let is_constant = |value: fn(&(f64, f64)) -> f64| pairs.iter().all(|pair| value(pair) == value(&pairs[0]));
    if is_constant(|pair| pair.1) {
        return Err(Undefined::SameTargets(output));
    }
    if is_constant(|pair| pair.0) {
        return Err(Undefined::SamePredictions(output));
    }
    Ok(of(pairs))
}

fn pearson(pairs: &[(f64, f64)]) -> f64 {
    let count = pairs.len() as f64;
    let (x, y) = pairs.iter().fold((0.0, 0.0), |(x, y), pair| (x + pair.0, y + pair.1));
    let (mx, my) = (x / count, y / count);
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in pairs {
        xy += (x - mx) * (y - my);
        xx += (x - mx) * (x - mx);
        yy += (y - my) * (y - my);
    }
    (xy / (xx * yy).sqrt()).clamp(-1.0, 1.0)
}

/// Ranks from 1, ties sharing their mean rank.
fn ranks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let values: Vec<f64> = values.collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        for &index in tied {
            ranks[index] = (2 * start + tied.len() + 1) as f64 / 2.0;
        }
        start += tied.len();
    }
    ranks
}

/// Area under the ROC curve by the rank sum; none where one class is missing.
fn auroc(pairs: &[(f64, f64)]) -> Option<f64> {
    let ranks = ranks(pairs.iter().map(|pair| pair.0));
    let positive = pairs.iter().filter(|pair| pair.1 > 0.5).count() as f64;
    let negative = pairs.len() as f64 - positive;
    let sum: f64 = ranks.iter().zip(pairs).filter(|(_, pair)| pair.1 > 0.5).map(|(rank, _)| rank).sum();
    let area = (sum - positive * (positive + 1.0) / 2.0) / (positive * negative);
    (positive > 0.0 && negative > 0.0).then_some(area)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values by scikit-learn's and SciPy's definitions, worked out by hand; tests/metrics.rs has theirs.
    #[test]
    fn two_classes() {
        let targets = Targets::Class(vec![1, 0, 1, 1, 0]);
        // Predicted classes 1, 0, 0, 1, 1: two hits of class 1, one miss, one false alarm.
        let logits = [0.0, 2.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.5];
        let predictions = Predictions { outputs: 2, logits: &logits, targets: &targets, only: None };
        let metric = |kind| predictions.metric(kind).unwrap();
        assert_eq!(metric(MetricKind::Accuracy), 0.6);
        assert!((metric(MetricKind::F1) - 2.0 / 3.0).abs() < 1e-12);
        assert!((metric(MetricKind::Matthews) - 1.0 / 6.0).abs() < 1e-12);
        // Scores 2, -1, -1, 1, 0.5 against 1, 0, 1, 1, 0: of 6 pairs 4 in order, 1 tied.
        assert!((metric(MetricKind::Auroc) - 4.5 / 6.0).abs() < 1e-12);
        let only = [true, true, false, false, false];
        let slice = Predictions { only: Some(&only), ..predictions };
        assert_eq!(slice.metric(MetricKind::Accuracy), Ok(1.0));
        let slice = Predictions { only: Some(&[false; 5]), ..slice };
        assert_eq!(slice.metric(MetricKind::Accuracy), Err(Undefined::NoTargets));
    }

    #[test]
    fn regression_with_a_missing_value() {
        let targets = Targets::Values { dim: 1, values: vec![1.0, 2.0, f32::NAN, 4.0] };
        let predictions = Predictions { outputs: 1, logits: &[1.0, 3.0, 9.0, 5.0], targets: &targets, only: None };
        let metric = |kind| predictions.metric(kind).unwrap();
        assert!((metric(MetricKind::Mse) - 2.0 / 3.0).abs() < 1e-12);
        assert!((metric(MetricKind::Mae) - 2.0 / 3.0).abs() < 1e-12);
        assert!((metric(MetricKind::Pearson) - 0.981_980_506).abs() < 1e-8);
        assert_eq!(metric(MetricKind::Spearman), 1.0);
    }

    #[test]
    fn ties_share_a_rank() {
        assert_eq!(ranks([3.0, 1.0, 3.0, 2.0].into_iter()), [3.5, 1.0, 3.5, 2.0]);
        assert_eq!(ranks([0.0, -0.0].into_iter()), [1.5, 1.5]);
    }

    /// What is no number equals nothing, not even itself.
    #[test]
    fn ranking_ends_whatever_the_values() {
        assert_eq!(ranks([f64::NAN, 1.0, f64::NAN, f64::INFINITY].into_iter()).len(), 4);
    }

    #[test]
    fn it_is_known_why_a_metric_is_undefined() {
        let numbers = |logits: &[f32], values: &[f32], kind| {
            let targets = Targets::Values { dim: 1, values: values.to_vec() };
            Predictions { outputs: 1, logits, targets: &targets, only: None }.metric(kind)
        };
        assert_eq!(numbers(&[f32::NAN, 1.0], &[1.0, 2.0], MetricKind::Mse), Err(Undefined::NotFinite));
        assert_eq!(numbers(&[0.0, 1.0], &[f32::NAN; 2], MetricKind::Mse), Err(Undefined::NoTargets));
        assert_eq!(numbers(&[1.0, 1.0], &[1.0, 2.0], MetricKind::Pearson), Err(Undefined::SamePredictions(0)));
        assert_eq!(numbers(&[1.0, 2.0], &[1.0, 1.0], MetricKind::Spearman), Err(Undefined::SameTargets(0)));
        assert_eq!(numbers(&[1.0, 2.0], &[1.0, 1.0], MetricKind::Auroc), Err(Undefined::OneClass(0)));
    }

    /// A constant added to all logits of an example changes no probability.
    #[test]
    fn several_classes_are_ordered_by_probability() {
        let targets = Targets::Class(vec![0, 1, 2, 1]);
        let logits = [2.0, 1.0, 0.0, 1.0, 2.0, 0.0, 0.0, 1.0, 2.0, 1.0, 1.5, 0.0];
        let moved: Vec<f32> =
            logits.chunks(3).zip([0.0, 100.0, -50.0, 7.0]).flat_map(|(row, by)| row.iter().map(move |x| x + by)).collect();
        let auroc = |logits: &[f32]| Predictions { outputs: 3, logits, targets: &targets, only: None }.metric(MetricKind::Auroc);
        assert_eq!(auroc(&moved), auroc(&logits));
    }
}
