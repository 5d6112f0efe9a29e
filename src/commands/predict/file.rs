//! `predict --file`: the answers to all rows of a file, beside the rows' own columns.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::answer::Question;
use super::lines::Lines;
use super::table::Table;
use crate::data::{AnswerChunk, OwnRow, RowsToAnswer};
use crate::failure::Stopped;
use crate::files::scratch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    JsonLines,
    Csv,
    Parquet,
}

/// Where answers go: a file that is there when it is whole, or stdout.
enum Answers<'a> {
    Lines(Lines<'a>),
    Table(Box<Table<'a>>),
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
    let added = question.names(form, labels);
    if let Some(taken) = added.iter().find(|field| rows.columns().contains(field)) {
        bail!("the file has a column `{taken}`, which is the name of what is predicted: rename it");
    }
    ensure!(
        !out.is_some_and(|out| is_same_file(out, rows.path())),
        "--out: {} is the file that is read: choose another name",
        rows.path().display()
    );
    let finished = Answers::begin(rows, out, form, question, labels).and_then(|mut answers| {
        let bad = rows.each(|chunk| {
            let (own, numbers) = answer(chunk)?;
            own.iter().zip(numbers.chunks_exact(question.numbers())).try_for_each(|(row, numbers)| answers.row(row, numbers))
        })?;
        answers.finish().map(|()| bad)
    });
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
        Some("parquet") => Ok(Form::Parquet),
        _ => bail!("--out: {}: answers are written as .jsonl, .csv or .parquet, by the name's end", out.display()),
    }
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("--out: cannot create {}", path.display()))
}

/// A write that failed.
pub fn unwritten(error: std::io::Error) -> anyhow::Error {
    Stopped(format!("cannot write --out: {error}")).into()
}

impl<'a> Answers<'a> {
    fn begin(rows: &RowsToAnswer, out: Option<&Path>, form: Form, question: Question<'a>, labels: &[String]) -> Result<Self> {
        let file = || out.map(|out| create(&scratch(out))).transpose();
        Ok(match (form, file()?) {
            (Form::Parquet, Some(file)) => Self::Table(Box::new(Table::begin(rows, file, question, labels)?)),
            (form, file) => Self::Lines(Lines::begin(rows, file, form == Form::Csv, question, labels)?),
        })
    }

    fn row(&mut self, row: &OwnRow, numbers: &[f32]) -> Result<()> {
        match self {
            Self::Lines(lines) => lines.row(row, numbers),
            Self::Table(table) => table.row(row, numbers),
        }
    }

    fn finish(self) -> Result<()> {
        match self {
            Self::Lines(lines) => lines.finish(),
            Self::Table(table) => table.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_form() {
        let form = |name: &str| form_of(Path::new(name)).ok();
        assert_eq!(form("a.CSV"), Some(Form::Csv));
        assert_eq!((form("a.jsonl"), form("a.parquet")), (Some(Form::JsonLines), Some(Form::Parquet)));
        assert_eq!((form("a.xlsx"), form("a")), (None, None));
    }
}
