//! Training on the emulated device: the kernels of kernels/*.cu as C++, every access checked, against the CPU.

#![allow(clippy::print_stderr, reason = "says what is skipped")]

mod beside;
mod capture;
mod cases;
#[path = "../common/mod.rs"]
mod common;
mod streams;
mod training;
