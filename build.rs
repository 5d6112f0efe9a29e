//! Device code of the crate: the CUDA kernels, where a compiler for them is found. Writes only to OUT_DIR.

#[path = "build/nvcc.rs"]
mod nvcc;

use std::env;
use std::path::PathBuf;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo:rustc-env=TASKLOOM_CUDA={}", nvcc::build(&out));
}
