//! Device code of the crate: the CUDA kernels, by nvcc for cards and by a C++ compiler for the emulated device, each where it
//! is found. Writes only to OUT_DIR.

#[path = "build/emulation.rs"]
mod emulation;
#[path = "build/nvcc.rs"]
mod nvcc;

use std::env;
use std::path::PathBuf;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo:rustc-env=TASKLOOM_CUDA={}", nvcc::build(&out));
    println!("cargo:rerun-if-changed=build/emulation.rs");
    println!("cargo:rustc-check-cfg=cfg(emulated)");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let missing = emulation::build(&manifest.join("kernels"), &out).err();
    if missing.is_none() {
        println!("cargo:rustc-cfg=emulated");
    }
    println!("cargo:rustc-env=TASKLOOM_NO_EMULATION={}", missing.unwrap_or_default());
}
