//! Who goes on from each rung (successive halving: Jamieson & Talwalkar, AISTATS 2016), from what the runs' folders tell alone.

use std::cmp::Ordering;

use crate::config::sweep::Halving;

/// How a point stands: all of its runs together.
pub struct Standing<'a> {
    /// Rounds that every one of its runs has done; [`u64::MAX`] once all have ended or failed.
    pub rounds: u64,
    /// Its score after so many rounds.
    pub score: &'a dyn Fn(u64) -> Score,
}

/// Mean of the objective over a point's runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    pub mean: Option<f64>,
    /// Runs without a value.
    pub missing: usize,
}

/// The better score first; of equal ones neither. Fewer missing values come before better ones.
pub fn order(one: Score, other: Score, is_error: bool) -> Ordering {
    let value = |score: Score| match score.mean {
        Some(mean) if is_error => mean,
        Some(mean) => -mean,
        None => f64::INFINITY,
    };
    one.missing.cmp(&other.missing).then(value(one).total_cmp(&value(other)))
}

/// Rounds of each rung, and how many points go on from it.
pub fn rungs(halving: &Halving, points: usize) -> Vec<(u64, usize)> {
    let mut rungs = Vec::new();
    let (mut rounds, mut left) = (halving.min_rounds, points);
    while left > 1 {
        left = (left / halving.eta).max(1);
        rungs.push((rounds, left));
        rounds = rounds.saturating_mul(halving.eta as u64);
    }
    rungs
}

/// What is to be done next.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Next {
    /// Points with runs that have to go on, up to so many rounds; none: to their end.
    pub points: Vec<usize>,
    pub until: Option<u64>,
    /// Points that were stopped, by their number, with the rounds of their last rung.
    pub stopped: Vec<(usize, u64)>,
}

/// All of a rung's points have to be there before the best are known.
pub fn next(halving: Option<&Halving>, points: &[Standing], is_error: bool) -> Next {
    let mut alive: Vec<usize> = (0..points.len()).collect();
    let mut stopped = Vec::new();
    for (rounds, keep) in halving.map_or(Vec::new(), |halving| rungs(halving, points.len())) {
        let short: Vec<usize> = alive.iter().copied().filter(|&point| points[point].rounds < rounds).collect();
        if !short.is_empty() {
            return Next { points: short, until: Some(rounds), stopped };
        }
        // Stable: of equals the first one goes on.
        alive.sort_by(|&one, &other| order((points[one].score)(rounds), (points[other].score)(rounds), is_error));
        stopped.extend(alive.drain(keep.min(alive.len())..).map(|point| (point, rounds)));
        alive.sort_unstable();
    }
    Next { points: alive.into_iter().filter(|&point| points[point].rounds < u64::MAX).collect(), until: None, stopped }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALVING: Halving = Halving { eta: 3, min_rounds: 10 };

    /// Nine points; the score of each is `turn` of its number after 10 rounds, and of twice as much later on.
    fn after(rounds: &[u64], turn: fn(usize) -> f64, is_error: bool) -> Next {
        let scores: Vec<_> = (0..rounds.len()).map(|point| move |_: u64| Score { mean: Some(turn(point)), missing: 0 }).collect();
        let standings: Vec<Standing> = rounds.iter().zip(&scores).map(|(&rounds, score)| Standing { rounds, score }).collect();
        next(Some(&HALVING), &standings, is_error)
    }

    #[test]
    fn rungs_go_from_all_to_one() {
        assert_eq!(rungs(&HALVING, 9), [(10, 3), (30, 1)]);
        assert_eq!(rungs(&HALVING, 10), [(10, 3), (30, 1)]);
        assert_eq!(rungs(&HALVING, 2), [(10, 1)]);
        assert_eq!(rungs(&HALVING, 1), []);
    }

    #[test]
    fn a_rung_waits_for_all_of_its_points() {
        let next = after(&[10, 10, 0, 10, 10, 10, 10, 7, 10], |point| point as f64, false);
        assert_eq!((next.points, next.until, next.stopped), (vec![2, 7], Some(10), vec![]));
    }

    #[test]
    fn the_best_go_on() {
        let scores = |point: usize| [5.0, 1.0, 9.0, 2.0, 8.0, 3.0, 7.0, 4.0, 6.0][point];
        let next = after(&[10; 9], scores, false);
        assert_eq!((next.points, next.until), (vec![2, 4, 6], Some(30)));
        let next = after(&[10; 9], scores, true);
        assert_eq!((next.points, next.until), (vec![1, 3, 5], Some(30)));
        let next = after(&[10, 30, 10, 30, 10, 30, 10, 10, 10], scores, true);
        assert_eq!((next.points, next.until, next.stopped.len()), (vec![1], None, 8));
        let next = after(&[10, u64::MAX, 10, 30, 10, 30, 10, 10, 10], scores, true);
        assert_eq!((next.points, next.until), (vec![], None));
    }

    #[test]
    fn a_missing_value_is_worse_than_any() {
        let score = |mean, missing| Score { mean, missing };
        assert_eq!(order(score(Some(0.1), 0), score(Some(0.9), 1), false), Ordering::Less);
        assert_eq!(order(score(Some(0.9), 0), score(None, 0), false), Ordering::Less);
        assert_eq!(order(score(Some(0.9), 0), score(Some(0.1), 0), true), Ordering::Greater);
    }
}
