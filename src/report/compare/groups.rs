//! Runs whose configuration differs in the seed and the name only form a group.

use std::collections::{BTreeMap, BTreeSet};

use crate::report::folder::{Metric, Run};

/// Keys that do not tell groups apart: a run's seed and name, and where its folder lies.
const OWN: [&str; 3] = ["run.seed", "run.name", "run.out"];

/// Letters of a group's label.
const MOST_LETTERS: usize = 48;

pub struct Groups<'a> {
    pub all: Vec<Group<'a>>,
    /// Keys in which they differ.
    pub keys: Vec<String>,
    /// Tasks of all runs, in the order of the first that has them.
    pub tasks: Vec<String>,
}

pub struct Group<'a> {
    /// What sets it apart.
    pub label: String,
    pub runs: Vec<&'a Run>,
}

impl<'a> Groups<'a> {
    /// In the order in which the runs are given.
    pub fn of(runs: &'a [Run]) -> Self {
        let mut grouped: Vec<(BTreeMap<&str, &str>, Vec<&Run>)> = Vec::new();
        for run in runs {
            let values = run.settings.values.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            let settings: BTreeMap<&str, &str> = values.filter(|(key, _)| !OWN.contains(key)).collect();
            match grouped.iter_mut().find(|(known, _)| *known == settings) {
                Some((_, runs)) => runs.push(run),
                None => grouped.push((settings, vec![run])),
            }
        }
        let settings: Vec<&BTreeMap<&str, &str>> = grouped.iter().map(|(settings, _)| settings).collect();
        let keys = differing(&settings);
        let labels = labels(&settings, &keys, &grouped[0].1[0].settings.config.run.name);
        let all = labels.into_iter().zip(&grouped).map(|(label, (_, runs))| Group { label, runs: runs.clone() }).collect();
        let mut tasks: Vec<String> = Vec::new();
        for task in runs.iter().flat_map(|run| run.history.tasks()) {
            if !tasks.contains(&task) {
                tasks.push(task);
            }
        }
        Self { all, keys, tasks }
    }

    /// The number of a run's group.
    pub fn of_run(&self, run: &Run) -> usize {
        self.all.iter().position(|group| group.runs.iter().any(|own| std::ptr::eq(*own, run))).unwrap_or(0)
    }

    /// The task's primary metric; none where runs disagree.
    pub fn metric(&self, task: &str) -> Option<Metric> {
        let runs = self.all.iter().flat_map(|group| &group.runs).filter(|run| run.history.tasks().iter().any(|own| own == task));
        let metrics: Vec<Metric> = runs.filter_map(|run| run.primary(task)).collect();
        metrics.first().copied().filter(|first| metrics.iter().all(|metric| metric == first))
    }

    /// The mean of the primary metrics: an error where all of them are.
    pub fn mean_metric(&self) -> Metric {
        let metrics: Vec<Metric> = self.tasks.iter().filter_map(|task| self.metric(task)).collect();
        Metric { name: "mean", is_error: !metrics.is_empty() && metrics.iter().all(|metric| metric.is_error) }
    }
}

fn differing(settings: &[&BTreeMap<&str, &str>]) -> Vec<String> {
    let keys: BTreeSet<&str> = settings.iter().flat_map(|settings| settings.keys().copied()).collect();
    let differs = |key: &&str| settings.iter().any(|own| own.get(key) != settings[0].get(key));
    keys.into_iter().filter(differs).map(str::to_owned).collect()
}

/// Says of each group what sets it apart, in as few keys as tell all of them apart.
fn labels(settings: &[&BTreeMap<&str, &str>], keys: &[String], name: &str) -> Vec<String> {
    if keys.is_empty() {
        return vec![name.to_owned()];
    }
    // Parameters that come and go with a method are left out where the methods say enough.
    let everywhere = keys.iter().filter(|key| settings.iter().all(|own| own.contains_key(key.as_str()))).collect::<Vec<_>>();
    let of_all = keys.iter().collect::<Vec<_>>();
    let written = |keys: &[&String]| -> Vec<String> { settings.iter().map(|own| label(own, keys)).collect() };
    let are_distinct = |labels: &[String]| labels.iter().collect::<BTreeSet<_>>().len() == labels.len();
    let candidates = [written(&everywhere), written(&of_all)];
    let fitting = candidates.into_iter().find(|labels| are_distinct(labels));
    let numbered = || (1..=settings.len()).map(|number| format!("group {number}")).collect();
    fitting.unwrap_or_else(numbered)
}

fn label(settings: &BTreeMap<&str, &str>, keys: &[&String]) -> String {
    let last = |key: &str| key.rsplit('.').next().map(str::to_owned);
    let is_unique = |key: &str| keys.iter().filter(|other| last(other) == last(key)).count() == 1;
    let short = |key: &str| last(key).filter(|_| is_unique(key)).unwrap_or_else(|| key.to_owned());
    let one = |key: &&String| {
        let value = settings.get(key.as_str()).copied().unwrap_or("not set").trim_matches('"');
        match key.as_str() {
            // What it is a method of goes without saying.
            "surgery.method" => value.to_owned(),
            key => format!("{} {value}", short(key)),
        }
    };
    let label = keys.iter().map(one).collect::<Vec<_>>().join(", ");
    if label.chars().count() <= MOST_LETTERS {
        label
    } else {
        format!("{}…", label.chars().take(MOST_LETTERS - 1).collect::<String>())
    }
}

/// Mean of some values and how they scatter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub mean: f64,
    /// Sample standard deviation; none of a single value.
    pub deviation: Option<f64>,
    pub count: usize,
}

impl Spread {
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len();
        if count == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = (count > 1).then(|| (squares / (count - 1) as f64).sqrt());
        Some(Self { mean, deviation, count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_a_deviation_from_two_values_on() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[2.0]), Some(Spread { mean: 2.0, deviation: None, count: 1 }));
        assert_eq!(Spread::of(&[1.0, 3.0]).unwrap().deviation, Some(2f64.sqrt()));
    }

    #[test]
    fn labels_are_the_keys_that_differ() {
        let one = BTreeMap::from([("surgery.method", "\"pcgrad\""), ("surgery.order", "\"random\""), ("train.epochs", "2.0")]);
        let other = BTreeMap::from([("surgery.method", "\"sum\""), ("train.epochs", "2.0")]);
        let settings = [&one, &other];
        let keys = differing(&settings);
        assert_eq!(keys, ["surgery.method", "surgery.order"]);
        assert_eq!(labels(&settings, &keys, "x"), ["pcgrad", "sum"]);
        assert_eq!(labels(&settings[..1], &[], "x"), ["x"]);
        let both = ["a.x", "b.x"].map(str::to_owned);
        assert_eq!(label(&BTreeMap::from([("a.x", "1"), ("b.x", "2")]), &[&both[0], &both[1]]), "a.x 1, b.x 2");
        let longer = BTreeMap::from([("surgery.method", "\"sum\""), ("train.epochs", "3.0")]);
        let settings = [&other, &longer];
        assert_eq!(labels(&settings, &differing(&settings), "x"), ["epochs 2.0", "epochs 3.0"]);
    }
}
