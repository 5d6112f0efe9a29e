//! Fibers: one CUDA thread each, on stacks that every block uses again.

use std::ops::Range;

use anyhow::{Context, Result};
use corosensei::stack::{Stack, StackPointer};
use corosensei::{Coroutine, Yielder};
use memmap2::MmapMut;

/// Bytes of one thread's stack. Pages are handed out when first touched.
const STACK: usize = 128 << 10;

/// What a fiber leaves its stack by.
pub type Pause = Yielder<(), ()>;

/// A thread that begins in a function and can leave it in between.
pub struct Fiber(Coroutine<(), (), (), Place>);

impl Fiber {
    /// Runs until the thread pauses or ends.
    pub fn resume(&mut self) {
        let _ = self.0.resume(());
    }
}

impl Drop for Fiber {
    fn drop(&mut self) {
        // SAFETY: a thread is left in the middle of its kernel only by a fault, which waits with nothing of its own to drop.
        unsafe { self.0.force_reset() }
    }
}

/// One of the [`Stacks`].
struct Place {
    limit: StackPointer,
    base: StackPointer,
}

// SAFETY: both ends are those of STACK bytes of a mapping, and multiples of a page.
unsafe impl Stack for Place {
    fn base(&self) -> StackPointer {
        self.base
    }

    fn limit(&self) -> StackPointer {
        self.limit
    }
}

/// Stacks of the threads of one block.
pub struct Stacks {
    map: MmapMut,
    count: usize,
}

impl Stacks {
    pub fn new(count: usize) -> Result<Self> {
        let map = MmapMut::map_anon(count * STACK).context("no room for the stacks of an emulated block")?;
        Ok(Self { map, count })
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Addresses that are local memory of some thread.
    pub fn range(&self) -> Range<usize> {
        let start = self.map.as_ptr() as usize;
        start..start + self.map.len()
    }

    /// A fiber on stack `index` that will run `entry`.
    ///
    /// # Safety
    /// The stacks outlive it, and no other fiber on this one is resumed any more.
    pub unsafe fn start(&mut self, index: usize, entry: fn(&Pause)) -> Fiber {
        let limit = self.range().start + index * STACK;
        let end = |address| StackPointer::new(address).expect("no mapping is at 0");
        let place = Place { limit: end(limit), base: end(limit + STACK) };
        Fiber(Coroutine::with_stack(place, move |pause, ()| entry(pause)))
    }
}
