//! The pass of a surgery method that keeps a buffer of each task's gradient, over rows of J and of the embedding table.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::gram::{Cut, narrow, stride};
use super::row_gradients::first_of;
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::Tensor;

/// Columns of one partial sum on the host; fixed, so that threads cannot change the order of additions.
const COLUMNS: usize = 4096;

/// A pass on the host: some columns of a task's gradient and of its buffer, by set of weights and task; returns what they add up
/// to.
pub type HostPass<'a> = Box<dyn Fn(usize, usize, &mut [f32], &mut [f32]) -> f64 + Send + Sync + 'a>;

/// Passes as kernels have them, over a gradient g and its buffer b.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kernel {
    /// b = keep b + add g, and g = b; adds up nothing.
    Blend { keep: f64, add: f64 },
    /// b = b + (factor g)^2; adds up (factor g)^2 / sqrt(b + eps).
    Squares { factor: f64, eps: f64 },
}

/// As `Pass` of kernels/row_pass.cu.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Packed {
    kind: u64,
    first: f64,
    second: f64,
}

impl From<Kernel> for Packed {
    fn from(kernel: Kernel) -> Self {
        match kernel {
            Kernel::Blend { keep, add } => Self { kind: 0, first: keep, second: add },
            Kernel::Squares { factor, eps } => Self { kind: 1, first: factor, second: eps },
        }
    }
}

/// One pass of T tasks.
pub struct RowPass<'a> {
    /// (P) of each task
    pub jacobian: Vec<Tensor>,
    /// (P) each task's; on a device within one allocation.
    pub buffers: Vec<Tensor>,
    /// Touched embedding rows, and the block that they are of.
    pub rows: Option<(PassRows, usize)>,
    /// Columns of each block, and its set of weights.
    pub blocks: &'a [Range<usize>],
    pub sets: Vec<usize>,
    pub host: HostPass<'a>,
    /// (sets x T)
    pub kernels: Vec<Kernel>,
    /// (sets x T) f64: what the passes add up.
    pub sums: Tensor,
    /// ([`RowPass::partials`]) f64 on a device; none on the host.
    pub partials: Tensor,
}

/// Touched rows of the embedding table, by task.
pub struct PassRows {
    /// (rows x dim) f32, or none; on a device one after another.
    pub gradients: Vec<Tensor>,
    /// (slots x dim) f32; on a device within one allocation.
    pub buffers: Vec<Tensor>,
    /// (rows) where each row's buffer lies; distinct.
    pub slots: Vec<Vec<u32>>,
    pub dim: usize,
}

impl RowPass<'_> {
    /// Partial sums of kernels where `tasks` touch `rows` rows in all.
    pub fn partials(cut: &Cut, tasks: usize, rows: usize) -> usize {
        tasks * cut.chunks.len() + rows
    }

    fn cut(&self) -> Cut {
        Cut::new(self.blocks, self.rows.as_ref().map(|(_, block)| *block))
    }
}

impl PassRows {
    /// (rows of all tasks) row of all buffers and task of each, and (T + 1) bounds of each task's.
    fn tables(&self) -> [Bytes; 3] {
        let (base, bytes) = (first_of(&self.buffers), 4 * self.dim as u64);
        let (mut places, mut tasks, mut starts) = (Vec::new(), Vec::new(), vec![0]);
        for (task, (slots, buffer)) in self.slots.iter().zip(&self.buffers).enumerate() {
            places.extend(slots.iter().map(|&slot| (buffer.at - base) / bytes + u64::from(slot)));
            tasks.resize(places.len(), task as u32);
            starts.push(places.len() as u32);
        }
        [bytes_of(&places), bytes_of(&tasks), bytes_of(&starts)]
    }

    fn count(&self) -> usize {
        self.slots.iter().map(Vec::len).sum()
    }
}

impl Op for RowPass<'_> {
    fn name(&self) -> &'static str {
        "row_pass"
    }

    fn operands(&self) -> Operands {
        let mut operands = Operands::new([], [self.sums, self.partials]);
        let rows = self.rows.iter().flat_map(|(rows, _)| rows.gradients.iter().chain(&rows.buffers));
        let all = self.jacobian.iter().chain(&self.buffers).chain(rows);
        operands.writes.extend(all.filter(|tensor| !tensor.is_none()));
        operands
    }

    fn host(&self, memory: &HostMemory) {
        let (count, sums) = (self.jacobian.len(), memory.write::<f64>(self.sums));
        sums.fill(0.0);
        for task in 0..count {
            for (range, set) in self.blocks.iter().zip(&self.sets) {
                // An encoder that is frozen whole has rows of no columns.
                let part = |row: Tensor| memory.write(if row.is_none() { row } else { row.range(range.clone()) });
                let parts = part(self.jacobian[task]).par_chunks_mut(COLUMNS);
                let parts = parts.zip(part(self.buffers[task]).par_chunks_mut(COLUMNS));
                // Collected before they are added: the order of additions must not depend on threads.
                let parts: Vec<f64> = parts.map(|(gradient, buffer)| (self.host)(*set, task, gradient, buffer)).collect();
                sums[set * count + task] += parts.iter().sum::<f64>();
            }
            let Some((PassRows { gradients, buffers, slots, dim }, block)) = &self.rows else { continue };
            let (set, buffer) = (self.sets[*block], memory.write::<f32>(buffers[task]));
            for (gradient, slot) in memory.write::<f32>(gradients[task]).chunks_exact_mut(*dim).zip(&slots[task]) {
                sums[set * count + task] += (self.host)(set, task, gradient, &mut buffer[*slot as usize * dim..][..*dim]);
            }
        }
    }

    /// Chunks, the set of each, passes, where the tasks' buffers begin, and places, tasks and bounds of embedding rows.
    fn tables(&self) -> Vec<Bytes> {
        let cut = self.cut();
        let sets: Vec<u32> = cut.blocks().map(|block| self.sets[block] as u32).collect();
        let passes: Vec<Packed> = self.kernels.iter().map(|&kernel| kernel.into()).collect();
        let base = first_of(&self.buffers);
        let offsets: Vec<u64> = self.buffers.iter().map(|buffer| (buffer.at - base) / 4).collect();
        let mut tables = cut.chunks.tables().to_vec();
        tables.extend([bytes_of(&sets), bytes_of(&passes), bytes_of(&offsets)]);
        tables.extend(self.rows.iter().flat_map(|(rows, _)| rows.tables()));
        tables
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let &[firsts, lengths, sets, passes, offsets, ref own @ ..] = tables else { unreachable!("five tables and more") };
        assert_eq!(narrow(&self.jacobian), 0, "the passes change rows of J in f32");
        let (count, chunks) = (self.jacobian.len(), self.cut().chunks.len());
        let behind = self.partials.at + 8 * (count * chunks) as Address;
        let columns = Launch::new("row_pass_columns", [chunks, count, 1], 256)
            .addresses([self.partials.at, first_of(&self.jacobian)])
            .long(stride(&self.jacobian))
            .addresses([first_of(&self.buffers), offsets, passes, sets, firsts, lengths]);
        let mut commands: Vec<Command> = vec![columns.into()];
        let (mut starts, mut table_set) = (0, 0);
        if let (Some((rows, block)), &[places, tasks, bounds]) = (&self.rows, own) {
            (starts, table_set) = (bounds, self.sets[*block]);
            let passes = passes + (size_of::<Packed>() * table_set * count) as Address;
            let launch = Launch::line("row_pass_rows", rows.count(), 256)
                .addresses([behind, first_of(&rows.gradients), first_of(&rows.buffers), places, tasks, passes])
                .int(rows.dim);
            commands.push(launch.into());
        }
        let total = Launch::new("row_pass_sums", [count, self.kernels.len() / count, 1], 256)
            .addresses([self.sums.at, self.partials.at])
            .int(chunks)
            .addresses([sets, behind, starts])
            .int(table_set);
        commands.push(total.into());
        commands
    }
}
