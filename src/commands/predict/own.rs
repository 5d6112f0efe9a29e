//! What a row had before it was answered.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use crate::data::{Cell, OwnRow};

/// The keys of a JSON line; none of a row that is a table's.
pub fn keys(row: &OwnRow) -> Result<Option<Map<String, Value>>> {
    row.text.as_ref().map(|text| serde_json::from_str(text).context("a JSON line that was read before")).transpose()
}

/// The same for a table, which has no more columns than these.
pub fn keys_of_table(row: &OwnRow, columns: &[String]) -> Result<Option<Map<String, Value>>> {
    let keys = keys(row)?;
    if let Some(late) = keys.iter().flat_map(Map::keys).find(|key| !columns.contains(key)) {
        bail!("line {}: the key `{late}` is in none of the first rows, which name the table's columns: write .jsonl", row.line);
    }
    Ok(keys)
}

pub fn cell_json(cell: &Cell) -> Value {
    match cell {
        Cell::Missing | Cell::Nested => Value::Null,
        Cell::Text(text) => json!(text),
        Cell::Integer(value) => match (i64::try_from(*value), u64::try_from(*value)) {
            (Ok(value), _) => json!(value),
            (_, Ok(value)) => json!(value),
            _ => json!(value.to_string()),
        },
        Cell::Float(value) => json!(value),
        Cell::Bool(value) => json!(value),
        Cell::Numbers(values) => json!(values),
        Cell::Names(names) => json!(names),
    }
}

/// What a cell of text holds of it.
pub fn field(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}
