//! Files and folders that are whole or not there: written under another name beside, then renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Begins the names of what is being written; where it is found later, a killed process left it.
pub const SCRATCH: &str = ".writing-";

/// Where `path` is written until it is whole.
pub fn scratch(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{SCRATCH}{name}"))
}

/// Writes a file so that a kill leaves the old one or the new one.
pub fn write_whole(path: &Path, text: &str) -> Result<()> {
    let scratch = scratch(path);
    let write = || {
        let mut file = File::create(&scratch)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&scratch, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
