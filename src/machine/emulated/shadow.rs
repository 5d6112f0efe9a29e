//! What the checker knows of memory: for each four bytes who wrote and read them last, and whether they hold anything yet.

use std::collections::HashMap;

/// Bytes that share a cell.
pub const GRAIN: usize = 4;
const PAGE_CELLS: usize = 1024;

/// The bytes of each half.
pub const HALVES: [u8; 2] = [0b0011, 0b1100];

/// One access: when, by whom, and to which bytes of the cell.
#[derive(Clone, Copy, Default)]
pub struct Stamp {
    /// The operation: stream in the upper 8 bits, its place in the stream below. For shared memory the block's own number.
    pub operation: u32,
    pub block: u32,
    pub time: u32,
    pub thread: u16,
    /// Bytes touched, one bit each; none for a stamp that never was.
    pub mask: u8,
    pub flags: u8,
}

/// The access was atomic.
pub const ATOMIC: u8 = 1;
/// More than one thread read since.
pub const MANY: u8 = 2;
/// More than one warp read since.
pub const WARPS: u8 = 4;

#[derive(Clone, Copy, Default)]
pub struct Cell {
    /// By half: neighbours of two bytes are read and written by threads of their own.
    pub writes: [Stamp; 2],
    pub reads: [Stamp; 2],
    /// Bytes that hold a value.
    pub written: u8,
    /// Bytes that an async copy has yet to fill.
    pub in_flight: u8,
}

/// Cells of one allocation, or of shared memory by address; pages appear when touched.
#[derive(Default)]
pub struct Shadow {
    pages: HashMap<usize, Box<[Cell; PAGE_CELLS]>>,
    /// The page used last, and its cells.
    last: Option<(usize, *mut Cell)>,
}

// SAFETY: `last` points into a box that `pages` owns, and goes where they go.
unsafe impl Send for Shadow {}

impl Shadow {
    /// The cell of the four bytes at `offset`.
    pub fn cell(&mut self, offset: usize) -> &mut Cell {
        let index = offset / GRAIN;
        let (page, within) = (index / PAGE_CELLS, index % PAGE_CELLS);
        let cells = match self.last {
            Some((last, cells)) if last == page => cells,
            _ => {
                let cells = self.pages.entry(page).or_insert_with(|| Box::new([Cell::default(); PAGE_CELLS]));
                let cells = cells.as_mut_ptr();
                self.last = Some((page, cells));
                cells
            }
        };
        // SAFETY: `cells` is the start of a box of PAGE_CELLS that lives as long as `self`: pages are never removed.
        unsafe { &mut *cells.add(within) }
    }
}

/// (offset of the cell, bytes of it that are touched) for each cell that `offset..offset + len` overlaps.
pub fn cells(offset: usize, len: usize) -> impl Iterator<Item = (usize, u8)> {
    let end = offset + len;
    (offset / GRAIN * GRAIN..end).step_by(GRAIN).map(move |cell| {
        let first = offset.max(cell) - cell;
        let last = end.min(cell + GRAIN) - cell;
        (cell, ((1u8 << last) - 1) & !((1u8 << first) - 1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_is_cut_into_cells() {
        let cut = |offset, len| cells(offset, len).collect::<Vec<_>>();
        assert_eq!(cut(8, 4), [(8, 0b1111)]);
        assert_eq!(cut(10, 2), [(8, 0b1100)]);
        assert_eq!(cut(6, 4), [(4, 0b1100), (8, 0b0011)]);
        assert_eq!(cut(0, 16).len(), 4);
    }
}
