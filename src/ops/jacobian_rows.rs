//! The stretches of J that a backward pass writes: one row for each segment of packed rows, or one that all add to.

use std::ops::Range;

use super::gemm::Write;
use super::storage::{bf16, round, widen};
use crate::machine::driver::Address;
use crate::machine::host::HostMemory;
use crate::machine::launch::Launch;
use crate::machine::tape::{Bytes, bytes_of};
use crate::machine::tensor::{DType, Tensor};

/// One segment's packed rows, and the row of J that their gradient goes to.
#[derive(Clone, Debug)]
pub struct Segment {
    pub rows: Range<usize>,
    /// (P), f32 or bf16
    pub row: Tensor,
    pub write: Write,
}

/// How segments write to J.
#[derive(Clone, Debug)]
pub struct JacobianRows {
    pub segments: Vec<Segment>,
    /// All segments add to one row.
    pub added: bool,
    /// On the host, room for the largest piece of a row that is kept in bf16, while it is computed.
    pub staging: Tensor,
}

/// One segment's stretch of J.
pub struct Slot<'a> {
    pub rows: Range<usize>,
    pub values: &'a mut [f32],
    pub write: Write,
}

impl JacobianRows {
    /// The same rows of J for other packed rows, by segment.
    pub fn of_rows(&self, rows: &[Range<usize>]) -> Self {
        let segment = |(segment, rows): (&Segment, &Range<usize>)| Segment { rows: rows.clone(), ..segment.clone() };
        Self { segments: self.segments.iter().zip(rows).map(segment).collect(), ..self.clone() }
    }

    /// Where the first of the rows lies.
    pub fn base(&self) -> Address {
        self.segments.iter().map(|segment| segment.row.at).min().unwrap_or(0)
    }

    /// Whether rows are kept in bf16, as kernels are told.
    pub fn narrow(&self) -> usize {
        usize::from(self.segments.first().is_some_and(|segment| segment.row.dtype == DType::Bf16))
    }

    /// Values from [`JacobianRows::base`] to a column of a segment's row.
    pub fn offset(&self, segment: &Segment, column: usize) -> u64 {
        (segment.row.at - self.base()) / segment.row.dtype.bytes() as u64 + column as u64
    }

    /// The segments as kernels take them, all at once: those that add to one row are one, end to end as they lie.
    pub fn merged(&self) -> Vec<Segment> {
        match (&self.segments[..], self.added) {
            ([first, .., last], true) => vec![Segment { rows: first.rows.start..last.rows.end, ..first.clone() }],
            (segments, _) => segments.to_vec(),
        }
    }

    /// What is written of some columns.
    pub fn tensors(&self, columns: &Range<usize>) -> Vec<Tensor> {
        let there = self.segments.iter().filter(|segment| !segment.row.is_none());
        let rows = there.map(|segment| segment.row.range(columns.clone())).take(if self.added { 1 } else { usize::MAX });
        rows.chain((!self.staging.is_none()).then_some(self.staging)).collect()
    }

    /// As [`JacobianRows::partial_sums_of`] of [`PARTIAL_ROWS`].
    pub fn partial_sums(&self, all: usize, column: usize) -> (Vec<[u32; 2]>, PartialSums) {
        self.partial_sums_of(PARTIAL_ROWS, all, column)
    }

    /// By chunks of at most so many packed rows: the first and the one behind the last of each partial row, and where their sums go,
    /// from this column of J on. Of `all` rows those behind the last segment are in chunks whose sums go nowhere; chunks of no rows
    /// make the list as long as for any segments of so many rows.
    pub fn partial_sums_of(&self, rows: usize, all: usize, column: usize) -> (Vec<[u32; 2]>, PartialSums) {
        let (mut chunks, mut sums, segments) = (Vec::new(), PartialSums::default(), self.merged());
        let mut add = |Range { start, end }: Range<usize>| {
            let chunk = |first: usize| [first as u32, (first + rows).min(end) as u32];
            chunks.extend((start..end).step_by(rows).map(chunk));
        };
        for segment in &segments {
            add(segment.rows.clone());
            sums.push(segment.rows.len().div_ceil(rows), self.offset(segment, column), segment.write);
        }
        add(segments.last().map_or(0, |last| last.rows.end)..all);
        chunks.resize(most_partials_of(rows, all, segments.len()), [0; 2]);
        (chunks, sums)
    }

    /// Calls `work` with the slots that may be written at once: all segments' rows; or each alone where all add to one row, so
    /// that the order of additions does not depend on the grouping, or where rows are rounded, so that one piece is staged.
    pub fn each(&self, memory: &HostMemory, columns: Range<usize>, mut work: impl FnMut(Vec<Slot>)) {
        let row = |segment: &Segment| segment.row.range(columns.clone());
        let slot = |own: &Segment| Slot { rows: own.rows.clone(), values: memory.write(row(own)), write: own.write };
        let segments = self.segments.iter();
        if self.added {
            segments.for_each(|own| work(vec![slot(own)]));
        } else if self.segments.iter().all(|segment| segment.row.dtype == DType::F32) {
            work(segments.map(slot).collect());
        } else {
            for own in segments {
                let kept: &mut [bf16] = memory.write(row(own));
                let staged: &mut [f32] = memory.write(self.staging.range(0..kept.len()));
                if own.write == Write::Add {
                    widen(staged, kept);
                }
                work(vec![Slot { rows: own.rows.clone(), values: staged, write: own.write }]);
                round(kept, staged);
            }
        }
    }
}

/// Packed rows that a kernel adds up in one partial row.
pub const PARTIAL_ROWS: usize = 64;

/// Most partial rows of packed rows that are cut into so many segments, and of rows that belong to none.
pub fn most_partials(rows: usize, segments: usize) -> usize {
    most_partials_of(PARTIAL_ROWS, rows, segments)
}

/// As [`most_partials`], a partial row for so many packed rows.
pub fn most_partials_of(partial: usize, rows: usize, segments: usize) -> usize {
    rows / partial + segments + 1
}

/// Sums of partial rows (f32, end to end) that go to places of J.
#[derive(Debug)]
pub struct PartialSums {
    /// (sums + 1) partial rows of each.
    bounds: Vec<u32>,
    /// (sums) where each goes, and whether it is added there.
    offsets: Vec<u64>,
    add: Vec<u32>,
}

impl Default for PartialSums {
    fn default() -> Self {
        Self { bounds: vec![0], offsets: Vec::new(), add: Vec::new() }
    }
}

impl PartialSums {
    /// The sum of the next `count` partial rows goes to `offset`.
    pub fn push(&mut self, count: usize, offset: u64, write: Write) {
        self.bounds.push(self.count() as u32 + count as u32);
        self.offsets.push(offset);
        self.add.push(u32::from(write == Write::Add));
    }

    /// Partial rows.
    pub fn count(&self) -> usize {
        self.bounds[self.bounds.len() - 1] as usize
    }

    pub fn tables(&self) -> [Bytes; 3] {
        [bytes_of(&self.bounds), bytes_of(&self.offsets), bytes_of(&self.add)]
    }

    /// Adds up partial rows of `width`, with where its tables are.
    pub fn launch(&self, into: &JacobianRows, partials: Tensor, [bounds, offsets, add]: [Address; 3], width: usize) -> Launch {
        assert!(self.count() * width <= partials.columns, "{} partial rows of {width} in {partials:?}", self.count());
        Launch::new("add_partials", [width.div_ceil(32), self.offsets.len(), 1], 1024)
            .addresses([into.base(), partials.at, bounds, offsets, add])
            .int(width)
            .int(into.narrow())
    }
}
