//! Parameters and moments to the device and back, piece by piece through pinned memory.

use anyhow::Result;

use super::parameters::ParametersOnDevice;
use super::program::{Graphs, Program};
use super::{Accelerator, Readable};
use crate::data::Corpus;
use crate::machine::driver::{Address, DeviceError, Driver, StagingId, StreamId};
use crate::machine::tensor::DType;
use crate::model::Parameters;
use crate::model::network::Network;
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
            self.data.iter().try_for_each(|data| data.load_slots(&mut *self.driver, &self.pieces, host))?;
            self.gave_slots = false;
            // A row's moments are zero before its first step.
            for (own, values) in table.arrays().into_iter().zip(host.stored()).filter(|(own, _)| !own.is_none()) {
                self.driver.fill(stream, own.at, 0, 4 * (own.rows * own.columns).max(1))?;
                self.upload(own.at, bytemuck::cast_slice(values))?;
            }
        }
        self.clear_halt()?;
        // Heads of absent tasks have no gradient, and count as zero.
        self.driver.fill(stream, self.head_gradients.at, 0, 4 * self.head_gradients.columns.max(1))?;
        self.driver.fill(stream, self.results.at, 0, self.results.bytes)?;
        let mut program = Program::default();
        let own = self.parameters.narrow(&self.readable(), rows_of(parameters));
        own.into_iter().chain(self.parameters.narrow_frozen()).for_each(|launch| program.launch(stream, launch));
        self.graphs.execute(&mut *self.driver, stream, program)?;
        self.driver.synchronize(stream)
    }

    /// Before parameters are read: the host has the slots of all rows that were touched, and of no row that the next round touches first.
    pub fn fetch_slots(&mut self, parameters: &mut Parameters) -> Result<(), DeviceError> {
        self.forget_layouts(parameters);
        let (Some(data), Some(host)) = (&self.data, &mut parameters.rows) else { return Ok(()) };
        if std::mem::take(&mut self.gave_slots) {
            data.store_slots(&mut *self.driver, &self.pieces, host)?;
        }
        Ok(())
    }

    /// Copies all training examples to the device.
    pub fn load_data(&mut self, corpus: &Corpus, network: &Network) -> Result<()> {
        let Some(data) = &mut self.data else { return Ok(()) };
        data.load(&mut *self.driver, &self.pieces, corpus, network)
    }

    /// Copies all parameters to the host, or with `moments` those as well.
    pub fn store(&mut self, parameters: &mut Parameters, moments: bool) -> Result<(), DeviceError> {
        let (shared, heads, arrays) = (self.parameters.shared, self.parameters.heads, if moments { 3 } else { 1 });
        for (state, host) in [(shared, &mut parameters.shared), (heads, &mut parameters.heads)] {
            let all = [(state.values, &mut host.values), (state.first, &mut host.first), (state.second, &mut host.second)];
            for (own, values) in all.into_iter().take(arrays).filter(|(own, _)| !own.is_none()) {
                self.download(own.at, bytemuck::cast_slice_mut(values))?;
            }
        }
        self.fetch_slots(parameters)?;
        if let (Some(table), Some(host)) = (&self.table, &mut parameters.rows) {
            let all = table.arrays().into_iter().zip(host.stored_mut());
            for (own, values) in all.take(arrays).filter(|(own, _)| !own.is_none()) {
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
        self.pieces.upload(&mut *self.driver, to, from)
    }

    /// Copies to the host once everything before is done.
    pub(super) fn download(&mut self, from: Address, into: &mut [u8]) -> Result<(), DeviceError> {
        self.pieces.download(&mut *self.driver, from, into)
    }
}

/// Rows of the table that are there: none yet of a snapshot that nobody has taken.
pub(super) fn rows_of(parameters: &Parameters) -> usize {
    parameters.rows.as_ref().map_or(0, |table| table.touched().len())
}

/// Most pinned memory that arrays go through.
const STAGING_BYTES: usize = 16 << 20;

/// Arrays to the device and back in one stream, which is waited for.
pub(super) struct Pieces {
    stream: StreamId,
    staging: StagingId,
    bytes: usize,
}

impl Pieces {
    /// For arrays of at most so many f32 each.
    pub fn new(driver: &mut dyn Driver, stream: StreamId, arrays: &[usize]) -> Result<Self, DeviceError> {
        let bytes = (4 * arrays.iter().max().unwrap_or(&0)).clamp(64, STAGING_BYTES);
        Ok(Self { stream, staging: driver.staging(bytes)?, bytes })
    }

    pub fn upload(&self, driver: &mut dyn Driver, to: Address, from: &[u8]) -> Result<(), DeviceError> {
        let &Self { stream, staging, bytes } = self;
        for (piece, own) in from.chunks(bytes).enumerate() {
            driver.staging_bytes(staging)?[..own.len()].copy_from_slice(own);
            driver.copy_in(stream, to + (piece * bytes) as Address, staging, 0..own.len())?;
            driver.synchronize(stream)?;
        }
        Ok(())
    }

    pub fn download(&self, driver: &mut dyn Driver, from: Address, into: &mut [u8]) -> Result<(), DeviceError> {
        let &Self { stream, staging, bytes } = self;
        for (piece, own) in into.chunks_mut(bytes).enumerate() {
            driver.copy_out(stream, staging, from + (piece * bytes) as Address, own.len())?;
            driver.synchronize(stream)?;
            own.copy_from_slice(&driver.staging_bytes(staging)?[..own.len()]);
        }
        Ok(())
    }

    /// Values that training changes to where forward passes read them.
    pub fn load(
        &self,
        driver: &mut dyn Driver,
        own: &ParametersOnDevice,
        to: &Readable,
        parameters: &Parameters,
    ) -> Result<(), DeviceError> {
        let Readable { weights, table, .. } = to;
        self.upload(driver, weights.shared.wide.at, bytemuck::cast_slice(&parameters.shared.values))?;
        self.upload(driver, weights.heads.at, bytemuck::cast_slice(&parameters.heads.values))?;
        if let Some(rows) = &parameters.rows {
            self.upload(driver, table.at, bytemuck::cast_slice(rows.stored()[0]))?;
        }
        let mut program = Program::default();
        own.narrow(to, rows_of(parameters)).into_iter().for_each(|launch| program.launch(self.stream, launch));
        Graphs::default().execute(driver, self.stream, program)
    }
}
