//! Readers that stream rows: JSON lines, TSV, CSV and Parquet, plain or packed (.gz, .zst).
//!
//! A [`Reader`] gives each row's wanted columns and its line number. A row it cannot read is an [`Item::Bad`], for the
//! caller to refuse or to count; an error ends the file (it is truncated, missing, or lacks a column).

mod bad_row;
mod cell;
mod delimited;
mod jsonl;
mod lines;
mod open;
mod parquet;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Result, anyhow, bail};

pub use self::bad_row::{BadCount, BadKind, BadRows, Fault};
pub use self::cell::{Cell, Row};
pub(super) use self::open::open_text;
pub use self::open::{FileSpec, format_of};
use super::suggest::missing;
use crate::config::schema::Format;

/// What stands on a line.
#[derive(Debug)]
pub enum Item {
    Row(Row),
    /// The line and what is wrong with it.
    Bad(u64, Fault),
}

/// Rows of one file, from first to last.
pub struct Reader {
    file: FileSpec,
    body: Body,
}

enum Body {
    Delimited(delimited::Delimited),
    JsonLines(jsonl::JsonLines),
    Parquet(Box<parquet::Parquet>),
}

impl Reader {
    /// Opens a file for the columns `wanted` (each once). `bytes_read` follows how far into the file reading is.
    pub fn open(file: &FileSpec, wanted: &[String], bytes_read: Arc<AtomicU64>) -> Result<Reader> {
        let body = match format_of(file)? {
            format @ (Format::Tsv | Format::Csv) => {
                let mut reader = delimited::Delimited::open(file, format, bytes_read)?;
                reader.select(wanted)?;
                Body::Delimited(reader)
            }
            Format::Jsonl => {
                let mut reader = jsonl::JsonLines::open(file, bytes_read)?;
                reader.select(wanted);
                Body::JsonLines(reader)
            }
            Format::Parquet => Body::Parquet(Box::new(parquet::Parquet::open(file, wanted, bytes_read)?)),
        };
        Ok(Reader { file: file.clone(), body })
    }

    fn next_item(&mut self) -> Result<Option<Item>> {
        let item = match &mut self.body {
            Body::Delimited(reader) => reader.next_item()?,
            Body::JsonLines(reader) => reader.next_item()?,
            Body::Parquet(reader) => reader.next_item()?,
        };
        if item.is_none() {
            self.check_columns_seen()?;
        }
        Ok(item)
    }

    /// JSON objects name their columns row by row: only at the end is it known that no row had one.
    fn check_columns_seen(&self) -> Result<()> {
        let Body::JsonLines(reader) = &self.body else { return Ok(()) };
        let Some(unseen) = reader.unseen().into_iter().min() else { return Ok(()) };
        let there_is = columns(&self.file)?;
        bail!("{}: in no row: {}", self.file.path.display(), missing("column", unseen, &there_is))
    }
}

impl Iterator for Reader {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Result<Item>> {
        self.next_item().transpose()
    }
}

/// Column names of a file: its header line, the given names, its schema, or the keys of its first JSON lines.
pub fn columns(file: &FileSpec) -> Result<Vec<String>> {
    match format_of(file)? {
        format @ (Format::Tsv | Format::Csv) => Ok(delimited::Delimited::open(file, format, Arc::default())?.columns().to_vec()),
        Format::Jsonl => jsonl::columns(file),
        Format::Parquet => parquet::columns(file),
    }
}

/// Whether a column comes later than [`columns`] looks, as a key of JSON lines may.
pub fn comes_late(file: &FileSpec, name: &str) -> Result<bool> {
    if format_of(file)? == Format::Jsonl { jsonl::has_key(file, name) } else { Ok(false) }
}

/// For each column of a file, the place of its value in a row; every wanted column must be there.
fn wanted_slots(path: &Path, columns: &[String], wanted: &[String]) -> Result<Vec<Option<usize>>> {
    let mut slots = vec![None; columns.len()];
    for (slot, name) in wanted.iter().enumerate() {
        let column = columns.iter().position(|column| column == name);
        let column = column.ok_or_else(|| anyhow!("{}: {}", path.display(), missing("column", name, columns)))?;
        slots[column] = Some(slot);
    }
    Ok(slots)
}

fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        format!("invalid UTF-8 (byte 0x{:02x} at position {} of the line)", bytes[at], at + 1)
    })
}
