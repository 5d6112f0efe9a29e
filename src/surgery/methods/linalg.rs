//! Small dense f64 algebra on row-major T x T matrices. Of nalgebra, Cholesky's forty lines are all that could be had here: the
//! eigenvalues have to be accurate beside others that are larger by many orders, which Jacobi's rotations give and QR does not.

pub fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(l, r)| l * r).sum()
}

/// M v
pub fn times(matrix: &[f64], vector: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(vector.len()).map(|row| dot(row, vector)).collect()
}

/// v' M v of a positive semidefinite M: rounding below zero is cut off.
pub fn quadratic(matrix: &[f64], vector: &[f64]) -> f64 {
    dot(vector, &times(matrix, vector)).max(0.0)
}

pub fn diagonal(matrix: &[f64], size: usize) -> Vec<f64> {
    (0..size).map(|i| matrix[i * size + i]).collect()
}

/// The gradients' norms: sqrt(G_ii).
pub fn norms(gram: &[f64], size: usize) -> Vec<f64> {
    diagonal(gram, size).into_iter().map(|square| square.max(0.0).sqrt()).collect()
}

/// M = L L' of a symmetric positive definite matrix.
pub struct Cholesky {
    /// (n x n) L, row-major; what lies above the diagonal is meaningless.
    lower: Vec<f64>,
    size: usize,
}

impl Cholesky {
    /// Factors in place; `None` when a pivot is not positive, so M is not positive definite to f64.
    pub fn factor(mut matrix: Vec<f64>, size: usize) -> Option<Self> {
        for column in 0..size {
            let (above, below) = matrix.split_at_mut((column + 1) * size);
            let head = &mut above[column * size..];
            let pivot = head[column] - dot(&head[..column], &head[..column]);
            if !(pivot > 0.0 && pivot.is_finite()) {
                return None;
            }
            head[column] = pivot.sqrt();
            for row in below.chunks_exact_mut(size) {
                row[column] = (row[column] - dot(&row[..column], &head[..column])) / head[column];
            }
        }
        Some(Self { lower: matrix, size })
    }

    /// M^-1 rhs
    pub fn solve(&self, mut rhs: Vec<f64>) -> Vec<f64> {
        let at = |row: usize, column: usize| self.lower[row * self.size + column];
        for row in 0..self.size {
            let known = dot(&self.lower[row * self.size..row * self.size + row], &rhs[..row]);
            rhs[row] = (rhs[row] - known) / at(row, row);
        }
        for row in (0..self.size).rev() {
            // In the order in which a device, which finds them one after the other, adds them up.
            let known: f64 = (row + 1..self.size).rev().map(|below| at(below, row) * rhs[below]).sum();
            rhs[row] = (rhs[row] - known) / at(row, row);
        }
        rhs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cholesky_solves_a_positive_definite_system() {
        let matrix = vec![4.0, 2.0, 0.0, 2.0, 5.0, 3.0, 0.0, 3.0, 6.0];
        let solution = Cholesky::factor(matrix.clone(), 3).expect("positive definite").solve(vec![1.0, 2.0, 3.0]);
        for (found, expected) in times(&matrix, &solution).iter().zip([1.0, 2.0, 3.0]) {
            assert!((found - expected).abs() < 1e-14, "{solution:?}");
        }
    }

    #[test]
    fn cholesky_refuses_a_singular_matrix() {
        assert!(Cholesky::factor(vec![1.0, 1.0, 1.0, 1.0], 2).is_none());
        assert!(Cholesky::factor(vec![f64::NAN], 1).is_none());
    }
}
