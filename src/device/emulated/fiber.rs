//! Fibers: stacks of their own and a switch between them in a few instructions, for one CUDA thread each.

use anyhow::{Context, Result};
use memmap2::MmapMut;

/// Bytes of one thread's stack. Pages are handed out when first touched.
const STACK: usize = 128 << 10;

// Saves what the System V ABI lets a callee keep, changes stacks, and returns on the other one.
std::arch::global_asm!(
    ".globl taskloom_fiber_switch",
    "taskloom_fiber_switch:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rdi], rsp",
    "mov rsp, rsi",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
);

/// Registers that the switch pops before it returns into the entry.
const SAVED: usize = 6;

unsafe extern "C" {
    fn taskloom_fiber_switch(save: *mut usize, to: usize);
}

/// Leaves the running stack, noting where in `save`, and goes on where `to` was left.
///
/// # Safety
/// `to` comes from [`Stacks::start`] or from an earlier switch that has not been resumed since, and its stack is alive.
pub unsafe fn switch(save: *mut usize, to: usize) {
    // SAFETY: as the caller promises.
    unsafe { taskloom_fiber_switch(save, to) }
}

/// Stacks of the threads of one block, used again by every block.
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
    pub fn range(&self) -> std::ops::Range<usize> {
        let start = self.map.as_ptr() as usize;
        start..start + self.map.len()
    }

    /// Stack pointer of a fresh fiber on stack `index` that will begin in `entry`, which must not return.
    pub fn start(&mut self, index: usize, entry: extern "C" fn() -> !) -> usize {
        // A word below the entry keeps the stack aligned as after a call.
        let words: &mut [usize] = bytemuck::cast_slice_mut(&mut self.map[index * STACK..(index + 1) * STACK]);
        let top = words.len() - SAVED - 2;
        words[top..].fill(0);
        words[top + SAVED] = entry as usize;
        &raw const words[top] as usize
    }
}
