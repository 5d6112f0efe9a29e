//! One row of a data file, whatever its format: the wanted columns' values and the line they stand on.

use std::borrow::Cow;

/// One value. Text formats give `Text` only; JSON and Parquet keep their types.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Absent, or null.
    Missing,
    Text(String),
    Integer(i128),
    Float(f64),
    Bool(bool),
    Numbers(Vec<f64>),
    Names(Vec<String>),
    /// A JSON object, a list of lists or of mixed values: nothing a column of ours can be.
    Nested,
}

/// Cells in the order the columns were asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// 1-based line of the file (row of a Parquet file); for a quoted record of several lines, its first.
    pub line: u64,
    pub cells: Vec<Cell>,
}

impl Cell {
    /// Nothing there: absent, null, or only blanks.
    pub fn is_missing(&self) -> bool {
        match self {
            Cell::Missing => true,
            Cell::Text(text) => text.trim().is_empty(),
            _ => false,
        }
    }

    /// A single value as text: numbers in their shortest form (1.0 reads "1"), booleans as "true" and "false".
    pub fn plain(&self) -> Option<Cow<'_, str>> {
        match self {
            Cell::Text(text) => Some(Cow::Borrowed(text)),
            Cell::Integer(value) => Some(Cow::Owned(value.to_string())),
            Cell::Float(value) => Some(Cow::Owned(value.to_string())),
            Cell::Bool(value) => Some(Cow::Borrowed(if *value { "true" } else { "false" })),
            Cell::Missing | Cell::Numbers(_) | Cell::Names(_) | Cell::Nested => None,
        }
    }

    /// Text equals by its characters; a number also by its value, so that "1.0" finds 1.
    pub fn equals(&self, wanted: &str) -> bool {
        match self {
            Cell::Missing => wanted.is_empty(),
            Cell::Integer(value) if wanted.parse() == Ok(*value) => true,
            Cell::Integer(value) => wanted.parse() == Ok(*value as f64),
            Cell::Float(value) => wanted.parse() == Ok(*value),
            _ => self.plain().is_some_and(|text| text == wanted),
        }
    }

    /// What a message calls it.
    pub fn kind(&self) -> &'static str {
        match self {
            Cell::Missing => "nothing",
            Cell::Text(_) => "text",
            Cell::Integer(_) | Cell::Float(_) => "a number",
            Cell::Bool(_) => "a boolean",
            Cell::Numbers(_) | Cell::Names(_) => "a list",
            Cell::Nested => "a nested value",
        }
    }

    /// Memory it holds, roughly: chunks are cut by it.
    pub(crate) fn bytes(&self) -> usize {
        let heap = match self {
            Cell::Text(text) => text.len(),
            Cell::Numbers(values) => values.len() * size_of::<f64>(),
            Cell::Names(names) => names.iter().map(|name| name.len() + size_of::<String>()).sum(),
            _ => 0,
        };
        heap + size_of::<Cell>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_plain_text() {
        assert_eq!(Cell::Integer(7).plain().as_deref(), Some("7"));
        assert_eq!(Cell::Float(1.0).plain().as_deref(), Some("1"));
        assert_eq!(Cell::Float(0.25).plain().as_deref(), Some("0.25"));
        assert_eq!(Cell::Bool(true).plain().as_deref(), Some("true"));
        assert_eq!(Cell::Numbers(vec![1.0]).plain(), None);
    }

    #[test]
    fn equality_is_textual_for_text_and_by_value_for_numbers() {
        assert!(Cell::Text("0".into()).equals("0"));
        assert!(!Cell::Text("0.0".into()).equals("0"));
        assert!(Cell::Integer(1).equals("1.0"));
        assert!(Cell::Float(1.0).equals("1"));
        assert!(!Cell::Missing.equals("0"));
    }
}
