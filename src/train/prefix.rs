//! `encoder.cache_frozen`: what a transformer's frozen prefix makes of every text, computed once and kept: on disk, or where a run has a
//! device, in its memory.
//!
//! On disk there is one file for each split, named by a hash of all that its content follows from (the prefix's parameters, the words'
//! rows, the token ids, the kind of processor), so that runs share files and none is ever out of date. A device computes them whenever a
//! run begins or goes on. Nothing of the run depends on whether they are kept: they are those that evaluation and training would compute,
//! to the bit.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use crate::config::schema::{Config, Eval};
use crate::data::{Corpus, Inputs, Split, SplitName, TokenStates, TokenStore};
use crate::machine::memory::human_bytes;
use crate::model::network::Batch;
use crate::model::transformer::TransformerSpec;
use crate::observe::console::Console;
use crate::train::accelerator::FIRST_STATE;
use crate::train::batch::evaluation_batch;
use crate::train::predictor::Predictor;
use crate::train::round::Trainer;
use crate::train::shapes::on_device;
use crate::train::tokens::{evaluation_end, sequence, sequence_len};

/// Names the folder; without it the user's cache folder serves.
const FOLDER: &str = "TASKLOOM_CACHE";

/// Part of every file's name: to be raised when the same parameters and texts give other bytes.
const FORMAT: &[u8] = b"taskloom prefix states 1";

/// Keeps the states of the splits that a run reads: in the memory of its device, if that has room for them, else in `folder`, if there is
/// one. False if `stop` was raised meanwhile.
pub fn keep_states(
    trainer: &mut Trainer,
    corpus: &Corpus,
    eval: &Eval,
    folder: Option<&Path>,
    console: &Console,
    stop: &AtomicBool,
) -> Result<bool> {
    match folder {
        _ if trainer.keeps_states() => keep_on_device(trainer, corpus, eval.batch, stop),
        Some(folder) => keep_in_folder(trainer, corpus, eval, folder, console, stop),
        None => Ok(true),
    }
}

/// The splits that a run reads while it trains: the scores at its end are computed on the host.
fn splits_on_device() -> &'static [SplitName] {
    splits_read(false)
}

/// Tokens of which a device keeps states.
pub fn tokens_on_device(corpus: &Corpus) -> usize {
    let of = |split: &Split| match &split.inputs {
        Inputs::Tokens(store) => (0..store.len()).map(|example| sequence_len(store, example)).sum(),
        Inputs::Features(_) => 0,
    };
    corpus.tasks.iter().flat_map(|task| splits_on_device().iter().filter_map(|&name| task.split(name))).map(of).sum()
}

fn keep_on_device(trainer: &mut Trainer, corpus: &Corpus, batch: usize, stop: &AtomicBool) -> Result<bool> {
    let mut row = FIRST_STATE;
    for (number, task) in corpus.tasks.iter().enumerate() {
        for split in splits_on_device().iter().filter_map(|&name| task.split(name)) {
            let Inputs::Tokens(store) = &split.inputs else { continue };
            let rows = bounds(store, row, 1);
            let kept = each_batch(trainer, number, split, batch, stop, &mut |trainer, packed| {
                row = trainer.keep_states(packed, row)?;
                Ok(())
            })?;
            if !kept {
                return Ok(false);
            }
            store.keep_states(TokenStates::on_device(rows));
        }
    }
    Ok(true)
}

fn keep_in_folder(
    trainer: &mut Trainer,
    corpus: &Corpus,
    eval: &Eval,
    folder: &Path,
    console: &Console,
    stop: &AtomicBool,
) -> Result<bool> {
    let parameters = parameters_hash(trainer);
    for (number, task) in corpus.tasks.iter().enumerate() {
        for &name in splits_read(eval.test) {
            let Some(split) = task.split(name) else { continue };
            let Inputs::Tokens(store) = &split.inputs else { continue };
            let bounds = byte_bounds(store, trainer.model.network.spec.encoder.hidden());
            let path = folder.join(format!("{}.f32", split_hash(trainer, store, parameters.clone())));
            let label = format!("task {}, {}: states of the frozen prefix", task.name, name.as_str());
            let mut states = TokenStates::open(&path, bounds.clone())?;
            if states.is_none() && !split.is_empty() {
                let bytes = bounds.last().copied().unwrap_or(0) as u64;
                console.say(&format!("{label}: computing {} into {}", human_bytes(bytes), path.display()));
                if !compute(trainer, number, split, eval.batch, &path, stop)? {
                    return Ok(false);
                }
                states = TokenStates::open(&path, bounds)?;
            }
            if let Some(states) = states {
                tracing::info!("{label} are in {}", path.display());
                store.keep_states(states);
            }
        }
    }
    Ok(true)
}

/// Bytes that the states of a run take on disk.
pub fn disk_bytes(corpus: &Corpus, test: bool, hidden: usize) -> u64 {
    let of = |split: &Split| match &split.inputs {
        Inputs::Tokens(store) => byte_bounds(store, hidden).last().copied().unwrap_or(0) as u64,
        Inputs::Features(_) => 0,
    };
    corpus.tasks.iter().flat_map(|task| splits_read(test).iter().filter_map(|&name| task.split(name))).map(of).sum()
}

/// The splits that a run reads.
pub fn splits_read(test: bool) -> &'static [SplitName] {
    if test { &[SplitName::Train, SplitName::Dev, SplitName::Test] } else { &[SplitName::Train, SplitName::Dev] }
}

/// The folder of kept states of a run that keeps some on disk.
pub fn folder_of(config: &Config) -> Result<Option<PathBuf>> {
    (config.encoder.cache_frozen && !on_device(config)).then(folder).transpose()
}

/// The folder of kept states, made if need be.
pub fn folder() -> Result<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let own = named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache"))).map(|cache| cache.join("taskloom"));
    let folder = named(FOLDER).or(own).with_context(|| format!("encoder.cache_frozen needs a folder: set {FOLDER} to one"))?;
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {} ({FOLDER})", folder.display()))?;
    Ok(folder)
}

/// (examples + 1) where each example's states lie in the file.
fn byte_bounds(store: &TokenStore, hidden: usize) -> Vec<usize> {
    bounds(store, 0, 4 * hidden)
}

/// (examples + 1) where each example begins from `start` on, where a token takes so much.
fn bounds(store: &TokenStore, start: usize, token: usize) -> Vec<usize> {
    let ends = (0..store.len()).scan(start, |end, example| {
        *end += token * sequence_len(store, example);
        Some(*end)
    });
    std::iter::once(start).chain(ends).collect()
}

/// Over the shape and the dense parameters of the frozen prefix.
fn parameters_hash(trainer: &Trainer) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(FORMAT).update(processor().as_bytes());
    if let Some(transformer) = trainer.model.network.spec.encoder.transformer() {
        let TransformerSpec { heads, intermediate, frozen, positions, norm_eps, .. } = transformer.spec;
        for number in [transformer.hidden, heads, intermediate, frozen, positions] {
            hasher.update(&(number as u64).to_le_bytes());
        }
        hasher.update(&norm_eps.to_le_bytes());
    }
    hasher.update(bytemuck::cast_slice(&trainer.model.parameters.frozen));
    hasher
}

/// What products of matrices are cut up for: two kinds of processor may differ in the last bits.
fn processor() -> String {
    let known = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of_kind = |line: &&str| ["model name", "cache size"].iter().any(|key| line.starts_with(key));
    let kind: BTreeSet<&str> = known.lines().filter(of_kind).collect();
    format!("{} {kind:?}", std::env::consts::ARCH)
}

/// Over the split's sequences and the rows of the words in them.
fn split_hash(trainer: &Trainer, store: &TokenStore, mut hasher: blake3::Hasher) -> blake3::Hash {
    let Some(transformer) = trainer.model.network.spec.encoder.transformer() else { return hasher.finalize() };
    let mut words = BTreeSet::new();
    for example in 0..store.len() {
        let sequence = sequence(store, example, &transformer.spec);
        hasher.update(&(sequence.ids.len() as u64).to_le_bytes()).update(&(sequence.second as u64).to_le_bytes());
        hasher.update(bytemuck::cast_slice(&sequence.ids));
        words.extend(sequence.ids);
    }
    if let Some(table) = &trainer.model.parameters.rows {
        let (view, mut row) = (table.view(), vec![0.0; table.dim()]);
        for word in words {
            view.read(word, &mut row);
            hasher.update(bytemuck::cast_slice(&row));
        }
    }
    hasher.finalize()
}

/// Writes beside and renames: a kill leaves the whole file or none. False if `stop` was raised.
fn compute(trainer: &mut Trainer, task: usize, split: &Split, batch: usize, path: &Path, stop: &AtomicBool) -> Result<bool> {
    let failed = || format!("cannot write {} ({FOLDER})", path.display());
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
    let mut writer = std::io::BufWriter::new(file);
    let computed = each_batch(trainer, task, split, batch, stop, &mut |trainer, packed| {
        let mut host = trainer.on_host();
        let states = host.prefix(packed).context("only a transformer has a frozen prefix")?;
        writer.write_all(bytemuck::cast_slice(states)).with_context(failed)
    })?;
    if !computed {
        return Ok(false);
    }
    let file = writer.into_inner().map_err(|error| error.into_error()).with_context(failed)?;
    file.as_file().sync_all().with_context(failed)?;
    file.persist(path).with_context(failed)?;
    Ok(true)
}

/// Packs a split's examples, batch by batch, as they are evaluated. False if `stop` was raised.
fn each_batch(
    trainer: &mut Trainer,
    task: usize,
    split: &Split,
    most: usize,
    stop: &AtomicBool,
    take: &mut dyn FnMut(&mut Trainer, &Batch) -> Result<()>,
) -> Result<bool> {
    let mut start = 0;
    while start < split.len() {
        if stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let end = evaluation_end(split, start, most, trainer.token_room());
        take(trainer, &evaluation_batch(&*trainer.model.network.spec.encoder, task, split, start..end))?;
        start = end;
    }
    Ok(true)
}
