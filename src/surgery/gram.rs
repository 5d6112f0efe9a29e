//! The Gram matrices of a round's private gradients, block by block: dense part from J, embedding part from the shared rows.

use super::blocks::Blocks;
use crate::machine::tape::Tape;
use crate::machine::tensor::Tensor;
use crate::model::network::Network;
use crate::ops::gram::{GramMatrices, Squares};
use crate::ops::row_gradients::RowGradients;

/// Products of the shared gradients of the T present tasks.
pub struct RoundGram {
    /// (B) of T x T each; without private gradients only the embedding part.
    pub blocks: Vec<Vec<f64>>,
    /// (B) of T x T each: J1 J2^T, J1 and J2 being the mean gradients of a round's two batches; empty without those.
    pub cross: Vec<Vec<f64>>,
    /// Squared norm of the added-up dense gradient, where the tasks' own were not kept.
    pub added: Option<f64>,
}

/// What the products of a round's gradients are taken of.
pub struct GradientsAt<'a> {
    /// Rows of J: each (P), of every task and batch, or one that all were added to.
    pub jacobian: Vec<Tensor>,
    /// Whether each task has its own row of J.
    pub stored: bool,
    /// (H) gradients of all heads.
    pub heads: Tensor,
    /// Embedding rows that were touched.
    pub rows: Option<RowGradients<'a>>,
}

/// Where the products go, f64.
#[derive(Clone, Copy)]
pub struct ProductsAt {
    /// ((blocks + 1) x N N) for N rows, the last of all blocks together.
    pub grams: Tensor,
    /// ((blocks + 1) x 1) squares of the one row of J that all gradients were added to, if they were.
    pub added: Tensor,
    /// (T) squares of the heads' gradients.
    pub heads: Tensor,
    /// Of Gram matrices on a device; none on the host.
    pub partials: Tensor,
}

/// One pass over J and the touched embedding rows, one over the heads of the present `tasks`.
pub fn products<'a>(
    tape: &mut Tape<'a>,
    network: &Network,
    blocks: &'a Blocks,
    tasks: &[usize],
    gradients: &GradientsAt<'a>,
    out: ProductsAt,
) {
    let (table, rows) = (blocks.table, gradients.rows.clone().filter(|_| blocks.table.is_some()));
    let (ranges, partials) = (&blocks.ranges[..], out.partials);
    let jacobian = gradients.jacobian.clone();
    if gradients.stored {
        tape.push(GramMatrices { jacobian, blocks: ranges, table, rows, gram: out.grams, partials });
    } else {
        tape.push(GramMatrices { jacobian, blocks: ranges, table, rows: None, gram: out.added, partials });
        if rows.is_some() {
            tape.push(GramMatrices { jacobian: Vec::new(), blocks: ranges, table, rows, gram: out.grams, partials });
        }
    }
    let segments = tasks.iter().map(|&task| network.table.head_range(task)).collect();
    tape.push(Squares { values: gradients.heads, segments, out: out.heads });
}

impl RoundGram {
    /// From the `grams` of all blocks, and the square of what was added up; `shares` (rows of J): the part of its task's observed
    /// targets that each row comes from.
    pub fn new(grams: &[f64], added: Option<f64>, blocks: &Blocks, present: usize, shares: &[f64]) -> Self {
        let count = shares.len();
        let grams = || grams.chunks_exact(count * count).take(blocks.count());
        if count == present {
            return Self { blocks: grams().map(<[f64]>::to_vec).collect(), cross: Vec::new(), added };
        }
        let cross = grams().map(|gram| cross_gram(gram, present, shares)).collect();
        Self { blocks: grams().map(|gram| summed_gram(gram, present)).collect(), cross, added }
    }
}

/// (T x T) products of the sums of two rows each, from the (2T x 2T) products of the rows.
fn summed_gram(gram: &[f64], present: usize) -> Vec<f64> {
    let product = |i: usize, j: usize| gram[i * 2 * present + j];
    let summed = |i: usize, j: usize| {
        (product(2 * i, 2 * j) + product(2 * i + 1, 2 * j + 1)) + (product(2 * i, 2 * j + 1) + product(2 * i + 1, 2 * j))
    };
    (0..present).flat_map(|i| (0..present).map(move |j| (i, j))).map(|(i, j)| summed(i, j)).collect()
}

/// (T x T) products of the tasks' first rows with the second ones, each made a mean over its own examples again; 0 where a
/// batch had nothing observed.
fn cross_gram(gram: &[f64], present: usize, shares: &[f64]) -> Vec<f64> {
    let product = |i: usize, j: usize| {
        let share = shares[2 * i] * shares[2 * j + 1];
        if share > 0.0 { gram[2 * i * 2 * present + 2 * j + 1] / share } else { 0.0 }
    };
    (0..present).flat_map(|i| (0..present).map(move |j| (i, j))).map(|(i, j)| product(i, j)).collect()
}

impl RoundGram {
    /// (T x T) of the whole encoder.
    pub fn total(&self) -> Vec<f64> {
        total(&self.blocks)
    }

    /// One pair of Gram and cross Gram for each set of weights; the latter is empty without two batches.
    pub fn by_set(&self, blocks: &Blocks) -> Vec<[Vec<f64>; 2]> {
        if !blocks.apart {
            return vec![[total(&self.blocks), total(&self.cross)]];
        }
        let cross = |block: usize| self.cross.get(block).cloned().unwrap_or_default();
        self.blocks.iter().enumerate().map(|(block, gram)| [gram.clone(), cross(block)]).collect()
    }

    /// Squared norm of the update that takes sum_t weights[set][t] g_t in each block.
    pub fn update_square(&self, blocks: &Blocks, weights: &[Vec<f64>]) -> f64 {
        let mut square = 0.0;
        for (block, gram) in self.blocks.iter().enumerate() {
            let weights = &weights[blocks.set_of(block)];
            let count = weights.len();
            for i in 0..count {
                for j in 0..count {
                    square += weights[i] * weights[j] * gram[i * count + j];
                }
            }
        }
        // Without private gradients all weights are equal.
        let first = weights.first().and_then(|set| set.first()).copied().unwrap_or(0.0);
        square += self.added.map_or(0.0, |added| added * first * first);
        square.max(0.0)
    }

    /// Scales task t's gradient by factors[t].
    pub fn scale(&mut self, factors: &[f64]) {
        let count = factors.len();
        for gram in self.blocks.iter_mut().chain(&mut self.cross) {
            for (index, value) in gram.iter_mut().enumerate() {
                *value *= factors[index / count] * factors[index % count];
            }
        }
    }
}

/// Sum of equally long matrices; empty for none.
fn total(matrices: &[Vec<f64>]) -> Vec<f64> {
    let mut sum = matrices.first().cloned().unwrap_or_default();
    for matrix in matrices.iter().skip(1) {
        sum.iter_mut().zip(matrix).for_each(|(sum, value)| *sum += value);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(apart: bool) -> Blocks {
        Blocks { names: vec!["a".into(), "b".into()], ranges: vec![0..1, 1..2], table: None, apart }
    }

    #[test]
    fn the_updates_norm_needs_no_gradient() {
        let grams = vec![vec![4.0, -1.0, -1.0, 9.0], vec![1.0, 0.0, 0.0, 1.0]];
        let gram = RoundGram { blocks: grams, cross: Vec::new(), added: None };
        assert_eq!(gram.update_square(&blocks(false), &[vec![1.0, 2.0]]), 4.0 + 36.0 - 4.0 + 1.0 + 4.0);
        assert_eq!(gram.update_square(&blocks(true), &[vec![1.0, 2.0], vec![3.0, 0.0]]), 4.0 + 36.0 - 4.0 + 9.0);
        let added = RoundGram { blocks: vec![vec![0.0; 4]], cross: Vec::new(), added: Some(5.0) };
        assert_eq!(added.update_square(&blocks(false), &[vec![0.5, 0.5]]), 1.25);
    }

    /// Rows 1, 2 (task 0) and 3, -1 (task 1) in one column; task 0's halves hold 1/4 and 3/4 of its targets.
    #[test]
    fn two_batches_make_one_gradient_and_their_cross_products() {
        let values: [f64; 4] = [1.0, 2.0, 3.0, -1.0];
        let gram: Vec<f64> = values.iter().flat_map(|a| values.iter().map(move |b| a * b)).collect();
        assert_eq!(summed_gram(&gram, 2), [9.0, 6.0, 6.0, 4.0]);
        assert_eq!(cross_gram(&gram, 2, &[0.25, 0.75, 0.5, 0.5]), [2.0 / 0.1875, -8.0, 3.0 * 2.0 / 0.375, -12.0]);
        assert_eq!(cross_gram(&gram, 2, &[1.0, 0.0, 0.5, 0.5])[0], 0.0);
    }
}
