//! Methods that make the update column by column from the private gradients themselves.

use super::random;

/// The rule for one column of J, homogeneous: scaling all gradients by one positive factor scales the update by it.
pub trait Columnwise: Sync {
    /// The update's value from one parameter's T gradients, which it may reorder; `bits` are random for the column.
    fn column(&self, gradients: &mut [f64], bits: u64) -> f64;
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
    let mut gradients = vec![0.0; block.rows.len()];
    for (offset, value) in out.iter_mut().enumerate() {
        for ((gradient, row), factor) in gradients.iter_mut().zip(block.rows).zip(factors) {
            *gradient = factor * row[offset].to_f64();
        }
        let bits = random::bits(block.seed, block.round, block.first + offset as u64);
        *value = S::from_f64(rule.column(&mut gradients, bits));
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
        let rows = [[1.0_f32, -2.0, 3.0, -4.0, 5.0, 6.0], [-1.0, 1.0, -2.0, 5.0, 5.0, -7.0]];
        let whole = |from: usize, to: usize| {
            let parts = [&rows[0][from..to], &rows[1][from..to]];
            let mut out = vec![0.0; to - from];
            combine(rule, &ColumnBlock { rows: &parts, first: from as u64, round: 3, seed: 9 }, &mut out);
            out
        };
        assert_eq!([whole(0, 2), whole(2, 6)].concat(), whole(0, 6));
    }
}
