//! The embedding table on a device.

use std::ops::Range;

use anyhow::Result;
use rayon::prelude::*;

use crate::machine::driver::{DeviceError, Driver};
use crate::machine::tensor::{DType, Tensor, pitch};
use crate::model::Start;
use crate::model::network::{Batch, Limits, Network};
use crate::model::spec::{HeadKind, ModelSpec, TableSpec};
use crate::ops::buckets;
use crate::ops::embedding_bag::RowInit;
use crate::ops::row_gradients::{RowGradients, RowIndex, Union, UnionOf, first_rows, most_gram_partials};
use crate::ops::row_index::RowLists;
use crate::ops::row_update::TableState;

/// The table's buffers.
pub struct TableOnDevice {
    /// (slots x dim) f32 each; second moments as the optimizer has them.
    pub state: TableState,
    pub init: RowInit,
    pub trained: bool,
    /// (rows or tokens of a round x dim), rows [`pitch`] apart: gradient of the encoder's input; f32, of tokens bf16.
    pub dinput: Tensor,
    /// (gradient rows x dim) f32 of all tasks.
    gradients: Tensor,
    /// Most rows that a step moves.
    most: usize,
}

impl TableOnDevice {
    /// `copy` is in bf16, of all rows, where there is one.
    pub fn new(
        device: &mut dyn Driver,
        network: &Network,
        batches: usize,
        limits: &Limits,
        start: &Start,
        copy: Tensor,
    ) -> Result<Self, DeviceError> {
        let table = network.spec.encoder.table().expect("an encoder with a table");
        let (TableSpec { dim, init, trained, .. }, slots) = (table, start.row_capacity);
        let mut buffer = |name: &str, values: usize| device.allocate(name, 4 * values.max(1));
        let mut moments = |name: &str, dim: usize| {
            let at = if dim > 0 { buffer(name, slots * dim)? } else { return Ok(Tensor::NONE) };
            Ok(Tensor::dense(at, slots, dim, DType::F32))
        };
        let state = TableState {
            values: moments("embeddings: parameters", dim)?,
            first: moments("embeddings: first moment", if trained { dim } else { 0 })?,
            second: moments("embeddings: second moment", start.second_dim(&table))?,
            copy,
        };
        let init = RowInit { seed: start.seed, deviation: init };
        let (mut dinput, mut gradients) = (Tensor::NONE, Tensor::NONE);
        if trained {
            let (rows, dtype) = network.spec.encoder.input_gradient(limits);
            let bytes = dtype.bytes() * rows * pitch(dim);
            dinput = Tensor::padded(device.allocate("gradient of the encoder's input", bytes.max(1))?, rows, dim, dtype);
            let rows = gradient_rows(batches, limits);
            gradients =
                Tensor::dense(device.allocate("jacobian: embedding rows", (4 * rows * dim).max(1))?, rows, dim, DType::F32);
        }
        Ok(Self { state, init, trained, dinput, gradients, most: union_rows(network, batches, limits) })
    }

    /// Values, first and second moments, each with its width by slot.
    pub fn arrays(&self) -> [Tensor; 3] {
        let TableState { values, first, second, .. } = self.state;
        [values, first, second]
    }

    /// (rows x dim) the gradients of these tasks' rows.
    pub fn gradients(&self, indexes: &[RowIndex]) -> Vec<Tensor> {
        let own = |(index, first): (&RowIndex, usize)| match index.rows.len() {
            0 => Tensor::NONE,
            rows => self.gradients.rows(first..first + rows),
        };
        indexes.iter().zip(first_rows(indexes)).map(own).collect()
    }

    /// The gradients of so many tasks' rows, where the device finds which they are.
    pub fn found_gradients<'a>(&self, lists: &'a RowLists, tasks: usize) -> RowGradients<'a> {
        let dim = self.gradients.columns;
        RowGradients { union: UnionOf::Found(lists), tasks: vec![self.gradients; tasks], dim, most: self.most, room: 0 }
    }

    /// Bytes of a round's lists in an upload.
    pub fn table_bytes(network: &Network, batches: usize, limits: &Limits) -> usize {
        let rows = limits.round_rows.max(limits.group_rows).max(limits.tokens.round_tokens);
        let entries = limits.bag_entries.max(limits.tokens.round_tokens);
        // With one bound more than there are items, and as long as tables are.
        let list = |bytes: usize, count: usize| bytes * buckets::items(count + 1);
        let (gradients, union) = (gradient_rows(batches, limits), union_rows(network, batches, limits));
        12 * rows + list(64, entries.max(gradients).max(union)) + 512
    }

    /// Most partial Gram matrices of a round.
    pub fn partials(network: &Network, batches: usize, limits: &Limits) -> usize {
        most_gram_partials(union_rows(network, batches, limits), limits.present.max(1) * batches)
    }
}

/// Most rows of the table that a step moves.
pub(super) fn union_rows(network: &Network, batches: usize, limits: &Limits) -> usize {
    network.spec.table_stepped_whole().map_or_else(|| gradient_rows(batches, limits), |table| table.rows)
}

/// Most rows of all gradients of the table.
pub(super) fn gradient_rows(batches: usize, limits: &Limits) -> usize {
    batches * limits.bag_rows.iter().sum::<usize>()
}

/// The rows of the table that a round touches.
#[derive(Default)]
pub struct Touched {
    /// By row of J.
    pub indexes: Vec<RowIndex>,
    /// Those of the rows of J that are committed together.
    pub union: Union,
    pub united: Range<usize>,
    /// (union rows) where they lie in the table; none until they are looked up.
    pub slots: Vec<u32>,
    /// Items that lists of its rows have at least: those of batches of one size are equally long.
    pub room: usize,
}

impl Touched {
    /// Those of a batch, slots aside.
    pub fn of(spec: &ModelSpec, batch: &Batch, batches: usize) -> Self {
        let rows = batch.present() * batches;
        let index = |row: usize| {
            let own = || batch.parts.iter().filter(|part| part.present * batches + part.batch == row);
            let mut index = RowIndex::default();
            index.fill(&batch.bags, own().flat_map(|part| batch.input_rows(std::slice::from_ref(part))));
            // A decoder's gradient is one of all words.
            let words = own().next().map(|part| &spec.heads[part.task]).filter(|head| head.kind == HeadKind::Mlm);
            words.into_iter().for_each(|head| index.cover(head.outputs));
            index
        };
        let (indexes, room) = ((0..rows).into_par_iter().map(index).collect(), buckets::items(batch.bags.rows.len()));
        let mut touched = Self { indexes, room, ..Self::default() };
        touched.unite(spec, 0..rows);
        touched
    }

    /// The table's rows that some rows of J touch are what is committed together.
    pub fn unite(&mut self, spec: &ModelSpec, rows: Range<usize>) {
        let own: Vec<&[u32]> = self.indexes[rows.clone()].iter().map(|index| &index.rows[..]).collect();
        self.union.merge(&own);
        if let Some(table) = spec.table_stepped_whole() {
            self.union.cover(table.rows);
        }
        self.united = rows;
        self.slots.clear();
    }

    /// The gradients, by row of J, of the table's rows that are committed together.
    pub fn gradients(&self, table: &TableOnDevice) -> RowGradients<'_> {
        let tasks = table.gradients(&self.indexes)[self.united.clone()].to_vec();
        RowGradients { most: table.most, room: self.room, ..RowGradients::new(&self.union, tasks, table.state.values.columns) }
    }
}
