//! Parquet, row by row and only the wanted columns. The line of a row is its 1-based number in the file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row as Record};
use parquet::schema::types::Type;

use super::bad_row::{BadKind, Fault};
use super::cell::{Cell, Row};
use super::open::{FileSpec, open_parquet};
use super::{Item, wanted_slots};
use crate::data::contained::contained;

/// Rows decoded at once: the record reader's buffers stay small.
const BATCH_ROWS: usize = 256;

pub struct Parquet {
    path: PathBuf,
    rows: RowIter<'static>,
    slots: HashMap<String, usize>,
    row: u64,
    total_rows: u64,
    file_bytes: u64,
    bytes_read: Arc<AtomicU64>,
}

impl Parquet {
    pub fn open(file: &FileSpec, wanted: &[String], bytes_read: Arc<AtomicU64>) -> Result<Parquet> {
        guarded(&file.path, || Self::open_trusting(file, wanted, bytes_read))?
    }

    fn open_trusting(file: &FileSpec, wanted: &[String], bytes_read: Arc<AtomicU64>) -> Result<Parquet> {
        let path = &file.path;
        let (reader, file_bytes) = open_reader(path)?;
        let metadata = reader.metadata().file_metadata();
        let schema = metadata.schema();
        let names = field_names(schema);
        let slots = wanted_slots(path, &names, wanted)?;
        let fields = schema.get_fields().iter().zip(&slots).filter(|(_, slot)| slot.is_some());
        let projection = Type::group_type_builder(schema.name())
            .with_fields(fields.map(|(field, _)| Arc::clone(field)).collect())
            .build()
            .with_context(|| format!("{}: cannot select columns", path.display()))?;
        let total_rows = metadata.num_rows().max(0) as u64;
        let rows = RowIter::from_file_into(Box::new(reader))
            .project(Some(projection))
            .with_context(|| format!("{}: cannot select columns", path.display()))?
            .with_batch_size(BATCH_ROWS);
        let slots = names.into_iter().zip(slots).filter_map(|(name, slot)| Some((name, slot?))).collect();
        Ok(Parquet { path: path.clone(), rows, slots, row: 0, total_rows, file_bytes, bytes_read })
    }

    pub fn next_item(&mut self) -> Result<Option<Item>> {
        let Some(record) = guarded(&self.path, || self.rows.next())? else { return Ok(None) };
        self.row += 1;
        let line = self.row;
        let record = record.with_context(|| format!("{}:{line}: cannot read this row", self.path.display()))?;
        // Rows stand for bytes: the record reader does not say how far into the file it is.
        let bytes = self.file_bytes as f64 * line as f64 / self.total_rows.max(line) as f64;
        self.bytes_read.store(bytes as u64, Ordering::Relaxed);
        Ok(Some(match self.cells(record) {
            Ok(cells) => Item::Row(Row { line, cells }),
            Err(fault) => Item::Bad(line, fault),
        }))
    }

    fn cells(&self, record: Record) -> Result<Vec<Cell>, Fault> {
        let mut cells = vec![Cell::Missing; self.slots.len()];
        for (name, field) in record.into_columns() {
            if let Some(&slot) = self.slots.get(&name) {
                cells[slot] = cell(field).map_err(|(kind, problem)| Fault::new(kind, format!("column `{name}`: {problem}")))?;
            }
        }
        Ok(cells)
    }
}

/// The top-level columns of a file.
pub fn columns(file: &FileSpec) -> Result<Vec<String>> {
    let (reader, _) = guarded(&file.path, || open_reader(&file.path))??;
    Ok(field_names(reader.metadata().file_metadata().schema()))
}

/// The library trusts what a file says of itself, and panics where that is not so. After an error its reader is of no more use.
fn guarded<T>(path: &Path, work: impl FnOnce() -> T) -> Result<T> {
    contained(work).map_err(|words| anyhow!("{}: the Parquet file is damaged: {words}", path.display()))
}

fn open_reader(path: &Path) -> Result<(SerializedFileReader<std::fs::File>, u64)> {
    let file = open_parquet(path)?;
    let bytes = file.metadata().map(|metadata| metadata.len()).unwrap_or(0);
    let reader = SerializedFileReader::new(file)
        .with_context(|| format!("{}: cannot read the Parquet footer; the file may be cut short", path.display()))?;
    Ok((reader, bytes))
}

fn field_names(schema: &Type) -> Vec<String> {
    schema.get_fields().iter().map(|field| field.name().to_owned()).collect()
}

fn cell(field: Field) -> Result<Cell, (BadKind, String)> {
    Ok(match field {
        Field::Null => Cell::Missing,
        Field::Bool(value) => Cell::Bool(value),
        Field::Str(text) => Cell::Text(text),
        Field::Bytes(bytes) => {
            Cell::Text(super::utf8(bytes.data()).map_err(|problem| (BadKind::InvalidUtf8, problem))?.to_owned())
        }
        Field::ListInternal(list) => elements(list.elements())?,
        Field::Group(_) | Field::MapInternal(_) => Cell::Nested,
        field => match (integer(&field), float(&field)) {
            (Some(value), _) => Cell::Integer(value),
            (None, Some(value)) => Cell::Float(value),
            // Decimals, dates and times, as Parquet prints them; it panics at those that no calendar has.
            (None, None) => Cell::Text(printed(&field)?),
        },
    })
}

fn printed(field: &Field) -> Result<String, (BadKind, String)> {
    contained(|| field.to_string()).map_err(|_| (BadKind::BadDate, "a date or time that no calendar has".to_owned()))
}

fn elements(fields: &[Field]) -> Result<Cell, (BadKind, String)> {
    let numbers: Option<Vec<f64>> =
        fields.iter().map(|field| integer(field).map(|value| value as f64).or_else(|| wide(field))).collect();
    if let Some(numbers) = numbers {
        return Ok(Cell::Numbers(numbers));
    }
    let mut names = Vec::with_capacity(fields.len());
    for field in fields {
        match cell(field.clone())? {
            Cell::Text(text) => names.push(text),
            _ => return Ok(Cell::Nested),
        }
    }
    Ok(Cell::Names(names))
}

fn integer(field: &Field) -> Option<i128> {
    Some(match *field {
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        _ => return None,
    })
}

/// f32 through its shortest decimal: a label 0.1 reads "0.1", not "0.10000000149011612".
fn float(field: &Field) -> Option<f64> {
    match field {
        Field::Float(value) => value.to_string().parse().ok(),
        field => wide(field),
    }
}

fn wide(field: &Field) -> Option<f64> {
    match field {
        Field::Float16(value) => Some(f64::from(*value)),
        Field::Float(value) => Some(f64::from(*value)),
        Field::Double(value) => Some(*value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_no_calendar_has_is_a_bad_value() {
        assert_eq!(cell(Field::Date(0)), Ok(Cell::Text("1970-01-01".to_owned())));
        let (kind, problem) = cell(Field::TimestampMillis(i64::MAX)).unwrap_err();
        assert_eq!((kind, problem.as_str()), (BadKind::BadDate, "a date or time that no calendar has"));
    }
}
