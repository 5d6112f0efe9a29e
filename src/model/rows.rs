//! The embedding table, kept by touched row: a row gets a slot when training first moves it.
//!
//! The optimizer is LAZY per row, like PyTorch's SparseAdam: a row's moments and weight decay advance only in rounds that
//! touch it, while bias correction follows the run's step count. A row that no example ever held costs one number.

use crate::machine::host::HostMemory;
use crate::machine::memory::{Buffer, Memory};
use crate::machine::tensor::Tensor;
use crate::model::Start;
use crate::model::spec::TableSpec;
use crate::ops::embedding_bag::{RowInit, Table, UNTOUCHED};
use crate::ops::row_update::TableState;
use anyhow::{Result, bail, ensure};
use rayon::prelude::*;

/// The slots of touched rows, given in the order in which rows are first asked for.
pub struct Slots {
    /// (rows) slot of each row, or [`UNTOUCHED`].
    of_row: Buffer<u32>,
    /// Row of each slot.
    touched: Vec<u32>,
}

impl Slots {
    /// For a table of `rows`, of which at most `capacity` get a slot.
    pub fn new(memory: &mut Memory, name: &str, rows: usize, capacity: usize) -> Result<Self> {
        let mut of_row = memory.buffer_of::<u32>(name, rows)?;
        of_row.fill(UNTOUCHED);
        Ok(Self { of_row, touched: memory.vec(name, capacity)? })
    }

    /// The row's slot, and whether it is new.
    pub fn touch(&mut self, row: u32) -> (u32, bool) {
        let known = self.of_row[row as usize];
        if known != UNTOUCHED {
            return (known, false);
        }
        let slot = self.touched().len() as u32;
        self.of_row[row as usize] = slot;
        self.touched.push(row);
        (slot, true)
    }

    /// Rows that have a slot, in slot order.
    pub fn touched(&self) -> &[u32] {
        &self.touched
    }

    /// Takes back all slots but the first `count`.
    fn truncate(&mut self, count: usize) {
        self.touched.drain(count.min(self.touched.len())..).for_each(|row| self.of_row[row as usize] = UNTOUCHED);
    }

    /// Forgets all slots and gives these rows the first ones; at most `room`.
    pub fn restore(&mut self, touched: &[u32], room: usize) -> Result<()> {
        ensure!(touched.len() <= room, "the checkpoint holds {} embedding rows, {room} fit this run", touched.len());
        self.of_row.fill(UNTOUCHED);
        for (slot, &row) in touched.iter().enumerate() {
            match self.of_row.get_mut(row as usize) {
                Some(place) if *place == UNTOUCHED => *place = slot as u32,
                _ => bail!("embedding row {row} of the checkpoint is out of range or doubled"),
            }
        }
        self.touched.clear();
        self.touched.extend_from_slice(touched);
        Ok(())
    }
}

pub struct RowTable {
    /// Of the table, and of these, most that can be touched.
    rows: usize,
    capacity: usize,
    dim: usize,
    /// First moments per row: `dim`, or none where the table is not trained.
    first_dim: usize,
    /// Second moments per row: `dim`, 1 or none.
    second_dim: usize,
    init: RowInit,
    slots: Slots,
    /// (capacity x dim); pages beyond the touched slots are never written.
    values: Buffer,
    first: Buffer,
    second: Buffer,
}

/// Values of a table at one moment.
pub struct TableCopy {
    slots: Slots,
    values: Buffer,
}

impl TableCopy {
    /// Room for a copy of `table`.
    pub fn new(memory: &mut Memory, table: &RowTable) -> Result<Self> {
        let (rows, capacity) = (table.rows, table.capacity);
        let slots = Slots::new(memory, "embeddings: row index", rows, capacity)?;
        Ok(Self { slots, values: memory.buffer("embeddings: parameters", capacity * table.dim)? })
    }
}

impl RowTable {
    pub fn new(memory: &mut Memory, spec: TableSpec, start: &Start) -> Result<Self> {
        let capacity = start.row_capacity;
        let (first_dim, second_dim) = (if spec.trained { spec.dim } else { 0 }, start.second_dim(&spec));
        let slots = Slots::new(memory, "embeddings: row index", spec.rows, capacity)?;
        Ok(Self {
            rows: spec.rows,
            capacity,
            dim: spec.dim,
            first_dim,
            second_dim,
            init: RowInit { seed: start.seed, deviation: spec.init },
            slots,
            values: memory.buffer("embeddings: parameters", capacity * spec.dim)?,
            first: memory.buffer("embeddings: first moment", capacity * first_dim)?,
            second: memory.buffer("embeddings: second moment", capacity * second_dim)?,
        })
    }

    pub fn view(&self) -> Table<'_> {
        Table { dim: self.dim, slots: &self.slots.of_row, values: &self.values, init: self.init }
    }

    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Slots of these rows, giving new ones to rows touched for the first time, which get their initial values. `out` is as long
    /// as `rows`.
    pub fn touch(&mut self, rows: &[u32], out: &mut Vec<u32>) {
        let known = self.touched().len();
        self.touch_elsewhere(rows, out);
        if self.init.deviation != 0.0 {
            for (slot, &row) in self.slots.touched.iter().enumerate().skip(known) {
                self.init.fill(row, &mut self.values[slot * self.dim..(slot + 1) * self.dim]);
            }
        }
    }

    /// As [`RowTable::touch`], of a table whose values lie on a device: they are what a device has until they are brought back.
    pub fn touch_elsewhere(&mut self, rows: &[u32], out: &mut Vec<u32>) {
        out.clear();
        out.extend(rows.iter().map(|&row| self.slots.touch(row).0));
        assert!(self.touched().len() * self.dim <= self.values.len(), "more rows touched than planned");
    }

    /// Takes back the slots of all rows but the `count` that were touched first.
    pub fn untouch(&mut self, count: usize) {
        self.slots.truncate(count);
    }

    /// Gives every row a slot, in row order: for tables that are read or stepped whole.
    pub fn touch_all(&mut self) {
        let rows: Vec<u32> = (0..self.slots.of_row.len() as u32).collect();
        self.restore_touched(&rows).expect("a whole table has room for its rows");
        let (init, dim) = (self.init, self.dim);
        if init.deviation != 0.0 {
            let values = self.values.par_chunks_mut(dim).enumerate();
            values.for_each(|(row, values)| init.fill(row as u32, values));
        }
    }

    /// (rows x dim) every row's value, touched or not.
    pub fn whole(&self) -> Vec<f32> {
        let mut all = vec![0.0; self.rows() * self.dim];
        let table = self.view();
        all.par_chunks_mut(self.dim).enumerate().for_each(|(row, out)| table.read(row as u32, out));
        all
    }

    /// Rows of the table, touched or not.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// As tapes see it.
    pub fn lend<'a>(&'a mut self, memory: &mut HostMemory<'a>) -> TableState {
        let slots = self.values.len() / self.dim;
        let mut rows = |values: &'a mut Buffer, dim: usize| memory.lend_mut(&mut values[..]).as_rows(slots, dim);
        TableState {
            values: rows(&mut self.values, self.dim),
            first: rows(&mut self.first, self.first_dim),
            second: rows(&mut self.second, self.second_dim),
            copy: Tensor::NONE,
        }
    }

    /// Rows that have a slot, in slot order.
    pub fn touched(&self) -> &[u32] {
        self.slots.touched()
    }

    /// Values and moments of the touched rows, (touched x dim) each, in slot order.
    pub fn stored(&self) -> [&[f32]; 3] {
        let used = self.touched().len() * self.dim;
        [
            &self.values[..used],
            &self.first[..self.touched().len() * self.first_dim],
            &self.second[..self.touched().len() * self.second_dim],
        ]
    }

    /// Copies the touched rows' values, and which rows they are.
    pub fn copy_to(&self, copy: &mut TableCopy) {
        copy.slots.restore(self.touched(), usize::MAX).expect("the table's own rows are in range");
        let used = self.touched().len() * self.dim;
        copy.values[..used].copy_from_slice(&self.values[..used]);
    }

    /// Swaps values and touched rows with a copy's.
    pub fn exchange(&mut self, copy: &mut TableCopy) {
        std::mem::swap(&mut self.slots, &mut copy.slots);
        std::mem::swap(&mut self.values, &mut copy.values);
    }

    /// Forgets what was touched and gives these rows the first slots. Fill them through [`RowTable::stored_mut`].
    pub fn restore_touched(&mut self, touched: &[u32]) -> Result<()> {
        self.slots.restore(touched, self.values.len() / self.dim)
    }

    /// As [`RowTable::stored`], to be filled.
    pub fn stored_mut(&mut self) -> [&mut [f32]; 3] {
        let used = self.touched().len() * self.dim;
        let (first, second) = (self.touched().len() * self.first_dim, self.touched().len() * self.second_dim);
        [&mut self.values[..used], &mut self.first[..first], &mut self.second[..second]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(init: f64) -> RowTable {
        let spec = TableSpec { rows: 1 << 19, dim: 4, init, trained: true, dense_steps: false };
        let start = Start { seed: 3, equal_heads: false, second_moment: true, row_moment: false, row_capacity: 1 << 19 };
        RowTable::new(&mut Memory::unlimited(), spec, &start).unwrap()
    }

    #[test]
    fn only_touched_rows_get_slots() {
        let mut table = table(0.0);
        let mut slots = Vec::new();
        table.touch(&[7, 500_000], &mut slots);
        table.touch(&[7, 9], &mut slots);
        assert_eq!(slots, [0, 2]);
        assert_eq!(table.touched(), [7, 500_000, 9]);
        assert_eq!(table.stored()[0].len(), 12);
        table.untouch(1);
        table.touch_elsewhere(&[9, 7], &mut slots);
        assert_eq!((&slots[..], table.touched()), (&[1, 0][..], &[7, 9][..]));
    }

    #[test]
    fn a_restored_table_is_the_same() {
        let (mut a, mut b) = (table(0.5), table(0.5));
        let mut slots = Vec::new();
        a.touch(&[3, 1], &mut slots);
        b.restore_touched(a.touched()).unwrap();
        for (to, from) in b.stored_mut().into_iter().zip(a.stored()) {
            to.copy_from_slice(from);
        }
        assert_eq!(a.stored(), b.stored());
        b.touch(&[1], &mut slots);
        assert_eq!(slots, [1]);
        assert!(b.restore_touched(&[3, 3]).is_err());
    }
}
