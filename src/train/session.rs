//! What every command that touches data or a model starts with.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};

use crate::config::Config;
use crate::config::schema::EncoderKind;
use crate::data::{self, Corpus, Progress, synthetic};
use crate::device::memory::check_machine;
use crate::model::hf::{self, HfConfig};
use crate::observe::console::Console;
use crate::train::round::Engine;

/// Half a minute.
const MOST_PRODUCTS: u64 = 1 << 35;

/// Sizes the thread pool; once per process.
pub fn set_threads(threads: usize) -> Result<()> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("cannot start worker threads")
}

/// Expands the tasks and reads their data, showing progress.
pub fn load_corpus(config: &mut Config, console: &Console) -> Result<Corpus> {
    adopt_folder(config)?;
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

/// Points the configuration at the tokenizer that was stored with the run, and takes the encoder's sizes from what was stored
/// of `encoder.from`, if they are there.
pub fn use_stored(config: &mut Config, run: &RunFiles) -> Result<()> {
    if config.encoder.kind != EncoderKind::Linear && run.tokenizer.is_file() {
        config.encoder.tokenizer = Some(run.tokenizer.display().to_string());
    }
    if config.encoder.from.is_some() && run.encoder.is_file() { adopt(config, &run.encoder) } else { Ok(()) }
}

/// Takes the encoder's sizes, and where none is set the tokenizer, from the folder that `encoder.from` names.
fn adopt_folder(config: &mut Config) -> Result<()> {
    let Some(from) = config.encoder.from.clone() else { return Ok(()) };
    let folder = Path::new(&from);
    if config.encoder.tokenizer.is_none() {
        let found = ["tokenizer.json", "vocab.txt"].into_iter().map(|name| folder.join(name)).find(|path| path.is_file());
        let found =
            found.with_context(|| format!("encoder.from: {from} has no tokenizer.json or vocab.txt; set encoder.tokenizer"))?;
        config.encoder.tokenizer = Some(found.display().to_string());
    }
    let file = folder.join("config.json");
    // A run that stored the sizes goes on without the folder.
    if config.encoder.vocabulary > 0 && !file.is_file() { Ok(()) } else { adopt(config, &file).context("encoder.from") }
}

fn adopt(config: &mut Config, file: &Path) -> Result<()> {
    let theirs = HfConfig::read(file)?;
    let encoder = &mut config.encoder;
    // (key, value here, value there, default)
    let sizes = [
        ("hidden", &mut encoder.hidden, theirs.hidden, 768),
        ("vocabulary", &mut encoder.vocabulary, theirs.vocabulary, 0),
        ("layers", &mut encoder.layers, theirs.layers, 12),
        ("heads", &mut encoder.heads, theirs.heads, 0),
        ("intermediate", &mut encoder.intermediate, theirs.intermediate, 0),
        ("positions", &mut encoder.positions, theirs.positions, 512),
    ];
    for (key, ours, theirs, default) in sizes {
        ensure!(
            [default, theirs].contains(ours),
            "encoder.{key} is {ours}, but {} says {theirs}: remove the key",
            file.display()
        );
        *ours = theirs;
    }
    encoder.norm_eps = theirs.norm_eps;
    Ok(())
}

/// Files that a run keeps of its encoder.
pub struct RunFiles {
    pub tokenizer: PathBuf,
    /// config.json of `encoder.from`.
    pub encoder: PathBuf,
}

impl RunFiles {
    pub fn of(run: &Path) -> Self {
        Self { tokenizer: run.join("tokenizer.json"), encoder: run.join("encoder.json") }
    }
}

/// Starts an engine from the weights in `encoder.from`, if that is set.
pub fn load_pretrained(config: &Config, engine: &mut Engine, console: &Console) -> Result<()> {
    let Some(from) = &config.encoder.from else { return Ok(()) };
    let notes = hf::load(Path::new(from), &engine.network, &mut engine.parameters).context("encoder.from")?;
    notes.iter().for_each(|note| console.say(note));
    Ok(())
}
