//! Methods that make the update column by column from the private gradients themselves.

use super::random;

/// Columns that a rule settles at a time, side by side.
pub const TILE: usize = 32;

/// A rule by name and parameters, for a device that holds J.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    GradDrop { leak: f64 },
    TrimmedMean { trim: u64 },
}

/// The rule for single columns of J, homogeneous: scaling all gradients by one positive factor scales the update by it.
pub trait Columnwise: Sync {
    fn rule(&self) -> Rule;

    /// out[c] = the update's value from column c of `tile` (rows x TILE), which it may reorder. Of the round's `count` tasks
    /// those without a row here have zeros; [`Columnwise::zeros`] of them are in the tile.
    fn settle(&self, tile: &mut [[f64; TILE]], count: usize, draws: &Draws, out: &mut [f64; TILE]);

    /// Rows of zeros it must see of `absent` ones; the others change nothing.
    fn zeros(&self, _absent: usize) -> usize {
        0
    }
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
    /// The block's part of the tasks' rows, all equally long, each with a factor; rows of zeros may be left out.
    pub rows: &'a [(f64, &'a [S])],
    /// Tasks of the round, with those whose rows were left out.
    pub count: usize,
    /// Index of the block's first column in J: randomness hangs on columns, not on how J was cut.
    pub first: u64,
    pub round: u64,
    pub seed: u64,
}

/// out[p] = rule(column p of the block, each row scaled by its factor)
pub fn combine<S: Scalar>(rule: &dyn Columnwise, block: &ColumnBlock<S>, out: &mut [S]) {
    let given = block.rows.len();
    let mut tile = vec![[0.0; TILE]; given + rule.zeros(block.count - given)];
    let mut combined = [0.0; TILE];
    for (number, out) in out.chunks_mut(TILE).enumerate() {
        let start = number * TILE;
        // The rule may have put rows in another order.
        tile[given..].fill([0.0; TILE]);
        for (values, (factor, row)) in tile.iter_mut().zip(block.rows) {
            for (value, gradient) in values.iter_mut().zip(&row[start..start + out.len()]) {
                *value = factor * gradient.to_f64();
            }
        }
        let draws = Draws::new(block.seed, block.round, block.first + start as u64);
        rule.settle(&mut tile, block.count, &draws, &mut combined);
        out.iter_mut().zip(combined).for_each(|(out, value)| *out = S::from_f64(value));
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
            let parts = [(1.0, &rows[0][from..to]), (1.0, &rows[1][from..to])];
            let mut out = vec![0.0; to - from];
            combine(rule, &ColumnBlock { rows: &parts, count: 2, first: from as u64, round: 3, seed: 9 }, &mut out);
            out
        };
        assert_eq!([whole(0, 37), whole(37, 100)].concat(), whole(0, 100));
    }

    #[test]
    fn rows_of_zeros_may_be_left_out() {
        let value = |t: usize, p: usize| if t.is_multiple_of(3) { ((p * (t + 1)) as f64).sin() } else { 0.0 };
        let rows: Vec<Vec<f64>> = (0..9).map(|t| (0..70).map(|p| value(t, p)).collect()).collect();
        for (name, params) in [("graddrop", json!({"leak": 0.3})), ("trimmed_mean", json!({"trim": 2}))] {
            let method = build(name, params, 9);
            let run = |step: usize| {
                let parts: Vec<(f64, &[f64])> = rows.iter().step_by(step).map(|row| (0.5, row.as_slice())).collect();
                let mut out = vec![0.0; 70];
                let block = ColumnBlock { rows: &parts, count: 9, first: 5, round: 3, seed: 9 };
                combine(method.columnwise().expect("elementwise"), &block, &mut out);
                out
            };
            for (some, all) in run(3).iter().zip(run(1)) {
                assert!((some - all).abs() < 1e-15, "{name}: {some} {all}");
            }
        }
    }
}
