//! Files to a [`Corpus`]: rows are read in chunks, tokenized by all threads, and stored in file order.
//!
//! The result depends on the files and the configuration only, never on the number of threads.

mod collect;
mod hold_out;
mod plan;
mod prepare;
mod stream;
mod unlabelled;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use self::collect::{Example, TaskBuilder};
use self::plan::Source;
pub(super) use self::plan::{file_spec, files_of, task_column};
pub(super) use self::prepare::feature_count;
use self::prepare::{Delivery, Encoded, Prepared, PreparedRow, TokenRules, prepare};
pub use self::prepare::{encode_apart, encode_together};
pub use self::unlabelled::{AnswerChunk, OwnRow, RowsToAnswer, columns_of, format_for, missing_columns, values_of};
use super::labels::RawLabel;
use super::read::{Fault, Item};
use super::split::{Corpus, FileReport, Progress, TaskData};
use super::store::{Elements, RowRef, Spill, Width};
use super::tokenizer::Tokenizer;
use crate::config::schema::{Config, HeadKind, OnBadRow, Task};

/// Distinct foreign split values named in a report.
const MOST_OTHER_SPLITS: usize = 20;

/// Reads all tasks but the synthetic ones. Call [`super::expand`] before, where there is `tasks_from`.
pub fn load(config: &Config, progress: &(dyn Fn(Progress<'_>) + Sync)) -> Result<Corpus> {
    load_rows(config, "training examples", progress)
}

/// As [`load`], of tasks whose training rows are there to be scored.
pub fn load_labelled(config: &Config, progress: &(dyn Fn(Progress<'_>) + Sync)) -> Result<Corpus> {
    load_rows(config, "rows with a label", progress)
}

/// `what` the training rows are, for messages.
fn load_rows(config: &Config, what: &str, progress: &(dyn Fn(Progress<'_>) + Sync)) -> Result<Corpus> {
    let tasks: Vec<(&String, &Task)> = config.tasks.iter().filter(|(_, task)| task.synthetic.is_none()).collect();
    let sources = plan::sources(config, &tasks).map_err(|error| with_origin(error, config))?;
    let tokenizer = open_tokenizer(config, &tasks)?;
    let mut loader = Loader {
        tasks: tasks.iter().map(|(name, task)| TaskBuilder::new(name, task, config.run.seed)).collect(),
        spills: Spills::new(tokenizer.as_deref()),
        on_bad: config.data.on_bad_row,
    };
    let rules = TokenRules { tokenizer: tokenizer.as_deref(), encoder: &config.encoder };
    let mut files = Vec::with_capacity(sources.len());
    for source in &sources {
        files.push(loader.read(source, rules, progress).map_err(|error| with_origin(error, config))?);
    }
    let feature_dim = loader.common_dim()?;
    let slice_names: Vec<String> = config.eval.slices.keys().cloned().collect();
    let Loader { tasks: builders, spills, on_bad } = loader;
    let (tokens, features) = spills.finish()?;
    let finish = |(index, builder): (usize, TaskBuilder)| {
        let elements = if builder.dim().is_some() { &features } else { &tokens };
        let unused = unused_rows(index, &sources, &files);
        builder.finish(elements, &slice_names, on_bad, what, &unused)
    };
    let mut tasks: Vec<TaskData> = builders.into_iter().enumerate().map(finish).collect::<Result<_>>()?;
    let words = tokenizer.as_deref().and_then(Tokenizer::vocab_size).unwrap_or(0).max(config.encoder.vocabulary);
    for task in &mut tasks {
        match task.settings.head {
            HeadKind::Mlm => task.outputs = words,
            HeadKind::Similarity => task.outputs = config.encoder.hidden,
            _ => {}
        }
    }
    Ok(Corpus { tasks, feature_dim, tokenizer, files })
}

struct Loader {
    tasks: Vec<TaskBuilder>,
    spills: Spills,
    on_bad: OnBadRow,
}

/// The two spill files; each is created when first used.
struct Spills {
    token_width: Width,
    tokens: Option<Spill>,
    features: Option<Spill>,
}

impl Spills {
    fn new(tokenizer: Option<&Tokenizer>) -> Spills {
        let vocab = tokenizer.and_then(Tokenizer::vocab_size);
        let token_width = if vocab.is_some_and(|size| size <= 1 << 16) { Width::Narrow } else { Width::Wide };
        Spills { token_width, tokens: None, features: None }
    }

    fn store(&mut self, encoded: &Encoded, is_text: bool) -> Result<RowRef> {
        let (spill, width) = if is_text { (&mut self.tokens, self.token_width) } else { (&mut self.features, Width::Wide) };
        let spill = match spill {
            Some(spill) => spill,
            none => none.insert(Spill::new(width)?),
        };
        let offset = spill.push(&encoded.elements)?;
        Ok(RowRef { offset, len: encoded.elements.len() as u32, first: encoded.first as u32 })
    }

    fn finish(self) -> Result<(Arc<Elements>, Arc<Elements>)> {
        let finish = |spill: Option<Spill>| match spill {
            Some(spill) => spill.finish(),
            None => Ok(Elements::in_memory(Vec::new())),
        };
        Ok((finish(self.tokens)?, finish(self.features)?))
    }
}

impl Loader {
    fn read(&mut self, source: &Source, rules: TokenRules<'_>, progress: &(dyn Fn(Progress<'_>) + Sync)) -> Result<FileReport> {
        let path = &source.file.path;
        let mut report = FileReport { path: path.clone(), ..FileReport::default() };
        let label = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let total_bytes = std::fs::metadata(path).map(|metadata| metadata.len()).unwrap_or(0);
        let bytes_read = Arc::new(AtomicU64::new(0));
        stream::for_each_chunk(&source.file, &source.wanted, &bytes_read, |chunk: Vec<Item>| {
            let prepared: Vec<Result<Prepared>> = chunk.into_par_iter().map(|item| prepare(source, rules, item)).collect();
            for prepared in prepared {
                report.rows += 1;
                match prepared.with_context(|| path.display().to_string())? {
                    Prepared::Bad { line, fault } => match self.on_bad {
                        OnBadRow::Error => return Err(fault.into_error(path, line)),
                        OnBadRow::Skip => report.bad.add(fault, path, line),
                    },
                    Prepared::Row(row) => self.deliver(source, row, &mut report)?,
                }
            }
            let bytes = bytes_read.load(Ordering::Relaxed);
            progress(Progress { label: &label, rows: report.rows, bytes, total_bytes });
            Ok(())
        })?;
        Ok(report)
    }

    fn deliver(&mut self, source: &Source, row: PreparedRow, report: &mut FileReport) -> Result<()> {
        report.other_tasks += u64::from(row.other_task);
        if let Some(value) = row.other_split {
            let known = report.other_splits.len() < MOST_OTHER_SPLITS || report.other_splits.contains_key(&value);
            if known {
                *report.other_splits.entry(value).or_default() += 1;
            }
        }
        let mut stored: Vec<Option<RowRef>> = vec![None; row.inputs.len()];
        for delivery in row.deliveries {
            let task = source.sinks[delivery.sink].task;
            let taken = self.take(source, delivery, &row.inputs, &mut stored, row.line)?;
            if let Err(fault) = taken {
                match self.on_bad {
                    OnBadRow::Error => return Err(fault.into_error(&source.file.path, row.line)),
                    OnBadRow::Skip => self.tasks[task].count_bad(fault, &source.file.path, row.line),
                }
            }
        }
        Ok(())
    }

    /// Gives one example to one task. The outer error is ours (a full disk), the inner one the row's.
    fn take(
        &mut self,
        source: &Source,
        delivery: Delivery,
        inputs: &[Option<Result<Encoded, Fault>>],
        stored: &mut [Option<RowRef>],
        line: u64,
    ) -> Result<Result<(), Fault>> {
        let sink = &source.sinks[delivery.sink];
        let task = &mut self.tasks[sink.task];
        let label = match delivery.label {
            Ok(RawLabel::Missing) => {
                task.count_missing_label(delivery.split);
                return Ok(Ok(()));
            }
            Ok(label) => label,
            Err(fault) => return Ok(Err(fault)),
        };
        let encoded = match &inputs[sink.input] {
            Some(Ok(encoded)) => encoded,
            Some(Err(fault)) => return Ok(Err(fault.clone())),
            None => return Ok(Ok(())),
        };
        if let Err(fault) = task.check_width(encoded.elements.len()) {
            return Ok(Err(fault));
        }
        let row = match stored[sink.input] {
            Some(row) => row,
            None => *stored[sink.input].insert(self.spills.store(encoded, source.is_text(sink.input))?),
        };
        let (split, slices) = (delivery.split, delivery.slices.as_slice());
        let example = Example { split, label, elements: &encoded.elements, row, slices };
        Ok(task.add(example, &source.file.path, line))
    }

    /// The feature count all dense tasks share.
    fn common_dim(&self) -> Result<Option<usize>> {
        let mut dims = self.tasks.iter().filter_map(|task| Some((task.name(), task.dim()?)));
        let Some((first, dim)) = dims.next() else { return Ok(None) };
        for (name, other) in dims {
            ensure!(
                other == dim,
                "tasks `{first}` and `{name}` have {dim} and {other} features; the shared encoder needs the same number"
            );
        }
        Ok(Some(dim))
    }
}

fn open_tokenizer(config: &Config, tasks: &[(&String, &Task)]) -> Result<Option<Arc<Tokenizer>>> {
    let Some((name, _)) = tasks.iter().find(|(_, task)| !task.text.is_empty()) else { return Ok(None) };
    let spec = config
        .encoder
        .tokenizer
        .as_deref()
        .with_context(|| format!("task `{name}` has text: set encoder.tokenizer (words, a vocab.txt or a tokenizer.json)"))?;
    Ok(Some(Arc::new(Tokenizer::open(spec, config.encoder.lowercase)?)))
}

/// Why a task may have got no rows from its files: shown when it has nothing to train on.
fn unused_rows(task: usize, sources: &[Source], files: &[FileReport]) -> String {
    let used = sources.iter().zip(files).filter(|(source, _)| source.sinks.iter().any(|sink| sink.task == task));
    let described = used.map(|(_, file)| {
        let path = file.path.display();
        let mut text = format!("{} rows in {path}", file.rows);
        if !file.bad.is_empty() {
            text += &format!(", {} of them bad ({})", file.bad.total(), file.bad);
        }
        if !file.other_splits.is_empty() {
            let values: Vec<&String> = file.other_splits.keys().collect();
            text += &format!(", with other values of the split column: {}", super::suggest::list(&values));
        }
        text
    });
    described.collect::<Vec<_>>().join("; ")
}

/// A missing file is where `data.origin` helps.
fn with_origin(error: anyhow::Error, config: &Config) -> anyhow::Error {
    let origin = config.data.origin.trim();
    if origin.is_empty() || !format!("{error:#}").contains("no such file") {
        return error;
    }
    anyhow::anyhow!("{error:#} (data.origin: {origin})")
}
