//! Embedding bag over a large table of which most rows are never touched.
//!
//! The table keeps only rows that training has touched: `slots[row]` is where a row lies in `values`, or [`UNTOUCHED`]. An
//! untouched row has its initial value, which is zero or drawn from its number, so it needs no memory.

use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

use super::buckets;
use super::philox::{Keyed, Stream};
use super::row_index::{RowLists, rows_init};
use super::simd::add_scaled;
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch, Work};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::{DType, Tensor};

/// Marks a row that has no slot yet.
pub const UNTOUCHED: u32 = u32::MAX;

/// Read access to the table.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    pub dim: usize,
    /// (rows)
    pub slots: &'a [u32],
    /// (touched rows x dim)
    pub values: &'a [f32],
    pub init: RowInit,
}

impl Table<'_> {
    /// (dim) one row, touched or not.
    pub fn read(&self, row: u32, out: &mut [f32]) {
        match self.slots[row as usize] {
            UNTOUCHED => self.init.fill(row, out),
            slot => out.copy_from_slice(&self.values[slot as usize * self.dim..][..self.dim]),
        }
    }
}

/// Initial value of a row: normal with this standard deviation, a pure function of the seed and the row's number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowInit {
    pub seed: u64,
    pub deviation: f64,
}

impl RowInit {
    pub fn fill(&self, row: u32, out: &mut [f32]) {
        if self.deviation == 0.0 {
            out.fill(0.0);
            return;
        }
        let random = Keyed::new(self.seed, Stream::Init, 0, u32::MAX, row);
        for (position, value) in out.iter_mut().enumerate() {
            *value = (random.normal(position as u32) * self.deviation) as f32;
        }
    }
}

/// The n-grams of n examples: example e has rows[offsets[e]..offsets[e + 1]], all scaled by scales[e].
#[derive(Clone, Debug, Default)]
pub struct Bags {
    /// (n + 1)
    pub offsets: Vec<u32>,
    pub rows: Vec<u32>,
    /// (n)
    pub scales: Vec<f32>,
}

impl Bags {
    pub fn clear(&mut self) {
        self.offsets.clear();
        self.offsets.push(0);
        self.rows.clear();
        self.scales.clear();
    }

    /// Closes an example whose rows have been pushed.
    pub fn finish_example(&mut self, scale: f32) {
        self.offsets.push(self.rows.len() as u32);
        self.scales.push(scale);
    }

    pub fn len(&self) -> usize {
        self.scales.len()
    }

    pub fn is_empty(&self) -> bool {
        self.scales.is_empty()
    }

    pub fn example(&self, index: usize) -> &[u32] {
        &self.rows[self.offsets[index] as usize..self.offsets[index + 1] as usize]
    }
}

/// out (n x dim): the scaled sum of rows of each of these examples; the rows are added in ascending order.
pub fn embedding_bag_forward(out: &mut [f32], bags: &Bags, examples: Range<usize>, table: Table) {
    let dim = table.dim;
    out.par_chunks_mut(dim).zip(examples).for_each(|(out, example)| {
        sum_rows(out, bags.example(example), bags.scales[example], table);
    });
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn sum_rows(out: &mut [f32], rows: &[u32], scale: f32, table: Table) {
    out.fill(0.0);
    let mut initial = Vec::new();
    for &row in rows {
        match table.slots[row as usize] {
            UNTOUCHED if table.init.deviation == 0.0 => {}
            UNTOUCHED => {
                initial.resize(table.dim, 0.0);
                table.init.fill(row, &mut initial);
                add_scaled(out, 1.0, &initial);
            }
            slot => add_scaled(out, 1.0, &table.values[slot as usize * table.dim..][..table.dim]),
        }
    }
    out.iter_mut().for_each(|value| *value *= scale);
}

/// The n-grams of packed examples, and where their rows lie.
#[derive(Clone, Copy)]
pub enum Entries<'a> {
    /// (rows of the table) slots, as [`Table`] has them.
    Packed { bags: &'a Bags, slots: &'a [u32] },
    /// As a device fetched them: all rows have a slot.
    Fetched(&'a RowLists),
}

/// out (n x dim): each example's scaled sum of rows.
pub struct EmbeddingBagForward<'a> {
    /// On a device f32 or bf16.
    pub out: Tensor,
    pub entries: Entries<'a>,
    pub examples: Range<usize>,
    /// (slots x dim) f32
    pub values: Tensor,
    pub init: RowInit,
}

impl Op for EmbeddingBagForward<'_> {
    fn name(&self) -> &'static str {
        "embedding_bag_forward"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.values], [self.out])
    }

    fn work(&self) -> Work {
        Work::default()
    }

    fn host(&self, memory: &HostMemory) {
        let Entries::Packed { bags, slots } = self.entries else { unreachable!("the host packs its batches") };
        let table = Table { dim: self.out.columns, slots, values: memory.read(self.values), init: self.init };
        embedding_bag_forward(memory.write(self.out), bags, self.examples.clone(), table);
    }

    /// Bounds of each packed example's n-grams, their rows where untouched ones are not zero, their slots, and the examples' scales.
    fn tables(&self) -> Vec<Bytes> {
        let Entries::Packed { bags, slots } = self.entries else { return Vec::new() };
        let offsets = &bags.offsets[self.examples.start..=self.examples.end];
        let rows = &bags.rows[offsets[0] as usize..offsets[self.examples.len()] as usize];
        let slots: Vec<u32> = rows.iter().map(|&row| slots[row as usize]).collect();
        let offsets: Vec<u32> = offsets.iter().map(|offset| offset - offsets[0]).collect();
        let rows = if self.init.deviation == 0.0 { &[][..] } else { rows };
        vec![bytes_of(&offsets), bytes_of(rows), bytes_of(&slots), bytes_of(&bags.scales[self.examples.clone()])]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let first = 4 * self.examples.start as Address;
        let lists = match (self.entries, tables) {
            (Entries::Fetched(lists), _) => [lists.offsets.at + first, 0, lists.rows.at, lists.scales.at + first],
            (_, &[offsets, rows, slots, scales]) => [offsets, rows, slots, scales],
            _ => unreachable!("four tables"),
        };
        let [narrow, wide] = if self.out.dtype == DType::Bf16 { [self.out.at, 0] } else { [0, self.out.at] };
        let launch = Launch::line("embedding_bag_forward", self.examples.len(), THREADS)
            .addresses([narrow, wide])
            .addresses(lists)
            .addresses([self.values.at])
            .int(self.out.columns)
            .long(self.init.seed)
            .double(self.init.deviation);
        vec![launch.into()]
    }
}

const THREADS: u32 = 256;

/// Gives rows that are touched for the first time their initial values.
pub struct EmbeddingRowsInit<'a> {
    /// (slots x dim) f32
    pub values: Tensor,
    pub rows: &'a [u32],
    /// The first of their slots, which follow each other.
    pub first_slot: usize,
    /// Items that a device's tables have at least.
    pub room: usize,
    pub init: RowInit,
}

impl Op for EmbeddingRowsInit<'_> {
    fn name(&self) -> &'static str {
        "embedding_rows_init"
    }

    fn operands(&self) -> Operands {
        Operands::new([], [self.values])
    }

    fn work(&self) -> Work {
        Work::default()
    }

    fn host(&self, memory: &HostMemory) {
        let dim = self.values.columns;
        let own = &mut memory.write::<f32>(self.values)[self.first_slot * dim..];
        own.chunks_exact_mut(dim).zip(self.rows).for_each(|(values, &row)| self.init.fill(row, values));
    }

    /// Rows, their slots, how many there are, and the first slot that counts.
    fn tables(&self) -> Vec<Bytes> {
        let slots: Vec<u32> = (self.first_slot as u32..).take(self.rows.len()).collect();
        let [rows, slots] = [self.rows, &slots].map(|list| buckets::table(list, self.room, 0));
        vec![rows, slots, bytes_of(&[self.rows.len() as u32]), bytes_of(&[0u32])]
    }

    fn device(&self, card: &Card, tables: &[Address]) -> Vec<Command> {
        let &[rows, slots, count, first] = tables else { unreachable!("four tables") };
        vec![
            rows_init(card, self.values, buckets::items(self.rows.len()).max(self.room), [rows, slots, count, first], self.init)
                .into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_touched_rows_and_skips_untouched_zeros() {
        let table = Table {
            dim: 2,
            slots: &[UNTOUCHED, 1, 0],
            values: &[1.0, 2.0, 10.0, 20.0],
            init: RowInit { seed: 0, deviation: 0.0 },
        };
        let bags = Bags { offsets: vec![0, 3, 3], rows: vec![0, 1, 2], scales: vec![0.5, 1.0] };
        let mut out = [7.0; 4];
        embedding_bag_forward(&mut out, &bags, 0..bags.len(), table);
        assert_eq!(out, [5.5, 11.0, 0.0, 0.0]);
    }

    #[test]
    fn untouched_rows_have_their_initial_value() {
        let init = RowInit { seed: 5, deviation: 0.1 };
        let table = Table { dim: 8, slots: &[UNTOUCHED; 3], values: &[], init };
        let bags = Bags { offsets: vec![0, 1], rows: vec![2], scales: vec![1.0] };
        let (mut out, mut expected) = ([0.0; 8], [0.0; 8]);
        embedding_bag_forward(&mut out, &bags, 0..bags.len(), table);
        init.fill(2, &mut expected);
        assert_eq!(out, expected);
        assert!(expected.iter().all(|x| *x != 0.0));
    }
}

#[cfg(test)]
mod cases {
    use super::*;
    use crate::ops::testing::{On, Place, noise, on_devices};

    const DIM: usize = 37;

    /// All examples but the first.
    fn bags_of_touched_and_untouched_rows(on: On) {
        let slots = [1, UNTOUCHED, 0, UNTOUCHED];
        let bags = Bags { offsets: vec![0, 2, 2, 5, 6], rows: vec![0, 3, 0, 1, 2, 3], scales: vec![0.5, 1.0, 2.0, 1.0] };
        for deviation in [0.0, 0.5] {
            on.compare(|place: &mut Place| {
                let (values, init) = (place.f32(&noise(2 * DIM, 0), DIM), RowInit { seed: 77, deviation });
                // The kernel leaves alone what pads the rows.
                let outs =
                    [("bags", place.room(3, DIM, DType::F32)), ("bags in bf16", place.narrow_in_place(&[0.0; 3 * DIM], DIM))];
                let entries = Entries::Packed { bags: &bags, slots: &slots };
                for (_, out) in outs {
                    place.run(&EmbeddingBagForward { out, entries, examples: 1..4, values, init });
                }
                outs.map(|(what, out)| place.found(what, out)).into()
            });
        }
    }

    fn rows_begin_with_their_initial_values(on: On) {
        for deviation in [0.0, 0.5] {
            on.compare(|place: &mut Place| {
                let (values, init) = (place.f32(&noise(4 * DIM, 0), DIM), RowInit { seed: 77, deviation });
                place.run(&EmbeddingRowsInit { values, rows: &[9, 2, 5], first_slot: 1, room: 20, init });
                vec![place.found("initial rows", values)]
            });
        }
    }

    on_devices! {
        rows_begin_with_their_initial_values,
        bags_of_touched_and_untouched_rows,
    }
}
