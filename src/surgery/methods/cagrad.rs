//! CAGrad: within a ball around the mean gradient, the direction whose worst task gains most.
//!
//! Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021. With the mean gradient g_0 and
//! g_w = sum_i w_i g_i, w* minimises g_w . g_0 + c |g_0| |g_w| over the simplex and d = g_0 + c |g_0| g_w / |g_w|.
//! Like TorchJD this works on G / trace(G) (zero below `norm_eps`) and gives d = 0 where |g_w| < `norm_eps`: the point
//! is Pareto-stationary. Parameters: `c` (0.5); `rescale` (none), dividing d by 1, 1 + c^2 or 1 + c; `norm_eps` (1e-4).

use super::eigen::Eigen;
use super::linalg::{Cholesky, dot, quadratic, times};
use super::params::{Param, Range};
use super::registry::Descriptor;
use super::{Inputs, Method, Needs, Solution, Status};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "cagrad",
    formula: "d = (g_0 + c |g_0| g_w/|g_w|) / rescale, w = argmin { g_w.g_0 + c |g_0| |g_w| : w in simplex }",
    needs: Needs::GRAM,
    averages: true,
    params: &[
        Param::number("c", 0.5, Range::NonNegative, "radius of the ball around the mean gradient, in units of its length"),
        Param::choice("rescale", "none", &["none", "1+c2", "1+c"], "what the update is divided by"),
        Param::number("norm_eps", 1e-4, Range::NonNegative, "below this trace G, and below this |g_w|, counts as zero"),
    ],
    reference: "Liu et al., Conflict-Averse Gradient Descent for Multi-task Learning, NeurIPS 2021",
    build: |params, _| {
        let c = params.number("c");
        let divisor = match params.choice("rescale") {
            "1+c2" => 1.0 + c * c,
            "1+c" => 1.0 + c,
            _ => 1.0,
        };
        Ok(Box::new(CaGrad { c, divisor, norm_eps: params.number("norm_eps") }))
    },
};

/// Duality gap of the objective divided by |g_0|, for G of unit trace, above which the solution is not trusted.
const ACCEPTED_GAP: f64 = 1e-8;

fn stopped(gap: f64) -> String {
    format!("stopped at a duality gap of {gap:.1e}; took the best point found")
}

struct CaGrad {
    c: f64,
    divisor: f64,
    norm_eps: f64,
}

impl Method for CaGrad {
    fn name(&self) -> &'static str {
        DESCRIPTOR.name
    }

    fn needs(&self) -> Needs {
        DESCRIPTOR.needs
    }

    fn solve(&mut self, inputs: &Inputs) -> Solution {
        let count = inputs.tasks.len();
        let trace: f64 = (0..count).map(|i| inputs.gram[i * count + i]).sum();
        if trace < self.norm_eps || trace == 0.0 {
            return Solution::ok(vec![0.0; count]);
        }
        let gram: Vec<f64> = inputs.gram.iter().map(|value| value / trace).collect();
        let mean = vec![1.0 / count as f64; count];
        let mean_norm = quadratic(&gram, &mean).sqrt();
        if self.c == 0.0 || mean_norm == 0.0 {
            return Solution::ok(mean.iter().map(|weight| weight / self.divisor).collect());
        }
        let slope = times(&gram, &mean).into_iter().map(|value| value / mean_norm).collect();
        let problem = WorstCase { root: Eigen::symmetric(&gram, count).root(), gram, slope, c: self.c };
        let (worst, gap) = problem.minimise();
        let worst_norm = problem.pull(&worst).0;
        let stationary = worst_norm < self.norm_eps;
        let mut solution = if stationary {
            Solution::ok(vec![0.0; count])
        } else {
            let pull = self.c * mean_norm / worst_norm;
            Solution::checked(mean.iter().zip(&worst).map(|(m, w)| (m + pull * w) / self.divisor).collect())
        };
        // At the kink the gap cannot fall below its rounding-off; that g_w vanishes is all the answer depends on.
        let accepted = if stationary { ACCEPTED_GAP.max(10.0 * self.c * LEAST_KINK) } else { ACCEPTED_GAP };
        if gap.is_nan() || gap > accepted {
            solution.status = Status::Fallback(stopped(gap));
        }
        solution
    }
}

/// f(w) = slope . w + c |g_w| over the simplex, |g_w| = sqrt(w' G w): convex, smooth away from g_w = 0.
///
/// G comes as its square root R, G = R' R: |R w| keeps its digits where w' G w has lost them, near the kink.
struct WorstCase {
    gram: Vec<f64>,
    /// (rank x T) R, row-major.
    root: Vec<f64>,
    slope: Vec<f64>,
    c: f64,
}

/// How far the problem is from the one meant: both fall together toward their ends.
#[derive(Clone, Copy)]
struct Level {
    /// Weight of - sum log w, which keeps w inside the simplex.
    barrier: f64,
    /// |g_w| is rounded off to sqrt(|g_w|^2 + kink^2).
    kink: f64,
}

/// The least rounding-off. Below it |g_w| is lost in the rounding of w' G w; and it is far below the default `norm_eps`,
/// so it moves no solution that is used.
const LEAST_KINK: f64 = 1e-7;

/// The barrier's share of the gap aimed at: four orders below the accepted gap.
const TARGET_GAP: f64 = 1e-12;

/// Newton steps over all levels; 40 to 80 are usual.
const MAX_STEPS: usize = 400;

/// Steps at the last level. A small decrement still leaves the root of it in the gap; Newton squares it away.
const LAST_STEPS: usize = 4;

impl WorstCase {
    /// Log-barrier Newton method (Boyd & Vandenberghe, section 11.3): the best point found and its duality gap.
    fn minimise(&self) -> (Vec<f64>, f64) {
        let count = self.slope.len();
        let mut point = vec![1.0 / count as f64; count];
        let mut best = (point.clone(), self.gap(&point));
        let mut barrier = 0.1 * (1.0 + self.c) / count as f64;
        let mut last_steps = LAST_STEPS;
        for _ in 0..MAX_STEPS {
            let level = Level { barrier, kink: barrier.max(LEAST_KINK) };
            let Some((relative, decrement)) = self.newton(&point, level) else { break };
            point = self.line_search(&point, &relative, level, decrement);
            let gap = self.gap(&point);
            if gap < best.1 {
                best = (point.clone(), gap);
            }
            if barrier * (count as f64) < TARGET_GAP * (1.0 + self.c) {
                last_steps -= 1;
                if last_steps == 0 {
                    break;
                }
            } else if decrement < 0.01 * barrier {
                barrier *= 0.2;
            }
        }
        best
    }

    /// |g_w|, and G w.
    fn pull(&self, point: &[f64]) -> (f64, Vec<f64>) {
        let image = times(&self.root, point);
        let mut product = vec![0.0; point.len()];
        for (length, row) in image.iter().zip(self.root.chunks_exact(point.len())) {
            product.iter_mut().zip(row).for_each(|(sum, r)| *sum += length * r);
        }
        (dot(&image, &image).sqrt(), product)
    }

    fn gradient(&self, point: &[f64], kink: f64) -> Vec<f64> {
        let (norm, product) = self.pull(point);
        let scale = self.c / norm.hypot(kink);
        product.iter().zip(&self.slope).map(|(product, slope)| slope + scale * product).collect()
    }

    /// f(w) less a lower bound of min f: |u| <= 1 makes min_i (slope_i + c g_i . u) one, and u is g_w / |g_w| rounded off.
    fn gap(&self, point: &[f64]) -> f64 {
        let value = dot(&self.slope, point) + self.c * self.pull(point).0;
        value - self.gradient(point, LEAST_KINK).into_iter().fold(f64::INFINITY, f64::min)
    }

    fn value(&self, point: &[f64], level: Level) -> f64 {
        let logs: f64 = point.iter().map(|weight| weight.ln()).sum();
        dot(&self.slope, point) + self.c * self.pull(point).0.hypot(level.kink) - level.barrier * logs
    }

    /// Newton's direction on sum w = 1, as dw / w, and the decrease it promises. Scaling by w makes the barrier's Hessian
    /// a multiple of I, which stays factorable when some w vanish.
    fn newton(&self, point: &[f64], level: Level) -> Option<(Vec<f64>, f64)> {
        let count = point.len();
        let (norm, product) = self.pull(point);
        let radius = norm.hypot(level.kink);
        // f is homogeneous, so its Hessian vanishes along w. Steps keep sum w = 1 and never go there: a term that acts only
        // on sum dw changes no step and spares the two solves below a cancellation of 1 / barrier.
        let along = 1.0 + self.c;
        let mut hessian = vec![0.0; count * count];
        for i in 0..count {
            for j in 0..count {
                let curved = self.gram[i * count + j] - product[i] / radius * (product[j] / radius);
                hessian[i * count + j] = (self.c / radius * curved + along) * point[i] * point[j];
            }
            hessian[i * count + i] += level.barrier;
        }
        let slopes = self.gradient(point, level.kink);
        let gradient: Vec<f64> = slopes.iter().zip(point).map(|(slope, weight)| slope * weight - level.barrier).collect();
        let factor = Cholesky::factor(hessian, count)?;
        let (free, normal) = (factor.solve(gradient.clone()), factor.solve(point.to_vec()));
        let multiplier = dot(point, &free) / dot(point, &normal);
        let relative: Vec<f64> = free.iter().zip(&normal).map(|(f, n)| multiplier * n - f).collect();
        let decrement = -dot(&gradient, &relative);
        Some((relative, decrement))
    }

    /// Backtracks from the longest step inside the simplex until the level's function falls enough.
    fn line_search(&self, point: &[f64], relative: &[f64], level: Level, decrement: f64) -> Vec<f64> {
        let steepest = relative.iter().copied().fold(0.0, f64::min);
        let mut step = if steepest < 0.0 { (-0.99 / steepest).min(1.0) } else { 1.0 };
        let start = self.value(point, level);
        // Close to the optimum the decrease drowns in the rounding of f itself.
        let rounding = 4.0 * f64::EPSILON * (1.0 + start.abs());
        loop {
            let moved: Vec<f64> = point.iter().zip(relative).map(|(weight, rate)| weight * (1.0 + step * rate)).collect();
            let enough = start - 0.1 * step * decrement + rounding;
            if self.value(&moved, level) <= enough || step < 1e-12 {
                let total: f64 = moved.iter().sum();
                return moved.into_iter().map(|weight| weight / total).collect();
            }
            step *= 0.5;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{gaussian, gram_of, hard_matrices};
    use super::*;

    #[test]
    fn the_duality_gap_closes_on_every_matrix() {
        let mut matrices = hard_matrices();
        matrices.extend((0..20).map(|seed| gaussian(2 + seed as usize, 6, seed)));
        for (which, rows) in matrices.iter().enumerate() {
            for c in [0.1, 0.5, 1.0, 5.0] {
                let tasks: Vec<usize> = (0..rows.len()).collect();
                let gram = gram_of(rows);
                let inputs = Inputs { gram: &gram, ..super::super::testing::inputs(&tasks) };
                let mut method = CaGrad { c, divisor: 1.0, norm_eps: 1e-4 };
                assert_eq!(method.solve(&inputs).status, Status::Ok, "matrix {which}, c = {c}");
            }
        }
    }

    #[test]
    fn without_a_radius_the_mean_remains() {
        let gram = [2.0, -1.0, -1.0, 3.0];
        let inputs = Inputs { gram: &gram, ..super::super::testing::inputs(&[0, 1]) };
        assert_eq!(CaGrad { c: 0.0, divisor: 1.0, norm_eps: 1e-4 }.solve(&inputs).weights, [0.5, 0.5]);
    }
}
