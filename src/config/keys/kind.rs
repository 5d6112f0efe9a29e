//! What a key may hold, and how what was written becomes the one form the structs take.

use std::ops::RangeInclusive;

use super::super::tree::Value;
use super::{Bounds, Section};

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Bool,
    /// Both bounds included.
    Int(i64, i64),
    Float(Bounds),
    /// Any string.
    Text,
    /// A column of a data file: a string that is not empty.
    Column,
    /// Becomes the name of a folder or a metric.
    Name,
    OneOf(Vec<&'static str>),
    Device,
    Path(PathFrom),
    /// `words`, or a path from `data.root`.
    Tokenizer,
    /// An integer, or a string such as `8GiB`.
    Bytes,
    /// `epoch`, `end` or a number of rounds.
    Every,
    /// A string, a number, true or false, or a list of these: what a key of another file takes, which says more.
    Plain,
    /// A number, or what the other kind takes.
    NumberOr(Bounds, Box<Kind>),
    /// This word, or what the other kind takes.
    WordOr(&'static str, Box<Kind>),
    /// A list, or one item written without brackets.
    List(Box<Kind>),
    Section(&'static Section),
    /// Tables under names of the user's choice.
    Sections(&'static Section),
}

/// What a relative path is relative to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PathFrom {
    CurrentDir,
    /// The folder of the file that sets the key.
    SettingFile,
    /// `data.root`.
    DataRoot,
    /// `data.root`; what is not there may be the name of a model that Hugging Face's libraries have fetched.
    DataRootOrModels,
}

/// Why a value does not do.
#[derive(Debug, PartialEq)]
pub struct Complaint {
    pub message: String,
    pub help: Option<String>,
}

impl Complaint {
    fn new(message: String) -> Complaint {
        Complaint { message, help: None }
    }

    fn help(self, help: impl Into<String>) -> Complaint {
        Complaint { help: Some(help.into()), ..self }
    }
}

impl From<Bounds> for Kind {
    fn from(bounds: Bounds) -> Kind {
        Kind::Float(bounds)
    }
}

impl From<RangeInclusive<i64>> for Kind {
    fn from(range: RangeInclusive<i64>) -> Kind {
        Kind::Int(*range.start(), *range.end())
    }
}

impl Kind {
    pub fn one_of(values: impl Into<Vec<&'static str>>) -> Kind {
        Kind::OneOf(values.into())
    }

    pub fn list(items: impl Into<Kind>) -> Kind {
        Kind::List(Box::new(items.into()))
    }

    /// A number within bounds, or another kind.
    pub fn number_or(bounds: Bounds, other: Kind) -> Kind {
        Kind::NumberOr(bounds, Box::new(other))
    }

    /// A word, or another kind, which is of no text.
    pub fn word_or(word: &'static str, other: Kind) -> Kind {
        Kind::WordOr(word, Box::new(other))
    }

    /// The table that a value of this kind is, or that each of its entries is.
    pub fn section(&self) -> Option<&'static Section> {
        match self {
            Kind::Section(section) | Kind::Sections(section) => Some(section),
            _ => None,
        }
    }

    /// The resolved form of a scalar: sizes as bytes, integers as floats where a float is meant.
    ///
    /// Lists and tables are walked by `shape`, which knows the places of their parts.
    pub fn read(&self, value: &Value) -> Result<Value, Complaint> {
        match (self, value) {
            (Kind::Bool, Value::Bool(_)) | (Kind::Text, Value::Text(_)) => Ok(value.clone()),
            (Kind::Int(min, max), Value::Int(int)) => self.check(value, min <= int && int <= max),
            (Kind::Float(bounds), Value::Float(float)) => self.check(value, bounds.contain(*float)),
            (Kind::Float(_), Value::Int(int)) => self.read(&Value::Float(*int as f64)),
            (Kind::Column | Kind::Path(_) | Kind::Tokenizer, Value::Text(text)) => self.check(value, !text.is_empty()),
            (Kind::Name, Value::Text(text)) => match name_problem(text) {
                None => Ok(value.clone()),
                Some(problem) => Err(Complaint::new(format!("\"{text}\" is no name: {problem}"))),
            },
            (Kind::OneOf(values), Value::Text(text)) => one_of(text, values),
            (Kind::WordOr(word, _), Value::Text(text)) => one_of(text, &[word]),
            (Kind::Device, Value::Text(text)) => self.check(value, is_device(text)),
            (Kind::Bytes, Value::Int(int)) => self.check(value, *int >= 0),
            (Kind::Bytes, Value::Text(text)) => bytes(text).map(Value::Int).ok_or_else(|| self.refuse(value)),
            (Kind::Plain, Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) | Value::List(_)) => {
                Ok(value.clone())
            }
            (Kind::Every, Value::Int(int)) => self.check(value, *int >= 1),
            (Kind::Every, Value::Text(text)) => self.check(value, ["epoch", "end"].contains(&text.as_str())),
            _ => Err(self.refuse(value)),
        }
    }

    fn check(&self, value: &Value, ok: bool) -> Result<Value, Complaint> {
        if ok { Ok(value.clone()) } else { Err(self.refuse(value)) }
    }

    pub fn refuse(&self, value: &Value) -> Complaint {
        let complaint = Complaint::new(format!("expected {}, found {}", self.describe(), describe(value)));
        match (self, value) {
            (Kind::Bytes, Value::Text(_)) => complaint.help("sizes are whole numbers of B, KiB, MiB, GiB or TiB, as in \"8GiB\""),
            (Kind::Bool | Kind::Int(..) | Kind::Float(_), Value::Text(text)) if self.would_read(text) => {
                complaint.help(format!("write {text} without quotes"))
            }
            (Kind::Text | Kind::Column | Kind::Name, Value::Bool(_) | Value::Int(_) | Value::Float(_)) => {
                complaint.help(format!("write '\"{}\"' with quotes", literal(value)))
            }
            _ => complaint,
        }
    }

    fn would_read(&self, text: &str) -> bool {
        let value = match self {
            Kind::Bool => text.parse().map(Value::Bool).ok(),
            Kind::Int(..) => text.parse().map(Value::Int).ok(),
            _ => text.parse().map(Value::Float).ok(),
        };
        value.is_some_and(|value| self.read(&value).is_ok())
    }

    /// For messages and the reference.
    pub fn describe(&self) -> String {
        match self {
            Kind::Bool => "true or false".to_owned(),
            Kind::Int(min, i64::MAX) => format!("an integer of at least {min}"),
            Kind::Int(min, max) => format!("an integer from {min} to {max}"),
            Kind::Float(bounds) => format!("a number {}", bounds.describe()),
            Kind::Text => "a string".to_owned(),
            Kind::Column => "the name of a column".to_owned(),
            Kind::Name => "a name of letters, digits, `_`, `.` and `-`".to_owned(),
            Kind::OneOf(values) => format!("one of {}", quoted(values)),
            Kind::Device => "\"auto\", \"cpu\", \"cuda\", \"cuda:N\" or \"emulated\"".to_owned(),
            Kind::Path(PathFrom::DataRootOrModels) => "a path, or the name of a fetched model".to_owned(),
            Kind::Path(_) => "a path".to_owned(),
            Kind::Tokenizer => "\"words\" or a path".to_owned(),
            Kind::Bytes => "a size such as \"8GiB\" or a number of bytes".to_owned(),
            Kind::Every => "\"epoch\", \"end\" or a number of rounds".to_owned(),
            Kind::Plain => "a string, a number, true or false".to_owned(),
            Kind::NumberOr(bounds, other) => format!("a number {}, or {}", bounds.describe(), other.describe()),
            Kind::WordOr(word, other) => format!("\"{word}\", or {}", other.describe()),
            Kind::List(inner) => format!("{}, or a list of such", inner.describe()),
            Kind::Section(_) => "a table".to_owned(),
            Kind::Sections(_) => "a table of tables".to_owned(),
        }
    }

    /// Stands in for a value that was refused and has no default, so that the other checks can go on.
    pub fn placeholder(&self) -> Value {
        match self {
            Kind::Bool => Value::Bool(false),
            Kind::Int(min, _) => Value::Int(*min),
            Kind::Float(_) | Kind::NumberOr(..) => Value::Float(0.5),
            Kind::OneOf(values) => Value::Text(values[0].to_owned()),
            Kind::Bytes | Kind::Every | Kind::Plain => Value::Int(1),
            Kind::List(_) | Kind::WordOr(..) => Value::List(Vec::new()),
            Kind::Section(_) | Kind::Sections(_) => Value::Table(Default::default()),
            Kind::Text | Kind::Column | Kind::Name | Kind::Device | Kind::Path(_) | Kind::Tokenizer => Value::Text(String::new()),
        }
    }
}

fn one_of(text: &str, values: &[&str]) -> Result<Value, Complaint> {
    if values.contains(&text) {
        return Ok(Value::Text(text.to_owned()));
    }
    let complaint = Complaint::new(format!("\"{text}\" is not one of {}", quoted(values)));
    Err(match super::super::suggest::nearest(text, values.iter().copied()) {
        Some(near) => complaint.help(format!("did you mean \"{near}\"?")),
        None => complaint,
    })
}

/// Names become folders and parts of metric names, on any file system.
pub fn name_problem(name: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if name.is_empty() {
        return Some("it is empty".to_owned());
    }
    if name.starts_with('.') {
        return Some("it starts with a dot".to_owned());
    }
    let other = name.chars().find(|c| !allowed(*c))?;
    Some(format!("{other:?} is not a letter, a digit, `_`, `.` or `-`"))
}

fn is_device(text: &str) -> bool {
    let number = |n: &str| !n.is_empty() && n.len() <= 4 && n.bytes().all(|b| b.is_ascii_digit());
    ["auto", "cpu", "cuda", "emulated"].contains(&text) || text.strip_prefix("cuda:").is_some_and(number)
}

const UNITS: [(&str, i64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

fn bytes(text: &str) -> Option<i64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    let factor = if unit.is_empty() { 1 } else { UNITS.iter().find(|(name, _)| *name == unit)?.1 };
    number.parse::<i64>().ok()?.checked_mul(factor)
}

/// `8589934592` as `8GiB`.
pub fn show_bytes(bytes: i64) -> Option<String> {
    let (name, factor) = UNITS.iter().find(|(_, factor)| bytes > 0 && bytes % factor == 0)?;
    Some(format!("{}{name}", bytes / factor))
}

/// What was found, for a message.
pub fn describe(value: &Value) -> String {
    match value {
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => literal(value),
        Value::Text(text) => format!("the string {text:?}"),
        Value::List(_) => "a list".to_owned(),
        Value::Table(_) => "a table".to_owned(),
        Value::Unusable(description) => description.clone(),
    }
}

fn literal(value: &Value) -> String {
    match value {
        Value::Bool(bool) => bool.to_string(),
        Value::Int(int) => int.to_string(),
        Value::Float(float) => format!("{float:?}"),
        other => describe(other),
    }
}

fn quoted(values: &[&str]) -> String {
    values.iter().map(|value| format!("\"{value}\"")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    fn message(kind: Kind, value: Value) -> String {
        kind.read(&value).unwrap_err().message
    }

    #[test]
    fn integers_are_floats_where_a_float_is_meant_and_not_the_other_way_round() {
        assert_eq!(Kind::Float(Bounds::POSITIVE).read(&Value::Int(2)), Ok(Value::Float(2.0)));
        assert_eq!(message(Kind::Int(0, 9), Value::Float(2.0)), "expected an integer from 0 to 9, found 2.0");
    }

    #[test]
    fn sizes_have_binary_units() {
        let read = |size: &str| Kind::Bytes.read(&text(size)).ok();
        assert_eq!(read("8GiB"), Some(Value::Int(8 << 30)));
        assert_eq!(read("512 MiB"), Some(Value::Int(512 << 20)));
        assert_eq!(read("7"), Some(Value::Int(7)));
        for bad in ["8GB", "GiB", "-1GiB", "1.5GiB", "99999999999TiB", ""] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_are_shown_as_they_are_written() {
        assert_eq!(show_bytes(8 << 30).as_deref(), Some("8GiB"));
        assert_eq!(show_bytes((1 << 20) + 1).as_deref(), Some("1048577B"));
        assert_eq!(show_bytes(0), None);
    }

    #[test]
    fn a_near_value_is_suggested() {
        let complaint = Kind::one_of(["mean", "pcgrad"]).read(&text("pcgard")).unwrap_err();
        assert_eq!(complaint.message, "\"pcgard\" is not one of \"mean\", \"pcgrad\"");
        assert_eq!(complaint.help.as_deref(), Some("did you mean \"pcgrad\"?"));
    }

    #[test]
    fn quotes_too_many_or_too_few_are_pointed_out() {
        let help = |kind: Kind, value: Value| kind.read(&value).unwrap_err().help;
        assert_eq!(help(Kind::Int(0, 9), text("4")).as_deref(), Some("write 4 without quotes"));
        assert_eq!(help(Kind::Text, Value::Int(42)).as_deref(), Some("write '\"42\"' with quotes"));
        assert_eq!(help(Kind::Int(0, 9), text("many")), None);
    }

    #[test]
    fn devices_are_known_by_their_syntax() {
        let read = |device: &str| Kind::Device.read(&text(device)).is_ok();
        assert!(["auto", "cpu", "cuda", "cuda:0", "cuda:12", "emulated"].into_iter().all(read));
        assert!(!["gpu", "cuda:", "cuda:x", "CPU", ""].into_iter().any(read));
    }

    #[test]
    fn names_can_be_folders() {
        assert!(["a", "a.b-c_1", "9"].iter().all(|name| name_problem(name).is_none()));
        assert!(["", ".hidden", "a/b", "a b", "ä"].iter().all(|name| name_problem(name).is_some()));
    }
}
