//! The P-long buffers of methods with row state: what a round does to them, and what it sums up on the way.

use super::columns::Scalar;

/// One pass over J and the buffers B (one row per task of the run, zero at first; absent tasks' rows stay).
#[derive(Clone, Debug, PartialEq)]
pub enum RowPass {
    /// b_t <- keep b_t + add[t] g_t. Sums: the (T x T) Gram matrix B B' after it. The update is sum_t w_t b_t.
    Blend { keep: f64, add: Vec<f64> },
    /// b_t <- b_t + g_t^2, elementwise. Sums: (T) sum_p g_tp^2 / sqrt(b_tp + eps) after it. The update is sum_t w_t g_t.
    Squares { eps: f64 },
}

impl RowPass {
    /// Length of the sums for `rows` present tasks.
    pub fn sums_len(&self, rows: usize) -> usize {
        match self {
            Self::Blend { .. } => rows * rows,
            Self::Squares { .. } => rows,
        }
    }

    /// Whether the update is made of the buffers rather than of the gradients.
    pub fn updates_from_buffers(&self) -> bool {
        matches!(self, Self::Blend { .. })
    }

    /// Runs the pass over one block of columns and adds to `sums`; rows are the present tasks' in both.
    pub fn apply<S: Scalar>(&self, gradients: &[&[S]], buffers: &mut [&mut [S]], sums: &mut [f64]) {
        for (row, (buffer, gradient)) in buffers.iter_mut().zip(gradients).enumerate() {
            let sum = self.apply_row(row, 1.0, gradient, buffer);
            if let Self::Squares { .. } = self {
                sums[row] += sum;
            }
        }
        if let Self::Blend { .. } = self {
            add_gram(buffers, sums);
        }
    }

    /// One task's part of the pass: present row `row`, whose gradient is `factor` times what is given. Returns its sum under
    /// [`RowPass::Squares`], else 0.
    pub fn apply_row<S: Scalar>(&self, row: usize, factor: f64, gradient: &[S], buffer: &mut [S]) -> f64 {
        let pairs = buffer.iter_mut().zip(gradient);
        match self {
            Self::Blend { keep, add } => {
                let add = add[row] * factor;
                pairs.for_each(|(b, g)| *b = S::from_f64(keep * b.to_f64() + add * g.to_f64()));
                0.0
            }
            Self::Squares { eps } => pairs
                .map(|(b, g)| {
                    let square = (factor * g.to_f64()).powi(2);
                    *b = S::from_f64(b.to_f64() + square);
                    square / (b.to_f64() + eps).sqrt()
                })
                .sum(),
        }
    }
}

fn add_gram<S: Scalar>(rows: &[&mut [S]], sums: &mut [f64]) {
    for (i, left) in rows.iter().enumerate() {
        for (j, right) in rows.iter().enumerate() {
            let product: f64 = left.iter().zip(right.iter()).map(|(l, r)| l.to_f64() * r.to_f64()).sum();
            sums[i * rows.len() + j] += product;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blending_keeps_adds_and_sums_up() {
        let pass = RowPass::Blend { keep: 0.5, add: vec![2.0, 1.0] };
        let (mut first, mut second) = ([2.0_f64, 0.0], [0.0, 4.0]);
        let mut sums = vec![0.0; pass.sums_len(2)];
        pass.apply(&[&[1.0, 1.0], &[1.0, 0.0]], &mut [&mut first, &mut second], &mut sums);
        assert_eq!((first, second), ([3.0, 2.0], [1.0, 2.0]));
        assert_eq!(sums, [13.0, 7.0, 7.0, 5.0]);
    }

    #[test]
    fn squares_pile_up() {
        let pass = RowPass::Squares { eps: 0.0 };
        let mut buffer = [7.0_f32, 0.0];
        let mut sums = vec![0.0];
        pass.apply(&[&[3.0, 2.0]], &mut [&mut buffer], &mut sums);
        assert_eq!(buffer, [16.0, 4.0]);
        assert_eq!(sums, [9.0 / 4.0 + 4.0 / 2.0]);
    }
}
