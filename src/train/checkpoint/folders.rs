//! Checkpoint folders of a run: which count, which go, and what a kill leaves of them.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{EVALUATED, MARKER, MODEL, OPTIMIZER, REPLACED, STATE, UNMARKED, sync_folder};
use crate::files::SCRATCH;

/// Parameters of the best evaluation, beside the folder of checkpoints.
const BEST: &str = "best";

/// `round-00000123`
pub fn folder_name(round: u64) -> String {
    format!("round-{round:08}")
}

/// Rounds done by a checkpoint, by the name of its folder.
pub fn round_of(path: &Path) -> Option<u64> {
    let digits = name(path).strip_prefix("round-")?;
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or_default()
}

/// A folder or a link to one, marked complete.
fn is_marked(path: &Path) -> bool {
    path.join(MARKER).is_file()
}

fn is_own_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Complete checkpoints of a run folder, newest first.
pub fn list(checkpoints: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = entries(checkpoints).filter(|path| round_of(path).is_some() && is_marked(path)).collect();
    found.sort();
    found.reverse();
    found
}

/// Removes complete checkpoints beyond the newest `keep` of those of up to `round` rounds. A link to one is not followed.
pub fn prune(checkpoints: &Path, keep: usize, round: u64) -> Result<()> {
    let known = list(checkpoints).into_iter().filter(|path| round_of(path).is_some_and(|own| own <= round));
    known.skip(keep).filter(|path| is_own_folder(path)).try_for_each(|path| remove(&path))
}

/// Undoes a replacement that a kill cut short: where the new checkpoint is not complete, the one it was to replace comes back.
pub fn recover(folder: &Path) -> Result<()> {
    let replaced = |path: &PathBuf| path.extension().is_some_and(|extension| extension == REPLACED) && is_own_folder(path);
    for old in entries(folder).filter(replaced) {
        let path = old.with_extension("");
        if round_of(&path).is_none() && name(&path) != BEST {
            continue;
        }
        if is_marked(&path) {
            remove(&old)?;
        } else {
            remove(&path)?;
            fs::rename(&old, &path).with_context(|| format!("cannot bring back {}", path.display()))?;
        }
    }
    sync_folder(folder)
}

/// Removes what killed processes left in a run folder or its `checkpoints`: what they were writing, and checkpoints that lost or
/// never got their marker. Only what surely is theirs: by its name, by what lies in it, and no link.
pub fn clean(folder: &Path) -> Result<()> {
    for path in entries(folder) {
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        let unmarked = || (round_of(&path).is_some() || name(&path) == BEST) && !is_marked(&path);
        if name(&path).starts_with(SCRATCH) {
            if found.is_file() {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            } else if found.is_dir() && holds_only(&path, |_| true) {
                remove(&path)?;
            }
        } else if found.is_dir() && unmarked() && holds_only(&path, is_own_file) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Whether all that lies in a folder are files that pass.
fn holds_only(folder: &Path, pass: impl Fn(&str) -> bool) -> bool {
    let is_file = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    entries(folder).all(|path| is_file(&path) && pass(name(&path)))
}

fn is_own_file(name: &str) -> bool {
    [MODEL, OPTIMIZER, EVALUATED, STATE, UNMARKED].contains(&name)
}

/// Removes a checkpoint folder, or a link to one; its marker goes first, so that what a kill leaves of it does not count.
pub(super) fn remove(path: &Path) -> Result<()> {
    let gone = match fs::symlink_metadata(path) {
        Err(error) => Err(error),
        Ok(found) if found.is_symlink() => fs::remove_file(path),
        Ok(_) => match fs::remove_file(path.join(MARKER)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => fs::remove_dir_all(path),
        },
    };
    match gone {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(path: &Path, files: &[&str]) {
        fs::create_dir_all(path).unwrap();
        files.iter().for_each(|file| fs::write(path.join(file), "x").unwrap());
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = entries(folder).map(|path| name(&path).to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_what_is_surely_ours_is_cleaned() {
        let place = tempfile::tempdir().unwrap();
        let (run, away) = (place.path().join("run"), place.path().join("away"));
        folder(&away, &[MODEL, STATE]);
        folder(&run, &["notes.old", ".writing-config.toml", "config.toml"]);
        folder(&run.join(".writing-best"), &[".tmp1", MODEL]);
        folder(&run.join("best"), &[MODEL, STATE, UNMARKED]);
        folder(&run.join("round-00000001"), &[]);
        folder(&run.join("round-00000002"), &[MODEL]);
        folder(&run.join("round-00000003"), &[MODEL, "my notes"]);
        folder(&run.join("round-00000004"), &[MODEL, MARKER]);
        folder(&run.join("mine"), &[MODEL]);
        folder(&run.join(".writing-mine/deep"), &[]);
        std::os::unix::fs::symlink(&away, run.join("round-00000005")).unwrap();
        std::os::unix::fs::symlink(&away, run.join(".writing-link")).unwrap();
        recover(&run).unwrap();
        clean(&run).unwrap();
        let kept = [
            ".writing-link",
            ".writing-mine",
            "config.toml",
            "mine",
            "notes.old",
            "round-00000003",
            "round-00000004",
            "round-00000005",
        ];
        assert_eq!(names(&run), kept);
        assert_eq!(names(&away), [MODEL, STATE]);
    }

    #[test]
    fn pruning_counts_what_is_older_and_follows_no_link() {
        let place = tempfile::tempdir().unwrap();
        let (run, away) = (place.path().join("run"), place.path().join("away"));
        folder(&away, &[MODEL, MARKER]);
        (2..7).for_each(|round| folder(&run.join(folder_name(round)), &[MODEL, MARKER]));
        std::os::unix::fs::symlink(&away, run.join(folder_name(1))).unwrap();
        prune(&run, 2, 5).unwrap();
        assert_eq!(names(&run), [1, 4, 5, 6].map(folder_name));
        assert_eq!(names(&away), [MARKER, MODEL]);
        remove(&run.join(folder_name(1))).unwrap();
        assert_eq!(names(&away), [MARKER, MODEL], "the link goes, not what it leads to");
    }

    #[test]
    fn a_replacement_cut_short_is_undone() {
        let place = tempfile::tempdir().unwrap();
        let run = place.path();
        folder(&run.join("best"), &[MODEL]);
        folder(&run.join("best.old"), &[MODEL, MARKER]);
        folder(&run.join("notes.old"), &[MODEL]);
        folder(&run.join("notes"), &["mine"]);
        recover(run).unwrap();
        assert_eq!(names(run), ["best", "notes", "notes.old"]);
        assert!(is_marked(&run.join("best")));
    }
}
