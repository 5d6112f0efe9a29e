//! Projection onto the dual cone of the gradients: the quadratic programs of UPGrad and DualProj.
//!
//! For a preference u, min v' H v over v >= u, with H = G / trace(G) + reg_eps I as in TorchJD (H = reg_eps I where
//! trace(G) < norm_eps). With v = u + x this is the linear complementarity problem x >= 0, y = H x + H u >= 0, x'y = 0,
//! solved exactly by block principal pivoting (Judice & Pires 1994): guess which x are free, solve for them, flip the
//! guesses that come out negative. T programs share H and each needs a handful of small Cholesky factors.

use super::linalg::{Cholesky, dot, times};
use super::params::{Param, Range};

pub(super) const NORM_EPS: Param =
    Param::number("norm_eps", 1e-4, Range::NonNegative, "below this trace G counts as zero, and the mean is taken");
pub(super) const REG_EPS: Param =
    Param::number("reg_eps", 1e-4, Range::Positive, "added to the diagonal of the trace-normalised G");

/// Full flips that may pass without fewer faults before single flips take over, which always terminate.
const PATIENCE: usize = 3;

pub(super) struct Projector {
    /// (T x T) H
    hessian: Vec<f64>,
    size: usize,
    reg_eps: f64,
}

impl Projector {
    pub fn new(gram: &[f64], size: usize, norm_eps: f64, reg_eps: f64) -> Self {
        let trace: f64 = (0..size).map(|i| gram[i * size + i]).sum();
        let mut hessian = if trace < norm_eps || trace == 0.0 {
            vec![0.0; gram.len()]
        } else {
            gram.iter().map(|value| value / trace).collect()
        };
        for i in 0..size {
            hessian[i * size + i] += reg_eps;
        }
        Self { hessian, size, reg_eps }
    }

    /// The minimiser v >= u, or `None` when H is not positive definite to f64.
    pub fn project(&self, preference: &[f64]) -> Option<Vec<f64>> {
        let slope = times(&self.hessian, preference);
        let mut free: Vec<bool> = slope.iter().map(|value| *value < 0.0).collect();
        let (mut fewest, mut patience) = (usize::MAX, PATIENCE);
        // Single flips end after at most 2^T steps in theory and a few T in practice.
        for _ in 0..100 + 20 * self.size {
            let (extra, slack) = self.complementary(&slope, &free)?;
            let faults = self.faults(preference, &slope, &free, &extra, &slack);
            let Some(&last) = faults.last() else {
                return Some(preference.iter().zip(extra).map(|(u, x)| u + x.max(0.0)).collect());
            };
            if faults.len() < fewest {
                (fewest, patience) = (faults.len(), PATIENCE);
                faults.iter().for_each(|&i| free[i] = !free[i]);
            } else if patience > 0 {
                patience -= 1;
                faults.iter().for_each(|&i| free[i] = !free[i]);
            } else {
                free[last] = !free[last];
            }
        }
        None
    }

    /// x with y = 0 on the free set, and y with x = 0 off it.
    fn complementary(&self, slope: &[f64], free: &[bool]) -> Option<(Vec<f64>, Vec<f64>)> {
        let chosen: Vec<usize> = (0..self.size).filter(|&i| free[i]).collect();
        let block = chosen.iter().flat_map(|&i| chosen.iter().map(move |&j| self.hessian[i * self.size + j])).collect();
        let rhs = chosen.iter().map(|&i| -slope[i]).collect();
        let solved = Cholesky::factor(block, chosen.len())?.solve(rhs);
        let mut extra = vec![0.0; self.size];
        for (&i, value) in chosen.iter().zip(solved) {
            extra[i] = value;
        }
        let rows = self.hessian.chunks_exact(self.size).zip(slope).zip(free);
        let slack = rows.map(|((row, q), &is_free)| if is_free { 0.0 } else { dot(row, &extra) + q }).collect();
        Some((extra, slack))
    }

    /// Indices whose x or y is negative beyond the rounding of the solve: T * eps * cond(H) for x, T * eps for y.
    fn faults(&self, preference: &[f64], slope: &[f64], free: &[bool], extra: &[f64], slack: &[f64]) -> Vec<usize> {
        let largest = |values: &[f64]| values.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
        let rounding = self.size as f64 * f64::EPSILON;
        let extra_floor = -rounding * (1.0 + 0.01 / self.reg_eps) * largest(extra).max(largest(preference));
        let slack_floor = -4.0 * rounding * (largest(slope) + largest(extra));
        (0..self.size).filter(|&i| if free[i] { extra[i] < extra_floor } else { slack[i] < slack_floor }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{gaussian, gram_of, hard_matrices};
    use super::*;

    /// The optimality conditions, from H and the answer alone.
    fn assert_optimal(projector: &Projector, preference: &[f64], weights: &[f64]) {
        let slack = times(&projector.hessian, weights);
        let scale = weights.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
        for ((v, u), y) in weights.iter().zip(preference).zip(&slack) {
            assert!(v >= u, "primal: {v} < {u}");
            assert!(*y >= -1e-12 * scale, "dual: {y}");
            assert!(((v - u) * y).abs() <= 1e-11 * scale * scale, "complementarity: {} * {y}", v - u);
        }
    }

    #[test]
    fn answers_are_optimal_on_every_matrix() {
        let mut matrices = hard_matrices();
        matrices.push(gaussian(64, 80, 3));
        for rows in matrices {
            let size = rows.len();
            let projector = Projector::new(&gram_of(&rows), size, 1e-4, 1e-4);
            let mean = vec![1.0 / size as f64; size];
            assert_optimal(&projector, &mean, &projector.project(&mean).expect("solved"));
            for i in 0..size {
                let unit: Vec<f64> = (0..size).map(|j| f64::from(i == j)).collect();
                assert_optimal(&projector, &unit, &projector.project(&unit).expect("solved"));
            }
        }
    }

    #[test]
    fn a_weak_regulariser_still_ends() {
        for rows in hard_matrices() {
            let size = rows.len();
            let projector = Projector::new(&gram_of(&rows), size, 0.0, 1e-10);
            let weights = projector.project(&vec![1.0; size]).expect("solved");
            assert!(weights.iter().all(|weight| weight.is_finite()));
        }
    }
}
