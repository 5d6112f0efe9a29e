//! Checkpoints: written beside, synced, renamed, marked complete; checked by hash when read.
//!
//! A checkpoint folder holds `model.safetensors`, `optimizer.safetensors` (not in `best/`), `evaluated.safetensors` where an
//! evaluation of earlier parameters is under way, `state.json` with the counters and the hashes of the other files, and last of all `COMPLETE` with the hash of `state.json`. A folder whose marker is
//! missing or whose hashes differ does not count.

mod disk;
mod folders;
mod share;
mod tensors;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::data::Scale;
use crate::data::cursor::Cursor;
use crate::files::SCRATCH;
use crate::model::spec::HeadKind;
use crate::schedule::order::Incident;
use crate::schedule::straggler::Watch;
use crate::train::round::Trainer;

pub use disk::{DiskBytes, keep_model};
use folders::remove;
pub use folders::{clean, folder_name, list, prune, recover, round_of};
use share::share;
pub use tensors::SpareBuffers;
use tensors::{TensorCopies, Tensors, model_tensors, optimizer_tensors, write_tensors};
pub use tensors::{check_shapes, embedding_rows, input_columns, read_model, read_tensors};

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
/// Parameters of an evaluation under way.
const EVALUATED: &str = "evaluated.safetensors";
const STATE: &str = "state.json";
const MARKER: &str = "COMPLETE";
/// The marker while it is written.
const UNMARKED: &str = "COMPLETE.new";
/// Extension of a checkpoint while its replacement is put in place.
const REPLACED: &str = "old";
const VERSION: u32 = 1;

/// Everything a run remembers beside its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub version: u32,
    /// The next round to run.
    pub round: u64,
    /// Rounds committed.
    pub commits: u64,
    /// Bad rounds in a row.
    pub bad_rounds: u32,
    /// Rounds not committed in all.
    pub dropped_rounds: u64,
    /// The evaluation due before the next round has not been done.
    pub evaluation_due: bool,
    /// An evaluation of earlier parameters, done in part; they are in a file of their own.
    #[serde(default)]
    pub evaluation: Option<UnderWay>,
    pub best: Option<Best>,
    pub evaluations_without_best: u32,
    pub stopped_early: bool,
    /// By task.
    pub tasks: Vec<TaskState>,
    /// Parts of rounds that failed, in the rounds' and then the tasks' order.
    #[serde(default)]
    pub incidents: Vec<Incident>,
    /// Microseconds that each round took, where the scheduler's clock is measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub took: Vec<u32>,
    /// How often each of the configuration's `[faults]` has happened.
    #[serde(default)]
    pub faults: BTreeMap<String, u64>,
    pub method: String,
    pub method_state: serde_json::Value,
    pub balancer: String,
    pub balancer_state: serde_json::Value,
    /// The run's conflicts so far.
    pub conflicts: serde_json::Value,
    /// Rounds in which a method or balancer fell back, by its name.
    pub fallbacks: BTreeMap<String, u64>,
    /// Lines of metrics.jsonl that this state is ahead of; those of a higher number happen again.
    #[serde(default)]
    pub events: u64,
    /// blake3 of each file, in hex.
    pub hashes: BTreeMap<String, String>,
}

/// An evaluation done between rounds, some batches after each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnderWay {
    /// Rounds done when its parameters were copied.
    pub round: u64,
    /// Batches done since.
    pub batches: u64,
}

/// The best evaluation so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub value: f64,
    /// Tasks for which it was undefined.
    #[serde(default)]
    pub undefined: usize,
    pub round: u64,
}

/// One task: what it is, and where it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskState {
    pub name: String,
    pub kind: HeadKind,
    pub outputs: usize,
    pub classes: Vec<String>,
    /// Of the training and dev data, in hex.
    pub data: String,
    /// Its feature columns, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// What its features and its numbers to predict are scaled by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_scale: Option<Scale>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_scale: Option<Scale>,
    /// (outputs) factors on the losses of its classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<Vec<f32>>,
    /// Rounds the task has taken part in.
    pub taken: u64,
    pub cursor: Cursor,
    /// Rounds the run had done when the task reached its target.
    #[serde(default)]
    pub reached: Option<u64>,
    /// Examples of its micro-batch, where that follows the measured time.
    #[serde(default)]
    pub micro_batch: Option<usize>,
    /// Times of its groups lately, where that is so.
    #[serde(default, skip_serializing_if = "Watch::is_new")]
    pub watch: Watch,
    /// Called `setbacks` by checkpoints of earlier builds.
    #[serde(default, alias = "setbacks")]
    pub failures: TaskFailures,
}

/// What went wrong with a task so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFailures {
    /// Rounds in which its part failed.
    pub lost: u64,
    /// How often it was tried again as it was, and how often it went back to its last commit.
    pub retries: u64,
    pub rollbacks: u64,
    /// How often its micro-batch was halved.
    pub halved: u32,
    pub last_error: Option<String>,
}

impl State {
    pub fn version() -> u32 {
        VERSION
    }

    /// (Rounds done before, task) of the tasks that reached their target.
    pub fn reached(&self) -> Vec<(u64, usize)> {
        self.tasks.iter().enumerate().filter_map(|(task, state)| Some((state.reached?, task))).collect()
    }
}

/// Writes a checkpoint of `trainer` as the folder `path`; whatever stood there stays until the new one is whole.
pub fn write(path: &Path, trainer: &mut Trainer, state: &State, with_optimizer: bool) -> Result<()> {
    replace(path, |folder| {
        let mut hashes = BTreeMap::new();
        each_file(trainer, state, with_optimizer, &mut |name, tensors| write_file(folder, name, tensors, &mut hashes))?;
        share(folder, path, &hashes);
        write_state(folder, state, hashes)
    })
}

fn write_file(folder: &Path, name: &str, tensors: &Tensors, hashes: &mut BTreeMap<String, String>) -> Result<()> {
    let file = folder.join(name);
    write_tensors(&file, tensors)?;
    hashes.insert(name.to_owned(), hash(&file)?);
    Ok(())
}

/// A checkpoint in memory, to be written while training goes on.
pub struct Packed {
    files: Vec<(&'static str, TensorCopies)>,
    spare: SpareBuffers,
    state: State,
}

impl Packed {
    /// Copies what [`write`] would write, into spare memory where there is some.
    pub fn new(trainer: &mut Trainer, state: &State, with_optimizer: bool, mut spare: SpareBuffers) -> Result<Self> {
        let mut files = Vec::new();
        each_file(trainer, state, with_optimizer, &mut |name, tensors| {
            files.push((name, TensorCopies::of(tensors, &mut spare)?));
            Ok(())
        })?;
        Ok(Self { files, spare, state: state.clone() })
    }

    /// As [`write`]; its memory is spare from then on.
    pub fn write(mut self, path: &Path) -> Result<SpareBuffers> {
        replace(path, |folder| {
            let mut hashes = BTreeMap::new();
            for (name, copies) in &self.files {
                write_file(folder, name, &copies.tensors()?, &mut hashes)?;
            }
            share(folder, path, &hashes);
            write_state(folder, &self.state, hashes)
        })?;
        self.files.into_iter().for_each(|(_, copies)| self.spare.give(copies));
        Ok(self.spare)
    }
}

/// Fills a folder beside `path` and puts it in its place.
fn replace(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = path.parent().context("a checkpoint needs a parent folder")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let scratch = tempfile::Builder::new()
        .prefix(SCRATCH)
        .tempdir_in(parent)
        .with_context(|| format!("cannot create a folder in {}", parent.display()))?;
    // The scratch folder removes itself if anything fails from here on.
    fill(scratch.path())
        .with_context(|| format!("cannot write checkpoint {}; earlier checkpoints are untouched", path.display()))?;
    let old = path.with_extension(REPLACED);
    remove(&old)?;
    if path.exists() {
        fs::rename(path, &old).with_context(|| format!("cannot move {} away", path.display()))?;
    }
    fs::rename(scratch.keep(), path).with_context(|| format!("cannot rename a checkpoint to {}", path.display()))?;
    sync_folder(parent)?;
    mark(path)
        .with_context(|| format!("cannot mark checkpoint {} complete; earlier checkpoints are untouched", path.display()))?;
    sync_folder(path)?;
    remove(&old)
}

/// The marker comes to be whole: a kill between its creation and its content would leave one that fits nothing.
fn mark(path: &Path) -> Result<()> {
    let scratch = path.join(UNMARKED);
    write_synced(&scratch, hash(&path.join(STATE))?.as_bytes())?;
    fs::rename(&scratch, path.join(MARKER)).with_context(|| format!("cannot rename {}", scratch.display()))
}

/// The tensors of each file that a checkpoint consists of.
fn each_file(
    trainer: &mut Trainer,
    state: &State,
    with_optimizer: bool,
    take: &mut dyn FnMut(&'static str, &Tensors) -> Result<()>,
) -> Result<()> {
    take(MODEL, &model_tensors(&trainer.model)?)?;
    if with_optimizer {
        take(OPTIMIZER, &optimizer_tensors(trainer)?)?;
        if state.evaluation.is_some() {
            trainer.with_snapshot(|trainer| take(EVALUATED, &model_tensors(&trainer.model)?))?;
        }
    }
    Ok(())
}

fn write_state(folder: &Path, state: &State, hashes: BTreeMap<String, String>) -> Result<()> {
    // A restored state still knows the files it came from.
    let state = State { hashes, ..state.clone() };
    write_synced(&folder.join(STATE), serde_json::to_string_pretty(&state)?.as_bytes())?;
    sync_folder(folder)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        fs::write(path, bytes)?;
        File::open(path)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).with_context(|| format!("cannot sync {}", path.display()))
}

fn hash(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    // Read, not mapped: a mapped checkpoint would count as this process's memory.
    let read = File::open(path).and_then(|file| hasher.update_reader(file).map(|_| ()));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Reads a checkpoint's state and checks every file against its hash.
pub fn read_state(path: &Path) -> Result<State> {
    let marker = fs::read_to_string(path.join(MARKER));
    let marker = marker.with_context(|| format!("{} is no complete checkpoint: it has no {MARKER}", path.display()))?;
    let file = path.join(STATE);
    ensure!(hash(&file)? == marker, "{} is damaged: its hash is not the one in {MARKER}", file.display());
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let state: State = serde_json::from_str(&text).with_context(|| format!("{} is not a state", file.display()))?;
    ensure!(state.version == VERSION, "{} has version {}, this program reads {VERSION}", file.display(), state.version);
    for (name, expected) in &state.hashes {
        // Any other name may lead out of the folder, or to what has no end.
        let known = [MODEL, OPTIMIZER, EVALUATED].contains(&name.as_str());
        ensure!(known, "{} has the hash of \"{}\", which is no file of a checkpoint", file.display(), name.escape_debug());
        let file = path.join(name);
        ensure!(hash(&file)? == *expected, "{} is damaged: its hash is not the one in {STATE}", file.display());
    }
    Ok(state)
}
