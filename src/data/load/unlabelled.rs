//! Rows of any file as one task reads them, for a trained model to answer.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::sync::Arc;

use anyhow::{Context, Result};
use rayon::prelude::*;

use super::plan::{InputColumns, Source};
use super::prepare::{Encoded, TokenRules, encode};
use super::stream::for_each_chunk;
use crate::config::schema::{Encoder, Format, HeadKind, OnBadRow, Task};
use crate::data::read::{BadRows, Cell, FileSpec, Item, Reader, columns, format_of, open_text};
use crate::data::split::Inputs;
use crate::data::store::{FeatureStore, TokenStore};
use crate::data::suggest::missing;
use crate::data::tokenizer::Tokenizer;
use crate::data::write::{Column, Seen, number_in};

/// A file, and how one task's input is read from its rows.
pub struct RowsToAnswer<'a> {
    source: Source,
    tokenizer: Option<&'a Tokenizer>,
    encoder: &'a Encoder,
    on_bad: OnBadRow,
}

/// Rows that lie one behind the other in the file, as examples of one split.
pub struct AnswerChunk {
    pub inputs: Inputs,
    pub rows: Vec<OwnRow>,
}

/// A row as the file has it.
pub struct OwnRow {
    pub line: u64,
    /// As [`RowsToAnswer::columns`] name them.
    pub cells: Vec<Cell>,
    /// Of JSON lines: the line.
    pub text: Option<String>,
}

/// The lines of a file once more, for rows to be kept as they are.
struct Lines {
    lines: std::io::Lines<Box<dyn BufRead + Send>>,
    /// Lines read.
    number: u64,
}

impl Lines {
    /// A line behind those read so far.
    fn get(&mut self, number: u64) -> Result<String> {
        let mut text = String::new();
        while self.number < number {
            text = self.lines.next().context("the file has become shorter while it was read")??;
            self.number += 1;
        }
        Ok(text.trim_start_matches('\u{feff}').to_owned())
    }
}

impl<'a> RowsToAnswer<'a> {
    /// The columns are looked for at once. The file is what its name says, or else what the task's files are.
    pub fn open(
        path: &std::path::Path,
        settings: &Task,
        tokenizer: Option<&'a Tokenizer>,
        encoder: &'a Encoder,
        on_bad: OnBadRow,
    ) -> Result<Self> {
        let file = file_spec(path, settings);
        let columns = columns(&file)?;
        let source = Source::of_inputs(file, columns, settings)?;
        Ok(Self { source, tokenizer, encoder, on_bad })
    }

    pub fn path(&self) -> &std::path::Path {
        &self.source.file.path
    }

    /// All columns of the file; of JSON lines, those of the first ones.
    pub fn columns(&self) -> &[String] {
        &self.source.wanted
    }

    /// The same with what each of them holds in all rows; the file is read for it. Fields of delimited text count as the numbers that
    /// they are.
    pub fn typed_columns(&self) -> Result<Vec<Column>> {
        let mut seen = vec![Seen::default(); self.source.wanted.len()];
        let is_delimited = self.is_delimited()?;
        for item in Reader::open(&self.source.file, &self.source.wanted, Arc::default())? {
            // Bad rows are told of when they are answered.
            let Item::Row(row) = item? else { continue };
            for (seen, cell) in seen.iter_mut().zip(&row.cells) {
                *seen = seen.and(match cell {
                    Cell::Text(field) if is_delimited => Seen::of(&number_in(field)),
                    cell => Seen::of(cell),
                });
            }
        }
        Ok(self.source.wanted.iter().zip(seen).map(|(name, seen)| Column::new(name, seen.kind())).collect())
    }

    /// Whether the file is TSV or CSV, whose cells are all text.
    pub fn is_delimited(&self) -> Result<bool> {
        Ok(matches!(format_of(&self.source.file)?, Format::Tsv | Format::Csv))
    }

    /// Calls `work` with all rows, in their order; rows that cannot be read are an error, or left out and counted.
    pub fn each(&self, mut work: impl FnMut(AnswerChunk) -> Result<()>) -> Result<BadRows> {
        let (path, mut bad) = (&self.source.file.path, BadRows::default());
        let keeps_text = format_of(&self.source.file)? == Format::Jsonl;
        let lines = || open_text(path, Arc::default()).map(|text| Lines { lines: text.lines(), number: 0 });
        let mut lines = keeps_text.then(lines).transpose()?;
        for_each_chunk(&self.source.file, &self.source.wanted, &Arc::default(), |items| {
            let rules = TokenRules { tokenizer: self.tokenizer, encoder: self.encoder };
            let read = |item: Item| {
                let row = match item {
                    Item::Bad(line, fault) => return Ok((line, Err(fault))),
                    Item::Row(row) => row,
                };
                let encoded = encode(&self.source.inputs[0], &row, &self.source, rules)?;
                Ok((row.line, encoded.map(|encoded| (row.cells, encoded))))
            };
            let read: Vec<Result<_>> = items.into_par_iter().map(read).collect();
            let (mut rows, mut inputs): (_, Vec<Encoded>) = (Vec::new(), Vec::new());
            for row in read {
                match row.with_context(|| path.display().to_string())? {
                    (line, Ok((cells, encoded))) => {
                        let text = lines.as_mut().map(|lines| lines.get(line)).transpose();
                        let text = text.with_context(|| path.display().to_string())?;
                        rows.push(OwnRow { line, cells, text });
                        inputs.push(encoded);
                    }
                    (line, Err(fault)) => match self.on_bad {
                        OnBadRow::Error => return Err(fault.into_error(path, line)),
                        OnBadRow::Skip => bad.add(fault, path, line),
                    },
                }
            }
            if rows.is_empty() { Ok(()) } else { work(AnswerChunk { inputs: self.inputs(inputs, &rows)?, rows }) }
        })?;
        Ok(bad)
    }

    fn inputs(&self, encoded: Vec<Encoded>, rows: &[OwnRow]) -> Result<Inputs> {
        if self.source.is_text(0) {
            let rows: Vec<(Vec<u32>, usize)> = encoded.into_iter().map(|row| (row.elements, row.first)).collect();
            let is_apart = matches!(self.source.inputs[0], InputColumns::Texts(_));
            return Ok(Inputs::Tokens(if is_apart { TokenStore::from_pairs(&rows) } else { TokenStore::from_rows(&rows) }));
        }
        let dim = encoded[0].elements.len();
        if let Some(other) = encoded.iter().position(|row| row.elements.len() != dim) {
            let (path, line, found) = (self.source.file.path.display(), rows[other].line, encoded[other].elements.len());
            anyhow::bail!("{path}:{line}: found {found} features, the rows before have {dim}");
        }
        let values = encoded.into_iter().flat_map(|row| row.elements).map(f32::from_bits).collect();
        Ok(Inputs::Features(FeatureStore::from_values(dim, values)))
    }
}

/// What the name of a file leaves open of its format, as the task's own files have it.
pub fn format_for(path: &std::path::Path, settings: &Task) -> Option<Format> {
    file_spec(path, settings).format
}

/// The columns of a file that did not exist when the task was described.
pub fn columns_of(path: &std::path::Path, settings: &Task) -> Result<Vec<String>> {
    columns(&file_spec(path, settings))
}

/// Every value of a column, as text.
pub fn values_of(path: &std::path::Path, settings: &Task, column: &String) -> Result<BTreeSet<String>> {
    let mut values = BTreeSet::new();
    for item in Reader::open(&file_spec(path, settings), std::slice::from_ref(column), Arc::default())? {
        // Bad rows are told of when they are loaded.
        if let Item::Row(row) = item?
            && let Some(value) = row.cells[0].plain()
            && !values.contains(value.as_ref())
        {
            values.insert(value.into_owned());
        }
    }
    Ok(values)
}

/// What a file lacks for a task of this kind to be scored on it, if anything.
pub fn missing_columns(settings: &Task, path: &std::path::Path, kind: HeadKind) -> Result<Option<String>> {
    if kind == HeadKind::Mlm {
        return Ok(Some("it models language, and a file has no labels for it".to_owned()));
    }
    let there = columns_of(path, settings)?;
    let needed = settings.text.iter().chain(&settings.features).chain(&settings.label);
    let lacking = needed.into_iter().find(|column| !there.contains(column));
    if settings.label.is_empty() && kind != HeadKind::Similarity {
        return Ok(Some("its rows were made up".to_owned()));
    }
    Ok(lacking.map(|column| missing("column", column, &there)))
}

/// A file that did not exist when the task was described.
fn file_spec(path: &std::path::Path, settings: &Task) -> FileSpec {
    let by_name = FileSpec { path: path.to_owned(), format: None, columns: settings.columns.clone(), quoted: settings.quoted };
    let format = if format_of(&by_name).is_ok() { None } else { settings.format };
    FileSpec { format, ..by_name }
}
