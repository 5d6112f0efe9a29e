//! Lines of a text file, split at "\n" and nowhere else: U+0085 or a lone "\r" inside a text stays in it.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Result, bail, ensure};

use super::open::open_text;

/// Longer lines, and quoted records, mean that this is no text file or that a quote was left open. Some of them are in memory at a
/// time, as cells that take many times their bytes.
const MOST_LINE_BYTES: usize = 32 << 20;
const BOM: &[u8] = b"\xef\xbb\xbf";

pub struct Lines {
    path: PathBuf,
    input: Box<dyn BufRead + Send>,
    /// The current line, or the lines of a quoted record joined by "\n".
    record: Vec<u8>,
    first_line: u64,
    lines_read: u64,
}

impl Lines {
    pub fn open(path: &Path, bytes_read: Arc<AtomicU64>) -> Result<Lines> {
        let input = open_text(path, bytes_read)?;
        Ok(Lines { path: path.to_owned(), input, record: Vec::new(), first_line: 0, lines_read: 0 })
    }

    /// Goes to the next line; false at the end of the file.
    pub fn advance(&mut self) -> Result<bool> {
        self.record.clear();
        self.first_line = self.lines_read + 1;
        self.append()
    }

    /// Adds the next line to the current record; false at the end of the file.
    pub fn extend(&mut self) -> Result<bool> {
        self.record.push(b'\n');
        self.append()
    }

    /// The current record without its line end.
    pub fn record(&self) -> &[u8] {
        &self.record
    }

    /// Line the current record starts on, 1-based.
    pub fn line(&self) -> u64 {
        self.first_line
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn append(&mut self) -> Result<bool> {
        let room = MOST_LINE_BYTES.saturating_sub(self.record.len()) as u64;
        let read = match Read::take(&mut self.input, room).read_until(b'\n', &mut self.record) {
            Ok(read) => read,
            Err(error) => bail!("{}", self.describe(&error)),
        };
        ensure!(
            self.record.len() < MOST_LINE_BYTES,
            "{}:{}: longer than {} MiB; is this a text file, and is every quote closed?",
            self.path.display(),
            self.first_line,
            MOST_LINE_BYTES >> 20
        );
        if read == 0 {
            return Ok(false);
        }
        self.lines_read += 1;
        self.trim();
        Ok(true)
    }

    fn trim(&mut self) {
        if self.record.last() == Some(&b'\n') {
            self.record.pop();
            if self.record.last() == Some(&b'\r') {
                self.record.pop();
            }
        }
        if self.lines_read == 1 && self.record.starts_with(BOM) {
            self.record.drain(..BOM.len());
        }
    }

    fn describe(&self, error: &io::Error) -> String {
        let (path, lines) = (self.path.display(), self.lines_read);
        match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                format!("{path}: the compressed file is truncated after {lines} lines; fetch or pack it again")
            }
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::Other => {
                format!("{path}: the compressed file is damaged after {lines} lines: {error}")
            }
            _ => format!("{path}: cannot read on after {lines} lines: {error}"),
        }
    }
}
