//! The numbers a key may take.

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    pub low: f64,
    pub low_included: bool,
    pub high: f64,
    pub high_included: bool,
}

impl Bounds {
    pub const POSITIVE: Bounds = Bounds { low: 0.0, low_included: false, high: f64::INFINITY, high_included: false };
    pub const NON_NEGATIVE: Bounds = Bounds { low_included: true, ..Bounds::POSITIVE };
    pub const ABOVE_ONE: Bounds = Bounds { low: 1.0, ..Bounds::POSITIVE };
    pub const UNIT: Bounds = Bounds { low: 0.0, low_included: true, high: 1.0, high_included: true };
    pub const UNIT_OPEN: Bounds = Bounds { high_included: false, ..Bounds::UNIT };
    pub const SHARE: Bounds = Bounds { low_included: false, ..Bounds::UNIT_OPEN };

    /// The same, with this as the largest value.
    pub const fn up_to(self, high: f64) -> Bounds {
        Bounds { high, high_included: true, ..self }
    }

    /// The least and the largest value that do.
    pub fn extremes(&self) -> [f64; 2] {
        let low = if self.low_included { self.low } else { self.low.next_up() };
        let high = self.high.min(f64::MAX);
        [low, if self.contain(high) { high } else { high.next_down() }]
    }

    pub fn contain(&self, value: f64) -> bool {
        let above = value > self.low || (self.low_included && value == self.low);
        let below = value < self.high || (self.high_included && value == self.high);
        value.is_finite() && above && below
    }

    pub fn describe(&self) -> String {
        let low = format!("{} {}", if self.low_included { "at least" } else { "above" }, self.low);
        if self.high.is_infinite() {
            return low;
        }
        format!("{low} and {} {}", if self.high_included { "at most" } else { "below" }, self.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_excluded_where_they_say_so() {
        assert!(Bounds::UNIT.contain(1.0) && Bounds::UNIT_OPEN.contain(0.0) && Bounds::NON_NEGATIVE.contain(0.0));
        assert!(!Bounds::UNIT_OPEN.contain(1.0) && !Bounds::POSITIVE.contain(0.0) && !Bounds::UNIT.contain(-0.1));
    }

    #[test]
    fn numbers_must_be_finite() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(!Bounds::NON_NEGATIVE.contain(value));
        }
    }
}
