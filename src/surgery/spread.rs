//! The mean of values that come one by one, and how far it may be off by chance.

use serde_json::{Value, json};

use super::methods::state::{Saved, pack_all};

/// Standard errors by which a mean has to differ from 0 to be more than noise: chance alone does it once in about twenty means.
const STANDARD_ERRORS: f64 = 2.0;

/// By Welford's recurrence, which does not take the difference of two large sums.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    count: f64,
    mean: f64,
    /// Sum of squared distances from the mean.
    squares: f64,
}

impl Spread {
    pub fn add(&mut self, value: f64) {
        self.count += 1.0;
        let before = value - self.mean;
        self.mean += before / self.count;
        self.squares += before * (value - self.mean);
    }

    /// 0 without values.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Sample standard deviation over the root of the count; none of fewer than two values.
    pub fn standard_error(&self) -> Option<f64> {
        (self.count > 1.0).then(|| (self.squares / (self.count - 1.0) / self.count).sqrt())
    }

    /// Whether the mean differs from 0 by more than its noise.
    pub fn differs_from_zero(&self) -> bool {
        self.standard_error().is_some_and(|error| self.mean.abs() > STANDARD_ERRORS * error)
    }
}

/// For a checkpoint.
pub fn pack(spreads: &[Spread]) -> Value {
    let field = |of: fn(&Spread) -> f64| pack_all(&spreads.iter().map(of).collect::<Vec<f64>>());
    json!({ "count": field(|one| one.count), "mean": field(|one| one.mean), "squares": field(|one| one.squares) })
}

/// Takes back what [`pack`] gave.
pub fn unpack(owner: &str, state: &Value, into: &mut [Spread]) -> Result<(), String> {
    let saved = Saved::open(owner, state)?;
    let values = |name| saved.values(name, into.len());
    let (counts, means, squares) = (values("count")?, values("mean")?, values("squares")?);
    let fields = counts.into_iter().zip(means).zip(squares);
    into.iter_mut().zip(fields).for_each(|(one, ((count, mean), squares))| *one = Spread { count, mean, squares });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64]) -> Spread {
        let mut spread = Spread::default();
        values.iter().for_each(|&value| spread.add(value));
        spread
    }

    /// 1, 2, 3, 4: mean 2.5, sample variance 5/3, so that the standard error is the root of 5/12.
    #[test]
    fn mean_and_standard_error() {
        let spread = of(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(spread.mean(), 2.5);
        assert!((spread.standard_error().unwrap() - (5.0f64 / 12.0).sqrt()).abs() < 1e-15);
        assert!(spread.differs_from_zero());
    }

    #[test]
    fn chance_is_not_a_difference() {
        assert!(!of(&[0.1, -0.1, 0.1, -0.05]).differs_from_zero());
        assert!(!of(&[-0.9]).differs_from_zero() && !of(&[]).differs_from_zero());
        assert!(of(&[-0.5, -0.5]).differs_from_zero() && !of(&[0.0, 0.0]).differs_from_zero());
    }

    #[test]
    fn a_checkpoint_keeps_every_bit() {
        let spreads = [of(&[0.1, 0.2, -0.7]), Spread::default()];
        let mut back = [Spread::default(); 2];
        unpack("x", &pack(&spreads), &mut back).unwrap();
        assert_eq!(back, spreads);
        assert!(unpack("x", &pack(&spreads), &mut back[..1]).is_err());
    }
}
