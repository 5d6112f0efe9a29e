//! The buffers by task of a surgery method with row state, on a device: their values. Which rows of the embedding table have one
//! is known to the host.

use super::Accelerator;
use super::gram_cut;
use super::program::Program;
use super::rows::gradient_rows;
use super::upload::StagingBuffer;
use crate::machine::driver::DeviceError;
use crate::machine::tape::Tape;
use crate::machine::tensor::{DType, Tensor};
use crate::model::network::{Limits, Network};
use crate::ops::row_pass::{PassRows, RowPass};
use crate::surgery::blocks::Blocks;
use crate::surgery::buffers::{PassAt, Passes, TaskBuffers};
use crate::surgery::gram::products;
use crate::surgery::methods;
use crate::train::backend::Work;

pub struct BuffersOnDevice {
    /// (tasks x P) f32
    dense: Tensor,
    /// (slots x dim) f32 of each task, one after another; empty without an embedding table.
    rows: Vec<Tensor>,
    /// f64 sums of the kernels' blocks.
    partials: Tensor,
    /// Tables of a round's pass.
    tables: StagingBuffer,
}

impl Accelerator {
    /// With room for the buffers of a method that keeps some.
    pub fn with_buffers(mut self, network: &Network, blocks: &Blocks, limits: &Limits) -> Result<Self, DeviceError> {
        let (device, tasks, width) = (&mut *self.driver, network.spec.heads.len(), network.table.shared_len());
        let mut room = |name: &str, bytes: usize| device.allocate(name, bytes.max(1));
        let dense = Tensor::dense(room("surgery: buffers", 4 * tasks * width)?, tasks, width, DType::F32);
        let (dim, slots) = (network.spec.encoder.inputs(), limits.task_rows.iter().sum::<usize>());
        let mut rows = Vec::new();
        if !limits.task_rows.is_empty() {
            let all = Tensor::dense(room("surgery: buffers of embedding rows", 4 * slots * dim)?, slots, dim, DType::F32);
            let mut first = 0;
            rows.extend(limits.task_rows.iter().map(|&own| {
                first += own;
                all.rows(first - own..first)
            }));
        }
        let (cut, present, touched) = (gram_cut(blocks), limits.present.max(1), gradient_rows(self.results.batches, limits));
        let partials = RowPass::partials(&cut, present, touched);
        let partials = Tensor::dense(room("surgery: sums of buffers", 8 * partials)?, 1, partials, DType::F64);
        let bytes = 4096 + (24 * blocks.sets() + 32) * present + 4 * cut.chunks.len() + 8 * blocks.count() + 12 * touched;
        let tables = StagingBuffer::new(device, "surgery: a round's pass over buffers", bytes)?;
        self.buffers = Some(BuffersOnDevice { dense, rows, partials, tables });
        Ok(self)
    }

    /// Copies all buffers to the device.
    pub fn load_buffers(&mut self, buffers: &TaskBuffers) -> Result<(), DeviceError> {
        let Some(BuffersOnDevice { dense, rows, .. }) = &self.buffers else { return Ok(()) };
        let (dense, rows) = (*dense, rows.clone());
        self.upload(dense.at, bytemuck::cast_slice(&buffers.dense))?;
        for (own, host) in rows.iter().zip(&buffers.rows) {
            // A row's buffer is zero before the task touches it.
            let bytes = own.bytes();
            if !bytes.is_empty() {
                self.driver.fill(self.streams.lanes[0], own.at, 0, (bytes.end - bytes.start) as usize)?;
            }
            self.upload(own.at, bytemuck::cast_slice(host.stored().1))?;
        }
        self.driver.synchronize(self.streams.lanes[0])
    }

    /// Copies all buffers to the host.
    pub fn store_buffers(&mut self, buffers: &mut TaskBuffers) -> Result<(), DeviceError> {
        let Some(BuffersOnDevice { dense, rows, .. }) = &self.buffers else { return Ok(()) };
        let (dense, rows) = (*dense, rows.clone());
        self.download(dense.at, bytemuck::cast_slice_mut(&mut buffers.dense))?;
        for (own, host) in rows.iter().zip(&mut buffers.rows) {
            self.download(own.at, bytemuck::cast_slice_mut(host.stored_mut()))?;
        }
        Ok(())
    }

    /// Runs the passes; where the buffers take the gradients' place, their products are read anew as well.
    pub(super) fn pass_over_buffers(
        &mut self,
        buffers: &mut TaskBuffers,
        passes: &Passes,
        work: &Work,
    ) -> Result<Vec<Vec<f64>>, DeviceError> {
        self.unite(work);
        let (count, sets) = (work.tasks.len(), self.results.sets);
        let own = self.buffers.as_ref().expect("a method with row state has its buffers here");
        let gradients = self.gradients(&self.touched, work.first, count);
        let rows = gradients.rows.as_ref().map(|rows| {
            let touched: Vec<&[u32]> =
                self.touched.indexes[self.touched.united.clone()].iter().map(|index| &index.rows[..]).collect();
            PassRows {
                gradients: rows.tasks.clone(),
                buffers: work.tasks.iter().map(|&task| own.rows[task]).collect(),
                slots: buffers.touch(work.tasks, &touched),
                dim: rows.dim,
            }
        });
        let at = PassAt {
            jacobian: gradients.jacobian.clone(),
            buffers: work.tasks.iter().map(|&task| own.dense.rows(task..task + 1)).collect(),
            rows,
            // Weights are the host's to know where it solves.
            sums: self.results.tensor(self.results.weights(), sets, count),
            partials: own.partials,
        };
        let mut tape = Tape::default();
        tape.push(passes.over(work.blocks, at));
        if passes.passes.iter().any(methods::RowPass::updates_from_buffers) {
            products(&mut tape, work.network, work.blocks, work.tasks, &gradients, self.results.products(count));
        }
        let packed = self.packed.as_ref().expect("gradients before their buffers");
        let mut upload = own.tables.upload();
        let commands = tape.commands(&self.card, |table| self.place(packed, &mut upload, table));
        drop((tape, gradients));
        upload.close();
        // The host has waited for the gradients since the pass before this one.
        own.tables.fill(&mut *self.driver, &mut upload)?;
        let mut program = Program::default();
        program.push(own.tables.send(self.streams.lanes[0], &upload.sections[0]));
        program.run(self.streams.lanes[0], &commands);
        self.read = self.read(program, count)?;
        Ok(passes.by_set(&self.read[self.results.weights()..]))
    }
}
