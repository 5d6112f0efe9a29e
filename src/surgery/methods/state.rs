//! Per-task memory and its exact way through JSON.
//!
//! Values travel as the integers of their bits: a decimal detour would make resumed runs differ in the last place, and
//! NaN has no JSON form at all.

use serde_json::{Map, Value, json};

/// f64s as JSON, bit for bit.
pub fn pack_all(values: &[f64]) -> Value {
    values.iter().map(|value| value.to_bits()).collect::<Vec<u64>>().into()
}

/// Reads the fields of a saved state; every error names the owner and the field.
pub struct Saved<'a> {
    owner: &'a str,
    fields: &'a Map<String, Value>,
}

impl<'a> Saved<'a> {
    pub fn open(owner: &'a str, state: &'a Value) -> Result<Self, String> {
        match state.as_object() {
            Some(fields) => Ok(Self { owner, fields }),
            None => Err(format!("{owner}: saved state is not a table, found {state}")),
        }
    }

    pub fn count(&self, name: &str) -> Result<u64, String> {
        self.field(name)?.as_u64().ok_or_else(|| self.fault(name, "a whole number"))
    }

    /// A list of run-wide task indices.
    pub fn indices(&self, name: &str) -> Result<Vec<usize>, String> {
        let found = self.field(name)?.as_array();
        let read = |value: &Value| value.as_u64().and_then(|index| usize::try_from(index).ok());
        let indices = found.and_then(|found| found.iter().map(read).collect());
        indices.ok_or_else(|| self.fault(name, "a list of tasks"))
    }

    /// `len` values written by [`pack_all`].
    pub fn values(&self, name: &str, len: usize) -> Result<Vec<f64>, String> {
        let found = self.field(name)?.as_array().filter(|found| found.len() == len);
        let bits = found.and_then(|found| found.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>());
        match bits {
            Some(bits) => Ok(bits.into_iter().map(f64::from_bits).collect()),
            None => Err(self.fault(name, &format!("{len} values as bits"))),
        }
    }

    pub fn field(&self, name: &str) -> Result<&Value, String> {
        self.fields.get(name).ok_or_else(|| format!("{}: saved state has no {name:?}", self.owner))
    }

    fn fault(&self, name: &str, expected: &str) -> String {
        format!("{}: saved {name:?} is not {expected}", self.owner)
    }
}

/// A point of the probability simplex over all tasks of the run, of which a round sees the present part.
#[derive(Clone, Debug, PartialEq)]
pub struct Shares {
    all: Vec<f64>,
}

impl Shares {
    pub fn uniform(tasks: usize) -> Self {
        Self { all: vec![1.0 / tasks as f64; tasks] }
    }

    /// The present tasks' shares, scaled to sum to one; equal when none of them has any.
    pub fn present(&self, tasks: &[usize]) -> Vec<f64> {
        let total: f64 = tasks.iter().map(|&task| self.all[task]).sum();
        if total > 0.0 {
            tasks.iter().map(|&task| self.all[task] / total).collect()
        } else {
            vec![1.0 / tasks.len() as f64; tasks.len()]
        }
    }

    /// Replaces the present tasks' shares; what they hold together stays what it was, so absent tasks keep theirs.
    pub fn set_present(&mut self, tasks: &[usize], shares: &[f64]) {
        let held: f64 = tasks.iter().map(|&task| self.all[task]).sum();
        let total = if held > 0.0 { held } else { tasks.len() as f64 / self.all.len() as f64 };
        for (&task, share) in tasks.iter().zip(shares) {
            self.all[task] = share * total;
        }
    }

    pub fn save(&self) -> Value {
        json!({ "shares": pack_all(&self.all) })
    }

    pub fn restore(&mut self, owner: &str, state: &Value) -> Result<(), String> {
        self.all = Saved::open(owner, state)?.values("shares", self.all.len())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_return_bit_for_bit() {
        let values = [0.1, -0.0, f64::NAN, f64::INFINITY, 5e-324];
        let text = json!({ "v": pack_all(&values) }).to_string();
        let back = serde_json::from_str(&text).expect("valid JSON");
        let back = Saved::open("m", &back).and_then(|saved| saved.values("v", 5)).expect("five values");
        assert_eq!(back.map_bits(), values.map_bits());
    }

    trait MapBits {
        fn map_bits(&self) -> Vec<u64>;
    }

    impl<T: AsRef<[f64]>> MapBits for T {
        fn map_bits(&self) -> Vec<u64> {
            self.as_ref().iter().map(|value| value.to_bits()).collect()
        }
    }

    #[test]
    fn a_state_of_another_run_is_refused() {
        let state = json!({ "shares": [0, 0] });
        let fault = Shares::uniform(3).restore("modo", &state).expect_err("wrong length");
        assert_eq!(fault, r#"modo: saved "shares" is not 3 values as bits"#);
    }

    #[test]
    fn absent_tasks_keep_their_share() {
        let mut shares = Shares::uniform(4);
        shares.set_present(&[0, 2], &[0.75, 0.25]);
        assert_eq!(shares.present(&[0, 1, 2, 3]), [0.375, 0.25, 0.125, 0.25]);
        assert_eq!(shares.present(&[0, 2]), [0.75, 0.25]);
    }

    #[test]
    fn a_round_of_tasks_without_any_share_starts_equal() {
        let mut shares = Shares::uniform(3);
        shares.set_present(&[0, 1, 2], &[1.0, 0.0, 0.0]);
        assert_eq!(shares.present(&[1, 2]), [0.5, 0.5]);
    }
}
