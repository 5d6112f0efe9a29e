//! Row-sparse private gradients of an embedding table: built per task, multiplied on the rows two tasks share, and combined
//! on the union of all tasks' rows. A table row that no task touched costs nothing anywhere.

mod backward;
#[cfg(test)]
mod cases;
mod gram;
#[cfg(test)]
pub(super) mod tests;

use std::ops::Range;

use anyhow::Result;
use multiversion::multiversion;
use rayon::prelude::*;

use super::buckets;
use super::embedding_bag::Bags;
use super::row_index::RowLists;
use super::simd::add_scaled;
use crate::machine::driver::Address;
use crate::machine::host::HostMemory;
use crate::machine::launch::Launch;
use crate::machine::memory::{Buffer, Memory};
use crate::machine::tape::{Bytes, bytes_of};
use crate::machine::tensor::Tensor;
pub use backward::{RowGradientsBackward, Sources, first_rows};
pub use gram::most_gram_partials;
pub(super) use gram::row_gram;
use gram::{gram_groups, gram_partials};

/// Which rows of the table one task touches, and from which examples.
#[derive(Default)]
pub struct RowIndex {
    /// Ascending.
    pub rows: Vec<u32>,
    /// (table row << 32 | example), sorted: where each row's gradient comes from.
    sources: Vec<u64>,
    /// (rows with sources + 1) bounds of each row's sources.
    starts: Vec<u32>,
    /// Where `rows` are all of the table, those of them with sources, which are added to what is there.
    added: Option<Vec<u32>>,
}

impl RowIndex {
    /// Room for `capacity` rows.
    fn new(memory: &mut Memory, name: &str, capacity: usize) -> Result<Self> {
        let sources = memory.vec(name, capacity)?;
        Ok(Self { rows: memory.vec(name, capacity)?, sources, starts: memory.vec(name, capacity + 1)?, added: None })
    }

    /// Makes this the index of a gradient of all `rows` of the table, to which the sources are added.
    pub fn cover(&mut self, rows: usize) {
        self.added = Some(std::mem::replace(&mut self.rows, (0..rows as u32).collect()));
    }

    /// Rows with sources.
    fn sourced(&self) -> &[u32] {
        self.added.as_ref().unwrap_or(&self.rows)
    }

    /// Of these examples of `bags`, in place of what it was.
    pub fn fill(&mut self, bags: &Bags, examples: impl Iterator<Item = usize>) {
        self.sources.clear();
        self.added = None;
        for example in examples {
            self.sources.extend(bags.example(example).iter().map(|&row| u64::from(row) << 32 | example as u64));
        }
        // Stable, and examples come in order.
        radsort::sort_by_key(&mut self.sources, |source| (source >> 32) as u32);
        debug_assert!(self.sources.is_sorted(), "examples in order");
        self.rows.clear();
        self.starts.clear();
        for (position, source) in self.sources.iter().enumerate() {
            let row = (source >> 32) as u32;
            if self.rows.last() != Some(&row) {
                self.rows.push(row);
                self.starts.push(position as u32);
            }
        }
        self.starts.push(self.sources.len() as u32);
    }

    /// Each row gets the sum over the examples e that hold it of scales[e] * dout[e], in example order.
    fn gradients(&self, out: &mut [f32], dim: usize, dout: &[f32], scales: &[f32]) {
        if let Some(rows) = &self.added {
            for (&row, own) in rows.iter().zip(self.starts.windows(2)) {
                let mut sum = vec![0.0; dim];
                add_sources(&mut sum, &self.sources[own[0] as usize..own[1] as usize], dout, scales);
                add_scaled(&mut out[row as usize * dim..][..dim], 1.0, &sum);
            }
            return;
        }
        out.par_chunks_mut(dim).with_min_len(64).enumerate().for_each(|(index, out)| {
            let own = self.starts[index] as usize..self.starts[index + 1] as usize;
            add_sources(out, &self.sources[own], dout, scales);
        });
    }
}

/// One task's gradient: its rows, and their values.
pub struct RowGradient {
    pub index: RowIndex,
    /// (rows x dim), the first of them in use; sized once, by the plan.
    pub values: Buffer,
    dim: usize,
}

impl RowGradient {
    /// Room for `capacity` rows.
    pub fn new(memory: &mut Memory, name: &str, dim: usize, capacity: usize) -> Result<Self> {
        let values = memory.buffer(name, capacity * dim)?;
        Ok(Self { index: RowIndex::new(memory, &format!("{name}: index"), capacity)?, values, dim })
    }

    /// Columns of the table.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The values in use, to be changed by tapes.
    pub fn lend_mut<'a>(&'a mut self, memory: &mut HostMemory<'a>) -> Tensor {
        let (rows, dim) = (self.index.rows.len(), self.dim);
        memory.lend_mut(&mut self.values[..rows * dim]).as_rows(rows, dim)
    }

    /// The values in use.
    pub fn used(&self) -> &[f32] {
        &self.values[..self.index.rows.len() * self.dim]
    }

    pub fn clear(&mut self) {
        self.index.rows.clear();
    }

    /// Backward pass of the embedding bag from `dout` (n x dim), n being the examples of `bags`, of which this task's are
    /// `examples`.
    pub fn backward(&mut self, dout: &[f32], bags: &Bags, examples: impl Iterator<Item = usize>) {
        self.index.fill(bags, examples);
        let used = self.index.rows.len() * self.dim;
        assert!(used <= self.values.len(), "{} rows exceed the planned row gradient", self.index.rows.len());
        self.index.gradients(&mut self.values[..used], self.dim, dout, &bags.scales);
    }
}

impl RowGradient {
    /// Makes this a gradient of all `rows` of the table and gives their values (rows x dim), to be written or added to.
    pub fn whole(&mut self, rows: usize) -> &mut [f32] {
        self.index.rows.clear();
        self.index.rows.extend(0..rows as u32);
        &mut self.values[..rows * self.dim]
    }

    /// As [`RowGradient::backward`], added to the values of a gradient of all rows.
    pub fn backward_onto_whole(&mut self, dout: &[f32], bags: &Bags, examples: impl Iterator<Item = usize>) {
        let dim = self.dim;
        for example in examples {
            for &row in bags.example(example) {
                add_source(&mut self.values[row as usize * dim..][..dim], bags.scales[example], &dout[example * dim..][..dim]);
            }
        }
    }
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn add_source(out: &mut [f32], scale: f32, dout: &[f32]) {
    add_scaled(out, scale, dout);
}

/// out (dim) = sum over the sources' examples of scale * dout.
#[multiversion(targets("x86_64+avx2+fma"))]
fn add_sources(out: &mut [f32], sources: &[u64], dout: &[f32], scales: &[f32]) {
    let dim = out.len();
    out.fill(0.0);
    for source in sources {
        let example = *source as u32 as usize;
        add_scaled(out, scales[example], &dout[example * dim..][..dim]);
    }
}

/// Rows of the longest task that one thread merges with the others' at a time.
const PIECE_ROWS: usize = 2048;

/// The rows touched by any task, ascending, each with the tasks that touched it.
#[derive(Default)]
pub struct Union {
    pub rows: Vec<u32>,
    /// (rows + 1) bounds of each row's members.
    starts: Vec<u32>,
    /// (task, index of the row in that task's gradient), tasks ascending.
    members: Vec<(u32, u32)>,
}

impl Union {
    /// Merges the tasks' ascending rows, the table's in pieces that threads share.
    pub fn merge(&mut self, tasks: &[&[u32]]) {
        let longest = tasks.iter().max_by_key(|rows| rows.len()).copied().unwrap_or(&[]);
        let pieces = longest.len().div_ceil(PIECE_ROWS).max(1);
        let bound = |piece: usize| longest[piece * longest.len() / pieces];
        let below = |rows: &[u32], piece: usize| match piece {
            0 => 0,
            last if last == pieces => rows.len(),
            piece => rows.partition_point(|&row| row < bound(piece)),
        };
        let merged = |piece: usize| {
            let own = tasks.iter().map(|rows| below(rows, piece)..below(rows, piece + 1)).collect();
            Self::merged(tasks, own)
        };
        let pieces: Vec<Self> = (0..pieces).into_par_iter().map(merged).collect();
        self.rows.clear();
        self.starts.clear();
        self.members.clear();
        for piece in &pieces {
            let before = self.members.len() as u32;
            self.rows.extend_from_slice(&piece.rows);
            self.starts.extend(piece.starts.iter().map(|start| before + start));
            self.members.extend_from_slice(&piece.members);
        }
        self.starts.push(self.members.len() as u32);
    }

    /// Of a stretch of each task's rows; without the last bound.
    fn merged(tasks: &[&[u32]], stretches: Vec<Range<usize>>) -> Self {
        let own = |(task, (rows, stretch)): (usize, (&&[u32], Range<usize>))| {
            rows[stretch.clone()].iter().zip(stretch).map(move |(&row, at)| (row, task as u32, at as u32)).collect::<Vec<_>>()
        };
        let mut all: Vec<(u32, u32, u32)> = tasks.iter().zip(stretches).enumerate().flat_map(own).collect();
        // Stable, and quick where sorted stretches follow each other.
        all.sort_by_key(|&(row, ..)| row);
        let mut union = Self::default();
        for (row, task, at) in all {
            if union.rows.last() != Some(&row) {
                union.rows.push(row);
                union.starts.push(union.members.len() as u32);
            }
            union.members.push((task, at));
        }
        union
    }

    /// Adds all rows below `rows` that no task touched, for steps of the whole table.
    pub fn cover(&mut self, rows: usize) {
        let (mut all, mut starts) = (Vec::with_capacity(rows), Vec::with_capacity(rows + 1));
        let mut next = 0;
        for row in 0..rows as u32 {
            all.push(row);
            starts.push(self.starts[next]);
            next += usize::from(self.rows.get(next) == Some(&row));
        }
        starts.push(self.starts[next]);
        (self.rows, self.starts) = (all, starts);
    }

    pub(super) fn members(&self, index: usize) -> &[(u32, u32)] {
        &self.members[self.starts[index] as usize..self.starts[index + 1] as usize]
    }
}

/// Where the rows are listed that some tasks touched.
#[derive(Clone, Copy)]
pub enum UnionOf<'a> {
    Merged(&'a Union),
    /// As a device found them.
    Found(&'a RowLists),
}

/// Embedding gradients of a round, as operations see them.
#[derive(Clone)]
pub struct RowGradients<'a> {
    pub union: UnionOf<'a>,
    /// (rows x dim) f32 of each task, or none where it touched no row; on a device one after another, and where the device found the
    /// rows, all of them for each.
    pub tasks: Vec<Tensor>,
    pub dim: usize,
    /// Most rows of any union of the run: how a device's sums are cut must not depend on who lists the rows.
    pub most: usize,
    /// Items that its tables have at least.
    pub room: usize,
}

/// Where a device finds a union: how many rows there are, bounds of their members, and (task, row of all tasks' gradients) of each.
#[derive(Clone, Copy)]
pub(super) struct UnionAt {
    pub count: Address,
    pub starts: Address,
    pub members: Address,
    /// The rows themselves.
    pub rows: Address,
}

impl<'a> RowGradients<'a> {
    /// Of rows that the host merged, as many as there may be.
    pub fn new(union: &'a Union, tasks: Vec<Tensor>, dim: usize) -> Self {
        Self { union: UnionOf::Merged(union), tasks, dim, most: union.rows.len(), room: 0 }
    }

    /// On the host.
    pub fn lend(memory: &mut HostMemory<'a>, union: &'a Union, gradients: &'a [RowGradient]) -> Self {
        let dim = gradients.first().map_or(0, RowGradient::dim);
        let own = |gradient: &'a RowGradient| memory.lend(gradient.used()).as_rows(gradient.index.rows.len(), dim);
        Self::new(union, gradients.iter().map(own).collect(), dim)
    }

    /// The union on the host.
    pub(super) fn merged(&self) -> &'a Union {
        let UnionOf::Merged(union) = self.union else { unreachable!("the host merges the rows of its batches") };
        union
    }

    pub(super) fn read<'m>(&self, memory: &'m HostMemory) -> RowValues<'m> {
        RowValues { tasks: self.tasks.iter().map(|task| memory.read(*task)).collect(), dim: self.dim }
    }

    /// Where the first task's rows lie on a device.
    pub(super) fn base(&self) -> Address {
        first_of(&self.tasks)
    }

    /// What [`RowGradients::union_at`] needs, if not from the device.
    pub(super) fn tables(&self) -> Vec<Bytes> {
        let UnionOf::Merged(union) = self.union else { return Vec::new() };
        let base = self.base();
        let first = |task: &Tensor| (task.at.wrapping_sub(base) / (4 * self.dim) as u64) as u32;
        let firsts: Vec<u32> = self.tasks.iter().map(first).collect();
        let members: Vec<[u32; 2]> = union.members.iter().map(|&(task, row)| [task, firsts[task as usize] + row]).collect();
        let room = self.room;
        let [starts, rows] = [&union.starts, &union.rows].map(|list| buckets::table(list, room, 0));
        let lists = [starts, buckets::table(&members, room, [0; 2]), rows];
        std::iter::once(bytes_of(&[union.rows.len() as u32])).chain(lists).collect()
    }

    /// Where the union lies; `tables` begin with [`RowGradients::tables`]. Also the tables behind them.
    pub(super) fn union_at<'t>(&self, tables: &'t [Address]) -> (UnionAt, &'t [Address]) {
        match (self.union, tables) {
            (UnionOf::Found(lists), rest) => {
                let RowLists { union_starts, members, union_rows, .. } = lists;
                (UnionAt { count: lists.union_count(), starts: union_starts.at, members: members.at, rows: union_rows.at }, rest)
            }
            (_, &[count, starts, members, rows, ref rest @ ..]) => (UnionAt { count, starts, members, rows }, rest),
            _ => unreachable!("four tables of a union"),
        }
    }

    /// Partial sums of values of the rows, [`PARTIAL_ROWS`] each.
    pub(super) fn partials(&self) -> usize {
        self.most.div_ceil(PARTIAL_ROWS)
    }

    /// Partial Gram matrices that [`RowGradients::gram`] writes.
    pub fn gram_partials(&self) -> usize {
        gram_partials(self.most, self.tasks.len())
    }

    /// partials ([`RowGradients::gram_partials`] x tasks x tasks) f64 on a device.
    pub(super) fn gram(&self, partials: Address, tables: &[Address]) -> Launch {
        let (count, (UnionAt { count: rows, starts, members, .. }, _)) = (self.tasks.len(), self.union_at(tables));
        let groups = gram_groups(count);
        Launch::line("row_gram", self.gram_partials(), THREADS)
            .shared(8 * groups * count * count)
            .addresses([partials, self.base(), starts, members, rows])
            .int(count)
            .int(self.dim)
            .int(groups)
    }
}

/// Where the first of some tensors lies; 0 if there is none.
pub(super) fn first_of(tensors: &[Tensor]) -> Address {
    tensors.iter().filter(|tensor| !tensor.is_none()).map(|tensor| tensor.at).min().unwrap_or(0)
}

const THREADS: u32 = 256;

/// Union rows in one partial sum, and in a partial Gram matrix where there are many.
pub(super) const PARTIAL_ROWS: usize = 64;

/// The tasks' values.
pub(super) struct RowValues<'a> {
    pub tasks: Vec<&'a [f32]>,
    pub dim: usize,
}

impl<'a> RowValues<'a> {
    pub fn row(&self, (task, row): (u32, u32)) -> &'a [f32] {
        &self.tasks[task as usize][row as usize * self.dim..][..self.dim]
    }

    /// The parts of a union row of the tasks that touched it, by their position.
    pub fn gathered(&self, members: &[(u32, u32)]) -> Vec<(usize, &'a [f32])> {
        members.iter().map(|&member| (member.0 as usize, self.row(member))).collect()
    }
}
