//! Rows that were computed for every token of a split: one file, example after example, mapped into memory.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use memmap2::Mmap;

/// A file of f32 rows, and where each example's lie.
pub struct TokenStates {
    file: Arc<Mmap>,
    /// (examples + 1) in bytes.
    bounds: Vec<usize>,
}

impl TokenStates {
    /// `bounds` (examples + 1) in bytes; none if the file is not there, or not of their length.
    pub fn open(path: &Path, bounds: Vec<usize>) -> Result<Option<Self>> {
        let end = bounds.last().copied().unwrap_or(0);
        let Ok(file) = File::open(path) else { return Ok(None) };
        if end == 0 || file.metadata().is_ok_and(|found| found.len() != end as u64) {
            return Ok(None);
        }
        // SAFETY: the file was written beside and renamed, and nobody writes to it afterwards; removing it leaves the map whole.
        let file = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {} into memory", path.display()))?;
        Ok(Some(Self { file: Arc::new(file), bounds }))
    }

    /// The file, and the bytes of one example in it.
    pub fn of(&self, example: usize) -> (Arc<Mmap>, Range<usize>) {
        (Arc::clone(&self.file), self.bounds[example]..self.bounds[example + 1])
    }
}
