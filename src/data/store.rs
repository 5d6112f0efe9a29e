//! Where examples live: token ids and features in one unlinked temporary file each, mapped into memory when complete;
//! only a row's place stays on the heap (16 bytes for text).
//!
//! All tasks and splits share the file, so a row that several tasks use is stored once.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use memmap2::Mmap;

use super::scale::Scale;
use super::states::TokenStates;
use crate::machine::memory::human_bytes;

/// Bytes gathered before they are written.
const SPILL_BUFFER_BYTES: usize = 1 << 20;

/// Element type of a spill file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// Ids below 65,536.
    Narrow,
    /// Ids or f32 values.
    Wide,
}

/// A file being filled: elements go in, their offsets come out.
pub(super) struct Spill {
    writer: BufWriter<File>,
    folder: PathBuf,
    width: Width,
    len: u64,
}

impl Spill {
    /// In the folder that TMPDIR names; the file has no name and goes with its last user.
    pub(super) fn new(width: Width) -> Result<Spill> {
        let folder = std::env::temp_dir();
        let file = tempfile::tempfile_in(&folder)
            .with_context(|| format!("cannot create a temporary file in {} (TMPDIR) for tokenized data", folder.display()))?;
        Ok(Spill::over(file, folder, width))
    }

    fn over(file: File, folder: PathBuf, width: Width) -> Spill {
        Spill { writer: BufWriter::with_capacity(SPILL_BUFFER_BYTES, file), folder, width, len: 0 }
    }

    /// Appends elements and returns the offset of the first. Narrow spills take only ids below 65,536.
    pub(super) fn push(&mut self, elements: &[u32]) -> Result<u64> {
        let written = match self.width {
            Width::Wide => self.writer.write_all(bytemuck::cast_slice(elements)),
            Width::Narrow => {
                let narrow: Vec<u16> = elements.iter().map(|&id| id as u16).collect();
                self.writer.write_all(bytemuck::cast_slice(&narrow))
            }
        };
        written.with_context(|| self.full_message())?;
        let offset = self.len;
        self.len += elements.len() as u64;
        Ok(offset)
    }

    /// Ends writing and maps the file.
    pub(super) fn finish(mut self) -> Result<Arc<Elements>> {
        self.writer.flush().with_context(|| self.full_message())?;
        if self.len == 0 {
            return Ok(Arc::new(Elements { backing: Backing::Memory(Vec::new()), width: self.width }));
        }
        // SAFETY: the file is unlinked and its only handle is this one, so nobody can change or truncate it while it
        // is mapped.
        let map = unsafe { Mmap::map(self.writer.get_ref()) };
        let map = map.with_context(|| format!("cannot map {} of tokenized data into memory", self.size()))?;
        Ok(Arc::new(Elements { backing: Backing::Mapped(map), width: self.width }))
    }

    fn size(&self) -> String {
        let element = if self.width == Width::Narrow { 2 } else { 4 };
        human_bytes(self.len * element)
    }

    fn full_message(&self) -> String {
        format!(
            "cannot store tokenized data in {} after {}; set TMPDIR to a folder with more room",
            self.folder.display(),
            self.size()
        )
    }
}

/// A complete spill file, or the same in memory.
pub(super) struct Elements {
    backing: Backing,
    width: Width,
}

enum Backing {
    Mapped(Mmap),
    Memory(Vec<u32>),
}

impl Elements {
    pub(super) fn in_memory(elements: Vec<u32>) -> Arc<Elements> {
        Arc::new(Elements { backing: Backing::Memory(elements), width: Width::Wide })
    }

    /// A mapping starts on a page, a vector of u32 on 4 bytes: both casts below are aligned.
    fn bytes(&self) -> &[u8] {
        match &self.backing {
            Backing::Mapped(map) => map,
            Backing::Memory(elements) => bytemuck::cast_slice(elements),
        }
    }

    fn append(&self, offset: u64, len: usize, out: &mut Vec<u32>) {
        let range = offset as usize..offset as usize + len;
        match self.width {
            Width::Wide => out.extend_from_slice(&bytemuck::cast_slice(self.bytes())[range]),
            Width::Narrow => {
                let narrow: &[u16] = &bytemuck::cast_slice(self.bytes())[range];
                out.extend(narrow.iter().map(|&id| u32::from(id)));
            }
        }
    }

    fn values(&self, offset: u64, len: usize) -> &[f32] {
        &bytemuck::cast_slice(self.bytes())[offset as usize..offset as usize + len]
    }
}

/// Place of one example in the shared file.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowRef {
    pub offset: u64,
    /// Elements in all.
    pub len: u32,
    /// Of which belong to the first text.
    pub first: u32,
}

/// Token ids of one split, by sequence: an example, or one of the two texts of a pair that is compared.
pub struct TokenStore {
    elements: Arc<Elements>,
    rows: Vec<RowRef>,
    states: OnceLock<TokenStates>,
}

impl TokenStore {
    pub(super) fn new(elements: Arc<Elements>, rows: Vec<RowRef>) -> TokenStore {
        TokenStore { elements, rows, states: OnceLock::new() }
    }

    /// Of pairs of texts, each text a row of its own: the first and the second of each pair in turn.
    pub(super) fn apart(elements: Arc<Elements>, pairs: &[RowRef]) -> TokenStore {
        let texts = |&RowRef { offset, len, first }: &RowRef| {
            let second = len - first;
            [RowRef { offset, len: first, first }, RowRef { offset: offset + u64::from(first), len: second, first: second }]
        };
        TokenStore::new(elements, pairs.iter().flat_map(texts).collect())
    }

    /// As [`TokenStore::from_rows`], of pairs of texts, each text a row of its own.
    pub fn from_pairs(pairs: &[(Vec<u32>, usize)]) -> TokenStore {
        let TokenStore { elements, rows, .. } = TokenStore::from_rows(pairs);
        TokenStore::apart(elements, &rows)
    }

    /// From `(ids, length of the first text)` per example, kept in memory.
    pub fn from_rows(rows: &[(Vec<u32>, usize)]) -> TokenStore {
        let mut elements = Vec::new();
        let mut refs = Vec::with_capacity(rows.len());
        for (ids, first) in rows {
            refs.push(RowRef { offset: elements.len() as u64, len: ids.len() as u32, first: *first as u32 });
            elements.extend_from_slice(ids);
        }
        TokenStore::new(Elements::in_memory(elements), refs)
    }

    /// Keeps what was computed of its examples beforehand; the first to be kept stays.
    pub fn keep_states(&self, states: TokenStates) {
        let _ = self.states.set(states);
    }

    pub fn states(&self) -> Option<&TokenStates> {
        self.states.get()
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Tokens of example `i`, both texts.
    pub fn token_count(&self, i: usize) -> usize {
        self.rows[i].len as usize
    }

    /// Of these, the first text's.
    pub fn first_count(&self, i: usize) -> usize {
        self.rows[i].first as usize
    }

    /// Appends the ids of example `i` to `out` and returns how many of them are the first text's.
    pub fn read(&self, i: usize, out: &mut Vec<u32>) -> usize {
        let row = self.rows[i];
        self.elements.append(row.offset, row.len as usize, out);
        row.first as usize
    }
}

/// Dense features of one split, `dim` per example.
pub struct FeatureStore {
    dim: usize,
    elements: Arc<Elements>,
    offsets: Vec<u64>,
    /// What rows are scaled by as they are read.
    scale: Option<Arc<Scale>>,
}

impl FeatureStore {
    pub(super) fn new(elements: Arc<Elements>, dim: usize, rows: &[RowRef]) -> FeatureStore {
        FeatureStore { dim, elements, offsets: rows.iter().map(|row| row.offset).collect(), scale: None }
    }

    /// From `values` (examples x dim), kept in memory.
    pub fn from_values(dim: usize, values: Vec<f32>) -> FeatureStore {
        assert!(dim > 0 && values.len().is_multiple_of(dim), "{} values are no rows of {dim}", values.len());
        let offsets = (0..values.len()).step_by(dim).map(|offset| offset as u64).collect();
        FeatureStore { dim, elements: Elements::in_memory(bytemuck::cast_vec(values)), offsets, scale: None }
    }

    pub fn dim(&self) -> usize {
        self.dim
    }

    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Scales all rows from here on.
    pub(super) fn scale(&mut self, scale: Arc<Scale>) {
        self.scale = Some(scale);
    }

    /// Features of example `i` as they are stored, not scaled. // (dim)
    pub(super) fn stored(&self, i: usize) -> &[f32] {
        self.elements.values(self.offsets[i], self.dim)
    }

    /// Features of example `i`, into `out`. // (dim)
    pub fn read(&self, i: usize, out: &mut [f32]) {
        out.copy_from_slice(self.stored(i));
        if let Some(scale) = &self.scale {
            scale.apply(out);
        }
    }

    /// Features of example `i`. // (dim)
    pub fn row(&self, i: usize) -> Vec<f32> {
        let mut row = vec![0.0; self.dim];
        self.read(i, &mut row);
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_widths_give_back_what_went_in() -> Result<()> {
        for width in [Width::Narrow, Width::Wide] {
            let mut spill = Spill::new(width)?;
            let offsets = [spill.push(&[1, 2, 65_535])?, spill.push(&[])?, spill.push(&[7])?];
            assert_eq!(offsets, [0, 3, 3]);
            let rows = [(0, 3, 2), (3, 0, 0), (3, 1, 1)].map(|(offset, len, first)| RowRef { offset, len, first });
            let store = TokenStore::new(spill.finish()?, rows.to_vec());
            let mut out = vec![9];
            assert_eq!(store.read(0, &mut out), 2);
            assert_eq!(store.read(2, &mut out), 1);
            assert_eq!(out, [9, 1, 2, 65_535, 7]);
            assert_eq!((store.len(), store.token_count(1)), (3, 0));
        }
        Ok(())
    }

    #[test]
    fn an_empty_spill_is_fine() -> Result<()> {
        let store = TokenStore::new(Spill::new(Width::Narrow)?.finish()?, vec![RowRef { offset: 0, len: 0, first: 0 }]);
        let mut out = Vec::new();
        assert_eq!((store.read(0, &mut out), out.len()), (0, 0));
        Ok(())
    }

    #[test]
    fn features_keep_their_bits() -> Result<()> {
        let mut spill = Spill::new(Width::Wide)?;
        let offset = spill.push(bytemuck::cast_slice(&[0.1_f32, -2.0]))?;
        let store = FeatureStore::new(spill.finish()?, 2, &[RowRef { offset, len: 2, first: 2 }]);
        assert_eq!(store.row(0), [0.1, -2.0]);
        assert_eq!(FeatureStore::from_values(2, vec![1.0, 2.0, 3.0, 4.0]).row(1), [3.0, 4.0]);
        Ok(())
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_one_clear_error() -> Result<()> {
        let full = File::options().write(true).open("/dev/full")?;
        let mut spill = Spill::over(full, PathBuf::from("/full"), Width::Wide);
        let error = (0..10).find_map(|_| spill.push(&[0; 1 << 17]).err()).context("a full disk took 5 MiB")?;
        let message = format!("{error:#}");
        assert!(message.contains("/full") && message.contains("TMPDIR") && message.contains("No space left"), "{message}");
        Ok(())
    }
}
