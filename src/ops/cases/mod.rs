//! The kernels against the CPU bodies, each case on the emulated device under several orders of threads and blocks, which must
//! give the same bytes, and on a card where there is one (`TASKLOOM_REQUIRE_CUDA=1`: a missing one fails). Shapes are tiny and
//! ragged.
//!
//! Tolerances: f32 kernels 1e-5 of the largest value, bf16 1e-2 by norm (8 bits of mantissa).

mod elementwise;
mod faults;
mod gemm;
mod heads;
mod rows;
mod surgery;

use bytemuck::Pod;

use super::launch::{Address, Launch, pitch};
use super::philox::{Keyed, Stream};
use super::storage::bf16;
use crate::device::driver::{Call, DeviceError, Driver, Priority, StreamId, open, open_emulated};

/// A device as a case sees it: every operation follows the one before.
pub struct Device {
    driver: Box<dyn Driver>,
    stream: StreamId,
}

impl Device {
    fn new(mut driver: Box<dyn Driver>) -> Self {
        let stream = driver.stream(Priority::Low).expect("a stream");
        Self { driver, stream }
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

    pub fn run(&mut self, launch: &Launch) {
        assert!(!launch.is_empty(), "{} has an empty grid", launch.kernel);
        let Launch { kernel, grid, threads, shared, arguments } = launch;
        let call = Call { kernel, grid: *grid, threads: *threads, shared: *shared, arguments };
        self.driver.launch(self.stream, &call).unwrap_or_else(|error| panic!("{kernel}: {error}"));
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

    fn open(self, seed: u64) -> Result<Box<dyn Driver>, DeviceError> {
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
}

/// Makes two tests of each case, `emulated::name` and `cuda::name`.
macro_rules! on_devices {
    ($($name:ident),* $(,)?) => {
        $crate::ops::cases::on_devices!(@on emulated, Emulated, $($name),*);
        $crate::ops::cases::on_devices!(@on cuda, Cuda, $($name),*);
    };
    (@on $module:ident, $device:ident, $($name:ident),*) => {
        mod $module {
            $(
                #[test]
                fn $name() {
                    let on = $crate::ops::cases::On::$device;
                    if on.is_there() {
                        super::$name(on);
                    }
                }
            )*
        }
    };
}
pub(crate) use on_devices;

/// Unit normals.
fn noise(count: usize, id: u32) -> Vec<f32> {
    let random = Keyed::new(11, Stream::Synthetic, 0, 0, id);
    (0..count as u32).map(|at| random.normal(at) as f32).collect()
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

/// An operand in bf16. What pads its rows is NaN, which would show wherever it were read.
fn operand(rows: &[f32], columns: usize) -> Vec<u16> {
    padded(&narrow(rows), columns, 0x7fff)
}

/// The rows of [`padded`] again; what pads them is zero.
fn dense<T: Copy + Default + PartialEq>(rows: &[T], columns: usize) -> Vec<T> {
    let split = || rows.chunks(pitch(columns)).map(|row| row.split_at(columns));
    assert!(split().all(|(_, rest)| rest.iter().all(|&x| x == T::default())), "rows are padded with zeros");
    split().flat_map(|(row, _)| row.to_vec()).collect()
}

/// Normals that bf16 holds exactly.
fn coarse_noise(count: usize, id: u32) -> Vec<f32> {
    wide(&narrow(&noise(count, id)))
}

/// Every difference is below `tolerance` of the largest expected value.
fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(f32::MIN_POSITIVE, |most, x| most.max(x.abs()));
    for (at, (x, y)) in found.iter().zip(expected).enumerate() {
        assert!((x - y).abs() <= tolerance * scale, "{what} [{at}]: {x} for {y} (largest {scale})");
    }
}

/// |found - expected| <= 1e-2 |expected|
fn assert_near(found: &[u16], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let error = norm(&mut found.iter().zip(expected).map(|(&x, y)| bf16::from_bits(x).to_f32() - y));
    let size = norm(&mut expected.iter().copied());
    assert!(error <= 1e-2 * size, "{what}: error {error} of {size}");
}
