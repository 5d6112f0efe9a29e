//! One file for two checkpoints with the same parameters: `best/` and the checkpoint of its round.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{MARKER, MODEL, STATE, hash, list};

/// Puts a hard link in place of the parameters in `folder`, which is to become `path`, where the checkpoint beside it has the
/// same ones. Where the file system has no such links, or anything else is in the way, the file stays its own.
pub fn share(folder: &Path, path: &Path, hashes: &BTreeMap<String, String>) {
    let Some(own) = hashes.get(MODEL) else { return };
    let Some(theirs) = beside(path).filter(|other| is_same(other, own)).map(|other| other.join(MODEL)) else { return };
    let link = folder.join(format!("{MODEL}.link"));
    if fs::hard_link(theirs, &link).is_ok() && fs::rename(&link, folder.join(MODEL)).is_err() {
        // Nothing else may lie in the folder.
        let _ = fs::remove_file(link);
    }
}

/// Of a checkpoint the run's best one, of the best one the newest checkpoint.
fn beside(path: &Path) -> Option<PathBuf> {
    let parent = path.parent()?;
    if parent.file_name()? == "checkpoints" {
        Some(parent.parent()?.join("best"))
    } else {
        list(&parent.join("checkpoints")).into_iter().next()
    }
}

/// Whether a whole checkpoint has parameters of this hash, in its file as in its state: a damaged file is not to be shared.
fn is_same(other: &Path, expected: &str) -> bool {
    let state = fs::read_to_string(other.join(STATE)).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let said = state.is_some_and(|state| state["hashes"][MODEL] == expected);
    said && other.join(MARKER).is_file() && hash(&other.join(MODEL)).is_ok_and(|found| found == expected)
}
