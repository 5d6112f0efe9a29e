//! The kernels against the CPU bodies: one line a case, run on the emulated device under several orders of threads and blocks,
//! which must give the same bytes. Shapes are tiny and ragged.
//!
//! Tolerances: f32 kernels 1e-5 of the largest value, bf16 1e-2 by norm (8 bits of mantissa).

mod elementwise;
mod gemm;
mod heads;
mod rows;
mod surgery;

use bytemuck::Pod;

use super::launch::{Address, Launch};
use super::philox::{Keyed, Stream};
use crate::device::emulated::sandbox::Sandbox;

/// A device as a case sees it.
pub struct Device {
    sandbox: Sandbox,
}

impl Device {
    pub fn upload<T: Pod>(&mut self, values: &[T]) -> Address {
        let at = self.room::<T>(values.len());
        self.sandbox.write(at, bytemuck::cast_slice(values));
        at
    }

    /// Room for `count` values that nobody has written.
    pub fn room<T: Pod>(&mut self, count: usize) -> Address {
        self.sandbox.allocate(count.max(1) * size_of::<T>())
    }

    pub fn download<T: Pod>(&mut self, at: Address, count: usize) -> Vec<T> {
        bytemuck::pod_collect_to_vec(&self.sandbox.read(at, count * size_of::<T>()))
    }

    pub fn run(&mut self, launch: &Launch) {
        assert!(!launch.is_empty(), "{} has an empty grid", launch.kernel);
        self.sandbox.launch(launch.kernel, launch.grid, launch.threads, launch.shared as usize, &launch.arguments);
    }
}

/// Runs a case under three orders; what it returns must not depend on them.
pub fn under_every_order<T: PartialEq>(case: impl Fn(&mut Device) -> T) -> T {
    let mut results = (0..3).map(|seed| case(&mut Device { sandbox: Sandbox::new(seed) }));
    let first = results.next().expect("three results");
    assert!(results.all(|result| result == first), "the order of threads and blocks changes the result");
    first
}

/// Unit normals.
fn noise(count: usize, id: u32) -> Vec<f32> {
    let random = Keyed::new(11, Stream::Synthetic, 0, 0, id);
    (0..count as u32).map(|at| random.normal(at) as f32).collect()
}

/// Rounds to nearest even.
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

fn narrow(x: &[f32]) -> Vec<u16> {
    x.iter().map(|&x| to_bf16(x)).collect()
}

fn wide(x: &[u16]) -> Vec<f32> {
    x.iter().map(|&x| from_bf16(x)).collect()
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
    let error = norm(&mut found.iter().zip(expected).map(|(&x, y)| from_bf16(x) - y));
    let size = norm(&mut expected.iter().copied());
    assert!(error <= 1e-2 * size, "{what}: error {error} of {size}");
}
