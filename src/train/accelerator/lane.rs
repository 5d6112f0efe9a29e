//! Room for the activations of one fused group.

use anyhow::Result;

use crate::machine::driver::{Driver, StreamId};
use crate::machine::tensor::{DType, Tensor, pitch};
use crate::model::encoders::Input;
use crate::model::encoders::activations::{Activations, Allocator};
use crate::model::network::{Limits, Network};

pub struct Lane {
    pub at: Activations,
    /// (rows x features) bf16, where examples lie on the device.
    pub features: Tensor,
    /// (rows) f64 losses that kernels pass on.
    pub row_losses: Tensor,
}

impl Lane {
    /// Waits for `stream`, in which memory is cleared.
    pub fn new(device: &mut dyn Driver, stream: StreamId, number: usize, network: &Network, limits: &Limits) -> Result<Self> {
        let mut room = DeviceAllocator { device, stream, number };
        let encoder = &network.spec.encoder;
        let at = encoder.activations(&mut room, limits)?;
        let features = match encoder.reads() {
            Input::Features(columns) if limits.data.examples > 0 => room.activation("features", limits.group_rows, columns)?,
            _ => Tensor::NONE,
        };
        let rows = at.hidden.rows;
        let row_losses = Tensor::dense(room.allocate("losses by row", 8 * rows)?, 1, rows, DType::F64);
        device.synchronize(stream)?;
        Ok(Self { at, features, row_losses })
    }
}

struct DeviceAllocator<'d> {
    device: &'d mut dyn Driver,
    stream: StreamId,
    /// The lane's.
    number: usize,
}

impl DeviceAllocator<'_> {
    fn allocate(&mut self, name: &str, bytes: usize) -> Result<u64> {
        if bytes == 0 { Ok(0) } else { Ok(self.device.allocate(&format!("lane {}: {name}", self.number), bytes)?) }
    }
}

impl Allocator for DeviceAllocator<'_> {
    /// bf16, rows [`pitch`] apart. What pads a row is zero and stays so: kernels write columns alone, but products read whole vectors.
    fn activation(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor> {
        let bytes = 2 * rows * pitch(columns);
        let at = self.allocate(name, bytes)?;
        if at == 0 {
            return Ok(Tensor::NONE);
        }
        if pitch(columns) > columns {
            self.device.fill(self.stream, at, 0, bytes)?;
        }
        Ok(Tensor::padded(at, rows, columns, DType::Bf16))
    }

    fn numbers(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor> {
        match self.allocate(name, 4 * rows * columns)? {
            0 => Ok(Tensor::NONE),
            at => Ok(Tensor::dense(at, rows, columns, DType::F32)),
        }
    }

    fn partials(&mut self, name: &str, count: usize) -> Result<Tensor> {
        self.numbers(name, 1, count)
    }

    fn keeps_words(&self) -> bool {
        false
    }
}
