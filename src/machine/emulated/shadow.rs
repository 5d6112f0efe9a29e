//! What the checker knows of memory: for each four bytes, or two, who wrote and read them last, and whether they hold anything yet.

/// Bytes of memory whose cells come and go together.
const PAGE: usize = 4096;
/// Bytes of a cell: most accesses are of whole words. A page where one was not has cells of half a word from then on, so that
/// neighbours of two bytes, which threads of their own write, are told apart.
const WORD: usize = 4;
const HALF: usize = 2;

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
    pub write: Stamp,
    pub read: Stamp,
    /// Bytes that hold a value.
    pub written: u8,
    /// Bytes that an async copy has yet to fill.
    pub in_flight: u8,
}

impl Cell {
    /// The bytes of a word that are those of one of its halves.
    fn half(mut self) -> Self {
        let bytes = (1 << HALF) - 1;
        for mask in [&mut self.write.mask, &mut self.read.mask, &mut self.written, &mut self.in_flight] {
            *mask &= bytes;
        }
        self
    }
}

struct Page {
    /// Its cells are halves of words.
    is_split: bool,
    cells: Box<[Cell]>,
}

impl Page {
    fn new() -> Self {
        Self { is_split: false, cells: vec![Cell::default(); PAGE / WORD].into() }
    }

    #[cold]
    #[inline(never)]
    fn split(&mut self) {
        // Until now every access was of whole words, so that both halves know the same.
        self.cells = self.cells.iter().flat_map(|cell| [cell.half(); WORD / HALF]).collect();
        self.is_split = true;
    }
}

/// Cells of one allocation, or of shared memory; pages appear when touched.
#[derive(Default)]
pub struct Shadow {
    pages: Vec<Option<Page>>,
}

impl Shadow {
    /// Visits the cells that `offset..offset + len` overlaps, with the bytes of each that are touched, up to the first error.
    #[inline]
    pub fn visit<E>(
        &mut self,
        offset: usize,
        len: usize,
        mut visit: impl FnMut(&mut Cell, u8) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let (number, stop) = (at / PAGE, end.min((at / PAGE + 1) * PAGE));
            let page = self.page(number);
            if !page.is_split && !(at | stop).is_multiple_of(WORD) {
                page.split();
            }
            let (first, stop_in_page) = (at - number * PAGE, stop - number * PAGE);
            at = stop;
            if !page.is_split {
                for cell in &mut page.cells[first / WORD..stop_in_page / WORD] {
                    visit(cell, (1 << WORD) - 1)?;
                }
                continue;
            }
            let cells = &mut page.cells[first / HALF..stop_in_page.div_ceil(HALF)];
            for (index, cell) in cells.iter_mut().enumerate() {
                let start = (first / HALF + index) * HALF;
                let (from, to) = (first.max(start) - start, stop_in_page.min(start + HALF) - start);
                visit(cell, ((1u8 << to) - 1) & !((1u8 << from) - 1))?;
            }
        }
        Ok(())
    }

    fn page(&mut self, number: usize) -> &mut Page {
        if !matches!(self.pages.get(number), Some(Some(_))) {
            self.add(number);
        }
        self.pages[number].as_mut().expect("just made")
    }

    /// Out of the way of what is called for every access of a kernel.
    #[cold]
    #[inline(never)]
    fn add(&mut self, number: usize) {
        if self.pages.len() <= number {
            self.pages.resize_with(number + 1, || None);
        }
        self.pages[number] = Some(Page::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The masks of an access, in order.
    fn masks(shadow: &mut Shadow, offset: usize, len: usize) -> Vec<u8> {
        let mut found = Vec::new();
        let all = shadow.visit::<()>(offset, len, |_, mask| {
            found.push(mask);
            Ok(())
        });
        all.expect("nothing fails");
        found
    }

    #[test]
    fn an_access_is_cut_into_cells() {
        let mut shadow = Shadow::default();
        assert_eq!(masks(&mut shadow, 8, 4), [0b1111]);
        assert_eq!(masks(&mut shadow, PAGE - 8, 16), [0b1111; 4]);
        assert_eq!(masks(&mut shadow, 10, 2), [0b11]);
        assert_eq!(masks(&mut shadow, 8, 4), [0b11; 2]);
        assert_eq!(masks(&mut shadow, 7, 4), [0b10, 0b11, 0b01]);
        assert_eq!(masks(&mut shadow, PAGE, 4), [0b1111]);
    }

    #[test]
    fn a_page_of_halves_knows_what_it_knew_of_words() {
        let mut shadow = Shadow::default();
        let write = |cell: &mut Cell, mask: u8| -> Result<(), ()> {
            (cell.write.mask, cell.written) = (mask, mask);
            Ok(())
        };
        shadow.visit(0, 8, write).expect("nothing fails");
        masks(&mut shadow, 2, 1);
        let mut known = Vec::new();
        let all = shadow.visit::<()>(0, 12, |cell, _| {
            known.push((cell.write.mask, cell.written));
            Ok(())
        });
        all.expect("nothing fails");
        assert_eq!(known, [[(3, 3); 4].as_slice(), [(0, 0); 2].as_slice()].concat());
    }
}
