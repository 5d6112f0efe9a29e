//! Private gradients of one round, and the part of them that one fused group writes.

use std::ops::Range;

use super::jacobian::{Jacobian, TaskRows};
use super::network::{Batch, Limits, Network, Part};
use crate::machine::memory::{Buffer, Memory};
use crate::ops::row_gradients::RowGradient;
use crate::ops::storage::Storage;

/// Which gradients of a round are kept, and how.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Each task has its own row of J; otherwise all are added up in one.
    pub stored: bool,
    /// Independent batches of a round, each with its own row of J for every task.
    pub batches: usize,
    pub storage: Storage,
}

impl Keep {
    /// Rows of J, where so many tasks are present.
    pub fn rows(&self, present: usize) -> usize {
        if self.stored { present * self.batches } else { 1 }
    }

    /// Bytes of J's dense part, of `width` columns.
    pub fn bytes(&self, present: usize, width: usize) -> u64 {
        let element = if self.storage() == Storage::Bf16 { 2 } else { 4 };
        (self.rows(present) as u64).saturating_mul(element * width as u64)
    }

    /// A sum is one row: nothing to save.
    pub fn storage(&self) -> Storage {
        if self.stored { self.storage } else { Storage::F32 }
    }
}

/// Private gradients of one round.
pub struct Gradients {
    /// (J rows x P); row `present * batches + batch` belongs to that task, or row 0 to all where none is stored.
    pub jacobian: Jacobian,
    pub keep: Keep,
    /// (H) gradients of all heads; each is its task's own.
    pub heads: Buffer,
    /// Row-sparse gradients of the embedding table by row of J; empty without one.
    pub rows: Vec<RowGradient>,
    /// (rows or tokens of a round x inputs) gradient of the encoder's input, from which `rows` is built.
    pub(super) dinput: Buffer,
}

impl Gradients {
    /// Room for the gradients of all tasks.
    pub fn new(memory: &mut Memory, network: &Network, keep: Keep, limits: &Limits) -> anyhow::Result<Self> {
        let batches = keep.batches;
        let encoder = &network.spec.encoder;
        // Only a table that is trained asks for it.
        let dinput = if limits.bag_rows.is_empty() { 0 } else { encoder.input_gradient(limits).0 * encoder.inputs() };
        // Index `present` never serves a task before itself in task order, but may serve any after.
        let mut rows_of_tasks = Vec::new();
        for row in 0..limits.bag_rows.len() * batches {
            let capacity = limits.bag_rows[row / batches..].iter().copied().max().unwrap_or(0);
            let name = format!("jacobian: embedding rows {row}");
            rows_of_tasks.push(RowGradient::new(memory, &name, encoder.inputs(), capacity)?);
        }
        Ok(Self {
            jacobian: Jacobian::new(memory, keep.rows(limits.present), network.table.shared_len(), keep.storage())?,
            keep,
            heads: memory.buffer("heads: gradients", network.table.heads_len())?,
            rows: rows_of_tasks,
            dinput: memory.buffer("gradient of the encoder's input", dinput)?,
        })
    }

    /// Rows of `count` present tasks from the position `first` on, where each task has its own.
    pub fn rows_of(&self, first: usize, count: usize) -> Range<usize> {
        first * self.keep.batches..(first + count) * self.keep.batches
    }
}

/// What one fused group writes; no other group of the round that is computed at the same time writes any of it.
pub struct GroupGradients<'a> {
    pub jacobian: TaskRows<'a>,
    /// (parts) gradient of each part's head.
    pub heads: Vec<&'a mut [f32]>,
    /// (parts) gradient of the word rows, for `mlm` heads; none where the table is not trained.
    pub words: Vec<Option<&'a mut RowGradient>>,
    /// (rows or tokens of the group x inputs); empty where nobody needs it.
    pub dinput: &'a mut [f32],
}

impl Gradients {
    /// The part of it that one group writes.
    pub fn of_group(&mut self, network: &Network, batch: &Batch, parts: &[Part]) -> GroupGradients<'_> {
        self.split(network, batch, &[parts]).pop().expect("one group")
    }

    /// What each of some groups writes. The groups follow each other in the batch and none has a task of another; where all tasks
    /// add to one row, there is one group.
    pub fn split<'a>(&'a mut self, network: &Network, batch: &Batch, groups: &[&[Part]]) -> Vec<GroupGradients<'a>> {
        let row_of = |part: &Part| part.present * self.keep.batches + part.batch;
        let rows: Vec<Vec<usize>> = groups.iter().map(|parts| parts.iter().map(row_of).collect()).collect();
        let mut jacobian = self.jacobian.split(&rows, self.keep.stored).into_iter();
        let mut heads = Cutter::new(&mut self.heads);
        let mut words = self.rows.iter_mut().enumerate();
        let mut dinput = Cutter::new(&mut self.dinput);
        let inputs = network.spec.encoder.inputs();
        let mut split = Vec::with_capacity(groups.len());
        for (parts, rows) in groups.iter().zip(&rows) {
            split.push(GroupGradients {
                jacobian: jacobian.next().expect("rows for each group"),
                heads: parts.iter().map(|part| heads.cut(network.table.head_range(part.task))).collect(),
                words: rows.iter().map(|row| words.find(|(index, _)| index == row).map(|(_, words)| words)).collect(),
                dinput: if dinput.is_empty() {
                    &mut []
                } else {
                    let range = batch.input_rows(parts);
                    dinput.cut(range.start * inputs..range.end * inputs)
                },
            });
        }
        split
    }
}

/// Hands out ascending ranges of a slice.
struct Cutter<'a> {
    rest: &'a mut [f32],
    taken: usize,
}

impl<'a> Cutter<'a> {
    fn new(all: &'a mut [f32]) -> Self {
        Self { rest: all, taken: 0 }
    }

    fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.taken == 0
    }

    fn cut(&mut self, range: Range<usize>) -> &'a mut [f32] {
        let (_, from) = std::mem::take(&mut self.rest).split_at_mut(range.start - self.taken);
        let (own, rest) = from.split_at_mut(range.len());
        (self.rest, self.taken) = (rest, range.end);
        own
    }
}
