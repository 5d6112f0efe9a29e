//! Answers as lines of text: JSON or CSV, to a file or to stdout.

use std::fs::File;
use std::io::{BufWriter, Write};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::answer::Question;
use super::file::unwritten;
use super::own::{cell_json, field, keys, keys_of_table};
use crate::data::{OwnRow, RowsToAnswer};
use crate::output::{self, csv};

pub struct Lines<'a> {
    question: Question<'a>,
    is_csv: bool,
    columns: Vec<String>,
    file: Option<BufWriter<File>>,
}

impl<'a> Lines<'a> {
    /// With the header of a table.
    pub fn begin(
        rows: &RowsToAnswer,
        file: Option<File>,
        is_csv: bool,
        question: Question<'a>,
        labels: &[String],
    ) -> Result<Self> {
        let mut lines = Self { question, is_csv, columns: rows.columns().to_vec(), file: file.map(BufWriter::new) };
        if is_csv {
            lines.write(&csv(lines.columns.iter().chain(&question.fields(labels)).map(String::as_str)))?;
        }
        Ok(lines)
    }

    pub fn row(&mut self, row: &OwnRow, numbers: &[f32]) -> Result<()> {
        let answer = self.question.describe(numbers);
        let line = if self.is_csv { self.csv(row, &answer)? } else { self.json(row, &answer)? };
        self.write(&line)
    }

    fn csv(&self, row: &OwnRow, answer: &Value) -> Result<String> {
        let own: Vec<String> = match keys_of_table(row, &self.columns)? {
            Some(keys) => self.columns.iter().map(|column| keys.get(column).map_or_else(String::new, field)).collect(),
            None => row.cells.iter().map(|cell| field(&cell_json(cell))).collect(),
        };
        let answer = self.question.values(answer);
        Ok(csv(own.iter().chain(&answer).map(String::as_str)))
    }

    /// JSON lines stay as they were written, but for their end.
    fn json(&self, row: &OwnRow, answer: &Value) -> Result<String> {
        let key = self.question.key();
        let own = match &row.text {
            Some(text) => {
                ensure!(
                    !keys(row)?.is_some_and(|keys| keys.contains_key(key)),
                    "line {}: the row has a key `{key}`, which is the name of what is predicted: rename it",
                    row.line
                );
                let own = text.trim().strip_prefix('{').and_then(|own| own.strip_suffix('}')).unwrap_or_default();
                own.trim().to_owned()
            }
            None => {
                let cells = self.columns.iter().zip(&row.cells);
                let cells = cells.map(|(name, cell)| format!("{}:{}", json!(name), cell_json(cell)));
                cells.collect::<Vec<String>>().join(",")
            }
        };
        let comma = if own.is_empty() { "" } else { "," };
        Ok(format!("{{{own}{comma}\"{key}\":{answer}}}\n"))
    }

    fn write(&mut self, text: &str) -> Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(text.as_bytes()).map_err(unwritten),
            None => output::text(text),
        }
    }

    pub fn finish(mut self) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.flush().and_then(|()| file.get_ref().sync_all()).map_err(unwritten)
    }
}
