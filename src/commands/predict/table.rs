//! Answers as a Parquet table: a row's own columns with types that hold all that the file has in them, then the answer's.

use std::fs::File;

use anyhow::Result;
use serde_json::{Map, Value};

use super::answer::Question;
use super::file::unwritten;
use super::own::{cell_json, field, keys_of_table};
use crate::data::{Cell, Column, Kind, OwnRow, ParquetWriter, RowsToAnswer, number_in};

pub struct Table<'a> {
    question: Question<'a>,
    /// The file's own.
    columns: Vec<Column>,
    names: Vec<String>,
    /// All own cells are text, numbers among them.
    is_delimited: bool,
    file: ParquetWriter,
}

impl<'a> Table<'a> {
    /// Reads all rows for their types.
    pub fn begin(rows: &RowsToAnswer, file: File, question: Question<'a>, labels: &[String]) -> Result<Self> {
        let (columns, is_delimited) = (rows.typed_columns()?, rows.is_delimited()?);
        let all = [&columns[..], &question.columns(labels)].concat();
        let file = ParquetWriter::new(file, all).map_err(unwritten)?;
        Ok(Self { question, columns, names: rows.columns().to_vec(), is_delimited, file })
    }

    pub fn row(&mut self, row: &OwnRow, numbers: &[f32]) -> Result<()> {
        let keys = keys_of_table(row, &self.names)?;
        let own = self.columns.iter().zip(&row.cells).map(|(column, cell)| self.own_cell(column, cell, keys.as_ref()));
        let cells = own.chain(self.question.cells(numbers)).collect();
        self.file.write(cells).map_err(unwritten)
    }

    /// A cell as its column has it; `keys` are those of a JSON line.
    fn own_cell(&self, column: &Column, cell: &Cell, keys: Option<&Map<String, Value>>) -> Cell {
        match (column.kind, cell) {
            (Kind::Text, Cell::Text(_) | Cell::Missing) => cell.clone(),
            (Kind::Text, cell) => {
                let value = keys.and_then(|keys| keys.get(&column.name)).cloned().unwrap_or_else(|| cell_json(cell));
                if value.is_null() { Cell::Missing } else { Cell::Text(field(&value)) }
            }
            (_, Cell::Text(text)) if self.is_delimited => self.own_cell(column, &number_in(text), keys),
            (Kind::Double, Cell::Integer(value)) => Cell::Float(*value as f64),
            (Kind::Names, Cell::Numbers(none)) if none.is_empty() => Cell::Names(Vec::new()),
            (Kind::Doubles, Cell::Names(none)) if none.is_empty() => Cell::Numbers(Vec::new()),
            (_, cell) => cell.clone(),
        }
    }

    pub fn finish(self) -> Result<()> {
        self.file.finish().map_err(unwritten)
    }
}
