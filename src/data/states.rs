//! Rows that were computed for every token of a split beforehand, example after example: in a file that is mapped into memory, or on a
//! device.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use memmap2::Mmap;

/// Where each example's rows are.
pub struct TokenStates {
    /// f32 rows; none where a device keeps them.
    file: Option<Arc<Mmap>>,
    /// (examples + 1) in bytes of the file, or in rows of the device's.
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
        Ok(Some(Self { file: Some(Arc::new(file)), bounds }))
    }

    /// On a device, where the examples' rows begin at `bounds` (examples + 1).
    pub fn on_device(bounds: Vec<usize>) -> Self {
        Self { file: None, bounds }
    }

    pub fn file(&self) -> Option<&Arc<Mmap>> {
        self.file.as_ref()
    }

    /// Bytes of the file, or rows, of one example.
    pub fn of(&self, example: usize) -> Range<usize> {
        self.bounds[example]..self.bounds[example + 1]
    }
}
