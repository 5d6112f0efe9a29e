//! `taskloom predict`: one task's answer to a text, or to each line on stdin. Needs no training data.

use std::io::BufRead;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::DeviceArgs;
use crate::config::schema::Encoder;
use crate::data::{FeatureStore, Inputs, Split, Targets, TokenStore, Tokenizer, encode_texts};
use crate::model::spec::HeadKind;
use crate::observe::console::Console;
use crate::output;
use crate::train::batch::evaluation_batch;
use crate::train::checkpoint::TaskState;
use crate::train::metrics::argmax;
use crate::train::predictor::Predictor;
use crate::train::restore::{Stored, stored_model};
use crate::train::run_folder::Source;
use crate::train::setup::{load_model, set_threads};

#[derive(clap::Args)]
pub struct Args {
    /// Run folder or checkpoint folder
    path: PathBuf,
    #[arg(long)]
    task: String,
    /// The two texts of a pair are separated by a tab
    #[arg(long)]
    text: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(Args { path, task, text, device }: &Args) -> Result<()> {
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
    let Stored { model, mut scratch, limits, tokenizer } = stored_model(&config, &source)?;
    let task = &source.state.tasks[number];
    // A task of `tasks_from` may have no table of its own.
    let texts = config.tasks.get(&task.name).unwrap_or(&config.task_defaults).text.len();
    let predictor = device.predictor(driver, &model, &mut scratch, &limits)?;
    let mut asked = Asked { predictor, tokenizer, texts, encoder: &config.encoder, number, task };
    let mut answer = |line: &str| -> Result<()> { output::line(asked.answer(line)?) };
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
    predictor: Box<dyn Predictor + 'a>,
    tokenizer: Option<Tokenizer>,
    /// Texts of an example.
    texts: usize,
    encoder: &'a Encoder,
    number: usize,
    task: &'a TaskState,
}

impl Asked<'_> {
    /// A text (two texts of a pair are separated by a tab), or features as a JSON list.
    fn answer(&mut self, line: &str) -> Result<Value> {
        let inputs = match &self.tokenizer {
            Some(tokenizer) => {
                let texts: Vec<&str> = line.split('\t').collect();
                self.check_texts(texts.len())?;
                Inputs::Tokens(TokenStore::from_rows(&[encode_texts(tokenizer, &texts, self.encoder.tokens_kept(texts.len()))?]))
            }
            None => Inputs::Features(self.features(line)?),
        };
        let targets = match self.task.kind {
            HeadKind::Classification => Targets::Class(vec![0]),
            _ => Targets::Values { dim: self.task.outputs, values: vec![f32::NAN; self.task.outputs] },
        };
        let split = Split { inputs, targets, slices: Default::default() };
        let batch = evaluation_batch(&*self.predictor.network().spec.encoder, self.number, &split, 0..1);
        let logits = self.predictor.predict(&batch)?[..self.task.outputs].to_vec();
        Ok(describe(self.task, &logits))
    }

    fn check_texts(&self, found: usize) -> Result<()> {
        let task = &self.task.name;
        match self.texts {
            1 => ensure!(found == 1, "task \"{task}\" reads one text, found {found} separated by tabs"),
            expected => ensure!(found == expected, "task \"{task}\" reads a pair of texts separated by a tab, found {found}"),
        }
        Ok(())
    }

    fn features(&self, line: &str) -> Result<FeatureStore> {
        let values: Vec<f32> = serde_json::from_str(line).context("expected the features as a JSON list of numbers")?;
        let expected = self.predictor.network().spec.encoder.inputs();
        ensure!(values.len() == expected, "found {} features, the model takes {expected}", values.len());
        if values.iter().any(|value| !value.is_finite()) {
            bail!("a feature is not finite");
        }
        Ok(FeatureStore::from_values(expected, values))
    }
}

/// `{"label":..,"probabilities":{..}}`, `{"labels":[..],"probabilities":{..}}`, or `{"value":..}`; null where the model computes
/// nothing finite.
fn describe(task: &TaskState, logits: &[f32]) -> Value {
    let named = |probabilities: Vec<f64>| -> Map<String, Value> {
        task.classes.iter().cloned().zip(probabilities.into_iter().map(|p| json!(p))).collect()
    };
    let is_finite = logits.iter().all(|x| x.is_finite());
    match task.kind {
        HeadKind::Classification => {
            let peak = f64::from(logits[argmax(logits)]);
            let weights: Vec<f64> = logits.iter().map(|&x| (f64::from(x) - peak).exp()).collect();
            let total: f64 = weights.iter().sum();
            let probabilities = weights.into_iter().map(|weight| weight / total).collect();
            let label = task.classes.get(argmax(logits)).filter(|_| is_finite);
            json!({ "label": label, "probabilities": named(probabilities) })
        }
        HeadKind::Multilabel => {
            let labels: Vec<&String> = task.classes.iter().zip(logits).filter(|(_, x)| **x > 0.0).map(|(name, _)| name).collect();
            let probabilities = logits.iter().map(|&x| 1.0 / (1.0 + f64::from(-x).exp())).collect();
            json!({ "labels": is_finite.then_some(labels), "probabilities": named(probabilities) })
        }
        HeadKind::Mlm => json!(null),
        HeadKind::Regression if logits.len() == 1 => json!({ "value": logits[0] }),
        HeadKind::Regression => json!({ "values": logits }),
    }
}
