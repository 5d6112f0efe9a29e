//! Device memory: allocations by address, each with its shadow.
//!
//! Anything between two allocations is a red zone, since an address outside of all of them is a fault.

use std::alloc::{Layout, alloc, dealloc};

use super::shadow::Shadow;

/// Alignment of allocations, as the driver's.
const ALIGN: usize = 256;

const GUESSES: usize = 1024;

/// What fresh memory holds: NaN as f32 and as bf16.
const POISON: u8 = 0xff;

pub struct Region {
    pub name: String,
    pub start: usize,
    pub len: usize,
    pub shadow: Shadow,
}

impl Region {
    fn layout(len: usize) -> Layout {
        // A red zone of a whole alignment unit on either side.
        Layout::from_size_align(len + 2 * ALIGN, ALIGN).expect("sizes are far below the address space")
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `Heap::allocate` made the block with this layout, and nothing refers to it any more.
        unsafe { dealloc((self.start - ALIGN) as *mut u8, Self::layout(self.len)) };
    }
}

pub struct Heap {
    /// Sorted by start.
    regions: Vec<Region>,
    /// Which region an address was found in last, by bits of the address; a guess.
    found: [usize; GUESSES],
}

impl Default for Heap {
    fn default() -> Self {
        Self { regions: Vec::new(), found: [0; GUESSES] }
    }
}

impl Heap {
    /// Address of `len` fresh bytes, or none.
    pub fn allocate(&mut self, name: &str, len: usize) -> Option<usize> {
        // SAFETY: the layout is never empty.
        let raw = unsafe { alloc(Region::layout(len)) };
        if raw.is_null() {
            return None;
        }
        // SAFETY: the block has this many bytes.
        unsafe { raw.write_bytes(POISON, len + 2 * ALIGN) };
        let start = raw as usize + ALIGN;
        let at = self.regions.partition_point(|region| region.start < start);
        self.regions.insert(at, Region { name: name.to_owned(), start, len, shadow: Shadow::default() });
        Some(start)
    }

    pub fn free(&mut self, start: usize) {
        let at = self.regions.partition_point(|region| region.start < start);
        let region = self.regions.remove(at);
        assert_eq!(region.start, start, "freed what was allocated");
    }

    /// The allocation that `address` lies in.
    pub fn region(&mut self, address: usize) -> Option<&mut Region> {
        let holds = |region: &Region| address >= region.start && address < region.start + region.len;
        let guess = &mut self.found[address / ALIGN % GUESSES];
        if !self.regions.get(*guess).is_some_and(holds) {
            let at = self.regions.partition_point(|region| region.start <= address);
            if at == 0 || !holds(&self.regions[at - 1]) {
                return None;
            }
            *guess = at - 1;
        }
        self.regions.get_mut(*guess)
    }

    /// Words for an address outside of every allocation.
    pub fn describe(&self, address: usize) -> String {
        const NEAR: usize = 1 << 16;
        let distance = |region: &Region| {
            let end = region.start + region.len;
            if address >= end { address - end } else { region.start.saturating_sub(address) }
        };
        match self.regions.iter().min_by_key(|region| distance(region)).filter(|region| distance(region) < NEAR) {
            Some(region) if address >= region.start + region.len => {
                let (name, len) = (&region.name, region.len);
                format!("{} bytes past the end of \"{name}\" ({len} bytes)", address - region.start - len)
            }
            Some(region) => format!("{} bytes before \"{}\"", region.start - address, region.name),
            None => format!("0x{address:x}, which is not device memory"),
        }
    }
}
