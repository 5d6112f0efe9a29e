//! The type of a column, found from all of its cells.

use crate::data::read::Cell;

/// What every cell of a column is, unless it is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    /// 64 bits with a sign.
    Integer,
    /// 32 bits.
    Float,
    /// 64 bits.
    Double,
    Text,
    /// A list of 32-bit numbers.
    Floats,
    /// A list of 64-bit numbers.
    Doubles,
    /// A list of texts.
    Names,
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    pub name: String,
    pub kind: Kind,
}

impl Column {
    pub fn new(name: impl Into<String>, kind: Kind) -> Self {
        Self { name: name.into(), kind }
    }
}

/// What the cells of a column were so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seen {
    #[default]
    Nothing,
    /// Lists without elements, which fit lists of any.
    EmptyLists,
    Some(Kind),
}

impl Seen {
    pub fn of(cell: &Cell) -> Self {
        Self::Some(match cell {
            Cell::Missing => return Self::Nothing,
            Cell::Numbers(values) if values.is_empty() => return Self::EmptyLists,
            Cell::Names(names) if names.is_empty() => return Self::EmptyLists,
            Cell::Bool(_) => Kind::Bool,
            Cell::Integer(value) if i64::try_from(*value).is_ok() => Kind::Integer,
            Cell::Float(_) => Kind::Double,
            Cell::Numbers(_) => Kind::Doubles,
            Cell::Names(_) => Kind::Names,
            Cell::Integer(_) | Cell::Text(_) | Cell::Nested => Kind::Text,
        })
    }

    /// With another cell: numbers of both kinds are [`Kind::Double`], everything else that differs is text.
    pub fn and(self, other: Self) -> Self {
        let is_list = |kind| matches!(kind, Kind::Doubles | Kind::Names);
        let is_number = |kind| matches!(kind, Kind::Integer | Kind::Double);
        match (self, other) {
            (one, other) if one == other => one,
            (Self::Nothing, one) | (one, Self::Nothing) => one,
            (Self::EmptyLists, Self::Some(kind)) | (Self::Some(kind), Self::EmptyLists) if is_list(kind) => Self::Some(kind),
            (Self::Some(one), Self::Some(other)) if is_number(one) && is_number(other) => Self::Some(Kind::Double),
            _ => Self::Some(Kind::Text),
        }
    }

    pub fn kind(self) -> Kind {
        match self {
            Self::Nothing => Kind::Text,
            Self::EmptyLists => Kind::Doubles,
            Self::Some(kind) => kind,
        }
    }
}

/// The number that a field of delimited text is, where nothing of how it is written matters: not `007`, `+49` or more digits than a
/// number holds. An empty field is missing.
pub fn number_in(field: &str) -> Cell {
    if field.is_empty() {
        return Cell::Missing;
    }
    let text = || Cell::Text(field.to_owned());
    if let Ok(value) = field.parse::<i64>() {
        return if value.to_string() == field { Cell::Integer(value.into()) } else { text() };
    }
    let digits = field.strip_prefix('-').unwrap_or(field);
    let is_padded = digits.starts_with('0') && digits[1..].starts_with(|c: char| c.is_ascii_digit());
    let Ok(value) = field.parse::<f64>() else { return text() };
    if !value.is_finite() || is_padded || !digits.starts_with(|c: char| c.is_ascii_digit()) || !holds(value, field) {
        return text();
    }
    Cell::Float(value)
}

/// Whether a number says all digits of a text: any 15 are kept, and 17 where a program wrote the very number.
fn holds(value: f64, text: &str) -> bool {
    let mantissa = text.split(['e', 'E']).next().unwrap_or(text);
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    digits.trim_start_matches('0').len() <= 15 || format!("{value}") == text || format!("{value:e}") == text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_what_all_its_cells_are() {
        let kind = |cells: &[Cell]| cells.iter().map(Seen::of).fold(Seen::default(), Seen::and).kind();
        let (integer, float, text) = (Cell::Integer(1), Cell::Float(0.5), Cell::Text("a".into()));
        assert_eq!(kind(&[]), Kind::Text);
        assert_eq!(kind(&[Cell::Missing, integer.clone(), Cell::Missing]), Kind::Integer);
        assert_eq!(kind(&[integer.clone(), float.clone(), integer.clone()]), Kind::Double);
        assert_eq!(kind(&[float, text]), Kind::Text);
        assert_eq!(kind(&[Cell::Bool(true), integer]), Kind::Text);
        assert_eq!(kind(&[Cell::Integer(i128::from(u64::MAX))]), Kind::Text);
        let (none, names, numbers) = (Cell::Numbers(vec![]), Cell::Names(vec!["a".into()]), Cell::Numbers(vec![1.0]));
        assert_eq!(kind(&[none.clone(), names.clone()]), Kind::Names);
        assert_eq!(kind(&[numbers.clone(), none.clone()]), Kind::Doubles);
        assert_eq!(kind(&[names, numbers]), Kind::Text);
        assert_eq!(kind(&[none, Cell::Nested]), Kind::Text);
    }

    #[test]
    fn fields_are_numbers_where_that_says_all_of_them() {
        assert_eq!(number_in("-12"), Cell::Integer(-12));
        assert_eq!(number_in("2.50"), Cell::Float(2.5));
        assert_eq!(number_in("1e-3"), Cell::Float(1e-3));
        assert_eq!(number_in("0.1234567890123456"), Cell::Float(0.1234567890123456));
        assert_eq!(number_in(""), Cell::Missing);
        for text in ["007", "-007.5", "+49", "+4.5", "12345678901234567890", "nan", "inf", ".5", "0x1", "1 2", "-", "é"] {
            assert_eq!(number_in(text), Cell::Text(text.to_owned()), "{text}");
        }
    }
}
