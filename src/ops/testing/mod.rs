//! Operations on a device against their host bodies: each case on the emulated device under several orders of threads and blocks,
//! which must give the same bytes, and on a card where there is one (`TASKLOOM_REQUIRE_CUDA=1`: a missing one fails). Shapes are
//! tiny and ragged.
//!
//! Tolerances: f32 results 1e-5 of the largest value, bf16 results 1e-2 by norm (8 bits of mantissa), f64 results 2e-6 of each
//! value or 1e-12 of the largest (they are sums of products in f32), unless a case says otherwise.

mod faults;
mod place;

use bytemuck::Pod;

use super::philox::{Keyed, Stream};
use super::storage::bf16;
use crate::machine::driver::{Address, Card, DeviceError, Driver, Priority, StreamId, open, open_emulated};
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::Op;
use crate::machine::tensor::{DType, pitch};
pub use place::Place;

/// A device as a case sees it: every operation follows the one before.
pub struct Device {
    driver: Box<dyn Driver>,
    stream: StreamId,
    /// What decides the kernels of an operation.
    card: Card,
}

impl Device {
    fn new(mut driver: Box<dyn Driver>) -> Self {
        let stream = driver.stream(Priority::Normal).expect("a stream");
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
