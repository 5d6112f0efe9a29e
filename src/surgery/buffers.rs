//! The P-long buffers of methods with row state, one per task, kept from round to round.
//!
//! On an embedding table a buffer lives by touched row, like the optimizer's moments: the buffer of (task, row) moves, and
//! counts, only in rounds in which that task touches that row. Which rows have one is known to the host; a device holds values.

use anyhow::Result;

use super::blocks::Blocks;
use super::methods::RowPass;
use crate::machine::host::HostMemory;
use crate::machine::memory::{Buffer, Memory};
use crate::machine::tensor::Tensor;
use crate::model::network::Network;
use crate::model::rows::Slots;
use crate::ops::row_pass::{self, Kernel, PassRows};

pub struct TaskBuffers {
    /// (tasks x P)
    pub dense: Buffer,
    width: usize,
    /// By task; empty without an embedding table.
    pub rows: Vec<RowBuffer>,
}

/// One task's buffer of the embedding rows it has touched.
pub struct RowBuffer {
    dim: usize,
    slots: Slots,
    /// (capacity x dim); pages beyond the touched slots are never written.
    values: Buffer,
}

/// What a round does to the buffers of its present tasks.
pub struct Passes<'a> {
    /// One pass for each set of weights.
    pub passes: &'a [RowPass],
    /// (T) factor on each task's gradient.
    pub factors: &'a [f64],
    /// (T) run-wide indices.
    pub tasks: &'a [usize],
}

/// Where gradients and buffers of a round's T tasks lie.
pub struct PassAt {
    /// (P) of each
    pub jacobian: Vec<Tensor>,
    pub buffers: Vec<Tensor>,
    pub rows: Option<PassRows>,
    /// (sets x T) f64: sums of each pass under [`RowPass::Squares`], else 0.
    pub sums: Tensor,
    /// For a device's kernels.
    pub partials: Tensor,
}

impl<'a> Passes<'a> {
    /// The passes over all columns; under [`RowPass::Blend`] the buffers' values take the gradients' place.
    pub fn over(&'a self, blocks: &'a Blocks, at: PassAt) -> row_pass::RowPass<'a> {
        let PassAt { jacobian, buffers, rows, sums, partials } = at;
        let of_task = |pass: &RowPass, task: usize| match pass {
            RowPass::Blend { keep, add } => Kernel::Blend { keep: *keep, add: add[task] * self.factors[task] },
            RowPass::Squares { eps } => Kernel::Squares { factor: self.factors[task], eps: *eps },
        };
        row_pass::RowPass {
            jacobian,
            buffers,
            rows: rows.zip(blocks.table),
            blocks: &blocks.ranges,
            sets: (0..blocks.count()).map(|block| blocks.set_of(block)).collect(),
            host: Box::new(|set, task, gradient, buffer| self.run(set, task, gradient, buffer)),
            kernels: self.passes.iter().flat_map(|pass| (0..self.tasks.len()).map(move |task| of_task(pass, task))).collect(),
            sums,
            partials,
        }
    }

    fn run(&self, set: usize, task: usize, gradient: &mut [f32], buffer: &mut [f32]) -> f64 {
        let pass = &self.passes[set];
        let sum = pass.apply_row(task, self.factors[task], gradient, buffer);
        if pass.updates_from_buffers() {
            gradient.copy_from_slice(buffer);
        }
        sum
    }

    /// (sets) of (T) sums from all of them.
    pub fn by_set(&self, sums: &[f64]) -> Vec<Vec<f64>> {
        sums.chunks_exact(self.tasks.len()).take(self.passes.len()).map(<[f64]>::to_vec).collect()
    }
}

impl TaskBuffers {
    /// `task_rows`: embedding rows that each task can touch; empty without a table.
    pub fn new(memory: &mut Memory, network: &Network, task_rows: &[usize]) -> Result<Self> {
        let width = network.table.shared_len();
        let dense = memory.buffer("surgery: buffers", network.spec.heads.len() * width)?;
        let mut rows = Vec::new();
        for &capacity in task_rows {
            let table = network.spec.encoder.table().map_or(0, |table| table.rows);
            let slots = Slots::new(memory, "surgery: buffers' row index", table, capacity)?;
            let dim = network.spec.encoder.inputs();
            rows.push(RowBuffer { dim, slots, values: memory.buffer("surgery: buffers of embedding rows", capacity * dim)? });
        }
        Ok(Self { dense, width, rows })
    }

    /// Where the buffers of the table's rows that some tasks touch lie; none without a table. A row's buffer is zero at first.
    pub fn touch(&mut self, tasks: &[usize], rows: &[&[u32]]) -> Vec<Vec<u32>> {
        let own = tasks.iter().zip(rows);
        own.map(|(&task, rows)| rows.iter().map(|&row| self.rows[task].slots.touch(row).0).collect()).collect()
    }

    /// Buffers of some tasks as tapes see them: dense, and of the table's rows.
    pub fn lend<'a>(&'a mut self, memory: &mut HostMemory<'a>, tasks: &[usize]) -> [Vec<Tensor>; 2] {
        let (width, dense) = (self.width, memory.lend_mut(&mut self.dense));
        let all: Vec<Tensor> = self.rows.iter_mut().map(|rows| rows.lend(memory)).collect();
        let dense = tasks.iter().map(|&task| dense.as_rows(task + 1, width).rows(task..task + 1)).collect();
        [dense, tasks.iter().filter_map(|&task| all.get(task).copied()).collect()]
    }
}

impl RowBuffer {
    fn lend<'a>(&'a mut self, memory: &mut HostMemory<'a>) -> Tensor {
        let slots = self.values.len() / self.dim.max(1);
        memory.lend_mut(&mut self.values).as_rows(slots, self.dim)
    }

    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Touched table rows, and (touched x dim) their buffers.
    pub fn stored(&self) -> (&[u32], &[f32]) {
        let touched = self.slots.touched();
        (touched, &self.values[..touched.len() * self.dim])
    }

    /// The buffers that [`RowBuffer::stored`] gives, to be filled.
    pub fn stored_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.slots.touched().len() * self.dim]
    }

    /// Gives these rows the first slots; returns their buffers, to be filled.
    pub fn restore(&mut self, touched: &[u32]) -> Result<&mut [f32]> {
        self.slots.restore(touched, self.values.len() / self.dim.max(1))?;
        Ok(self.stored_mut())
    }
}
