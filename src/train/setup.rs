//! What every command that touches data or a model starts with.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};

use crate::config::{self, Config, Resolved};
use crate::data::{self, Corpus, Progress, synthetic};
use crate::machine::memory::check_machine;
use crate::observe::console::Console;
use crate::train::run_folder::TOKENIZER;

/// Half a minute.
const MOST_PRODUCTS: u64 = 1 << 35;

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
    if let Some(source) = &config.synthetic {
        let (bytes, products) = synthetic::cost(source);
        check_machine("the examples of [synthetic]", bytes)?;
        ensure!(
            products <= MOST_PRODUCTS,
            "synthetic: {products} products are needed to make the tasks' directions (tasks x tasks x features); at most \
             {MOST_PRODUCTS}: lower synthetic.features, or the number of tasks"
        );
    }
    synthetic::load(config, &mut corpus)?;
    report(&corpus, console);
    Ok(corpus)
}

/// Says what was read and what was left out.
pub fn report(corpus: &Corpus, console: &Console) {
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

/// The configuration of a run, to evaluate it.
pub fn load_run(run: &Path) -> Result<Config> {
    Ok(change_run(run, &[])?.0.config)
}

/// The configuration of a run, to go on with, and what `sets` change of it ([`config::change`]).
pub fn change_run(run: &Path, sets: &[String]) -> Result<(Resolved, Map<String, Value>)> {
    let own: Vec<String> = stored_tokenizer(run)?.map(|own| format!("encoder.tokenizer={own}")).into_iter().collect();
    Ok(config::change(&run.join("config.toml"), &own, sets)?)
}

/// The configuration of a trained model: the data it was trained on may be gone by now.
pub fn load_model(run: &Path) -> Result<Config> {
    let mut config = config::load_stored(&run.join("config.toml"))?;
    if let Some(own) = stored_tokenizer(run)? {
        config.encoder.tokenizer = Some(own);
    }
    Ok(config)
}

/// The run's own copy, where it has one: the file it was made of may be gone, or another one by now.
fn stored_tokenizer(run: &Path) -> Result<Option<String>> {
    let file = std::path::absolute(run.join(TOKENIZER)).with_context(|| format!("cannot open {}", run.display()))?;
    Ok(file.is_file().then(|| file.display().to_string()))
}
