//! `taskloom export`: a trained transformer as a Hugging Face folder, with the tasks' heads beside it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::config::Config;
use crate::data::Tokenizer;
use crate::failure::Stopped;
use crate::files::write_whole;
use crate::model::hf::{self, Classifier, HeadFile, HfTokenizer, SpecialToken};
use crate::model::spec::HeadKind;
use crate::model::transformer::TransformerSpec;
use crate::observe::console::Console;
use crate::output;
use crate::train::checkpoint::TaskState;
use crate::train::restore::{Stored, stored_model};
use crate::train::run_folder::Source;
use crate::train::setup::{load_model, set_threads};

#[derive(clap::Args)]
pub struct Args {
    /// Run folder or checkpoint folder
    path: PathBuf,
    #[arg(long)]
    out: PathBuf,
    /// As a BertForSequenceClassification with this task's head; needs encoder.pooling = "pooler"
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
}

pub fn run(Args { path, out, task }: &Args) -> Result<()> {
    let console = Console::new();
    let source = Source::find(path, &mut |warning| console.say(&format!("warning: {warning}")))?;
    let config = load_model(&source.run)?;
    let out = &free_folder(out, config.encoder.from.as_deref())?;
    set_threads(config.run.threads)?;
    let Stored { model, tokenizer, .. } = stored_model(&config, &source, 1)?;
    let encoder = model.network.spec.encoder.transformer();
    let kind = config.encoder.kind.name();
    let other = || format!("only a transformer encoder has a Hugging Face form; this run's is {kind}");
    let spec = &encoder.with_context(other)?.spec;
    let head = |task: &TaskState| {
        let pooling = (task.kind != HeadKind::Mlm).then_some(spec.pooling);
        let scale = task.label_scale.clone();
        let (label_mean, label_deviation) = scale.map_or_else(Default::default, |scale| (scale.mean, scale.deviation));
        let classes = task.classes.clone();
        let head = HeadFile { kind: task.kind, outputs: task.outputs, classes, label_deviation, label_mean, pooling };
        (task.name.clone(), head)
    };
    let heads: BTreeMap<String, HeadFile> = source.state.tasks.iter().map(head).collect();
    let classifier = |name: &String| {
        let names: Vec<&str> = source.state.tasks.iter().map(|task| task.name.as_str()).collect();
        let number = names.iter().position(|own| own == name);
        let number = number.with_context(|| format!("--task: there is no task `{name}`; there are {}", names.join(", ")))?;
        Classifier::new(&model.network, &model.parameters, number, &heads[name]).with_context(|| format!("--task {name}"))
    };
    let classifier = task.as_ref().map(classifier).transpose()?;
    let tokenizer = tokenizer.map_or(Ok(None), |tokenizer| exported(&tokenizer, spec, &config))?;
    let written = hf::export(out, &model.network, &model.parameters, &heads, tokenizer.as_ref(), classifier.as_ref());
    written.map_err(|error| Stopped(format!("{error:#}")))?;
    console.say(&format!("exported {} to {}", source.checkpoint.display(), out.display()));
    let snippet = snippet(out, classifier.is_some(), tokenizer.is_some());
    let readme = format!("# {}\n\nWritten by `taskloom export`. To load it:\n\n```python\n{snippet}```\n", config.run.name);
    write_whole(&out.join("README.md"), &readme).map_err(|error| Stopped(format!("{error:#}")))?;
    output::text(snippet)
}

/// How transformers loads the folder, in Python.
fn snippet(out: &Path, is_classifier: bool, has_tokenizer: bool) -> String {
    let class = if is_classifier { "AutoModelForSequenceClassification" } else { "AutoModel" };
    let output = if is_classifier { "logits" } else { "last_hidden_state" };
    let folder = format!("{:?}", out.display().to_string());
    let model = format!("model = {class}.from_pretrained({folder})\n");
    match has_tokenizer {
        true => format!(
            "from transformers import {class}, AutoTokenizer\n\ntokenizer = AutoTokenizer.from_pretrained({folder})\n{model}\
             print(model(**tokenizer(\"a text\", return_tensors=\"pt\")).{output})\n"
        ),
        false => format!("from transformers import {class}\n\n{model}"),
    }
}

/// Where `out` leads: to a new or empty folder that is not in the one the run started from.
fn free_folder(out: &Path, from: Option<&str>) -> Result<PathBuf> {
    let path = resolved(out)?;
    if let Some(from) = from.and_then(|from| Path::new(from).canonicalize().ok()) {
        ensure!(
            !path.starts_with(&from),
            "--out: {} is in {}, the encoder that the run started from (encoder.from): choose another folder",
            out.display(),
            from.display()
        );
    }
    match path.read_dir() {
        Ok(mut entries) => {
            ensure!(entries.next().is_none(), "--out: {} is not empty: choose a new folder, or empty it", out.display());
            Ok(path)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(path),
        Err(error) => Err(error).with_context(|| format!("--out: {} cannot be written to", out.display())),
    }
}

/// A path without links and `..`, though its end need not be there yet.
fn resolved(path: &Path) -> Result<PathBuf> {
    let whole = std::path::absolute(path).with_context(|| format!("--out: \"{}\" is no path", path.display()))?;
    let mut there = PathBuf::new();
    for part in whole.components() {
        match part {
            // What comes before has no links any more, or is not there.
            Component::ParentDir => {
                there.pop();
            }
            part => there.push(part),
        }
        there = there.canonicalize().unwrap_or(there);
    }
    Ok(there)
}

/// Texts were cut to `encoder.max_len` tokens without the special ones: two beside a text, three beside a pair.
fn exported(tokenizer: &Tokenizer, spec: &TransformerSpec, config: &Config) -> Result<Option<HfTokenizer>> {
    let Some(json) = tokenizer.to_json()? else { return Ok(None) };
    let tasks = config.tasks.values().chain([&config.task_defaults]);
    let around = 1 + tasks.map(|task| task.text.len() / task.head.rows()).max().unwrap_or(1).max(1);
    let max_len = spec.positions.min(config.encoder.max_len.saturating_add(around));
    let special = tokenizer.special_tokens().into_iter().map(|(role, token, id)| SpecialToken { role, token, id }).collect();
    Ok(Some(HfTokenizer { json, special, max_len }))
}
