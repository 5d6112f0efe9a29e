//! Room for the activations of one fused group.

use crate::machine::driver::{DeviceError, Driver};
use crate::machine::tensor::{DType, Tensor, pitch};
use crate::model::encoders::activations::{Activations, Allocator, head_rows};
use crate::model::network::{Limits, Network};

pub struct Lane {
    pub at: Activations,
    /// (rows) f64 losses that kernels pass on.
    pub row_losses: Tensor,
}

impl Lane {
    pub fn new(device: &mut dyn Driver, number: usize, network: &Network, limits: &Limits) -> Result<Self, DeviceError> {
        let encoder = &network.spec.encoder;
        let mut room = DeviceAllocator { device, number };
        let at = Activations::new(&mut room, encoder, limits)?;
        let rows = head_rows(encoder, limits);
        let row_losses = Tensor::dense(room.allocate("losses by row", 8 * rows)?, 1, rows, DType::F64);
        Ok(Self { at, row_losses })
    }
}

struct DeviceAllocator<'d> {
    device: &'d mut dyn Driver,
    /// The lane's.
    number: usize,
}

impl DeviceAllocator<'_> {
    fn allocate(&mut self, name: &str, bytes: usize) -> Result<u64, DeviceError> {
        if bytes == 0 { Ok(0) } else { self.device.allocate(&format!("lane {}: {name}", self.number), bytes) }
    }
}

impl Allocator for DeviceAllocator<'_> {
    type Error = DeviceError;

    /// bf16, rows [`pitch`] apart.
    fn activation(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor, DeviceError> {
        match self.allocate(name, 2 * rows * pitch(columns))? {
            0 => Ok(Tensor::NONE),
            at => Ok(Tensor::padded(at, rows, columns, DType::Bf16)),
        }
    }

    fn numbers(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor, DeviceError> {
        match self.allocate(name, 4 * rows * columns)? {
            0 => Ok(Tensor::NONE),
            at => Ok(Tensor::dense(at, rows, columns, DType::F32)),
        }
    }

    fn partials(&mut self, name: &str, count: usize) -> Result<Tensor, DeviceError> {
        self.numbers(name, 1, count)
    }
}
