//! Checkpoints: written beside, synced, renamed, marked complete; checked by hash when read.
//!
//! A checkpoint folder holds `model.safetensors`, `optimizer.safetensors` (not in `best/`), `state.json` with the counters
//! and the hashes of the other files, and last of all `COMPLETE` with the hash of `state.json`. A folder whose marker is
//! missing or whose hashes differ does not count.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use memmap2::Mmap;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::data::cursor::Cursor;
use crate::model::spec::{HeadKind, Param};
use crate::train::round::Engine;

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const MARKER: &str = "COMPLETE";
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
    pub best: Option<Best>,
    pub evaluations_without_best: u32,
    pub stopped_early: bool,
    /// By task.
    pub tasks: Vec<TaskState>,
    pub method: String,
    pub method_state: serde_json::Value,
    /// blake3 of each file, in hex.
    pub hashes: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub value: f64,
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
    /// Rounds the task has taken part in.
    pub taken: u64,
    pub cursor: Cursor,
}

impl State {
    pub fn version() -> u32 {
        VERSION
    }
}

/// Writes a checkpoint of `engine` as the folder `path`; whatever stood there stays until the new one is whole.
pub fn write(path: &Path, engine: &Engine, state: &State, with_optimizer: bool) -> Result<()> {
    let parent = path.parent().context("a checkpoint needs a parent folder")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let scratch = tempfile::Builder::new()
        .prefix(".writing-")
        .tempdir_in(parent)
        .with_context(|| format!("cannot create a folder in {}", parent.display()))?;
    let written = write_files(scratch.path(), engine, state, with_optimizer);
    // The scratch folder removes itself if anything fails from here on.
    written.with_context(|| format!("cannot write checkpoint {}; earlier checkpoints are untouched", path.display()))?;
    let old = path.with_extension("old");
    remove(&old)?;
    if path.exists() {
        fs::rename(path, &old).with_context(|| format!("cannot move {} away", path.display()))?;
    }
    fs::rename(scratch.keep(), path).with_context(|| format!("cannot rename a checkpoint to {}", path.display()))?;
    sync_folder(parent)?;
    let digest = hash(&path.join(STATE))?;
    write_synced(&path.join(MARKER), digest.as_bytes())
        .with_context(|| format!("cannot mark checkpoint {} complete; earlier checkpoints are untouched", path.display()))?;
    sync_folder(path)?;
    remove(&old)
}

fn write_files(folder: &Path, engine: &Engine, state: &State, with_optimizer: bool) -> Result<()> {
    let mut state = state.clone();
    write_tensors(&folder.join(MODEL), &model_tensors(engine)?)?;
    state.hashes.insert(MODEL.into(), hash(&folder.join(MODEL))?);
    if with_optimizer {
        write_tensors(&folder.join(OPTIMIZER), &optimizer_tensors(engine)?)?;
        state.hashes.insert(OPTIMIZER.into(), hash(&folder.join(OPTIMIZER))?);
    }
    write_synced(&folder.join(STATE), serde_json::to_string_pretty(&state)?.as_bytes())?;
    sync_folder(folder)
}

type Tensors<'a> = BTreeMap<String, TensorView<'a>>;

fn model_tensors(engine: &Engine) -> Result<Tensors<'_>> {
    let mut tensors = Tensors::new();
    let parameters = &engine.parameters;
    dense(&mut tensors, "", &engine.network.table.shared, &parameters.shared.values)?;
    dense(&mut tensors, "", &engine.network.table.heads, &parameters.heads.values)?;
    if let Some(table) = &parameters.rows {
        let touched = table.touched();
        let rows = TensorView::new(Dtype::U32, vec![touched.len()], bytemuck::cast_slice(touched))?;
        tensors.insert("embeddings.rows".into(), rows);
        let values = TensorView::new(Dtype::F32, vec![touched.len(), table.dim()], bytemuck::cast_slice(table.stored()[0]))?;
        tensors.insert("embeddings.values".into(), values);
    }
    Ok(tensors)
}

fn optimizer_tensors(engine: &Engine) -> Result<Tensors<'_>> {
    let mut tensors = Tensors::new();
    let parameters = &engine.parameters;
    let table = &engine.network.table;
    for (params, group) in [(&table.shared, &parameters.shared), (&table.heads, &parameters.heads)] {
        dense(&mut tensors, "first.", params, &group.first)?;
        if !group.second.is_empty() {
            dense(&mut tensors, "second.", params, &group.second)?;
        }
    }
    if let Some(table) = &parameters.rows {
        let [_, first, second] = table.stored();
        for (name, moments) in [("first.embeddings.values", first), ("second.embeddings.values", second)] {
            let width = if moments.is_empty() { 0 } else { moments.len() / table.touched().len() };
            let view = TensorView::new(Dtype::F32, vec![table.touched().len(), width], bytemuck::cast_slice(moments))?;
            tensors.insert(name.into(), view);
        }
    }
    Ok(tensors)
}

fn dense<'a>(tensors: &mut Tensors<'a>, prefix: &str, params: &[Param], values: &'a [f32]) -> Result<()> {
    for param in params {
        let view = TensorView::new(Dtype::F32, param.shape.clone(), bytemuck::cast_slice(&values[param.range()]))?;
        tensors.insert(format!("{prefix}{}", param.name), view);
    }
    Ok(())
}

fn write_tensors(path: &Path, tensors: &Tensors) -> Result<()> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let file = path.display();
    safetensors::serialize_to_file(tensors, Some(metadata), path).with_context(|| format!("cannot write {file}"))?;
    File::open(path).and_then(|file| file.sync_all()).with_context(|| format!("cannot write {file} to disk"))
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

fn remove(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

fn hash(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap_rayon(path).with_context(|| format!("cannot read {}", path.display()))?;
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
        let file = path.join(name);
        ensure!(hash(&file)? == *expected, "{} is damaged: its hash is not the one in {STATE}", file.display());
    }
    Ok(state)
}

/// Fills the engine with a checkpoint's tensors; with moments and method state where `resume` is set.
pub fn read_tensors(path: &Path, engine: &mut Engine, state: &State, resume: bool) -> Result<()> {
    let model = map(&path.join(MODEL))?;
    let model = tensors(&model, &path.join(MODEL))?;
    let table = engine.network.table.clone();
    read_dense(&model, "", &table.shared, &mut engine.parameters.shared.values)?;
    read_dense(&model, "", &table.heads, &mut engine.parameters.heads.values)?;
    if !resume {
        return restore_rows(engine, &model, None);
    }
    let file = path.join(OPTIMIZER);
    let optimizer = map(&file)?;
    let optimizer = tensors(&optimizer, &file)?;
    for (params, group) in [(&table.shared, &mut engine.parameters.shared), (&table.heads, &mut engine.parameters.heads)] {
        read_dense(&optimizer, "first.", params, &mut group.first)?;
        if !group.second.is_empty() {
            read_dense(&optimizer, "second.", params, &mut group.second)?;
        }
    }
    restore_rows(engine, &model, Some(&optimizer))?;
    ensure!(state.method == engine.method.name(), "the checkpoint's surgery is {}, not {}", state.method, engine.method.name());
    engine.method.restore(&state.method_state).map_err(anyhow::Error::msg)
}

fn restore_rows(engine: &mut Engine, model: &SafeTensors, optimizer: Option<&SafeTensors>) -> Result<()> {
    let Some(table) = &mut engine.parameters.rows else { return Ok(()) };
    let rows: Vec<u32> = elements(model, "embeddings.rows", Dtype::U32)?;
    let values: Vec<f32> = elements(model, "embeddings.values", Dtype::F32)?;
    match optimizer {
        None => table.restore(&rows, &values, None),
        Some(optimizer) => {
            let first: Vec<f32> = elements(optimizer, "first.embeddings.values", Dtype::F32)?;
            let second: Vec<f32> = elements(optimizer, "second.embeddings.values", Dtype::F32)?;
            table.restore(&rows, &values, Some([&first, &second]))
        }
    }
}

/// Number of embedding rows a checkpoint holds; 0 without a table.
pub fn embedding_rows(path: &Path) -> Result<usize> {
    let map = map(&path.join(MODEL))?;
    let tensors = tensors(&map, &path.join(MODEL))?;
    Ok(tensors.tensor("embeddings.rows").map_or(0, |view| view.shape()[0]))
}

/// Columns of the encoder's input in a checkpoint.
pub fn input_columns(path: &Path) -> Result<usize> {
    let map = map(&path.join(MODEL))?;
    let tensors = tensors(&map, &path.join(MODEL))?;
    let weight = tensors.tensor("encoder.dense.weight").context("the checkpoint has no tensor encoder.dense.weight")?;
    weight.shape().get(1).copied().context("encoder.dense.weight is no matrix")
}

fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    // SAFETY: checkpoints are written once under another name and never changed in place; a file that is truncated by
    // someone else while it is read ends the process, as it would end any reader of a mapping.
    unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {}", path.display()))
}

fn tensors<'a>(map: &'a Mmap, path: &Path) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(map).with_context(|| format!("{} is not a safetensors file", path.display()))
}

fn read_dense(source: &SafeTensors, prefix: &str, params: &[Param], values: &mut [f32]) -> Result<()> {
    for param in params {
        let name = format!("{prefix}{}", param.name);
        let view = source.tensor(&name).with_context(|| format!("the checkpoint has no tensor {name}"))?;
        if view.shape() != param.shape || view.dtype() != Dtype::F32 {
            bail!(
                "tensor {name} is {:?} {:?} in the checkpoint, the model wants F32 {:?}",
                view.dtype(),
                view.shape(),
                param.shape
            );
        }
        bytemuck::cast_slice_mut(&mut values[param.range()]).copy_from_slice(view.data());
    }
    Ok(())
}

fn elements<T: bytemuck::Pod>(source: &SafeTensors, name: &str, dtype: Dtype) -> Result<Vec<T>> {
    let view = source.tensor(name).with_context(|| format!("the checkpoint has no tensor {name}"))?;
    ensure!(view.dtype() == dtype, "tensor {name} is {:?} in the checkpoint, the model wants {dtype:?}", view.dtype());
    Ok(bytemuck::pod_collect_to_vec(view.data()))
}

/// Complete checkpoints of a run folder, newest first.
pub fn list(checkpoints: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(checkpoints).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_round(path)).collect();
    found.sort();
    found.reverse();
    found
}

fn is_round(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.strip_prefix("round-").is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit())) && path.join(MARKER).is_file()
}

/// Removes complete checkpoints beyond the newest `keep`, and half-written ones a killed process left.
pub fn prune(checkpoints: &Path, keep: usize) -> Result<()> {
    for path in list(checkpoints).into_iter().skip(keep) {
        remove(&path)?;
    }
    let entries = fs::read_dir(checkpoints).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(".writing-") {
            remove(&path)?;
        }
    }
    Ok(())
}

/// `round-00000123`
pub fn folder_name(round: u64) -> String {
    format!("round-{round:08}")
}
