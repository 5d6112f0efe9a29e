//! What a device needs to solve a method by itself: the formula is in its kernel, parameters, state and words are the method's.

use super::{NOT_FINITE, Order, Status, took_mean};

/// A method that a kernel solves from the Gram matrix (and the losses) alone; see kernels/solve.
#[derive(Clone, Debug)]
pub struct DeviceSolver {
    /// In kernels/solve.cu.
    pub kernel: &'static str,
    /// Parameters, as the kernel counts them.
    pub numbers: [f64; 3],
    /// In which order rows visit the others, if they do.
    pub order: Option<Order>,
    /// Scratch of a set: so many (T x T) and (T) f64.
    pub matrices: usize,
    pub vectors: usize,
    /// What a fallback says of the value that the kernel gave with it, by the kernel's code from [`OWN`] on.
    pub fallbacks: &'static [fn(f64) -> String],
}

/// Codes of kernels/solve/problem.cuh: solved, not finite, and from here on a method's own.
const OWN: usize = 2;

impl DeviceSolver {
    /// Takes the Gram matrix alone.
    pub const fn new(kernel: &'static str) -> Self {
        Self { kernel, numbers: [0.0; 3], order: None, matrices: 0, vectors: 0, fallbacks: &[] }
    }

    /// f64 of scratch that a set of weights takes: beside the method's own, the Gram matrix of clipped gradients.
    pub fn scratch(&self, tasks: usize) -> usize {
        (1 + self.matrices) * tasks * tasks + self.vectors * tasks
    }

    /// What the kernel left of a set.
    pub fn status(&self, code: f64, value: f64) -> Status {
        match code as usize {
            0 => Status::Ok,
            own if own >= OWN => Status::Fallback(self.fallbacks[own - OWN](value)),
            _ => Status::Fallback(took_mean(NOT_FINITE)),
        }
    }
}

/// What [`super::eigen`] takes on a device.
pub const EIGEN_MATRICES: usize = 1;
pub const EIGEN_VECTORS: usize = 4;

/// What [`super::bargain`] takes on a device.
pub const BARGAIN_MATRICES: usize = 2;
pub const BARGAIN_VECTORS: usize = 9;
