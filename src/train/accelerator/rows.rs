//! The embedding table on a device.

use anyhow::Result;

use crate::machine::driver::{Address, DeviceError, Driver};
use crate::machine::tensor::{DType, Tensor, pitch};
use crate::model::Start;
use crate::model::network::{Batch, Limits};
use crate::model::spec::TableSpec;
use crate::ops::embedding_bag::RowInit;
use crate::ops::row_gradients::{RowGradients, RowIndex, Union, row_partials};
use crate::ops::row_update::TableState;

/// The table's buffers.
pub struct TableOnDevice {
    /// (slots x dim) f32 each; second moments as the optimizer has them.
    pub state: TableState,
    pub init: RowInit,
    /// (round rows x dim) f32, rows [`pitch`] apart: gradient of the encoder's input.
    pub dinput: Tensor,
    /// (gradient rows x dim) f32 of all tasks.
    gradients: Address,
}

impl TableOnDevice {
    pub fn new(
        device: &mut dyn Driver,
        spec: TableSpec,
        batches: usize,
        limits: &Limits,
        start: &Start,
    ) -> Result<Self, DeviceError> {
        let (dim, slots) = (spec.dim, start.row_capacity);
        let second_dim = match (start.second_moment, start.row_moment) {
            (false, _) => 0,
            (true, true) => 1,
            (true, false) => dim,
        };
        let mut buffer = |name: &str, values: usize| device.allocate(name, 4 * values.max(1));
        let mut moments = |name: &str, dim: usize| {
            let at = if dim > 0 { buffer(name, slots * dim)? } else { return Ok(Tensor::NONE) };
            Ok(Tensor::dense(at, slots, dim, DType::F32))
        };
        let state = TableState {
            values: moments("embeddings: parameters", dim)?,
            first: moments("embeddings: first moment", dim)?,
            second: moments("embeddings: second moment", second_dim)?,
        };
        let dinput = buffer("gradient of the encoder's input", limits.round_rows * pitch(dim))?;
        Ok(Self {
            state,
            init: RowInit { seed: start.seed, deviation: spec.init },
            dinput: Tensor::padded(dinput, limits.round_rows, dim, DType::F32),
            gradients: buffer("jacobian: embedding rows", gradient_rows(batches, limits) * dim)?,
        })
    }

    /// Values, first and second moments, each with its width by slot.
    pub fn arrays(&self) -> [Tensor; 3] {
        let TableState { values, first, second } = self.state;
        [values, first, second]
    }

    /// (rows x dim) the gradients of these tasks' rows.
    pub fn gradients(&self, indexes: &[RowIndex]) -> Vec<Tensor> {
        let (dim, mut first) = (self.state.values.columns, 0);
        let own = |index: &RowIndex| {
            let (at, rows) = (self.gradients + 4 * (first * dim) as Address, index.rows.len());
            first += rows;
            if rows == 0 { Tensor::NONE } else { Tensor::dense(at, rows, dim, DType::F32) }
        };
        indexes.iter().map(own).collect()
    }

    /// Bytes of a round's lists in an upload.
    pub fn table_bytes(batches: usize, limits: &Limits) -> usize {
        12 * limits.round_rows.max(limits.group_rows) + 12 * limits.bag_entries + 40 * gradient_rows(batches, limits) + 512
    }

    /// Most partial Gram matrices of a round.
    pub fn partials(batches: usize, limits: &Limits) -> usize {
        row_partials(gradient_rows(batches, limits))
    }
}

fn gradient_rows(batches: usize, limits: &Limits) -> usize {
    batches * limits.bag_rows.iter().sum::<usize>()
}

/// The rows of the table that a round touches.
#[derive(Default)]
pub struct Touched {
    /// By row of J.
    pub indexes: Vec<RowIndex>,
    pub union: Union,
    /// (union rows) where they lie in the table.
    pub slots: Vec<u32>,
}

impl Touched {
    /// Which rows these are, slots aside.
    pub fn index(&mut self, batch: &Batch, present: usize, batches: usize) {
        self.indexes.resize_with(present * batches, RowIndex::default);
        for (row, index) in self.indexes.iter_mut().enumerate() {
            let parts = batch.parts.iter().filter(|part| part.present * batches + part.batch == row);
            index.fill(&batch.bags, parts.flat_map(|part| part.rows.clone()));
        }
        let rows: Vec<&[u32]> = self.indexes.iter().map(|index| &index.rows[..]).collect();
        self.union.merge(&rows);
    }

    /// The tasks' gradients of the rows.
    pub fn gradients(&self, table: &TableOnDevice) -> RowGradients<'_> {
        RowGradients { union: &self.union, tasks: table.gradients(&self.indexes), dim: table.state.values.columns }
    }
}
