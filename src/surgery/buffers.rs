//! The P-long buffers of methods with row state, one per task, kept from round to round.
//!
//! On an embedding table a buffer lives by touched row, like the optimizer's moments: the buffer of (task, row) moves, and
//! counts, only in rounds in which that task touches that row.

use anyhow::Result;
use rayon::prelude::*;

use super::blocks::Blocks;
use super::methods::RowPass;
use crate::machine::memory::{Buffer, Memory};
use crate::model::network::{Gradients, Network};
use crate::model::rows::Slots;

/// Columns of one partial sum; fixed, so that threads cannot change the order of additions.
const COLUMNS: usize = 4096;

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

impl TaskBuffers {
    /// `task_rows`: embedding rows that each task can touch; empty without a table.
    pub fn new(memory: &mut Memory, network: &Network, task_rows: &[usize]) -> Result<Self> {
        let width = network.table.shared_len();
        let dense = memory.buffer("surgery: buffers", network.spec.heads.len() * width)?;
        let mut rows = Vec::new();
        for &capacity in task_rows {
            let table = network.spec.encoder.table().map_or(0, |table| table.rows);
            memory.reserve("surgery: buffers' row index", Slots::bytes(table, capacity))?;
            let slots = if memory.is_dry() { Slots::new(0, 0) } else { Slots::new(table, capacity) };
            let dim = network.spec.encoder.inputs();
            rows.push(RowBuffer { dim, slots, values: memory.buffer("surgery: buffers of embedding rows", capacity * dim)? });
        }
        Ok(Self { dense, width, rows })
    }

    /// Runs the passes over all columns. Returns (T) sums of each pass under [`RowPass::Squares`]; under [`RowPass::Blend`]
    /// the buffers' values take the gradients' place in J.
    pub fn apply(&mut self, passes: &Passes, blocks: &Blocks, gradients: &mut Gradients) -> Vec<Vec<f64>> {
        let mut sums = vec![vec![0.0; passes.tasks.len()]; passes.passes.len()];
        for (row, (&task, &factor)) in passes.tasks.iter().zip(passes.factors).enumerate() {
            for (block, range) in blocks.ranges.iter().enumerate() {
                let set = blocks.set_of(block);
                let run = |gradient: &mut [f32], buffer: &mut [f32]| pass_row(&passes.passes[set], row, factor, gradient, buffer);
                let at = |row: usize| row * self.width + range.start..row * self.width + range.end;
                let gradient =
                    &mut gradients.jacobian.f32_mut().expect("the configuration keeps buffered methods' J in f32")[at(row)];
                let parts = gradient.par_chunks_mut(COLUMNS).zip(self.dense[at(task)].par_chunks_mut(COLUMNS));
                // Collected before they are added: the order of additions must not depend on threads.
                let parts: Vec<f64> = parts.map(|(gradient, buffer)| run(gradient, buffer)).collect();
                sums[set][row] += parts.iter().sum::<f64>();
            }
            let Some(set) = blocks.table.map(|table| blocks.set_of(table)) else { continue };
            let (buffer, gradient) = (&mut self.rows[task], &mut gradients.rows[row]);
            for (index, &number) in gradient.index.rows.iter().enumerate() {
                let values = &mut gradient.values[index * buffer.dim..][..buffer.dim];
                sums[set][row] += pass_row(&passes.passes[set], row, factor, values, buffer.row(number));
            }
        }
        sums
    }
}

fn pass_row(pass: &RowPass, row: usize, factor: f64, gradient: &mut [f32], buffer: &mut [f32]) -> f64 {
    let sum = pass.apply_row(row, factor, gradient, buffer);
    if pass.updates_from_buffers() {
        gradient.copy_from_slice(buffer);
    }
    sum
}

impl RowBuffer {
    /// The buffer of table row `number`, zero at first.
    fn row(&mut self, number: u32) -> &mut [f32] {
        let (slot, _) = self.slots.touch(number);
        &mut self.values[slot as usize * self.dim..][..self.dim]
    }

    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Touched table rows, and (touched x dim) their buffers.
    pub fn stored(&self) -> (&[u32], &[f32]) {
        let touched = self.slots.touched();
        (touched, &self.values[..touched.len() * self.dim])
    }

    /// Gives these rows the first slots; returns their buffers, to be filled.
    pub fn restore(&mut self, touched: &[u32]) -> Result<&mut [f32]> {
        self.slots.restore(touched, self.values.len() / self.dim.max(1))?;
        Ok(&mut self.values[..touched.len() * self.dim])
    }
}
