//! `taskloom export`: a trained transformer as a Hugging Face folder, with the tasks' heads beside it.

use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::config::Config;
use crate::data::Tokenizer;
use crate::failure::Stopped;
use crate::model::hf::{self, HeadFile, HfTokenizer, SpecialToken};
use crate::model::spec::HeadKind;
use crate::model::transformer::TransformerSpec;
use crate::observe::console::Console;
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
}

pub fn run(Args { path, out }: &Args) -> Result<()> {
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
    let heads = source.state.tasks.iter().map(head).collect();
    let tokenizer = tokenizer.map_or(Ok(None), |tokenizer| exported(&tokenizer, spec, &config))?;
    let written = hf::export(out, &model.network, &model.parameters, &heads, tokenizer.as_ref());
    written.map_err(|error| Stopped(format!("{error:#}")))?;
    console.say(&format!("exported {} to {}", source.checkpoint.display(), out.display()));
    Ok(())
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
    let around = 1 + tasks.map(|task| task.text.len()).max().unwrap_or(1).max(1);
    let max_len = spec.positions.min(config.encoder.max_len.saturating_add(around));
    let special = tokenizer.special_tokens().into_iter().map(|(role, token, id)| SpecialToken { role, token, id }).collect();
    Ok(Some(HfTokenizer { json, special, max_len }))
}
