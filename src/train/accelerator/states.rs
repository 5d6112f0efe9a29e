//! `encoder.cache_frozen` on a device: what a transformer's frozen prefix makes of the run's texts is computed once, and stays there.

use super::Accelerator;
use super::forward::Place;
use crate::machine::driver::{DeviceError, Driver, StreamId};
use crate::machine::tensor::{DType, Tensor, pitch};
use crate::model::Model;
use crate::model::network::{Batch, Limits, Network};

/// Where the first text's rows begin: the one before stands for what pads a group.
pub const FIRST_STATE: usize = 1;

/// Room for what the plan says is kept; waits for `stream`, in which memory is cleared.
pub(super) fn room(device: &mut dyn Driver, stream: StreamId, network: &Network, limits: &Limits) -> Result<Tensor, DeviceError> {
    let (kept, hidden) = (limits.tokens.kept, network.spec.encoder.hidden());
    if kept == 0 {
        return Ok(Tensor::NONE);
    }
    let row = DType::Bf16.bytes() * pitch(hidden);
    let at = device.allocate("states of the frozen prefix", row * (FIRST_STATE + kept))?;
    device.fill(stream, at, 0, row * FIRST_STATE)?;
    device.synchronize(stream)?;
    Ok(Tensor::padded(at, FIRST_STATE + kept, hidden, DType::Bf16))
}

impl Accelerator {
    /// Whether there is room for states of the frozen prefix.
    pub fn keeps_states(&self) -> bool {
        !self.states.is_none()
    }

    /// Computes those of a batch's texts; they begin at `row`, and end where this says.
    pub fn keep_states(&mut self, model: &Model, batch: &Batch, row: usize) -> Result<usize, DeviceError> {
        let (from, end) = (self.readable(), row + batch.bags.rows.len());
        let Self { driver, lanes, forward, pieces, states, .. } = self;
        let at = Place { lane: &lanes[0], pieces, from };
        forward.prefix(&mut **driver, at, model, batch, states.rows(row..end))?;
        Ok(end)
    }
}
