//! The bag encoder's embedding table on a device: which rows a round touches is sorted out here, the sums are the device's.

use anyhow::Result;

use super::upload::Upload;
use crate::device::driver::{Address, DeviceError, Driver};
use crate::model::Start;
use crate::model::network::{Batch, Limits};
use crate::model::rows::RowTable;
use crate::model::spec::TableSpec;
use crate::ops::embedding_bag::RowInit;
use crate::ops::launch::pitch;
use crate::ops::launch::rows::{Bags, Table, Union, gram_partials};

/// The table's buffers.
pub struct TableOnDevice {
    /// (capacity x dim) f32
    pub values: Address,
    pub first: Address,
    /// (capacity x second_dim) f32, or null
    pub second: Address,
    pub second_dim: usize,
    pub capacity: usize,
    pub dim: usize,
    init: RowInit,
    /// (round rows x dim) f32, rows [`pitch`] apart: gradient of the encoder's input.
    pub dinput: Address,
    /// (gradient rows x dim) f32 of all tasks.
    pub gradients: Address,
}

impl TableOnDevice {
    pub fn new(device: &mut dyn Driver, spec: TableSpec, limits: &Limits, start: &Start) -> Result<Self, DeviceError> {
        let (dim, capacity) = (spec.dim, start.row_capacity);
        let second_dim = match (start.second_moment, start.row_moment) {
            (false, _) => 0,
            (true, true) => 1,
            (true, false) => dim,
        };
        let mut buffer = |name: &str, values: usize| device.allocate(name, 4 * values.max(1));
        Ok(Self {
            values: buffer("embeddings: parameters", capacity * dim)?,
            first: buffer("embeddings: first moment", capacity * dim)?,
            second: if second_dim > 0 { buffer("embeddings: second moment", capacity * second_dim)? } else { 0 },
            second_dim,
            capacity,
            dim,
            init: RowInit { seed: start.seed, deviation: spec.init },
            dinput: buffer("gradient of the encoder's input", limits.round_rows * pitch(dim))?,
            gradients: buffer("jacobian: embedding rows", gradient_rows(limits) * dim)?,
        })
    }

    /// Bytes of a round's lists in a upload.
    pub fn packet_bytes(limits: &Limits) -> usize {
        8 * limits.round_rows + 8 * limits.bag_entries + 40 * gradient_rows(limits) + 512
    }

    /// Most partial Gram matrices of a round.
    pub fn partials(limits: &Limits) -> usize {
        gram_partials(gradient_rows(limits))
    }
}

fn gradient_rows(limits: &Limits) -> usize {
    limits.bag_rows.iter().sum()
}

/// A round's touched rows, on the device.
pub struct RowsOnDevice {
    pub bags: Bags,
    /// Rows touched for the first time: table rows and slots.
    pub fresh: [Address; 2],
    pub fresh_count: usize,
    /// Of each gradient row: its examples, and their bounds.
    pub sources: Address,
    pub starts: Address,
    pub count: usize,
    pub union: Union,
    pub table: Table,
}

impl RowsOnDevice {
    /// Gives all rows of the round slots and pushes what the forward pass needs.
    pub fn forward(device: &TableOnDevice, host: &mut RowTable, upload: &mut Upload, batch: &Batch, index: &RowIndex) -> Self {
        let known = host.touched().len();
        let mut slots = Vec::with_capacity(index.union.len());
        host.touch(&index.union, &mut slots);
        let fresh = &host.touched()[known..];
        let fresh_slots: Vec<u32> = (known as u32..host.touched().len() as u32).collect();
        let slot_of = |row: &u32| slots[index.union.binary_search(row).expect("every row of a bag is in the union")];
        let bag_slots: Vec<u32> = batch.bags.rows.iter().map(slot_of).collect();
        let bags = Bags {
            offsets: upload.push(&batch.bags.offsets),
            rows: upload.push(&bag_slots),
            scales: upload.push(&batch.bags.scales),
            slots: 0,
            values: device.values,
            dim: device.dim,
            init: device.init,
        };
        let fresh_count = fresh.len();
        let fresh = [upload.push(fresh), upload.push(&fresh_slots)];
        let (count, total) = (index.starts.len() - 1, index.union.len());
        let table = Table {
            values: device.values,
            first: device.first,
            second: device.second,
            second_dim: device.second_dim,
            slots: upload.push(&slots),
            dim: device.dim,
            group: super::TABLE_GROUP,
        };
        let union = Union { rows: 0, starts: 0, members: 0, count: total };
        Self { bags, fresh, fresh_count, sources: 0, starts: 0, count, union, table }
    }

    /// Pushes what only the backward pass and the update need.
    pub fn backward(&mut self, upload: &mut Upload, index: &RowIndex) {
        self.sources = upload.push(&index.sources);
        self.starts = upload.push(&index.starts);
        self.union.rows = upload.push(&index.union);
        self.union.starts = upload.push(&index.union_starts);
        self.union.members = upload.push(&index.members);
    }
}

/// Which rows a round's tasks touch, and from which examples.
#[derive(Debug, Default, PartialEq)]
pub struct RowIndex {
    /// Examples of each gradient row, in order; gradient rows are those of the first task, ascending, then the next one's.
    sources: Vec<u32>,
    /// (gradient rows + 1)
    starts: Vec<u32>,
    /// Rows touched by any task, ascending.
    union: Vec<u32>,
    /// (union rows + 1) bounds of each row's members.
    union_starts: Vec<u32>,
    /// (task, gradient row) of each, tasks ascending.
    members: Vec<[u32; 2]>,
}

impl RowIndex {
    /// Of the `present` tasks of a batch.
    pub fn new(batch: &Batch, present: usize) -> Self {
        let mut index = Self::default();
        // (table row, task, gradient row)
        let mut touched: Vec<[u32; 3]> = Vec::new();
        for task in 0..present {
            let rows = batch.parts.iter().filter(|part| part.present == task).flat_map(|part| part.rows.clone());
            let of_row = |example: usize| batch.bags.example(example).iter().map(move |&row| (row, example as u32));
            let mut sources: Vec<(u32, u32)> = rows.flat_map(of_row).collect();
            sources.sort_unstable();
            let mut last = None;
            for (row, example) in sources {
                if last.replace(row) != Some(row) {
                    touched.push([row, task as u32, index.starts.len() as u32]);
                    index.starts.push(index.sources.len() as u32);
                }
                index.sources.push(example);
            }
        }
        index.starts.push(index.sources.len() as u32);
        touched.sort_unstable();
        for [row, task, gradient] in touched {
            if index.union.last() != Some(&row) {
                index.union.push(row);
                index.union_starts.push(index.members.len() as u32);
            }
            index.members.push([task, gradient]);
        }
        index.union_starts.push(index.members.len() as u32);
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::network::{Part, Targets};
    use crate::ops::embedding_bag;

    /// Task 0 has examples 0 and 2, task 1 example 1.
    #[test]
    fn rows_know_their_tasks_and_examples() {
        let bags = embedding_bag::Bags { offsets: vec![0, 2, 4, 5], rows: vec![3, 7, 2, 7, 7], scales: vec![1.0; 3] };
        let part =
            |present, rows| Part { task: 0, present, batch: 0, rows, targets: Targets::Class(vec![]), scale: 1.0, first: true };
        let batch = Batch { parts: vec![part(0, 0..1), part(1, 1..2), part(0, 2..3)], bags, ..Batch::default() };
        let index = RowIndex::new(&batch, 2);
        assert_eq!((&index.sources[..], &index.starts[..]), (&[0, 0, 2, 1, 1][..], &[0, 1, 3, 4, 5][..]));
        assert_eq!((&index.union[..], &index.union_starts[..]), (&[2, 3, 7][..], &[0, 1, 2, 4][..]));
        assert_eq!(index.members, [[1, 2], [0, 0], [0, 1], [1, 3]]);
    }
}
