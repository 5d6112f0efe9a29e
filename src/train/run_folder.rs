//! The folder of a run: configuration, metrics, checkpoints, best parameters, and a lock while a process works in it.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::files::write_whole;
use crate::train::checkpoint::{self, State};

/// The run's own copy of the tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";

pub struct RunFolder {
    path: PathBuf,
    _lock: File,
}

impl RunFolder {
    /// Makes the folder of a new run: exactly `asked` if given, else `out/name`, `out/name-2`, ...
    pub fn create(asked: Option<&Path>, out: &Path, name: &str) -> Result<Self> {
        let path = match asked {
            Some(path) => path.to_owned(),
            None => (1u32..)
                .map(|n| if n == 1 { out.join(name) } else { out.join(format!("{name}-{n}")) })
                .find(|path| !path.exists())
                .context("no free run folder name")?,
        };
        if path.join("config.toml").exists() {
            bail!("{} already holds a run: continue it with `taskloom resume {0}`, or choose another --run-dir", path.display());
        }
        fs::create_dir_all(path.join("checkpoints")).with_context(|| format!("cannot create run folder {}", path.display()))?;
        Self::lock(path)
    }

    /// Opens an existing run.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.join("config.toml").is_file() {
            bail!("{} is no run folder: it has no config.toml", path.display());
        }
        Self::lock(path.to_owned())
    }

    fn lock(path: PathBuf) -> Result<Self> {
        let file = File::create(path.join("run.lock")).with_context(|| format!("cannot write in {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path, _lock: file }),
            Err(TryLockError::WouldBlock) => bail!("{} is in use by another taskloom process", path.display()),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder's own name.
    pub fn name(&self) -> String {
        let whole = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        whole.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// By which Trackio tells the run from others, also of its name; made when it is first asked for.
    pub fn trackio_id(&self) -> Result<String> {
        let file = self.path.join("trackio-id");
        match fs::read_to_string(&file) {
            Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot read {}", file.display()));
            }
            _ => {}
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unique = format!("{} {} {}", self.path.display(), std::process::id(), since.as_nanos());
        let id = blake3::hash(unique.as_bytes()).to_hex()[..32].to_owned();
        write_whole(&file, &format!("{id}\n"))?;
        Ok(id)
    }

    pub fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// Where the values of the configuration come from that are no defaults.
    pub fn origins(&self) -> PathBuf {
        self.path.join("origins.json")
    }

    pub fn tokenizer(&self) -> PathBuf {
        self.path.join(TOKENIZER)
    }

    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The schedule as it took place.
    pub fn trace(&self) -> PathBuf {
        self.path.join("trace.json")
    }

    /// How the run ended.
    pub fn summary(&self) -> PathBuf {
        self.path.join("summary.json")
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    pub fn best(&self) -> PathBuf {
        self.path.join("best")
    }
}

/// The newest checkpoint of a run that is whole, with its state; each damaged one is passed over, saying so.
pub fn newest_whole(checkpoints: &Path, warn: &mut dyn FnMut(String)) -> Result<Option<(PathBuf, State)>> {
    for path in checkpoint::list(checkpoints) {
        match checkpoint::read_state(&path) {
            Ok(state) => return Ok(Some((path, state))),
            Err(error) => warn(format!("{error:#}; going back to the checkpoint before it")),
        }
    }
    Ok(None)
}

/// What `eval`, `predict` and the like were pointed at: a run folder (its best parameters, else its newest checkpoint) or
/// one checkpoint.
pub struct Source {
    /// The run folder, which holds the configuration.
    pub run: PathBuf,
    pub checkpoint: PathBuf,
    pub state: State,
}

impl Source {
    pub fn find(path: &Path, warn: &mut dyn FnMut(String)) -> Result<Self> {
        if path.join("state.json").is_file() {
            let run = path.canonicalize().with_context(|| format!("cannot open {}", path.display()))?;
            let run = run.ancestors().skip(1).find(|folder| folder.join("config.toml").is_file());
            let run =
                run.with_context(|| format!("{} lies in no run folder (none above it has a config.toml)", path.display()))?;
            return Ok(Self { run: run.to_owned(), checkpoint: path.to_owned(), state: checkpoint::read_state(path)? });
        }
        if !path.join("config.toml").is_file() {
            bail!("{} is neither a run folder (config.toml) nor a checkpoint (state.json)", path.display());
        }
        let best = path.join("best");
        if best.is_dir() {
            match checkpoint::read_state(&best) {
                Ok(state) => return Ok(Self { run: path.to_owned(), checkpoint: best, state }),
                Err(error) => warn(format!("{error:#}; using the newest checkpoint instead")),
            }
        }
        match newest_whole(&path.join("checkpoints"), warn)? {
            Some((checkpoint, state)) => Ok(Self { run: path.to_owned(), checkpoint, state }),
            None => bail!("{} has no whole checkpoint", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_counted_up_and_folders_locked() {
        let out = tempfile::tempdir().unwrap();
        let first = RunFolder::create(None, out.path(), "run").unwrap();
        let second = RunFolder::create(None, out.path(), "run").unwrap();
        assert!(second.path().ends_with("run-2"));
        fs::write(first.config(), "").unwrap();
        let error = RunFolder::open(first.path()).err().unwrap().to_string();
        assert!(error.contains("in use"), "{error}");
        let error = RunFolder::create(Some(first.path()), out.path(), "run").err().unwrap().to_string();
        assert!(error.contains("taskloom resume"), "{error}");
    }
}
