//! A place in a machine's memory, with its shape.

use std::ops::Range;

use super::driver::Address;

/// Element types of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    F32,
    Bf16,
    F64,
    U32,
}

impl DType {
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::Bf16 => 2,
            Self::F64 => 8,
        }
    }
}

/// Elements of one row of a bf16 matrix as kernels store it: rows begin at multiples of 16 bytes, as `pitch_of` of
/// kernels/common.cuh.
pub const fn pitch(columns: usize) -> usize {
    columns.next_multiple_of(8)
}

/// (rows x columns), rows `ld` elements apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tensor {
    /// Of the first element; 0 where there is no such tensor.
    pub at: Address,
    pub rows: usize,
    pub columns: usize,
    pub ld: usize,
    pub dtype: DType,
}

impl Tensor {
    /// No tensor.
    pub const NONE: Self = Self { at: 0, rows: 0, columns: 0, ld: 0, dtype: DType::F32 };

    /// (rows x columns) without gaps.
    pub const fn dense(at: Address, rows: usize, columns: usize, dtype: DType) -> Self {
        Self { at, rows, columns, ld: columns, dtype }
    }

    pub const fn is_none(&self) -> bool {
        self.at == 0
    }

    /// (rows x columns) as kernels store it.
    pub const fn padded(at: Address, rows: usize, columns: usize, dtype: DType) -> Self {
        Self { at, rows, columns, ld: pitch(columns), dtype }
    }

    /// Some of its rows.
    pub fn rows(self, range: Range<usize>) -> Self {
        debug_assert!(range.end <= self.rows, "rows {range:?} of {self:?}");
        let at = if self.is_none() { 0 } else { self.at + (range.start * self.ld * self.dtype.bytes()) as Address };
        Self { at, rows: range.len(), ..self }
    }

    /// Some elements of a single row, as a row of their own.
    pub fn range(self, range: Range<usize>) -> Self {
        debug_assert!(self.rows == 1 && range.end <= self.columns, "elements {range:?} of {self:?}");
        let at = if self.is_none() { 0 } else { self.at + (range.start * self.dtype.bytes()) as Address };
        Self { at, columns: range.len(), ld: range.len(), ..self }
    }

    /// Its first elements as a matrix without gaps.
    pub fn as_rows(self, rows: usize, columns: usize) -> Self {
        debug_assert!(self.is_none() || rows * columns <= self.rows * self.ld, "{rows} x {columns} of {self:?}");
        Self { rows, columns, ld: columns, ..self }
    }

    /// First byte, and the one behind the last.
    pub fn bytes(&self) -> Range<Address> {
        let elements = if self.rows == 0 { 0 } else { (self.rows - 1) * self.ld + self.columns };
        self.at..self.at + (elements * self.dtype.bytes()) as Address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_within_the_whole() {
        let whole = Tensor { at: 1000, rows: 4, columns: 3, ld: 8, dtype: DType::Bf16 };
        assert_eq!(whole.bytes(), 1000..1000 + 2 * 27);
        assert_eq!(whole.rows(1..3).bytes(), 1016..1016 + 2 * 11);
        assert_eq!(Tensor::dense(64, 1, 10, DType::F32).range(2..5).bytes(), 72..84);
        assert_eq!(Tensor::NONE.rows(0..0), Tensor::NONE);
    }
}
