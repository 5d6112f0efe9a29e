//! What the device is told to run: the kernel of an op, its grid and its arguments. Nothing here touches a device.
//!
//! One file per kernel file; functions and structs have the kernel's name, and fields the names of its arguments.

pub mod elementwise;
pub mod gemm;
pub mod heads;
pub mod rows;
pub mod surgery;

pub use crate::device::driver::Address;
pub use crate::device::launch::Launch;

/// Elements of one row of a bf16 matrix as kernels store it: rows begin at multiples of 16 bytes, as `pitch_of` of
/// kernels/common.cuh.
pub const fn pitch(columns: usize) -> usize {
    columns.next_multiple_of(8)
}
