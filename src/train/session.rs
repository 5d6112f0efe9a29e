//! What every command that touches data or a model starts with.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result};

use crate::config::Config;
use crate::config::schema::EncoderKind;
use crate::data::{self, Corpus, Progress, synthetic};
use crate::observe::console::Console;

/// Sizes the thread pool; once per process.
pub fn set_threads(threads: usize) -> Result<()> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("cannot start worker threads")
}

/// Expands the tasks and reads their data, showing progress.
pub fn load_corpus(config: &mut Config, console: &Console) -> Result<Corpus> {
    data::expand(config)?;
    synthetic::expand(config)?;
    let bars = Mutex::new(HashMap::new());
    let show = |progress: Progress| {
        let mut bars = bars.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let bar = bars.entry(progress.label.to_owned()).or_insert_with(|| {
            let bar = console.reading(progress.total_bytes);
            bar.set_message(progress.label.to_owned());
            bar
        });
        bar.set_position(progress.bytes);
    };
    let mut corpus = data::load(config, &show)?;
    for bar in bars.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).values() {
        bar.finish_and_clear();
    }
    synthetic::load(config, &mut corpus)?;
    report(&corpus, console);
    Ok(corpus)
}

/// Says what was read and what was left out.
fn report(corpus: &Corpus, console: &Console) {
    for file in &corpus.files {
        if !file.bad.is_empty() {
            console.say(&format!("{}: skipped {}", file.path.display(), file.bad));
        }
        for (value, rows) in &file.other_splits {
            tracing::info!("{}: {rows} rows of split \"{value}\" are in no split", file.path.display());
        }
    }
    for task in corpus.tasks.iter().filter(|task| !task.report.is_clean()) {
        console.say(&format!("task {}: {}", task.name, task.report));
    }
}

/// Points the configuration at the tokenizer that was stored with the run, if there is one.
pub fn use_stored_tokenizer(config: &mut Config, stored: &Path) {
    if config.encoder.kind == EncoderKind::Bag && stored.is_file() {
        config.encoder.tokenizer = Some(stored.display().to_string());
    }
}
