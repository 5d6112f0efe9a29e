//! `taskloom predict`: one task's answer to a text, to each line on stdin, or to each row of a file, or what its head sees of them.
//! Needs no training data.

mod answer;
mod file;
mod lines;
mod own;
mod table;

use std::io::BufRead;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use self::answer::Question;
use super::DeviceArgs;
use crate::config::schema::Encoder;
use crate::data::{
    AnswerChunk, FeatureStore, Inputs, OwnRow, RowsToAnswer, Split, Targets, TokenStore, Tokenizer, encode_apart, encode_together,
};
use crate::model::spec::HeadKind;
use crate::observe::console::Console;
use crate::output;
use crate::train::batch::evaluation_batch;
use crate::train::checkpoint::TaskState;
use crate::train::predictor::Embedder;
use crate::train::restore::{Stored, stored_model};
use crate::train::run_folder::Source;
use crate::train::setup::{load_model, set_threads};
use crate::train::tokens::evaluation_end;

#[derive(clap::Args)]
pub struct Args {
    /// Run folder or checkpoint folder
    path: PathBuf,
    #[arg(long)]
    task: String,
    /// The two texts of a pair are separated by a tab
    #[arg(long)]
    text: Option<String>,
    /// Answer each row of a file (JSON lines, TSV, CSV, Parquet) by the columns that the task reads
    #[arg(long, conflicts_with = "text")]
    file: Option<PathBuf>,
    /// Where the file's rows go with their answers, .jsonl, .csv or .parquet [default: JSON lines on stdout]
    #[arg(long, requires = "file")]
    out: Option<PathBuf>,
    /// Instead of answers, what the task's head sees: the encoder's output, a vector for each text or row
    #[arg(long)]
    embed: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Rows of a file that are answered at a time.
const ROWS: usize = 16;

pub fn run(Args { path, task, text, file, out, embed, device }: &Args) -> Result<()> {
    let driver = device.open()?;
    let console = Console::new();
    let source = Source::find(path, &mut |warning| console.say(&format!("warning: {warning}")))?;
    let number = source.state.tasks.iter().position(|known| known.name == *task);
    let names: Vec<&str> = source.state.tasks.iter().map(|known| known.name.as_str()).collect();
    let number = number.with_context(|| format!("--task: there is no task \"{task}\"; there are {}", names.join(", ")))?;
    ensure!(
        source.state.tasks[number].kind != HeadKind::Mlm,
        "--task: \"{task}\" models language: it has no answer to a text (`export` gives its encoder)"
    );
    let config = load_model(&source.run)?;
    set_threads(config.run.threads)?;
    let Stored { model, mut scratch, limits, tokenizer } = stored_model(&config, &source, if file.is_some() { ROWS } else { 1 })?;
    let task = &source.state.tasks[number];
    // A task of `tasks_from` may have no table of its own.
    let mut settings = config.tasks.get(&task.name).unwrap_or(&config.task_defaults).clone();
    let texts = settings.text.len();
    let predictor = device.predictor(driver, &model, &mut scratch, &limits)?;
    let width = model.network.spec.encoder.hidden();
    let question = if *embed { Question::Embedding { width, texts: task.kind.rows() } } else { Question::Answer(task) };
    let mut asked = Asked { predictor, question, number, task };
    if let Some(file) = file {
        if !task.features.is_empty() {
            settings.features.clone_from(&task.features);
        }
        let rows = RowsToAnswer::open(file, &settings, tokenizer.as_ref(), &config.encoder, config.data.on_bad_row)?;
        let left_out = file::answer_all(&rows, out.as_deref(), question, &settings.label, |chunk| asked.chunk(chunk))?;
        left_out.iter().for_each(|what| console.say(&format!("{}: {what}", file.display())));
        return Ok(());
    }
    let mut lines = Lines { asked, tokenizer, texts, encoder: &config.encoder };
    let mut answer = |line: &str| -> Result<()> { output::line(lines.answer(line)?) };
    match text {
        Some(text) => answer(text),
        None => {
            for (number, line) in std::io::stdin().lock().lines().enumerate() {
                let line = line.with_context(|| format!("stdin, line {}", number + 1))?;
                let answered = refuse_object(&line).and_then(|()| answer(&line));
                answered.with_context(|| format!("stdin, line {}", number + 1))?;
            }
            Ok(())
        }
    }
}

/// Inputs of so many examples whose labels nobody knows. A text alone may be asked of a task that compares two.
fn unlabelled(task: &TaskState, inputs: Inputs, examples: usize) -> Split {
    let is_pairs = matches!(&inputs, Inputs::Tokens(store) if store.len() == 2 * examples);
    let targets = match task.kind {
        HeadKind::Classification => Targets::Class(vec![0; examples]),
        HeadKind::Similarity if is_pairs => Targets::Pairs,
        _ => Targets::Values { dim: task.outputs, values: vec![f32::NAN; examples * task.outputs] },
    };
    Split { inputs, targets, unscaled: None, slices: Default::default() }
}

/// Numbers that were learned on a scale of their own, as the data has them.
fn unscale(task: &TaskState, logits: &mut [f32]) -> Result<()> {
    let Some(scale) = &task.label_scale else { return Ok(()) };
    scale.check("labels", task.outputs)?;
    logits.chunks_exact_mut(task.outputs).for_each(|row| scale.undo(row));
    Ok(())
}

/// A data file's line is not what its task reads of it.
fn refuse_object(line: &str) -> Result<()> {
    let is_object = line.trim_start().starts_with('{') && serde_json::from_str::<Map<String, Value>>(line).is_ok();
    ensure!(
        !is_object,
        "found a JSON object: give what the task reads, as plain text (the two texts of a pair separated by a tab) or features \
         as a JSON list (a text that looks like this can be given with --text)"
    );
    Ok(())
}

/// The task that is asked.
struct Asked<'a> {
    predictor: Box<dyn Embedder + 'a>,
    question: Question<'a>,
    number: usize,
    task: &'a TaskState,
}

impl Asked<'_> {
    /// (rows x the question's numbers) of a chunk's rows, some at a time.
    fn chunk(&mut self, AnswerChunk { inputs, rows }: AnswerChunk) -> Result<(Vec<OwnRow>, Vec<f32>)> {
        let mut split = unlabelled(self.task, inputs, rows.len());
        split.scale_features(self.task.feature_scale.as_ref())?;
        if let Inputs::Features(store) = &split.inputs {
            let (found, expected) = (store.dim(), self.predictor.network().spec.encoder.inputs());
            ensure!(found == expected, "found {found} features, the model takes {expected}");
        }
        let (mut numbers, mut start) = (Vec::new(), 0);
        while start < rows.len() {
            let end = evaluation_end(&split, start, ROWS, self.predictor.token_room());
            numbers.extend(self.numbers(self.question, &split, start..end)?);
            start = end;
        }
        Ok((rows, numbers))
    }

    /// The same of examples of a split that fit a batch.
    fn numbers(&mut self, question: Question, split: &Split, examples: Range<usize>) -> Result<Vec<f32>> {
        let count = examples.len() * question.numbers();
        let batch = evaluation_batch(&*self.predictor.network().spec.encoder, self.number, split, examples);
        match question {
            Question::Embedding { .. } => self.predictor.embed(&batch),
            Question::Answer(task) => {
                let mut logits = self.predictor.predict(&batch)?[..count].to_vec();
                unscale(task, &mut logits)?;
                Ok(logits)
            }
        }
    }
}

/// Lines that are answered one by one.
struct Lines<'a> {
    asked: Asked<'a>,
    tokenizer: Option<Tokenizer>,
    /// Texts of an example.
    texts: usize,
    encoder: &'a Encoder,
}

impl<'a> Lines<'a> {
    /// A text (two texts of a pair are separated by a tab), or features as a JSON list.
    fn answer(&mut self, line: &str) -> Result<Value> {
        let (question, inputs) = match &self.tokenizer {
            Some(tokenizer) => {
                let texts: Vec<&str> = line.split('\t').collect();
                (self.question(texts.len())?, Inputs::Tokens(self.tokens(tokenizer, &texts)?))
            }
            None => (self.asked.question, Inputs::Features(self.features(line)?)),
        };
        let task = self.asked.task;
        let mut split = unlabelled(task, inputs, 1);
        split.scale_features(task.feature_scale.as_ref())?;
        let answer = question.describe(&self.asked.numbers(question, &split, 0..1)?);
        // An answer has names of its own.
        Ok(if answer.is_object() { answer } else { json!({ question.key(): answer }) })
    }

    /// What is asked of so many texts. Where texts are compared, one alone has a vector too.
    fn question(&self, found: usize) -> Result<Question<'a>> {
        let Asked { question, task, .. } = self.asked;
        match (question, self.texts) {
            (Question::Embedding { width, texts: 2 }, _) if found == 1 => return Ok(Question::Embedding { width, texts: 1 }),
            (_, 1) => ensure!(found == 1, "task \"{}\" reads one text, found {found} separated by tabs", task.name),
            (_, expected) => {
                let name = &task.name;
                ensure!(found == expected, "task \"{name}\" reads a pair of texts separated by a tab, found {found}");
            }
        }
        Ok(question)
    }

    fn tokens(&self, tokenizer: &Tokenizer, texts: &[&str]) -> Result<TokenStore> {
        Ok(if self.asked.task.kind == HeadKind::Similarity && texts.len() == 2 {
            TokenStore::from_pairs(&[encode_apart(tokenizer, texts, self.encoder)?])
        } else {
            TokenStore::from_rows(&[encode_together(tokenizer, texts, self.encoder)?])
        })
    }

    fn features(&self, line: &str) -> Result<FeatureStore> {
        let values: Vec<f32> = serde_json::from_str(line).context("expected the features as a JSON list of numbers")?;
        let expected = self.asked.predictor.network().spec.encoder.inputs();
        ensure!(values.len() == expected, "found {} features, the model takes {expected}", values.len());
        if values.iter().any(|value| !value.is_finite()) {
            bail!("a feature is not finite");
        }
        Ok(FeatureStore::from_values(expected, values))
    }
}
