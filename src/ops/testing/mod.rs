//! Operations on a device against their host bodies: each case on the emulated device under several orders of threads and blocks,
//! which must give the same bytes, and on a card where there is one (`TASKLOOM_REQUIRE_CUDA=1`: a missing one fails). Shapes are
//! tiny and ragged.
//!
//! Tolerances: f32 results 1e-5 of the largest value, bf16 results 1e-2 by norm (8 bits of mantissa), f64 results 2e-6 of each
//! value or 1e-12 of the largest (they are sums of products in f32), unless a case says otherwise.

mod faults;

use bytemuck::Pod;

use super::gram::GramScratch;
use super::philox::{Keyed, Stream};
use super::storage::bf16;
use crate::machine::driver::{Address, Card, DeviceError, Driver, Priority, StreamId, open, open_emulated};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::Op;
use crate::machine::tensor::{DType, Tensor, pitch};

/// A device as a case sees it: every operation follows the one before.
pub struct Device {
    driver: Box<dyn Driver>,
    stream: StreamId,
    /// What decides the kernels of an operation.
    card: Card,
}

impl Device {
    fn new(mut driver: Box<dyn Driver>) -> Self {
        let stream = driver.stream(Priority::Low).expect("a stream");
        let card = driver.card();
        Self { driver, stream, card }
    }

    pub fn upload<T: Pod>(&mut self, values: &[T]) -> Address {
        let (at, bytes) = (self.room::<T>(values.len()), bytemuck::cast_slice::<T, u8>(values));
        if !bytes.is_empty() {
            let staging = self.driver.staging(bytes.len()).expect("little pinned memory");
            self.driver.staging_bytes(staging).expect("fresh").copy_from_slice(bytes);
            self.driver.copy_in(self.stream, at, staging, 0..bytes.len()).unwrap_or_else(|error| panic!("{error}"));
        }
        at
    }

    /// Room for `count` values that nobody has written.
    pub fn room<T: Pod>(&mut self, count: usize) -> Address {
        self.driver.allocate("buffer", count.max(1) * size_of::<T>()).expect("tests need little memory")
    }

    /// Panics where nobody has written, and on any fault before.
    pub fn download<T: Pod>(&mut self, at: Address, count: usize) -> Vec<T> {
        self.try_download(at, count).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Device::download`]; the error is the fault.
    pub fn try_download<T: Pod>(&mut self, at: Address, count: usize) -> Result<Vec<T>, DeviceError> {
        let bytes = count * size_of::<T>();
        let staging = self.driver.staging(bytes)?;
        self.driver.copy_out(self.stream, staging, at, bytes)?;
        self.driver.synchronize(self.stream)?;
        Ok(bytemuck::pod_collect_to_vec(&self.driver.staging_bytes(staging)?[..bytes]))
    }

    pub fn launch(&mut self, launch: &Launch) {
        self.driver.launch(self.stream, launch).unwrap_or_else(|error| panic!("{}: {error}", launch.kernel));
    }

    /// What computes an operation, its tables laid out.
    pub fn commands(&mut self, op: &dyn Op) -> Vec<Command> {
        let tables: Vec<Address> = op.tables().iter().map(|table| self.upload(table)).collect();
        op.device(&self.card, &tables)
    }

    fn run(&mut self, op: &dyn Op, change: &dyn Fn(Launch) -> Launch) {
        for command in self.commands(op) {
            match command {
                Command::Launch(launch) if launch.is_empty() => {}
                Command::Launch(launch) => self.launch(&change(launch)),
                Command::Copy { to, from, bytes } => {
                    self.driver.copy(self.stream, to, from, bytes).unwrap_or_else(|error| panic!("{error}"));
                }
            }
        }
    }
}

/// The device that a case runs on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum On {
    Emulated,
    Cuda,
}

impl On {
    /// Whether it is there; says why not. What `TASKLOOM_REQUIRE_CUDA` asks for must be there.
    pub fn is_there(self) -> bool {
        let required = self == Self::Cuda && std::env::var_os("TASKLOOM_REQUIRE_CUDA").is_some_and(|value| value == "1");
        match self.open(0) {
            Ok(_) => true,
            Err(DeviceError::Unavailable(why)) if !required => {
                crate::output::message(format_args!("skipped: {why}"));
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// A device of its own; `seed` decides the orders that the emulated one leaves open.
    pub fn open(self, seed: u64) -> Result<Box<dyn Driver>, DeviceError> {
        match self {
            Self::Emulated => open_emulated(seed),
            Self::Cuda => open("cuda"),
        }
    }

    /// Runs a case under three orders of threads and blocks, on a card twice; what it returns must not depend on them.
    pub fn run<T: PartialEq>(self, case: impl Fn(&mut Device) -> T) -> T {
        let orders = if self == Self::Emulated { 3 } else { 2 };
        let mut results = (0..orders).map(|seed| case(&mut self.device(seed)));
        let first = results.next().expect("several results");
        assert!(results.all(|result| result == first), "the order of threads and blocks changes the result");
        first
    }

    pub fn device(self, seed: u64) -> Device {
        Device::new(self.open(seed).unwrap_or_else(|error| panic!("{error}")))
    }

    /// What is known of the device.
    pub fn card(self) -> Card {
        self.device(0).card
    }

    /// Holds what a case finds on the device against what it finds on the host.
    pub fn compare(self, case: impl Fn(&mut Place) -> Vec<Found>) {
        self.compare_as(self.card(), &|launch| launch, case);
    }

    /// As [`On::compare`], with the kernels of a lesser card, and every launch changed first.
    pub fn compare_as(self, card: Card, change: &dyn Fn(Launch) -> Launch, case: impl Fn(&mut Place) -> Vec<Found>) {
        let expected = case(&mut Place { device: None, host: Vec::new(), change });
        let found = self.run(|device| {
            device.card = card;
            case(&mut Place { device: Some(device), host: Vec::new(), change })
        });
        assert_eq!(found.len(), expected.len());
        found.iter().zip(&expected).for_each(|(found, expected)| found.assert_near(expected));
    }
}

/// Makes two tests of each case, `emulated::name` and `cuda::name`.
macro_rules! on_devices {
    ($($name:ident),* $(,)?) => {
        $crate::ops::testing::on_devices!(@on emulated, Emulated, $($name),*);
        $crate::ops::testing::on_devices!(@on cuda, Cuda, $($name),*);
    };
    (@on $module:ident, $device:ident, $($name:ident),*) => {
        mod $module {
            $(
                #[test]
                fn $name() {
                    let on = $crate::ops::testing::On::$device;
                    if on.is_there() {
                        super::$name(on);
                    }
                }
            )*
        }
    };
}
pub(crate) use on_devices;

/// Where a case computes: on a device, or on the host.
pub struct Place<'d> {
    device: Option<&'d mut Device>,
    host: Vec<Box<[f64]>>,
    change: &'d dyn Fn(Launch) -> Launch,
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

    /// Room for a result in f32, bf16 (f32 on the host) or f64.
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

    /// Words for kernels alone.
    pub fn words(&mut self, values: &[u32]) -> Tensor {
        let device = self.device.as_mut().expect("on a device");
        Tensor::dense(device.upload(values), 1, values.len(), DType::U32)
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

    /// What kernels write on the way to Gram matrices of so many cells.
    pub fn gram_scratch(&mut self, partials: usize, blocks: usize, cells: usize) -> GramScratch {
        GramScratch {
            partials: self.scratch(partials * cells, DType::F64),
            cosines: self.scratch((blocks + 1) * cells, DType::F64),
            conflicts: self.scratch(blocks + 1, DType::U32),
        }
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
            (Some(device), _) if ld == columns => device.download::<f32>(at, rows * columns).into_iter().map(f64::from).collect(),
            (Some(device), _) => dense(&device.download::<f32>(at, rows * ld), columns).into_iter().map(f64::from).collect(),
            (None, _) => {
                let room = self.host.iter().find(|room| room.as_ptr() as Address == at).expect("a result lies in its own room");
                let bytes = &bytemuck::cast_slice::<f64, u8>(room)[..rows * columns * dtype.bytes()];
                match dtype {
                    DType::F64 => bytemuck::pod_collect_to_vec(bytes),
                    DType::Bf16 => wide(&bytemuck::pod_collect_to_vec::<u8, u16>(bytes)).into_iter().map(f64::from).collect(),
                    _ => bytemuck::pod_collect_to_vec::<u8, f32>(bytes).into_iter().map(f64::from).collect(),
                }
            }
        };
        let within = match dtype {
            DType::F64 => [2e-6, 1e-12],
            _ => [0.0, 1e-5],
        };
        Found { what, dtype, values, within }
    }
}

/// A result, and what it was kept in.
#[derive(Debug, PartialEq)]
pub struct Found {
    what: &'static str,
    dtype: DType,
    pub values: Vec<f64>,
    /// Allowed error: share of each value, or of the largest.
    within: [f64; 2],
}

impl Found {
    /// With an allowed error of its own: a share of each value, or of the largest.
    pub fn within(self, own: f64, largest: f64) -> Self {
        Self { within: [own, largest], ..self }
    }

    fn assert_near(&self, expected: &Self) {
        let (what, found, expected) = (self.what, &self.values, &expected.values);
        assert_eq!(found.len(), expected.len(), "{what}");
        let largest = expected.iter().fold(f64::MIN_POSITIVE, |most, x| most.max(x.abs()));
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        if self.dtype == DType::Bf16 {
            let error = norm(&mut found.iter().zip(expected).map(|(x, y)| x - y));
            let size = norm(&mut expected.iter().copied());
            return assert!(error <= 1e-2 * size, "{what}: error {error} of {size}");
        }
        for (at, (x, y)) in found.iter().zip(expected).enumerate() {
            let allowed = (self.within[0] * y.abs()).max(self.within[1] * largest);
            assert!((x - y).abs() <= allowed, "{what} [{at}]: {x} for {y} (largest {largest})");
        }
    }
}

/// Unit normals.
pub fn noise(count: usize, id: u32) -> Vec<f32> {
    let random = Keyed::new(11, Stream::Synthetic, 0, 0, id);
    (0..count as u32).map(|at| random.normal(at) as f32).collect()
}

/// Values as they are kept.
pub fn rounded(values: Vec<f32>, dtype: DType) -> Vec<f32> {
    if dtype == DType::Bf16 { wide(&narrow(&values)) } else { values }
}

/// Normals that bf16 holds exactly.
pub fn coarse_noise(count: usize, id: u32) -> Vec<f32> {
    wide(&narrow(&noise(count, id)))
}

fn narrow(x: &[f32]) -> Vec<u16> {
    x.iter().map(|&x| bf16::from_f32(x).to_bits()).collect()
}

fn wide(x: &[u16]) -> Vec<f32> {
    x.iter().map(|&x| bf16::from_bits(x).to_f32()).collect()
}

/// Rows of `columns` as kernels store them, [`pitch`] apart and padded with `with`.
fn padded<T: Copy>(rows: &[T], columns: usize, with: T) -> Vec<T> {
    let row = |row: &[T]| row.iter().copied().chain(std::iter::repeat_n(with, pitch(columns) - columns)).collect::<Vec<T>>();
    rows.chunks(columns).flat_map(row).collect()
}

fn operand(rows: &[f32], columns: usize) -> Vec<u16> {
    padded(&narrow(rows), columns, 0x7fff)
}

/// The rows of [`padded`] again; what pads them is zero.
fn dense<T: Copy + Default + PartialEq>(rows: &[T], columns: usize) -> Vec<T> {
    let split = || rows.chunks(pitch(columns)).map(|row| row.split_at(columns));
    assert!(split().all(|(_, rest)| rest.iter().all(|&x| x == T::default())), "rows are padded with zeros");
    split().flat_map(|(row, _)| row.to_vec()).collect()
}
