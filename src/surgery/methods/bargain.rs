//! The bargaining equation G a = a^(-p), a > 0, of Nash-MTL (p = 1) and FairGrad (p = 1 / alpha).
//!
//! It is the stationary point of the convex  a'Ga / 2 - sum_i phi(a_i)  with  phi'(a) = a^(-p), found by a damped Newton
//! method. A solution exists unless some convex combination of the gradients vanishes; then a ridge makes one.

use super::linalg::{Cholesky, diagonal, dot, quadratic, times};

pub(super) struct Bargain {
    pub weights: Vec<f64>,
    /// The gradients admit no bargain (or none f64 can hold) and G (1 + RIDGE on the diagonal) was used.
    pub ridged: bool,
}

/// Relative to each diagonal entry, so that it commutes with rescaling a task.
const RIDGE: f64 = 1e-8;

/// Newton steps; self-concordance bounds them by a few dozen for any solvable G.
const MAX_STEPS: usize = 200;

/// How many times longer than their sum the parts of some (G a)_i may be: beyond it G's own rounding decides, and the
/// bargain counts as non-existent. With the ridge the parts are at most 1 / RIDGE longer.
const LARGEST_CANCELLATION: f64 = 1e10;

/// Solves G a = a^(-p). Rows of zeros bargain for nothing: they get weight 0. `None` when even the ridge did not help.
pub(super) fn solve(gram: &[f64], count: usize, power: f64) -> Option<Bargain> {
    let squares = diagonal(gram, count);
    let rows: Vec<usize> = (0..count).filter(|&i| squares[i] > 0.0).collect();
    if rows.is_empty() {
        return Some(Bargain { weights: vec![0.0; count], ridged: false });
    }
    // With a = scale^(-1/(1+p)) x the equation for x is free of G's scale.
    let scale = squares.iter().copied().fold(0.0, f64::max);
    let block: Vec<f64> = rows.iter().flat_map(|&i| rows.iter().map(move |&j| gram[i * count + j] / scale)).collect();
    let (solved, ridged) = match newton(&block, rows.len(), power) {
        Some(solved) => (solved, false),
        None => (newton(&with_ridge(block, rows.len()), rows.len(), power)?, true),
    };
    let unit = scale.powf(-1.0 / (1.0 + power));
    let mut weights = vec![0.0; count];
    for (&row, value) in rows.iter().zip(solved) {
        weights[row] = value * unit;
    }
    Some(Bargain { weights, ridged })
}

fn with_ridge(mut gram: Vec<f64>, count: usize) -> Vec<f64> {
    for i in 0..count {
        gram[i * count + i] *= 1.0 + RIDGE;
    }
    gram
}

fn newton(gram: &[f64], count: usize, power: f64) -> Option<Vec<f64>> {
    let squares = diagonal(gram, count);
    let mut point: Vec<f64> = squares.iter().map(|square| square.powf(-1.0 / (1.0 + power))).collect();
    let length = quadratic(gram, &point);
    if length > 0.0 {
        // The best multiple of the starting point: t^2 a'Ga = t^(1-p) sum a^(1-p).
        let target: f64 = point.iter().map(|a| a.powf(1.0 - power)).sum();
        let multiple = (target / length).powf(1.0 / (1.0 + power));
        point.iter_mut().for_each(|a| *a *= multiple);
    }
    for _ in 0..MAX_STEPS {
        let (relative, decrement) = direction(gram, &point, power)?;
        let largest = relative.iter().fold(0.0_f64, |most, rate| most.max(rate.abs()));
        point = line_search(gram, &point, &relative, power, decrement);
        // G_ii a_i against the sum it ends up in, a_i^(-p); at least 1 at the solution of orthogonal gradients.
        let cancellation = point.iter().zip(&squares).fold(0.0_f64, |most, (a, square)| most.max(square * a.powf(1.0 + power)));
        if cancellation > LARGEST_CANCELLATION {
            return None;
        }
        // Newton doubles the digits: a step of 1e-9 leaves an error at the rounding level, or the cancelling parts set it.
        if largest < (1e-15 * count as f64 * cancellation).max(1e-9) {
            return Some(point);
        }
    }
    None
}

/// Newton's direction as da / a, and the decrease it promises.
fn direction(gram: &[f64], point: &[f64], power: f64) -> Option<(Vec<f64>, f64)> {
    let count = point.len();
    let pull: Vec<f64> = point.iter().map(|a| a.powf(1.0 - power)).collect();
    let gradient: Vec<f64> = times(gram, point).iter().zip(point).zip(&pull).map(|((product, a), p)| product * a - p).collect();
    let mut hessian: Vec<f64> = (0..count * count).map(|at| gram[at] * point[at / count] * point[at % count]).collect();
    for i in 0..count {
        hessian[i * count + i] += power * pull[i];
    }
    let relative = Cholesky::factor(hessian, count)?.solve(gradient.iter().map(|slope| -slope).collect());
    let decrement = -dot(&gradient, &relative);
    Some((relative, decrement))
}

fn line_search(gram: &[f64], point: &[f64], relative: &[f64], power: f64, decrement: f64) -> Vec<f64> {
    let steepest = relative.iter().copied().fold(0.0, f64::min);
    let mut step = if steepest < 0.0 { (-0.95 / steepest).min(1.0) } else { 1.0 };
    let start = value(gram, point, power);
    // a'Ga is a small sum of parts as long as those on the diagonal.
    let parts: f64 = diagonal(gram, point.len()).iter().zip(point).map(|(square, a)| square * a * a).sum();
    let rounding = 4.0 * f64::EPSILON * point.len() as f64 * (1.0 + start.abs() + parts);
    loop {
        let moved: Vec<f64> = point.iter().zip(relative).map(|(a, rate)| a * (1.0 + step * rate)).collect();
        let enough = start - 0.1 * step * decrement + rounding;
        if value(gram, &moved, power) <= enough || step < 1e-10 {
            return moved;
        }
        step *= 0.5;
    }
}

/// a'Ga / 2 - sum phi(a)
fn value(gram: &[f64], point: &[f64], power: f64) -> f64 {
    let phi = |a: f64| if power == 1.0 { a.ln() } else { a.powf(1.0 - power) / (1.0 - power) };
    0.5 * quadratic(gram, point) - point.iter().map(|a| phi(*a)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{gaussian, gram_of, hard_matrices};
    use super::*;

    #[test]
    fn the_equation_holds_for_every_power() {
        for power in [0.2, 0.5, 1.0, 2.0, 10.0] {
            for scale in [1e-6, 1.0, 1e4] {
                let rows: Vec<Vec<f64>> =
                    gaussian(6, 40, 5).into_iter().map(|row| row.iter().map(|x| x * scale).collect()).collect();
                let gram = gram_of(&rows);
                let found = solve(&gram, 6, power).expect("solved");
                assert!(!found.ridged);
                for (product, a) in times(&gram, &found.weights).iter().zip(&found.weights) {
                    assert!((product * a.powf(power) - 1.0).abs() < 1e-9, "power {power}, scale {scale}");
                }
            }
        }
    }

    #[test]
    fn opposed_gradients_have_no_bargain_and_say_so() {
        let found = solve(&[1.0, -1.0, -1.0, 1.0], 2, 1.0).expect("ridged");
        assert!(found.ridged);
        assert!((found.weights[0] / found.weights[1] - 1.0).abs() < 1e-9, "{:?}", found.weights);
    }

    #[test]
    fn hard_matrices_are_solved_or_ridged() {
        for (which, rows) in hard_matrices().iter().enumerate() {
            for power in [0.5, 1.0, 2.0] {
                let found = solve(&gram_of(rows), rows.len(), power);
                assert!(found.is_some(), "matrix {which}, power {power}");
            }
        }
    }

    #[test]
    fn opposed_gradients_of_uneven_length_are_ridged() {
        let rows: [f64; 3] = [4.511_632_381_391_585_5, -42.885_052_167_127_15, -42.885_052_167_127_15];
        let gram: Vec<f64> = rows.iter().flat_map(|left| rows.iter().map(move |right| left * right)).collect();
        assert!(solve(&gram, 3, 1.0).expect("ridged").ridged);
    }

    #[test]
    fn rows_of_zeros_stay_out() {
        let found = solve(&[4.0, 0.0, 0.0, 0.0], 2, 1.0).expect("solved");
        assert_eq!((found.weights, found.ridged), (vec![0.5, 0.0], false));
    }
}
