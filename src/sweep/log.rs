//! What a run said: kept in a file of its own, so that it can be read later.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::ExitStatus;

use anyhow::{Context, Result};

/// Opened for more lines, and how long it was.
pub fn open(path: &Path) -> Result<(File, u64)> {
    let open = || {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let length = file.metadata()?.len();
        Ok((file, length))
    };
    open().map_err(|error: std::io::Error| error).with_context(|| format!("cannot write {}", path.display()))
}

/// Why a process failed: the first line of its error, from a place in its log on; else how it ended.
pub fn error_in(log: &Path, from: u64, status: ExitStatus) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(text.get(from as usize..).unwrap_or_default()).into_owned();
    let said = text.lines().rev().find_map(|line| line.strip_prefix("error: "));
    let panicked = || text.lines().find(|line| line.contains("panicked at"));
    said.or_else(panicked).map_or_else(|| ending(status), str::to_owned)
}

fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(9) => "killed by signal 9 (out of memory?)".to_owned(),
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("ended with {status}, without a word"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn the_error_of_this_attempt_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("a.log");
        fs::write(&log, "error: the first time\nround 3\nerror: loss is NaN\n  help: less\n").unwrap();
        let (_, length) = open(&log).unwrap();
        assert_eq!(error_in(&log, 22, ExitStatus::from_raw(3 << 8)), "loss is NaN");
        assert_eq!(error_in(&log, length, ExitStatus::from_raw(9)), "killed by signal 9 (out of memory?)");
    }
}
