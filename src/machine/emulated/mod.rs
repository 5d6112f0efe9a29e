//! The emulated device: kernels compiled as C++, every access checked, everything that is unordered run in a seeded order.
//!
//! What it catches, whatever order the seed chose: accesses outside of an allocation, misaligned ones, reads of what nobody
//! wrote, two threads or blocks at the same bytes without a barrier (or fence and atomic) between, two streams at the same
//! bytes without an event between, async copies that were not waited for, barriers that not all threads reach, warp
//! operations that lack lanes of their mask, pinned memory used while it is copied.
//!
//! What it does not show: the hardware's layout of tensor-core fragments (only how we read it), memory ordering within a warp
//! beyond __syncwarp, registers, occupancy, speed (its time is a virtual one), and bits that depend on the card's rounding of exp, division or fused
//! operations. A static shared array has no red zone of its own, a cell of two bytes remembers one access of each kind, blocks of a launch do not overlap, and a launch never overlaps another. A replayed graph keeps the streams that it
//! was captured on. It runs on x86-64 Linux.
//!
//! [`machine`] runs a launch, [`fiber`] switches threads, [`check`], [`happens_before`] and [`shadow`] judge accesses, [`memory`] owns what is
//! allocated, [`callbacks`] is what kernels call, [`device`] makes a driver of it, whose queues are [`streams`] and whose order and time [`clock`] keeps.

mod callbacks;
mod check;
mod clock;
mod device;
mod fiber;
mod happens_before;
mod kernels;
mod machine;
mod memory;
mod shadow;
mod streams;

pub use device::Emulated;

#[cfg(test)]
mod tests;
