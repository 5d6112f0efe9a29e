//! Eigenvalues of a symmetric matrix by Jacobi's rotations, and what follows from them.
//!
//! Jacobi is slower than QR but shorter, and on a Gram matrix of badly scaled rows it finds the small eigenvalues more
//! accurately (Demmel & Veselic 1992), which is what a pseudo-inverse lives on.

use super::linalg::dot;

pub struct Eigen {
    /// (T) eigenvalues, descending.
    pub values: Vec<f64>,
    /// (T x T) row k is the unit eigenvector of `values[k]`.
    pub vectors: Vec<f64>,
}

/// Sweeps after which rotations stop even if something is left off the diagonal; ten suffice for any finite matrix.
const MAX_SWEEPS: usize = 40;

impl Eigen {
    pub fn symmetric(matrix: &[f64], size: usize) -> Self {
        let largest = matrix.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
        // Scaling by a power of two is exact and keeps the squares of the convergence test in range.
        let scale = if largest > 0.0 && largest.is_finite() { 2.0_f64.powi(largest.log2().floor() as i32) } else { 1.0 };
        let mut work: Vec<f64> = matrix.iter().map(|value| value / scale).collect();
        let mut vectors: Vec<f64> = (0..size * size).map(|at| f64::from(at / size == at % size)).collect();
        for _ in 0..MAX_SWEEPS {
            if !sweep(&mut work, &mut vectors, size) {
                break;
            }
        }
        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by(|&left, &right| work[right * size + right].total_cmp(&work[left * size + left]));
        Self {
            values: order.iter().map(|&k| work[k * size + k] * scale).collect(),
            vectors: order.iter().flat_map(|&k| vectors[k * size..(k + 1) * size].iter().copied()).collect(),
        }
    }

    /// Number of eigenvalues above max * T * eps, the rest is rounding: the cut of PyTorch's `pinv` and TorchJD.
    pub fn rank(&self) -> usize {
        let cut = self.values.first().copied().unwrap_or(0.0) * self.values.len() as f64 * f64::EPSILON;
        self.values.iter().take_while(|&&value| value > cut).count()
    }

    /// (rank x T) R with R' R = M, row k being sqrt(lambda_k) v_k'.
    pub fn root(&self) -> Vec<f64> {
        let size = self.values.len();
        let rows = self.values.iter().zip(self.vectors.chunks_exact(size)).take(self.rank());
        rows.flat_map(|(value, axis)| axis.iter().map(|part| part * value.sqrt())).collect()
    }

    /// V f(Lambda) V' v over the eigenpairs within the rank.
    pub fn apply(&self, map: impl Fn(f64) -> f64, vector: &[f64]) -> Vec<f64> {
        let mut result = vec![0.0; vector.len()];
        for (value, axis) in self.values.iter().zip(self.vectors.chunks_exact(vector.len())).take(self.rank()) {
            let length = map(*value) * dot(axis, vector);
            for (sum, part) in result.iter_mut().zip(axis) {
                *sum += length * part;
            }
        }
        result
    }

    /// M^+ v
    pub fn pseudo_inverse_times(&self, vector: &[f64]) -> Vec<f64> {
        self.apply(f64::recip, vector)
    }
}

/// A rotation in the plane of p < q.
struct Turn {
    p: usize,
    q: usize,
    cosine: f64,
    sine: f64,
}

impl Turn {
    fn of(&self, x: f64, y: f64) -> (f64, f64) {
        (self.cosine * x - self.sine * y, self.sine * x + self.cosine * y)
    }
}

/// One sweep over all pairs, in steps of pairs that have nothing in common, which a device rotates all at once; false when every
/// off-diagonal entry was already negligible.
fn sweep(work: &mut [f64], vectors: &mut [f64], size: usize) -> bool {
    let players = size.next_multiple_of(2);
    let mut rotated = false;
    let mut turns: Vec<Turn> = Vec::with_capacity(players / 2);
    for step in 0..players - 1 {
        turns.clear();
        let pairs = (0..players / 2).map(|pair| pair_of(step, pair, players)).filter(|&(_, q)| q < size);
        turns.extend(pairs.filter_map(|(p, q)| turn(work, size, p, q)));
        rotated |= !turns.is_empty();
        rotate(work, vectors, size, &turns);
    }
    rotated
}

/// Pair number `pair` of a step in which every one of `players` (an even number) meets another; after players - 1 steps all have
/// met.
fn pair_of(step: usize, pair: usize, players: usize) -> (usize, usize) {
    let ring = players - 1;
    let (a, b) = if pair == 0 { (ring, step) } else { ((step + pair) % ring, (step + ring - pair) % ring) };
    (a.min(b), a.max(b))
}

/// What zeroes entry (p, q), unless it is negligible.
fn turn(work: &[f64], size: usize, p: usize, q: usize) -> Option<Turn> {
    let (app, aqq, apq) = (work[p * size + p], work[q * size + q], work[p * size + q]);
    // The relative test keeps tiny eigenvalues accurate; the absolute one ends pairs that have underflowed.
    let negligible = f64::EPSILON * 0.1 * (app.abs() * aqq.abs()).sqrt();
    if apq.abs() <= negligible.max(1e-300) {
        return None;
    }
    let theta = (aqq - app) / (2.0 * apq);
    let tangent = theta.signum() / (theta.abs() + theta.hypot(1.0));
    let cosine = tangent.hypot(1.0).recip();
    Some(Turn { p, q, cosine, sine: cosine * tangent })
}

/// work <- R' work R, vectors <- R' vectors for all rotations of a step.
fn rotate(work: &mut [f64], vectors: &mut [f64], size: usize, turns: &[Turn]) {
    for turn in turns {
        for k in 0..size {
            let (at_p, at_q) = (k * size + turn.p, k * size + turn.q);
            (work[at_p], work[at_q]) = turn.of(work[at_p], work[at_q]);
        }
    }
    for turn in turns {
        let &Turn { p, q, .. } = turn;
        for k in 0..size {
            let (at_p, at_q) = (p * size + k, q * size + k);
            (work[at_p], work[at_q]) = turn.of(work[at_p], work[at_q]);
            (vectors[at_p], vectors[at_q]) = turn.of(vectors[at_p], vectors[at_q]);
        }
        work[p * size + q] = 0.0;
        work[q * size + p] = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::linalg::times;
    use super::super::testing::{gaussian, gram_of};
    use super::*;

    #[test]
    fn eigenpairs_satisfy_their_equation() {
        let gram = gram_of(&gaussian(12, 30, 1));
        let eigen = Eigen::symmetric(&gram, 12);
        for (value, axis) in eigen.values.iter().zip(eigen.vectors.chunks_exact(12)) {
            for (image, part) in times(&gram, axis).iter().zip(axis) {
                assert!((image - value * part).abs() < 1e-12 * eigen.values[0]);
            }
        }
    }

    /// diag(1, 1e-10, 1e-20) seen through badly scaled rows: the smallest eigenvalue keeps its leading digits.
    #[test]
    fn small_eigenvalues_of_badly_scaled_rows_are_accurate() {
        let eigen = Eigen::symmetric(&[1.0, 5e-11, 5e-11, 1e-20], 2);
        assert!((eigen.values[1] / 0.75e-20 - 1.0).abs() < 1e-9, "{:?}", eigen.values);
    }

    #[test]
    fn the_pseudo_inverse_ignores_the_null_space() {
        let eigen = Eigen::symmetric(&[1.0, 1.0, 1.0, 1.0], 2);
        assert_eq!(eigen.rank(), 1);
        for value in eigen.pseudo_inverse_times(&[1.0, 0.0]) {
            assert!((value - 0.25).abs() < 1e-15);
        }
    }

    #[test]
    fn every_pair_meets_once_a_sweep() {
        for players in [2, 4, 10] {
            let pairs = (0..players - 1).flat_map(|step| (0..players / 2).map(move |pair| pair_of(step, pair, players)));
            let met: std::collections::BTreeSet<_> = pairs.inspect(|(p, q)| assert!(p < q)).collect();
            assert_eq!(met.len(), players * (players - 1) / 2);
        }
    }

    #[test]
    fn a_zero_matrix_has_rank_zero() {
        assert_eq!(Eigen::symmetric(&[0.0; 9], 3).rank(), 0);
    }
}
