//! Parameters of methods and balancers: one table per method says name, default and range, and everything that reads,
//! checks or prints parameters works from that table.

use serde_json::{Map, Value};

use crate::suggest::nearest;

/// The numbers a parameter may take; all are finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// x >= 0
    NonNegative,
    /// x > 0
    Positive,
    /// 0 <= x <= 1
    Unit,
    /// 0 <= x < 1
    BelowOne,
}

impl Range {
    fn contains(self, value: f64) -> bool {
        value.is_finite()
            && match self {
                Self::NonNegative => value >= 0.0,
                Self::Positive => value > 0.0,
                Self::Unit => (0.0..=1.0).contains(&value),
                Self::BelowOne => (0.0..1.0).contains(&value),
            }
    }

    pub fn describe(self) -> &'static str {
        match self {
            Self::NonNegative => ">= 0",
            Self::Positive => "> 0",
            Self::Unit => "in [0, 1]",
            Self::BelowOne => "in [0, 1)",
        }
    }
}

/// As many as there are rounds in the longest run.
pub const MOST_COUNT: u64 = u32::MAX as u64;
/// Seconds of a solve with hundreds of tasks.
pub const MOST_STEPS: u64 = 100_000;

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Number { default: f64, range: Range },
    Count { default: u64, least: u64, most: u64 },
    Choice { default: &'static str, options: &'static [&'static str] },
}

#[derive(Clone, Copy, Debug)]
pub struct Param {
    pub name: &'static str,
    pub kind: Kind,
    pub doc: &'static str,
}

impl Param {
    pub const fn number(name: &'static str, default: f64, range: Range, doc: &'static str) -> Self {
        Self { name, kind: Kind::Number { default, range }, doc }
    }

    /// Of rounds or tasks.
    pub const fn count(name: &'static str, default: u64, least: u64, doc: &'static str) -> Self {
        Self { name, kind: Kind::Count { default, least, most: MOST_COUNT }, doc }
    }

    /// Of the steps of one solve.
    pub const fn steps(name: &'static str, default: u64, doc: &'static str) -> Self {
        Self { name, kind: Kind::Count { default, least: 1, most: MOST_STEPS }, doc }
    }

    pub const fn choice(name: &'static str, default: &'static str, options: &'static [&'static str], doc: &'static str) -> Self {
        Self { name, kind: Kind::Choice { default, options }, doc }
    }

    /// The default as it would stand in a config file.
    pub fn default_text(&self) -> String {
        match self.kind {
            Kind::Number { default, .. } => format!("{default:?}"),
            Kind::Count { default, .. } => default.to_string(),
            Kind::Choice { default, .. } => format!("{default:?}"),
        }
    }

    /// What may stand in its place, in words.
    pub fn range_text(&self) -> String {
        match self.kind {
            Kind::Number { range, .. } => format!("a number {}", range.describe()),
            Kind::Count { least, most, .. } => format!("a whole number from {least} to {most}"),
            Kind::Choice { options, .. } => format!("one of {}", options.join(", ")),
        }
    }

    fn accepts(&self, value: &Value) -> bool {
        match self.kind {
            Kind::Number { range, .. } => value.as_f64().is_some_and(|number| range.contains(number)),
            Kind::Count { least, most, .. } => value.as_u64().is_some_and(|count| (least..=most).contains(&count)),
            Kind::Choice { options, .. } => value.as_str().is_some_and(|text| options.contains(&text)),
        }
    }
}

/// Given parameters that have passed their table: every getter below is total.
pub struct Params<'a> {
    table: &'static [Param],
    given: &'a Map<String, Value>,
}

impl<'a> Params<'a> {
    /// Checks every given parameter against `table`; the first fault is the error.
    pub fn check(owner: &str, table: &'static [Param], given: &'a Map<String, Value>) -> Result<Self, String> {
        for (name, value) in given {
            let Some(param) = table.iter().find(|param| param.name == name) else {
                return Err(unknown_param(owner, name, table));
            };
            if !param.accepts(value) {
                return Err(format!("{owner}: {name} = {value} is not {}", param.range_text()));
            }
        }
        Ok(Self { table, given })
    }

    pub fn number(&self, name: &str) -> f64 {
        match self.kind(name) {
            Kind::Number { default, .. } => self.given.get(name).and_then(Value::as_f64).unwrap_or(default),
            other => unreachable!("{name} is {other:?}, not a number"),
        }
    }

    pub fn count(&self, name: &str) -> u64 {
        match self.kind(name) {
            Kind::Count { default, .. } => self.given.get(name).and_then(Value::as_u64).unwrap_or(default),
            other => unreachable!("{name} is {other:?}, not a count"),
        }
    }

    pub fn choice(&self, name: &str) -> &str {
        match self.kind(name) {
            Kind::Choice { default, .. } => self.given.get(name).and_then(Value::as_str).unwrap_or(default),
            other => unreachable!("{name} is {other:?}, not a choice"),
        }
    }

    fn kind(&self, name: &str) -> Kind {
        let param = self.table.iter().find(|param| param.name == name);
        param.unwrap_or_else(|| unreachable!("{name} is in no table")).kind
    }
}

fn unknown_param(owner: &str, name: &str, table: &[Param]) -> String {
    if table.is_empty() {
        return format!("{owner} has no parameters, found {name:?}");
    }
    let names: Vec<&str> = table.iter().map(|param| param.name).collect();
    format!("{owner} has no parameter {name:?}{}", hint(name, &names))
}

/// "; did you mean ...?" when one of `known` is close, else the list of them.
pub fn hint(found: &str, known: &[&str]) -> String {
    match nearest(found, known.iter().copied()) {
        Some(name) => format!("; did you mean {name:?}?"),
        None => format!("; known: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Param] = &[
        Param::number("beta", 0.5, Range::Unit, ""),
        Param::steps("steps", 3, ""),
        Param::choice("order", "random", &["random", "fixed"], ""),
    ];

    fn given(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).expect("test JSON")
    }

    fn fault(text: &str) -> String {
        Params::check("method", TABLE, &given(text)).err().expect("a fault")
    }

    #[test]
    fn defaults_stand_where_nothing_is_given() {
        let none = Map::new();
        let params = Params::check("method", TABLE, &none).expect("no fault");
        assert_eq!((params.number("beta"), params.count("steps"), params.choice("order")), (0.5, 3, "random"));
    }

    #[test]
    fn given_values_win() {
        let given = given(r#"{"beta": 1, "steps": 7, "order": "fixed"}"#);
        let params = Params::check("method", TABLE, &given).expect("no fault");
        assert_eq!((params.number("beta"), params.count("steps"), params.choice("order")), (1.0, 7, "fixed"));
    }

    #[test]
    fn a_misspelt_name_gets_a_suggestion() {
        assert_eq!(fault(r#"{"betta": 1}"#), r#"method has no parameter "betta"; did you mean "beta"?"#);
    }

    #[test]
    fn a_strange_name_gets_the_list() {
        assert_eq!(fault(r#"{"zzz": 1}"#), r#"method has no parameter "zzz"; known: beta, steps, order"#);
    }

    #[test]
    fn values_outside_their_range_are_refused() {
        assert_eq!(fault(r#"{"beta": 1.5}"#), "method: beta = 1.5 is not a number in [0, 1]");
        assert_eq!(fault(r#"{"steps": 0}"#), "method: steps = 0 is not a whole number from 1 to 100000");
        assert_eq!(fault(r#"{"steps": 4294967296}"#), "method: steps = 4294967296 is not a whole number from 1 to 100000");
        assert_eq!(fault(r#"{"order": "up"}"#), r#"method: order = "up" is not one of random, fixed"#);
        assert_eq!(fault(r#"{"beta": "x"}"#), r#"method: beta = "x" is not a number in [0, 1]"#);
    }
}
