//! `encoder.from`: a Hugging Face folder whose encoder a run starts from. Its sizes become the configuration's, its tokenizer
//! too where none is set, and its weights the first parameters.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::config::schema::{Config, EncoderKind, HeadKind};
use crate::config::{Resolved, Settled, Unsettled, cache_place, frozen_blocks, is_model_name, model_caches};
use crate::data::Tokenizer;
use crate::machine::Device;
use crate::model::encoders::Encoder;
use crate::model::hf::{self, HfConfig};
use crate::observe::console::Console;
use crate::train::encoder::transformer;
use crate::train::fetch;
use crate::train::placement::STAY_ON_CPU;
use crate::train::round::Trainer;

const FROM: &str = "encoder.from";

/// What is wrong with a key.
type Problem = (String, String);

/// Completes the configuration with what the folder says. Every problem, as (key, message).
pub fn adopt(resolved: &mut Resolved) -> Vec<Problem> {
    let Some(written) = &resolved.config.encoder.from else { return Vec::new() };
    let problem = |message: String| vec![(FROM.to_owned(), message)];
    if !Path::new(written).is_dir() {
        match fetched(Path::new(written), &resolved.config.data.root) {
            Ok(folder) => resolved.place("encoder", "from", &folder),
            Err(message) => return problem(message),
        }
    }
    let from = resolved.config.encoder.from.clone().unwrap_or_default();
    let folder = Path::new(&from);
    let file = folder.join("config.json");
    let theirs = match HfConfig::read(&file) {
        Ok(theirs) => theirs,
        Err(error) => return problem(format!("{error:#}")),
    };
    let keys = &theirs.family.keys;
    let mut problems = Vec::new();
    for (name, their_name, value) in [
        ("hidden", keys.hidden, Settled::Size(theirs.hidden)),
        ("vocabulary", "vocab_size", Settled::Size(theirs.vocabulary)),
        ("layers", keys.layers, Settled::Size(theirs.layers)),
        ("heads", keys.heads, Settled::Size(theirs.heads)),
        ("intermediate", keys.intermediate, Settled::Size(theirs.intermediate)),
        ("positions", "max_position_embeddings", Settled::Size(theirs.positions)),
        ("norm_eps", "layer_norm_eps", Settled::Number(theirs.norm_eps)),
    ] {
        let shown = match &value {
            Settled::Size(size) => size.to_string(),
            Settled::Number(number) => number.to_string(),
            Settled::Text(text) => text.clone(),
        };
        let (key, said) = match resolved.settle("encoder", name, value, FROM) {
            Ok(()) => continue,
            Err(Unsettled::Outside(expected)) => {
                (FROM.to_owned(), format!("{}: {their_name} is {shown}, expected {expected}", file.display()))
            }
            Err(Unsettled::Written(ours)) => {
                let said = format!("is {ours}, but {their_name} in {} is {shown}: remove the key", file.display());
                (format!("encoder.{name}"), said)
            }
        };
        problems.push((key, said));
    }
    if resolved.config.encoder.tokenizer.is_none() {
        match ["tokenizer.json", "vocab.txt"].into_iter().map(|name| folder.join(name)).find(|path| path.is_file()) {
            // Any text is a path: there is nothing to refuse.
            Some(path) => drop(resolved.settle("encoder", "tokenizer", Settled::Text(path.display().to_string()), FROM)),
            None => problems.extend(problem(format!("{from} has no tokenizer.json or vocab.txt: set encoder.tokenizer"))),
        }
    }
    problems
}

/// The model of this name, fetched; else why there is no such folder, and where a model of this name would be.
fn fetched(folder: &Path, root: &Path) -> Result<PathBuf, String> {
    if folder.exists() {
        return Err(format!("is a file, not a folder: {}", folder.display()));
    }
    let said = format!("no such folder: {}", folder.display());
    let name = folder.strip_prefix(root).ok().and_then(Path::to_str).filter(|name| is_model_name(name));
    let (Some(name), caches) = (name, model_caches()) else { return Err(said) };
    let why = match (fetch::offline(), caches.first()) {
        (Some(why), _) => format!("{why}, so that nothing is fetched"),
        (None, None) => "there is no cache folder to fetch it into: set HF_HOME".to_owned(),
        (None, Some(cache)) => match fetch::fetch(name, cache, &Console::new()) {
            Ok(folder) => return Ok(folder),
            Err(error) => format!("{} does not give it ({error:#})", fetch::endpoint()),
        },
    };
    let places: Vec<String> = caches.iter().map(|cache| cache_place(name, cache).display().to_string()).collect();
    Err(format!(
        "{said}; nor has a model of this name been fetched (looked for {}), and {why}: fetch it elsewhere with \
         `hf download {name}`, or name its folder",
        places.join(", ")
    ))
}

/// Whether tokenizer, frozen blocks and weights go together with a transformer's sizes. Every problem, as (key, message).
pub fn check(config: &Config) -> Vec<Problem> {
    let encoder = &config.encoder;
    // An unreadable tokenizer is told with the data's other files.
    let tokenizer = encoder.tokenizer.as_deref().and_then(|spec| Tokenizer::open(spec, encoder.lowercase).ok());
    let (EncoderKind::Transformer, Some(tokenizer)) = (encoder.kind, tokenizer) else { return Vec::new() };
    if let Err(message) = frozen_blocks(&encoder.freeze, Some(encoder.layers)) {
        return vec![("encoder.freeze".to_owned(), message)];
    }
    let transformer = match transformer(config, Some(&tokenizer)) {
        Ok(transformer) => transformer,
        Err(error) => return vec![("encoder.tokenizer".to_owned(), format!("{error:#}"))],
    };
    let mut problems = Vec::new();
    let predicts_words = config.tasks.iter().find(|(_, task)| task.head == HeadKind::Mlm);
    if let (Some((name, _)), None) = (predicts_words, transformer.spec.mask) {
        problems.push((format!("tasks.{name}.head"), NO_MASK.to_owned()));
    }
    if Device::parse(&config.run.device).is_ok_and(|device| device != Device::Cpu) {
        let fault = transformer.device_fault().map(|fault| format!("{fault}: {STAY_ON_CPU}"));
        problems.extend(fault.map(|message| ("encoder.kind".to_owned(), message)));
    }
    if let Some(from) = &encoder.from {
        let fits = hf::check(Path::new(from), &transformer);
        problems.extend(fits.err().map(|error| (FROM.to_owned(), format!("{error:#}"))));
    }
    problems
}

pub const NO_MASK: &str = "\"mlm\" needs a [MASK] in the tokenizer's vocabulary, which has none";

/// Starts a trainer from the weights in the folder, if there is one.
pub fn load(config: &Config, trainer: &mut Trainer, console: &Console) -> Result<()> {
    let Some(from) = &config.encoder.from else { return Ok(()) };
    let notes = hf::load(Path::new(from), &trainer.model.network, &mut trainer.model.parameters).context(FROM)?;
    notes.iter().for_each(|note| console.say(note));
    trainer.send_parameters()
}
