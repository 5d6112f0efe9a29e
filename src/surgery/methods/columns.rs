//! Methods that make the update column by column from the private gradients themselves.

use super::random;

/// Columns that a rule settles at a time, side by side.
pub const TILE: usize = 32;

/// The rule for single columns of J, homogeneous: scaling all gradients by one positive factor scales the update by it.
pub trait Columnwise: Sync {
    /// out[c] = the update's value from column c of `tile` (T x TILE), which it may reorder.
    fn settle(&self, tile: &mut [[f64; TILE]], draws: &Draws, out: &mut [f64; TILE]);
}

/// Randomness of the columns of a tile.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    key: u64,
    first: u64,
}

impl Draws {
    /// Of the columns from `first` on, in one round of a run.
    pub fn new(seed: u64, round: u64, first: u64) -> Self {
        Self { key: random::key(seed, round), first }
    }

    /// Uniform in [0, 1) for column `first + offset`.
    #[inline(always)]
    pub fn uniform(&self, offset: usize) -> f64 {
        random::uniform(random::keyed(self.key, self.first + offset as u64))
    }
}

/// Element types of J; both are computed in f64.
pub trait Scalar: Copy + Send + Sync {
    fn to_f64(self) -> f64;
    fn from_f64(value: f64) -> Self;
}

impl Scalar for f32 {
    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    fn from_f64(value: f64) -> Self {
        value as Self
    }
}

impl Scalar for f64 {
    fn to_f64(self) -> f64 {
        self
    }

    fn from_f64(value: f64) -> Self {
        value
    }
}

/// Some neighbouring columns of J.
#[derive(Clone, Copy)]
pub struct ColumnBlock<'a, S> {
    /// (T) the block's part of each present task's row, all equally long.
    pub rows: &'a [&'a [S]],
    /// Index of the block's first column in J: randomness hangs on columns, not on how J was cut.
    pub first: u64,
    pub round: u64,
    pub seed: u64,
}

/// out[p] = rule(column p of the block)
pub fn combine<S: Scalar>(rule: &dyn Columnwise, block: &ColumnBlock<S>, out: &mut [S]) {
    combine_scaled(rule, block, &vec![1.0; block.rows.len()], out);
}

/// As [`combine`], with each row scaled by its factor first.
pub fn combine_scaled<S: Scalar>(rule: &dyn Columnwise, block: &ColumnBlock<S>, factors: &[f64], out: &mut [S]) {
    let mut tile = vec![[0.0; TILE]; block.rows.len()];
    let mut settled = [0.0; TILE];
    for (number, out) in out.chunks_mut(TILE).enumerate() {
        let start = number * TILE;
        for ((values, row), factor) in tile.iter_mut().zip(block.rows).zip(factors) {
            for (value, gradient) in values.iter_mut().zip(&row[start..start + out.len()]) {
                *value = factor * gradient.to_f64();
            }
        }
        rule.settle(&mut tile, &Draws::new(block.seed, block.round, block.first + start as u64), &mut settled);
        out.iter_mut().zip(settled).for_each(|(out, value)| *out = S::from_f64(value));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::build;
    use super::*;
    use serde_json::json;

    #[test]
    fn the_cut_into_blocks_does_not_matter() {
        let method = build("graddrop", json!({}), 2);
        let rule = method.columnwise().expect("elementwise");
        let rows: Vec<Vec<f32>> = (1..3).map(|t| (0..100).map(|p| ((p * t) as f32).sin()).collect()).collect();
        let whole = |from: usize, to: usize| {
            let parts = [&rows[0][from..to], &rows[1][from..to]];
            let mut out = vec![0.0; to - from];
            combine(rule, &ColumnBlock { rows: &parts, first: from as u64, round: 3, seed: 9 }, &mut out);
            out
        };
        assert_eq!([whole(0, 37), whole(37, 100)].concat(), whole(0, 100));
    }
}
