//! The folder of a sweep: a folder for each run, what they said, the summary, and which runs these are.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::trial::Trial;

pub struct SweepFolder {
    path: PathBuf,
    _lock: File,
}

impl SweepFolder {
    /// Opens the folder or makes it. Several shards may work in one at a time, and nobody else beside them.
    pub fn open(path: &Path, is_shard: bool) -> Result<Self> {
        fs::create_dir_all(path.join("runs")).with_context(|| format!("cannot create {}", path.display()))?;
        let lock = File::create(path.join("sweep.lock")).with_context(|| format!("cannot write in {}", path.display()))?;
        match if is_shard { lock.try_lock_shared() } else { lock.try_lock() } {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => bail!("{} is in use by another sweep", path.display()),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// Writes down what each run is; a folder holds runs of one sweep only, which may have grown.
    pub fn keep(&self, trials: &[Trial]) -> Result<()> {
        let file = self.path.join("sweep.json");
        let mut runs: BTreeMap<String, Vec<String>> = match fs::read_to_string(&file) {
            Ok(text) => serde_json::from_str(&text).with_context(|| format!("{} is no list of runs", file.display()))?,
            Err(_) => BTreeMap::new(),
        };
        for trial in trials {
            let before = runs.insert(trial.name.clone(), trial.sets.clone());
            ensure!(
                before.as_ref().is_none_or(|before| *before == trial.sets),
                "{} holds another sweep: its {} has {}, this one has {}; choose another `out`, or remove the folder",
                self.path.display(),
                trial.name,
                before.unwrap_or_default().join(" "),
                trial.sets.join(" ")
            );
        }
        let mut scratch = tempfile::NamedTempFile::new_in(&self.path).context("cannot write in the sweep's folder")?;
        let write = scratch.write_all(format!("{:#}\n", serde_json::json!(runs)).as_bytes());
        write
            .and_then(|()| scratch.persist(&file).map(drop).map_err(|error| error.error))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn run(&self, trial: &Trial) -> PathBuf {
        self.path.join("runs").join(&trial.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(name: &str, sets: &[&str]) -> Trial {
        Trial { point: 0, seed: None, name: name.to_owned(), sets: sets.iter().map(|set| (*set).to_owned()).collect() }
    }

    #[test]
    fn a_folder_is_of_one_sweep_which_may_grow() {
        let place = tempfile::tempdir().unwrap();
        let folder = SweepFolder::open(&place.path().join("a"), false).unwrap();
        folder.keep(&[trial("x", &["a=1"])]).unwrap();
        folder.keep(&[trial("x", &["a=1"]), trial("y", &["a=2"])]).unwrap();
        let error = folder.keep(&[trial("y", &["a=3"])]).unwrap_err().to_string();
        assert!(error.contains("holds another sweep: its y has a=2, this one has a=3"), "{error}");
    }

    #[test]
    fn shards_work_beside_each_other_only() {
        let place = tempfile::tempdir().unwrap();
        let first = SweepFolder::open(place.path(), true).unwrap();
        let second = SweepFolder::open(place.path(), true).unwrap();
        assert!(SweepFolder::open(place.path(), false).is_err());
        drop((first, second));
        assert!(SweepFolder::open(place.path(), false).is_ok());
    }
}
