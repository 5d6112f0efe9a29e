//! From a row to examples: pure, so that many threads can do it at once.

use anyhow::Result;

use super::plan::{InputColumns, Source, SplitRule};
use crate::config::schema::Encoder;
use crate::data::labels::{self, RawLabel};
use crate::data::read::{BadKind, Cell, Fault, Item, Row};
use crate::data::split::SplitName;
use crate::data::tokenizer::{Tokenizer, encode_texts};

/// What a line came to.
pub(super) enum Prepared {
    Bad { line: u64, fault: Fault },
    Row(PreparedRow),
}

pub(super) struct PreparedRow {
    pub line: u64,
    /// By input of the source; none where no delivery needs it.
    pub inputs: Vec<Option<Result<Encoded, Fault>>>,
    pub deliveries: Vec<Delivery>,
    /// No task of ours.
    pub other_task: bool,
    /// A split value that is none of the task's.
    pub other_split: Option<String>,
}

/// One example for one task.
pub(super) struct Delivery {
    pub sink: usize,
    pub split: SplitName,
    pub label: Result<RawLabel, Fault>,
    /// By slice; empty for rows that are trained on.
    pub slices: Vec<bool>,
}

/// Token ids, or the bits of f32 features.
pub(super) struct Encoded {
    pub elements: Vec<u32>,
    /// Length of the first text.
    pub first: usize,
}

/// How text becomes ids.
#[derive(Clone, Copy)]
pub(super) struct TokenRules<'a> {
    pub tokenizer: Option<&'a Tokenizer>,
    pub encoder: &'a Encoder,
}

/// Errors are the tokenizer's own; faults of the data are part of the result.
pub(super) fn prepare(source: &Source, rules: TokenRules<'_>, item: Item) -> Result<Prepared> {
    let row = match item {
        Item::Bad(line, fault) => return Ok(Prepared::Bad { line, fault }),
        Item::Row(row) => row,
    };
    let mut prepared = PreparedRow {
        line: row.line,
        inputs: source.inputs.iter().map(|_| None).collect(),
        deliveries: Vec::new(),
        other_task: true,
        other_split: None,
    };
    for sink_index in source.sinks_of(&row) {
        prepared.other_task = false;
        let sink = &source.sinks[sink_index];
        let Some(split) = sink.rule.split_of(&row) else {
            prepared.other_split = Some(split_value(&sink.rule, &row));
            continue;
        };
        let label = labels::parse(sink.form, &row, &sink.label, &sink.label_names);
        if label.as_ref().is_ok_and(|label| *label != RawLabel::Missing) && prepared.inputs[sink.input].is_none() {
            prepared.inputs[sink.input] = Some(encode(&source.inputs[sink.input], &row, source, rules)?);
        }
        let slices = if split == SplitName::Train && !sink.held_out { &[] } else { sink.slices.as_slice() };
        let slices = slices.iter().map(|(column, value)| row.cells[*column].equals(value)).collect();
        prepared.deliveries.push(Delivery { sink: sink_index, split, label, slices });
    }
    Ok(Prepared::Row(prepared))
}

fn split_value(rule: &SplitRule, row: &Row) -> String {
    match rule {
        SplitRule::Column { column, .. } => row.cells[*column].plain().unwrap_or_default().into_owned(),
        SplitRule::Always(split) => split.as_str().to_owned(),
    }
}

pub(super) fn encode(input: &InputColumns, row: &Row, source: &Source, rules: TokenRules<'_>) -> Result<Result<Encoded, Fault>> {
    match input {
        InputColumns::Features(columns) => Ok(features(columns, row, source)),
        InputColumns::Text(columns) | InputColumns::Texts(columns) => {
            let tokenizer = rules.tokenizer.ok_or_else(|| {
                anyhow::anyhow!("text needs a tokenizer: set encoder.tokenizer (words, a vocab.txt or a tokenizer.json)")
            })?;
            let mut texts = Vec::with_capacity(columns.len());
            for &column in columns {
                match text(&row.cells[column], &source.wanted[column]) {
                    Ok(text) => texts.push(text),
                    Err(fault) => return Ok(Err(fault)),
                }
            }
            let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
            let encode = if let InputColumns::Texts(_) = input { encode_apart } else { encode_together };
            let (elements, first) = encode(tokenizer, &texts, rules.encoder)?;
            Ok(Ok(Encoded { elements, first }))
        }
    }
}

/// Ids of texts that are one sequence, and the length of the first.
pub fn encode_together(tokenizer: &Tokenizer, texts: &[&str], encoder: &Encoder) -> Result<(Vec<u32>, usize)> {
    encode_texts(tokenizer, texts, encoder.tokens_kept(texts.len()))
}

/// As [`encode_together`], of texts that are a sequence each, and cut by themselves.
pub fn encode_apart(tokenizer: &Tokenizer, texts: &[&str], encoder: &Encoder) -> Result<(Vec<u32>, usize)> {
    let (mut ids, mut first) = (Vec::new(), 0);
    for (number, &text) in texts.iter().enumerate() {
        ids.extend(encode_texts(tokenizer, &[text], encoder.tokens_kept(1))?.0);
        first = if number == 0 { ids.len() } else { first };
    }
    Ok((ids, first))
}

/// An empty text is a text; null or an absent key is none.
fn text<'a>(cell: &'a Cell, name: &str) -> Result<std::borrow::Cow<'a, str>, Fault> {
    cell.plain()
        .ok_or_else(|| Fault::new(BadKind::MissingText, format!("text column `{name}` holds {}, expected text", cell.kind())))
}

/// One column holding a list, or one number per column.
fn features(columns: &[usize], row: &Row, source: &Source) -> Result<Encoded, Fault> {
    let mut values: Vec<f32> = Vec::with_capacity(columns.len());
    for &column in columns {
        let before = values.len();
        let (cell, name) = (&row.cells[column], &source.wanted[column]);
        push_features(cell, &mut values).map_err(|found| {
            let message = format!("feature column `{name}` holds {found}, expected finite numbers");
            Fault::new(BadKind::BadFeatures, message)
        })?;
        let found = values.len() - before;
        if columns.len() > 1 && found != 1 {
            let message = format!("feature column `{name}` holds {found} numbers, expected one per column");
            return Err(Fault::new(BadKind::FeatureCount, message));
        }
    }
    if values.is_empty() {
        return Err(Fault::new(BadKind::FeatureCount, "found no features"));
    }
    Ok(Encoded { first: values.len(), elements: bytemuck::cast_vec(values) })
}

/// How many numbers a cell holds; none where it is no list of finite ones.
pub(in crate::data) fn feature_count(cell: &Cell) -> Option<usize> {
    let mut values = Vec::new();
    push_features(cell, &mut values).ok()?;
    Some(values.len()).filter(|count| *count > 0)
}

/// Text may list numbers between blanks, commas or semicolons, in brackets or not. The error is what was found instead.
fn push_features(cell: &Cell, values: &mut Vec<f32>) -> Result<(), String> {
    let mut push = |value: f64, shown: &str| {
        let value = value as f32;
        values.push(value);
        if value.is_finite() { Ok(()) } else { Err(format!("`{shown}`")) }
    };
    match cell {
        Cell::Numbers(numbers) => numbers.iter().try_for_each(|&number| push(number, &number.to_string())),
        Cell::Float(value) => push(*value, &value.to_string()),
        Cell::Integer(value) => push(*value as f64, &value.to_string()),
        Cell::Text(text) => {
            let text = text.trim().trim_start_matches('[').trim_end_matches(']');
            let mut numbers = text.split([' ', ',', ';', '\t']).filter(|number| !number.is_empty());
            numbers.try_for_each(|number| push(number.parse().unwrap_or(f64::NAN), number))
        }
        cell => Err(cell.kind().to_owned()),
    }
}
