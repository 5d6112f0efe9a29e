//! Where a case's tensors lie.

use bytemuck::Pod;

use super::{Device, Found, dense, narrow, operand, padded, wide};
use crate::machine::driver::Address;
use crate::machine::host::HostMemory;
use crate::machine::launch::Launch;
use crate::machine::tape::Op;
use crate::machine::tensor::{DType, Tensor, pitch};

/// Where a case computes: on a device, or on the host.
pub struct Place<'d> {
    pub(super) device: Option<&'d mut Device>,
    pub(super) host: Vec<Box<[f64]>>,
    pub(super) change: &'d dyn Fn(Launch) -> Launch,
}

impl<'d> Place<'d> {
    pub fn on(device: &'d mut Device) -> Self {
        Self { device: Some(device), host: Vec::new(), change: &|launch| launch }
    }

    fn on_host(&mut self, bytes: usize) -> Address {
        let room = vec![0.0f64; bytes.div_ceil(8).max(1)].into_boxed_slice();
        self.host.push(room);
        self.host[self.host.len() - 1].as_ptr() as Address
    }

    /// (rows x columns) f32
    pub fn f32(&mut self, values: &[f32], columns: usize) -> Tensor {
        let at = match &mut self.device {
            Some(device) => device.upload(values),
            None => self.filled(values),
        };
        Tensor::dense(at, values.len() / columns, columns, DType::F32)
    }

    pub fn f64(&mut self, values: &[f64]) -> Tensor {
        let at = match &mut self.device {
            Some(device) => device.upload(values),
            None => self.filled(values),
        };
        Tensor::dense(at, 1, values.len(), DType::F64)
    }

    fn filled<T: Pod>(&mut self, values: &[T]) -> Address {
        let at = self.on_host(size_of_val(values));
        let room = self.host.last_mut().expect("just pushed");
        bytemuck::cast_slice_mut::<f64, u8>(room)[..size_of_val(values)].copy_from_slice(bytemuck::cast_slice(values));
        at
    }

    /// (rows x columns) f32 whose rows lie on a device as those of bf16 do; what pads them is NaN, which would show wherever it
    /// were read.
    pub fn padded(&mut self, values: &[f32], columns: usize) -> Tensor {
        let Some(device) = &mut self.device else { return self.f32(values, columns) };
        let at = device.upload(&padded(values, columns, f32::NAN));
        Tensor::padded(at, values.len() / columns, columns, DType::F32)
    }

    /// (rows x columns) on the host in f32, on a device in bf16, whose padding is NaN.
    pub fn narrow(&mut self, values: &[f32], columns: usize) -> Tensor {
        let Some(device) = &mut self.device else { return self.f32(values, columns) };
        let at = device.upload(&operand(values, columns));
        Tensor::padded(at, values.len() / columns, columns, DType::Bf16)
    }

    /// As [`Place::narrow`], changed in place: what pads its rows is zero and stays so.
    pub fn narrow_in_place(&mut self, values: &[f32], columns: usize) -> Tensor {
        let Some(device) = &mut self.device else { return self.f32(values, columns) };
        let at = device.upload(&padded(&narrow(values), columns, 0));
        Tensor::padded(at, values.len() / columns, columns, DType::Bf16)
    }

    /// (rows x columns) of J, f32 or bf16 everywhere.
    pub fn jacobian(&mut self, values: &[f32], columns: usize, dtype: DType) -> Tensor {
        if dtype == DType::F32 {
            return self.f32(values, columns);
        }
        let values = narrow(values);
        let at = match &mut self.device {
            Some(device) => device.upload(&values),
            None => self.filled(&values),
        };
        Tensor::dense(at, values.len() / columns, columns, dtype)
    }

    /// What the host needs to compute pieces of such rows.
    pub fn staging(&mut self, columns: usize, dtype: DType) -> Tensor {
        if self.device.is_some() || dtype == DType::F32 { Tensor::NONE } else { self.room(1, columns, DType::F32) }
    }

    /// Room for a result in f32, bf16 (f32 on the host), f64 or u32.
    pub fn room(&mut self, rows: usize, columns: usize, dtype: DType) -> Tensor {
        match (&mut self.device, dtype) {
            (Some(device), DType::Bf16) => Tensor::padded(device.room::<u16>(rows * pitch(columns)), rows, columns, dtype),
            (Some(device), _) => Tensor::dense(device.room::<u8>(rows * columns * dtype.bytes()), rows, columns, dtype),
            (None, _) => {
                let dtype = if dtype == DType::Bf16 { DType::F32 } else { dtype };
                Tensor::dense(self.on_host(rows * columns * dtype.bytes()), rows, columns, dtype)
            }
        }
    }

    /// As [`Place::room`] in f32, its rows as those of bf16.
    pub fn padded_room(&mut self, rows: usize, columns: usize) -> Tensor {
        match &mut self.device {
            Some(device) => Tensor::padded(device.room::<f32>(rows * pitch(columns)), rows, columns, DType::F32),
            None => self.room(rows, columns, DType::F32),
        }
    }

    pub fn is_device(&self) -> bool {
        self.device.is_some()
    }

    /// (1 x words) u32
    pub fn words(&mut self, values: &[u32]) -> Tensor {
        let at = match &mut self.device {
            Some(device) => device.upload(values),
            None => self.filled(values),
        };
        Tensor::dense(at, 1, values.len(), DType::U32)
    }

    /// Values in bf16 without gaps, on a device.
    pub fn raw_bf16(&mut self, tensor: Tensor) -> Vec<f64> {
        let device = self.device.as_mut().expect("on a device");
        let values = device.download::<u16>(tensor.at, tensor.rows * tensor.columns);
        wide(&values).into_iter().map(f64::from).collect()
    }

    /// Room that only kernels use.
    pub fn scratch(&mut self, count: usize, dtype: DType) -> Tensor {
        if self.device.is_some() { self.room(1, count, dtype) } else { Tensor::NONE }
    }

    pub fn run(&mut self, op: &dyn Op) {
        if let Some(device) = &mut self.device {
            return device.run(op, self.change);
        }
        let mut memory = HostMemory::new();
        for room in &mut self.host {
            memory.lend_mut(&mut room[..]);
        }
        op.host(&memory.of(op));
    }

    /// A result.
    pub fn found(&mut self, what: &'static str, tensor: Tensor) -> Found {
        let Tensor { at, rows, columns, ld, dtype } = tensor;
        let values: Vec<f64> = match (&mut self.device, dtype) {
            (Some(device), DType::Bf16) => {
                let values = device.download::<u16>(at, rows * ld);
                let values = if ld == columns { values } else { dense(&values, columns) };
                wide(&values).into_iter().map(f64::from).collect()
            }
            (Some(device), DType::F64) => device.download(at, rows * columns),
            (Some(device), DType::U32) => device.download::<u32>(at, rows * columns).into_iter().map(f64::from).collect(),
            (Some(device), _) if ld == columns => device.download::<f32>(at, rows * columns).into_iter().map(f64::from).collect(),
            (Some(device), _) => dense(&device.download::<f32>(at, rows * ld), columns).into_iter().map(f64::from).collect(),
            (None, _) => {
                let room = self.host.iter().find(|room| room.as_ptr() as Address == at).expect("a result lies in its own room");
                let bytes = &bytemuck::cast_slice::<f64, u8>(room)[..rows * columns * dtype.bytes()];
                match dtype {
                    DType::F64 => bytemuck::pod_collect_to_vec(bytes),
                    DType::U32 => bytemuck::pod_collect_to_vec::<u8, u32>(bytes).into_iter().map(f64::from).collect(),
                    DType::Bf16 => wide(&bytemuck::pod_collect_to_vec::<u8, u16>(bytes)).into_iter().map(f64::from).collect(),
                    _ => bytemuck::pod_collect_to_vec::<u8, f32>(bytes).into_iter().map(f64::from).collect(),
                }
            }
        };
        let within = match dtype {
            DType::F64 => [2e-6, 1e-12],
            DType::U32 => [0.0; 2],
            _ => [0.0, 1e-5],
        };
        Found { what, dtype, values, within }
    }
}
