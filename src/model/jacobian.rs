//! The dense part of J, the tasks' private gradients of the encoder, and the stretches of it that a backward pass writes.

use std::ops::Range;

use super::network::Part;
use crate::machine::host::HostMemory;
use crate::machine::memory::{Buffer, Memory};
use crate::machine::tensor::Tensor;
use crate::ops::gemm::Write;
use crate::ops::jacobian_rows::{JacobianRows, Segment};
use crate::ops::storage::{Storage, bf16, widen};

/// (rows x width)
pub struct Jacobian {
    values: Values,
    width: usize,
}

enum Values {
    F32(Buffer),
    Bf16(Buffer<bf16>),
}

impl Jacobian {
    pub fn new(memory: &mut Memory, rows: usize, width: usize, storage: Storage) -> anyhow::Result<Self> {
        let values = match storage {
            Storage::F32 => Values::F32(memory.buffer("jacobian: dense", rows * width)?),
            Storage::Bf16 => Values::Bf16(memory.buffer_of("jacobian: dense, bf16", rows * width)?),
        };
        Ok(Self { values, width })
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Some of the rows, to be read by tapes.
    pub fn lend<'a>(&'a self, memory: &mut HostMemory<'a>, rows: Range<usize>) -> Vec<Tensor> {
        let at = |row: usize| row * self.width..(row + 1) * self.width;
        match &self.values {
            Values::F32(values) => rows.map(|row| memory.lend(&values[at(row)])).collect(),
            Values::Bf16(values) => rows.map(|row| memory.lend(&values[at(row)])).collect(),
        }
    }

    /// One row in f32.
    pub fn row(&self, index: usize) -> Vec<f32> {
        let at = index * self.width..(index + 1) * self.width;
        match &self.values {
            Values::F32(values) => values[at].to_vec(),
            Values::Bf16(rows) => {
                let mut wide = vec![0.0; self.width];
                widen(&mut wide, &rows[at]);
                wide
            }
        }
    }

    /// As [`Jacobian::lend`], to be changed.
    pub fn lend_mut<'a>(&'a mut self, memory: &mut HostMemory<'a>, rows: Range<usize>) -> Vec<Tensor> {
        let width = self.width;
        let all = match &mut self.values {
            Values::F32(values) => memory.lend_mut(values),
            Values::Bf16(values) => memory.lend_mut(values),
        };
        rows.map(|row| all.as_rows(row + 1, width).rows(row..row + 1)).collect()
    }
}

/// The rows of J that a group's parts write to, by part.
pub enum TaskRows<'a> {
    Own(Vec<&'a mut [f32]>),
    /// Kept in bf16.
    Rounded(Vec<&'a mut [bf16]>),
    /// All add to this one.
    One(&'a mut [f32]),
}

impl Jacobian {
    /// The rows of each of some groups; `rows` are their numbers by part, ascending over all groups. Where tasks have no rows of
    /// their own (`stored` is false), there is one group.
    pub fn split(&mut self, rows: &[Vec<usize>], stored: bool) -> Vec<TaskRows<'_>> {
        match (&mut self.values, stored) {
            (Values::F32(values), true) => deal(values, self.width, rows).into_iter().map(TaskRows::Own).collect(),
            (Values::Bf16(values), _) => deal(values, self.width, rows).into_iter().map(TaskRows::Rounded).collect(),
            (Values::F32(values), false) => {
                assert_eq!(rows.len(), 1, "groups that add to one row are computed one after the other");
                vec![TaskRows::One(values)]
            }
        }
    }
}

/// Numbered rows of a matrix, for each group its own.
fn deal<'a, T>(values: &'a mut [T], width: usize, rows: &[Vec<usize>]) -> Vec<Vec<&'a mut [T]>> {
    // An encoder that is frozen whole has rows of no columns.
    let mut all = values.chunks_exact_mut(width.max(1));
    let mut next = 0;
    let mut row = |&index: &usize| {
        if width == 0 {
            return &mut [][..];
        }
        let row = all.nth(index - next).expect("J has a row for each present task");
        next = index + 1;
        row
    };
    rows.iter().map(|rows| rows.iter().map(&mut row).collect()).collect()
}

impl<'a> TaskRows<'a> {
    /// As tapes see them: the row of each part, whose packed rows are `rows`.
    pub fn lend(self, memory: &mut HostMemory<'a>, parts: &[Part], rows: &[Range<usize>], staging: Tensor) -> JacobianRows {
        let added = matches!(self, Self::One(_));
        let own: Vec<Tensor> = match self {
            Self::Own(rows) => rows.into_iter().map(|row| memory.lend_mut(row)).collect(),
            Self::Rounded(rows) => rows.into_iter().map(|row| memory.lend_mut(row)).collect(),
            Self::One(row) => vec![memory.lend_mut(row); parts.len()],
        };
        let segment = |((part, row), rows): ((&Part, Tensor), &Range<usize>)| {
            let opens = part.first && (!added || part.present == 0);
            Segment { rows: rows.clone(), row, write: if opens { Write::Replace } else { Write::Add } }
        };
        JacobianRows { segments: parts.iter().zip(own).zip(rows).map(segment).collect(), added, staging }
    }
}
