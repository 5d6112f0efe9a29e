//! Columns of J cut into chunks: what the grids of kernels that pass over them run over.

use std::ops::Range;

use crate::machine::tape::{Bytes, bytes_of};

/// Each chunk lies in one range of columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunks {
    /// (chunks) each
    pub firsts: Vec<u64>,
    pub lengths: Vec<u32>,
    /// The number of each chunk's range.
    pub ranges: Vec<u32>,
}

impl Chunks {
    pub fn new(ranges: impl IntoIterator<Item = Range<u64>>, length: u32) -> Self {
        let mut chunks = Self::default();
        for (number, range) in ranges.into_iter().enumerate() {
            let mut first = range.start;
            while first < range.end {
                let end = (first + u64::from(length)).min(range.end);
                chunks.firsts.push(first);
                chunks.lengths.push((end - first) as u32);
                chunks.ranges.push(number as u32);
                first = end;
            }
        }
        chunks
    }

    /// How many chunks [`Chunks::new`] makes.
    pub fn count(ranges: impl IntoIterator<Item = Range<u64>>, length: u32) -> usize {
        ranges.into_iter().map(|range| (range.end - range.start).div_ceil(u64::from(length)) as usize).sum()
    }

    pub fn of_range(range: Range<u64>, length: u32) -> Self {
        Self::new([range], length)
    }

    /// Chunk length for the Gram matrices of `columns` in all: about eight blocks for each of 132 multiprocessors, in whole
    /// rounds of a block's warps (8 x 1024 columns).
    pub fn gram_length(columns: u64) -> u32 {
        const ROUND: u64 = 8 * 1024;
        (columns.div_ceil(132 * 8).div_ceil(ROUND) * ROUND).clamp(ROUND, 16 * ROUND) as u32
    }

    /// Chunk length for the update: eight vectors of 4 a thread.
    pub const UPDATE_LENGTH: u32 = 8192;

    pub fn len(&self) -> usize {
        self.firsts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.firsts.is_empty()
    }

    /// (ranges + 1) bounds of each range's chunks.
    pub fn starts(&self, ranges: usize) -> Vec<u32> {
        (0..=ranges as u32).map(|range| self.ranges.partition_point(|&own| own < range) as u32).collect()
    }

    /// First columns and lengths.
    pub fn tables(&self) -> [Bytes; 2] {
        [bytes_of(&self.firsts), bytes_of(&self.lengths)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_their_ranges() {
        let chunks = Chunks::new([0..10, 10..10, 10..14], 4);
        assert_eq!(chunks.firsts, [0, 4, 8, 10]);
        assert_eq!(chunks.lengths, [4, 4, 2, 4]);
        assert_eq!(chunks.ranges, [0, 0, 0, 2]);
        assert_eq!(chunks.starts(3), [0, 3, 3, 4]);
        assert_eq!(Chunks::count([0..10, 10..10, 10..14], 4), chunks.len());
    }
}
