//! Points in the order of their objective.

use super::halving::{Score, order};
use super::points::Point;
use super::trial::{Progress, Trial};

/// A run, and what became of it.
#[derive(Clone, Debug)]
pub struct Row {
    pub trial: Trial,
    pub status: Status,
    pub progress: Progress,
    /// The objective.
    pub value: Option<f64>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Status {
    Done,
    /// By halving, after so many rounds.
    Stopped(u64),
    Failed(String),
    /// It can go on.
    Unfinished,
}

impl Status {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Stopped(_) => "stopped",
            Self::Failed(_) => "failed",
            Self::Unfinished => "unfinished",
        }
    }

    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Failed(why) => Some(why),
            _ => None,
        }
    }
}

/// A point with all of its runs.
#[derive(Clone, Debug)]
pub struct Ranked {
    pub point: Point,
    pub score: Score,
    /// Of the runs' values, with n - 1; none of fewer than two.
    pub deviation: Option<f64>,
    pub rows: Vec<Row>,
}

impl Ranked {
    pub fn new(point: Point, rows: Vec<Row>) -> Self {
        let values: Vec<f64> = rows.iter().filter_map(|row| row.value).collect();
        Self { point, score: score(rows.iter().map(|row| row.value)), deviation: deviation(&values), rows }
    }

    /// Rounds after which halving stopped it; the later, the better it was.
    fn lasted(&self) -> u64 {
        let stopped = self.rows.iter().filter_map(|row| match row.status {
            Status::Stopped(rounds) => Some(rounds),
            _ => None,
        });
        stopped.min().unwrap_or(u64::MAX)
    }
}

/// The best point first; equal ones in their own order.
pub fn rank(mut points: Vec<Ranked>, is_error: bool) -> Vec<Ranked> {
    points.sort_by(|one, other| other.lasted().cmp(&one.lasted()).then(order(one.score, other.score, is_error)));
    points
}

pub fn score(values: impl Iterator<Item = Option<f64>>) -> Score {
    let (mut sum, mut count, mut missing) = (0.0, 0, 0);
    for value in values {
        match value {
            Some(value) => (sum, count) = (sum + value, count + 1),
            None => missing += 1,
        }
    }
    Score { mean: (count > 0).then(|| sum / f64::from(count)), missing }
}

fn deviation(values: &[f64]) -> Option<f64> {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranked(number: usize, values: &[Option<f64>], status: Status) -> Ranked {
        let trial = Trial { point: number, seed: None, name: String::new(), sets: Vec::new() };
        let row =
            |&value: &Option<f64>| Row { trial: trial.clone(), status: status.clone(), progress: Progress::default(), value };
        Ranked::new(Point { number, values: Vec::new() }, values.iter().map(row).collect())
    }

    fn order_of(points: Vec<Ranked>, is_error: bool) -> Vec<usize> {
        rank(points, is_error).iter().map(|ranked| ranked.point.number).collect()
    }

    #[test]
    fn points_are_ranked_by_their_means() {
        let points = || {
            let done = |number, values: &[f64]| {
                ranked(number, &values.iter().map(|&value| Some(value)).collect::<Vec<_>>(), Status::Done)
            };
            vec![done(0, &[0.5, 0.7]), done(1, &[0.9, 0.1]), done(2, &[0.8, 0.8])]
        };
        assert_eq!(order_of(points(), false), [2, 0, 1]);
        assert_eq!(order_of(points(), true), [1, 0, 2]);
        assert!((points()[0].deviation.unwrap() - 0.02_f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn a_point_with_a_run_that_failed_or_was_stopped_comes_later() {
        let points = vec![
            ranked(0, &[Some(0.9), None], Status::Failed("x".into())),
            ranked(1, &[Some(0.95)], Status::Stopped(10)),
            ranked(2, &[Some(0.2)], Status::Done),
            ranked(3, &[Some(0.1)], Status::Stopped(30)),
        ];
        assert_eq!(order_of(points, false), [2, 0, 3, 1]);
    }
}
