//! The host's memory as tapes see it: slices that somebody lends for a while, found again by address.

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::Pod;

use super::driver::Address;
use super::tape::Op;
use super::tensor::{DType, Tensor};

/// An element type of tensors, as Rust has it.
pub trait Element: Pod {
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}

impl Element for half::bf16 {
    const DTYPE: DType = DType::Bf16;
}

impl Element for f64 {
    const DTYPE: DType = DType::F64;
}

impl Element for u32 {
    const DTYPE: DType = DType::U32;
}

/// Memory lent to the tapes of one pass. This is the only place in which a tensor becomes a slice.
///
/// A tensor of which any byte was not lent is refused, and within an operation one that it did not declare ([`HostMemory::of`]).
#[derive(Default)]
pub struct HostMemory<'a> {
    /// Address, and whether it may be written.
    lent: Vec<(Range<Address>, bool)>,
    lenders: PhantomData<&'a mut [u8]>,
}

impl<'a> HostMemory<'a> {
    pub fn new() -> Self {
        Self::default()
    }

    /// To be read.
    pub fn lend<T: Element>(&mut self, values: &'a [T]) -> Tensor {
        self.add(values.as_ptr() as Address, values.len(), T::DTYPE, false)
    }

    /// To be read and written.
    pub fn lend_mut<T: Element>(&mut self, values: &'a mut [T]) -> Tensor {
        self.add(values.as_mut_ptr() as Address, values.len(), T::DTYPE, true)
    }

    fn add(&mut self, at: Address, len: usize, dtype: DType, writable: bool) -> Tensor {
        if len == 0 {
            return Tensor::NONE;
        }
        let tensor = Tensor::dense(at, 1, len, dtype);
        self.lent.push((tensor.bytes(), writable));
        tensor
    }

    fn find<T: Element>(&self, tensor: Tensor, write: bool) -> (*mut T, usize) {
        let bytes = tensor.bytes();
        if bytes.is_empty() {
            return (std::ptr::NonNull::dangling().as_ptr(), 0);
        }
        assert!(tensor.dtype == T::DTYPE, "{tensor:?} read as {:?}", T::DTYPE);
        self.check(tensor, write);
        (bytes.start as *mut T, (bytes.end - bytes.start) as usize / size_of::<T>())
    }

    fn check(&self, tensor: Tensor, write: bool) {
        let bytes = tensor.bytes();
        let holds = |(range, writable): &(Range<Address>, bool)| {
            range.start <= bytes.start && bytes.end <= range.end && (*writable || !write)
        };
        assert!(self.lent.iter().any(holds), "{tensor:?} lies in no memory that was lent for this");
    }

    /// The tensor's elements, with what lies between its rows.
    pub fn read<T: Element>(&self, tensor: Tensor) -> &[T] {
        let (at, len) = self.find(tensor, false);
        // SAFETY: the bytes were lent for as long as this lives and are Pod; `of` saw that no operation writes what it reads.
        unsafe { std::slice::from_raw_parts(at, len) }
    }

    /// As [`HostMemory::read`], to be written.
    #[allow(clippy::mut_from_ref, reason = "distinct tensors of one memory are written at the same time")]
    pub fn write<T: Element>(&self, tensor: Tensor) -> &mut [T] {
        let (at, len) = self.find(tensor, true);
        // SAFETY: the bytes were lent mutably for as long as this lives and are Pod; an operation's written tensors overlap with none
        // of its others, and tapes that run at the same time write nothing in common.
        unsafe { std::slice::from_raw_parts_mut(at, len) }
    }

    /// The part of it that an operation declared. Panics where that was not lent, or where it writes what it also reads or writes
    /// through another tensor: whoever emitted it is wrong.
    pub fn of(&self, op: &dyn Op) -> HostMemory<'_> {
        let operands = op.operands();
        if let Some((a, b)) = operands.overlap() {
            panic!("{} writes {a:?} and uses {b:?}, which overlap", op.name());
        }
        let mut own = HostMemory::new();
        for (tensors, write) in [(&operands.reads, false), (&operands.writes, true)] {
            for tensor in tensors.iter().filter(|tensor| !tensor.bytes().is_empty()) {
                self.check(*tensor, write);
                own.lent.push((tensor.bytes(), write));
            }
        }
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_lent_is_reached() {
        let (mut a, b) = (vec![1.0f32; 8], vec![2.0f32; 4]);
        let mut memory = HostMemory::new();
        let (a, b) = (memory.lend_mut(&mut a), memory.lend(&b));
        memory.write::<f32>(a.range(2..4)).copy_from_slice(&memory.read(b)[..2]);
        assert_eq!(memory.read::<f32>(a), [1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0]);
        assert!(memory.read::<f32>(Tensor::NONE).is_empty());
        let refused = |read: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).is_err();
        assert!(refused(&|| _ = memory.write::<f32>(b)));
        assert!(refused(&|| _ = memory.read::<f32>(Tensor { columns: 9, ..a })));
        assert!(refused(&|| _ = memory.read::<f64>(a)));
    }
}
