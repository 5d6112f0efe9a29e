//! `predict --file`: the answers to all rows of a file, beside the rows' own columns.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::answer::Question;
use crate::data::{AnswerChunk, Cell, OwnRow, RowsToAnswer};
use crate::failure::Stopped;
use crate::files::scratch;
use crate::output::{self, csv};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    JsonLines,
    Csv,
}

/// Where answers go: a file that is there when it is whole, or stdout.
struct Answers<'a> {
    question: Question<'a>,
    form: Form,
    columns: Vec<String>,
    file: Option<BufWriter<File>>,
}

/// Answers all rows, of which `answer` gives the question's numbers; `labels` are the columns the task learned from. Returns
/// what was left out, if anything was.
pub fn answer_all(
    rows: &RowsToAnswer,
    out: Option<&Path>,
    question: Question,
    labels: &[String],
    mut answer: impl FnMut(AnswerChunk) -> Result<(Vec<OwnRow>, Vec<f32>)>,
) -> Result<Option<String>> {
    let form = out.map_or(Ok(Form::JsonLines), form_of)?;
    let added = if form == Form::Csv { question.fields(labels) } else { vec![question.key().to_owned()] };
    if let Some(taken) = added.iter().find(|field| rows.columns().contains(field)) {
        bail!("the file has a column `{taken}`, which is the name of what is predicted: rename it");
    }
    ensure!(
        !out.is_some_and(|out| is_same_file(out, rows.path())),
        "--out: {} is the file that is read: choose another name",
        rows.path().display()
    );
    let file = out.map(|out| create(&scratch(out))).transpose()?;
    let mut answers = Answers { question, form, columns: rows.columns().to_vec(), file };
    if form == Form::Csv {
        answers.write(&csv(answers.columns.iter().chain(&added).map(String::as_str)))?;
    }
    let written = rows.each(|chunk| {
        let (own, numbers) = answer(chunk)?;
        own.iter().zip(numbers.chunks_exact(question.numbers())).try_for_each(|(row, numbers)| answers.row(row, numbers))
    });
    let finished = written.and_then(|bad| answers.finish().map(|()| bad));
    if let Some(out) = out {
        let scratch = scratch(out);
        if finished.is_err() {
            // What is left is no result.
            let _ = std::fs::remove_file(&scratch);
        } else {
            std::fs::rename(&scratch, out).map_err(|error| Stopped(format!("cannot write {}: {error}", out.display())))?;
        }
    }
    let bad = finished?;
    Ok((!bad.is_empty()).then(|| format!("left out {bad}")))
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    one.canonicalize().ok().is_some_and(|one| other.canonicalize().is_ok_and(|other| one == other))
}

fn form_of(out: &Path) -> Result<Form> {
    match out.extension().map(|extension| extension.to_string_lossy().to_lowercase()).as_deref() {
        Some("jsonl" | "ndjson") => Ok(Form::JsonLines),
        Some("csv") => Ok(Form::Csv),
        _ => bail!("--out: {}: answers are written as .jsonl or .csv, by the name's end", out.display()),
    }
}

fn create(path: &Path) -> Result<BufWriter<File>> {
    File::create(path).map(BufWriter::new).with_context(|| format!("--out: cannot create {}", path.display()))
}

impl Answers<'_> {
    fn row(&mut self, row: &OwnRow, numbers: &[f32]) -> Result<()> {
        let answer = self.question.describe(numbers);
        let line = match self.form {
            Form::JsonLines => self.json(row, &answer)?,
            Form::Csv => {
                let own = self.own_fields(row)?;
                let answer = self.question.values(&answer);
                csv(own.iter().chain(&answer).map(String::as_str))
            }
        };
        self.write(&line)
    }

    /// JSON lines stay as they were written, but for their end.
    fn json(&self, row: &OwnRow, answer: &Value) -> Result<String> {
        let key = self.question.key();
        let own = match &row.text {
            Some(text) => {
                let keys: Map<String, Value> = serde_json::from_str(text).context("a JSON line that was read before")?;
                ensure!(
                    !keys.contains_key(key),
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

    fn own_fields(&self, row: &OwnRow) -> Result<Vec<String>> {
        let Some(text) = &row.text else { return Ok(row.cells.iter().map(|cell| field(&cell_json(cell))).collect()) };
        let keys: Map<String, Value> = serde_json::from_str(text).context("a JSON line that was read before")?;
        if let Some(late) = keys.keys().find(|key| !self.columns.contains(key)) {
            bail!(
                "line {}: the key `{late}` is in none of the first rows, which name the table's columns: write .jsonl",
                row.line
            );
        }
        Ok(self.columns.iter().map(|column| keys.get(column).map_or_else(String::new, field)).collect())
    }

    fn write(&mut self, text: &str) -> Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(text.as_bytes()).map_err(|error| Stopped(format!("cannot write --out: {error}")).into()),
            None => output::text(text),
        }
    }

    fn finish(&mut self) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let synced = file.flush().and_then(|()| file.get_ref().sync_all());
        synced.map_err(|error| Stopped(format!("cannot write --out: {error}")).into())
    }
}

fn cell_json(cell: &Cell) -> Value {
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

/// What a cell of a table holds of it.
fn field(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_form() {
        assert!(form_of(Path::new("a.CSV")).is_ok_and(|form| form == Form::Csv));
        assert!(form_of(Path::new("a.jsonl")).is_ok_and(|form| form == Form::JsonLines));
        assert!(form_of(Path::new("a.parquet")).is_err() && form_of(Path::new("a")).is_err());
    }
}
