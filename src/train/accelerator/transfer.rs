//! Parameters and moments to the device and back, piece by piece through pinned memory.

use anyhow::Result;

use super::program::Program;
use super::{Accelerator, Readable};
use crate::machine::driver::{Address, DeviceError};
use crate::machine::tensor::DType;
use crate::model::Parameters;
use crate::ops::storage::{bf16, widen};

impl Accelerator {
    /// Copies all parameters and moments to the device.
    pub fn load(&mut self, parameters: &Parameters) -> Result<(), DeviceError> {
        let (shared, heads, frozen) = (self.parameters.shared, self.parameters.heads, self.parameters.weights.frozen);
        self.upload(frozen.wide.at, bytemuck::cast_slice(&parameters.frozen))?;
        for (state, host) in [(shared, &parameters.shared), (heads, &parameters.heads)] {
            for (own, values) in [(state.values, &host.values), (state.first, &host.first), (state.second, &host.second)] {
                if !own.is_none() {
                    self.upload(own.at, bytemuck::cast_slice(values))?;
                }
            }
        }
        let stream = self.streams.lanes[0];
        if let (Some(table), Some(host)) = (&self.table, &parameters.rows) {
            // A row's moments are zero before its first step.
            for (own, values) in table.arrays().into_iter().zip(host.stored()).filter(|(own, _)| !own.is_none()) {
                self.driver.fill(stream, own.at, 0, 4 * (own.rows * own.columns).max(1))?;
                self.upload(own.at, bytemuck::cast_slice(values))?;
            }
        }
        // Heads of absent tasks have no gradient, and count as zero.
        self.driver.fill(stream, self.head_gradients.at, 0, 4 * self.head_gradients.columns)?;
        self.driver.fill(stream, self.results.at, 0, self.results.bytes)?;
        let mut program = Program::default();
        let own = [Some(self.parameters.narrow(&self.parameters.weights)), self.parameters.narrow_frozen()];
        own.into_iter().flatten().for_each(|launch| program.launch(stream, launch));
        self.graphs.execute(&mut *self.driver, stream, program)?;
        self.driver.synchronize(stream)
    }

    /// Copies parameters to where a snapshot is evaluated while training goes on.
    pub fn load_snapshot(&mut self, parameters: &Parameters) -> Result<(), DeviceError> {
        let Some(Readable { weights, table }) = self.snapshot else { return Ok(()) };
        self.upload(weights.shared.wide.at, bytemuck::cast_slice(&parameters.shared.values))?;
        self.upload(weights.heads.at, bytemuck::cast_slice(&parameters.heads.values))?;
        if let Some(rows) = &parameters.rows {
            self.upload(table.at, bytemuck::cast_slice(rows.stored()[0]))?;
        }
        let stream = self.streams.lanes[0];
        let mut program = Program::default();
        program.launch(stream, self.parameters.narrow(&weights));
        self.graphs.execute(&mut *self.driver, stream, program)
    }

    /// Copies all parameters and moments to the host.
    pub fn store(&mut self, parameters: &mut Parameters) -> Result<(), DeviceError> {
        let (shared, heads) = (self.parameters.shared, self.parameters.heads);
        for (state, host) in [(shared, &mut parameters.shared), (heads, &mut parameters.heads)] {
            let arrays = [(state.values, &mut host.values), (state.first, &mut host.first), (state.second, &mut host.second)];
            for (own, values) in arrays.into_iter().filter(|(own, _)| !own.is_none()) {
                self.download(own.at, bytemuck::cast_slice_mut(values))?;
            }
        }
        if let (Some(table), Some(host)) = (&self.table, &mut parameters.rows) {
            for (own, values) in table.arrays().into_iter().zip(host.stored_mut()).filter(|(own, _)| !own.is_none()) {
                self.download(own.at, bytemuck::cast_slice_mut(values))?;
            }
        }
        Ok(())
    }

    /// Rows of J of the first `tasks` present tasks as the last pass left them, dense part: for comparisons with the CPU.
    pub fn private_gradients(&mut self, tasks: usize) -> Result<Vec<Vec<f32>>, DeviceError> {
        let mut rows = vec![vec![0.0f32; self.jacobian.columns]; tasks];
        for (task, row) in rows.iter_mut().enumerate() {
            let from = self.jacobian.rows(task..task + 1).at;
            match self.jacobian.dtype {
                DType::Bf16 => {
                    let mut narrow = vec![bf16::ZERO; row.len()];
                    self.download(from, bytemuck::cast_slice_mut(&mut narrow))?;
                    widen(row, &narrow);
                }
                _ => self.download(from, bytemuck::cast_slice_mut(row))?,
            }
        }
        Ok(rows)
    }

    /// Copies to the device, and waits until it is there.
    pub(super) fn upload(&mut self, to: Address, from: &[u8]) -> Result<(), DeviceError> {
        let stream = self.streams.lanes[0];
        for (piece, bytes) in from.chunks(self.staging_bytes).enumerate() {
            self.driver.staging_bytes(self.staging)?[..bytes.len()].copy_from_slice(bytes);
            self.driver.copy_in(stream, to + (piece * self.staging_bytes) as Address, self.staging, 0..bytes.len())?;
            self.driver.synchronize(stream)?;
        }
        Ok(())
    }

    /// Copies to the host once everything before is done.
    pub(super) fn download(&mut self, from: Address, into: &mut [u8]) -> Result<(), DeviceError> {
        let stream = self.streams.lanes[0];
        for (piece, bytes) in into.chunks_mut(self.staging_bytes).enumerate() {
            self.driver.copy_out(stream, self.staging, from + (piece * self.staging_bytes) as Address, bytes.len())?;
            self.driver.synchronize(stream)?;
            bytes.copy_from_slice(&self.driver.staging_bytes(self.staging)?[..bytes.len()]);
        }
        Ok(())
    }
}
