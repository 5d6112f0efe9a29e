//! `taskloom export`: a trained transformer as a Hugging Face folder, with the tasks' heads beside it.

use std::path::Path;

use anyhow::Result;

use crate::config;
use crate::data::Tokenizer;
use crate::model::hf::{self, HeadFile};
use crate::observe::console::Console;
use crate::train::restore::stored_engine;
use crate::train::run_folder::Source;
use crate::train::session::{RunFiles, set_threads, use_stored};

pub fn run(path: &Path, out: &Path) -> Result<()> {
    let console = Console::new();
    let source = Source::find(path, &mut |warning| console.say(&format!("warning: {warning}")))?;
    let mut config = config::load_stored(&source.run.join("config.toml"))?;
    use_stored(&mut config, &RunFiles::of(&source.run))?;
    set_threads(config.run.threads)?;
    let (engine, tokenizer) = stored_engine(&config, &source)?;
    let head = |task: &crate::train::checkpoint::TaskState| {
        (task.name.clone(), HeadFile { kind: task.kind, outputs: task.outputs, classes: task.classes.clone() })
    };
    let heads = source.state.tasks.iter().map(head).collect();
    let tokenizer = tokenizer.as_ref().map_or(Ok(None), Tokenizer::to_json)?;
    hf::export(out, &engine.network, &engine.parameters, &heads, tokenizer.as_deref())?;
    console.say(&format!("exported {} to {}", source.checkpoint.display(), out.display()));
    Ok(())
}
