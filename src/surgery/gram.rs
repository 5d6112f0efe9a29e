//! The Gram matrix of a round's private gradients: dense part from J, embedding part from the shared rows.

use crate::model::network::{Gradients, Network};
use crate::ops;
use crate::ops::row_gradients::{Union, row_gram};

/// Products of the shared gradients of the T present tasks.
pub struct RoundGram {
    /// (T x T); without private gradients only the embedding part.
    pub gram: Vec<f64>,
    /// Squared norm of the added-up dense gradient, where the tasks' own were not kept.
    pub added: Option<f64>,
}

/// One pass over J and one over the touched embedding rows.
pub fn round_gram(network: &Network, gradients: &Gradients, union: &Union, present: usize) -> RoundGram {
    let width = network.table.shared_len();
    let mut gram = vec![0.0; present * present];
    let added = if gradients.stored {
        let rows: Vec<&[f32]> = (0..present).map(|row| gradients.dense_row(row, width)).collect();
        ops::gram::gram(&mut gram, &rows);
        None
    } else {
        let mut square = [0.0];
        ops::gram::gram(&mut square, &[gradients.dense_row(0, width)]);
        Some(square[0])
    };
    if !gradients.rows.is_empty() {
        row_gram(&mut gram, union, &gradients.rows[..present]);
    }
    RoundGram { gram, added }
}

impl RoundGram {
    /// Squared norm of the update sum_t w_t g_t.
    pub fn update_square(&self, weights: &[f64]) -> f64 {
        let count = weights.len();
        let mut square = 0.0;
        for i in 0..count {
            for j in 0..count {
                square += weights[i] * weights[j] * self.gram[i * count + j];
            }
        }
        // Without private gradients all weights are equal.
        square += self.added.map_or(0.0, |added| added * weights.first().map_or(0.0, |w| w * w));
        square.max(0.0)
    }

    /// Scales task t's gradient by factors[t].
    pub fn scale(&mut self, factors: &[f64]) {
        let count = factors.len();
        for (index, value) in self.gram.iter_mut().enumerate() {
            *value *= factors[index / count] * factors[index % count];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_updates_norm_needs_no_gradient() {
        let gram = RoundGram { gram: vec![4.0, -1.0, -1.0, 9.0], added: None };
        assert_eq!(gram.update_square(&[1.0, 2.0]), 4.0 + 36.0 - 4.0);
        let added = RoundGram { gram: vec![0.0; 4], added: Some(5.0) };
        assert_eq!(added.update_square(&[0.5, 0.5]), 1.25);
    }
}
