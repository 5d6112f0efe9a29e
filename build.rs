//! Device code of the crate: the CUDA kernels, where a compiler for them is found, and the same files as C++ for the emulated
//! device. Writes only to OUT_DIR.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a build script talks to cargo on stdout")]

#[path = "build/emulation.rs"]
mod emulation;
#[path = "build/nvcc.rs"]
mod nvcc;

use std::env;
use std::path::PathBuf;

fn main() {
    for path in ["build.rs", "build", "kernels"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let kernels = manifest.join("kernels");
    let nvcc::Built { phrase, oldest_driver: (major, minor) } = nvcc::build(&kernels, &out);
    println!("cargo:rustc-env=TASKLOOM_CUDA={phrase}");
    println!("cargo:rustc-env=TASKLOOM_OLDEST_DRIVER_MAJOR={major}");
    println!("cargo:rustc-env=TASKLOOM_OLDEST_DRIVER_MINOR={minor}");
    println!("cargo:rustc-check-cfg=cfg(emulated)");
    let missing = emulation::build(&kernels, &out).err();
    if missing.is_none() {
        println!("cargo:rustc-cfg=emulated");
    }
    println!("cargo:rustc-env=TASKLOOM_NO_EMULATION={}", missing.unwrap_or_default());
}
