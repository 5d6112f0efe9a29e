//! What checkpoints take on disk, and what is left of them at the end.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::folders::remove;
use super::{MODEL, OPTIMIZER, list, read_state, replace, write_state};
use crate::config::Config;
use crate::config::schema::FinalCheckpoint;
use crate::machine::memory::Memory;
use crate::train::plan::Plan;

/// Bytes on disk, at most: rows of the embedding table that no text has touched are not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskBytes {
    /// One checkpoint.
    pub checkpoint: u64,
    /// Its parameters alone, which is what `best/` holds.
    pub model: u64,
    /// All of a run while it trains, the one being written included.
    pub run: u64,
    /// All that is left once it has ended.
    pub end: u64,
}

impl DiskBytes {
    /// Of the planned run, from the host's buffers that are saved.
    pub fn of(plan: &Plan, config: &Config) -> Result<Self> {
        let mut memory = Memory::plan(0);
        plan.trainer(config, &mut memory)?;
        let sum =
            |is_saved: fn(&str) -> bool| memory.buffers().iter().filter(|(name, _)| is_saved(name)).map(|(_, bytes)| bytes).sum();
        // An evaluation's copy is written only into the checkpoint of an interrupted one.
        let model: u64 = sum(|name| name.ends_with(": parameters") && !name.starts_with("evaluation's copy"));
        let optimizer: u64 = sum(|name| name.ends_with(" moment") || name.starts_with("surgery: buffers"));
        let (checkpoint, keep) = (model + optimizer, config.checkpoint.keep as u64);
        let best = if config.best.keep { model } else { 0 };
        let end = match config.checkpoint.r#final {
            FinalCheckpoint::All => keep * checkpoint,
            FinalCheckpoint::Model => model,
        };
        Ok(Self { checkpoint, model, run: (keep + 1) * checkpoint + best, end: end + best })
    }
}

/// Leaves the newest checkpoint alone, without the optimizer's state.
pub fn keep_model(checkpoints: &Path) -> Result<()> {
    let mut all = list(checkpoints).into_iter();
    let Some(newest) = all.next() else { return Ok(()) };
    let state = read_state(&newest)?;
    if state.hashes.contains_key(OPTIMIZER) {
        replace(&newest, |folder| {
            let (from, to) = (newest.join(MODEL), folder.join(MODEL));
            fs::hard_link(&from, &to)
                .or_else(|_| fs::copy(&from, &to).map(drop))
                .with_context(|| format!("cannot write {}", to.display()))?;
            let hashes: BTreeMap<String, String> =
                state.hashes.iter().filter(|(name, _)| *name == MODEL).map(|(name, hash)| (name.clone(), hash.clone())).collect();
            write_state(folder, &state, hashes)
        })?;
    }
    all.try_for_each(|path| remove(&path))
}
