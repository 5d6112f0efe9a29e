//! Finds nvcc, or does without: the crate builds on any machine, and `taskloom --version` says what was found.
//!
//! Search order: NVCC, CUDA_HOME/bin, PATH. Nothing is compiled yet, since the tree holds no kernels; what is decided here is
//! the search, the minimum version, and the words.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "build/emulation.rs"]
mod emulation;

/// Oldest nvcc the kernels are meant for.
const OLDEST: (u32, u32) = (12, 4);

fn main() {
    for variable in ["NVCC", "CUDA_HOME", "PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    // A path that is not there would count as changed, and every cargo command would compile the whole crate again.
    if Path::new("kernels").exists() {
        println!("cargo:rerun-if-changed=kernels");
    }
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rustc-env=TASKLOOM_CUDA={}", describe());
    println!("cargo:rustc-check-cfg=cfg(emulated)");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let missing = emulation::build(&manifest.join("kernels"), &out).err();
    if missing.is_none() {
        println!("cargo:rustc-cfg=emulated");
    }
    println!("cargo:rustc-env=TASKLOOM_NO_EMULATION={}", missing.unwrap_or_default());
}

/// One phrase for `--version`; a toolchain that was asked for by name but cannot serve is also a warning.
fn describe() -> String {
    let asked = env::var_os("NVCC").is_some() || env::var_os("CUDA_HOME").is_some();
    let found = match find() {
        Some(nvcc) => match version(&nvcc) {
            Some(found) if found >= OLDEST => return format!("nvcc {}.{} found, no kernels in this version", found.0, found.1),
            Some(found) => format!("nvcc {}.{} is older than {}.{}", found.0, found.1, OLDEST.0, OLDEST.1),
            None => format!("{} does not answer --version", nvcc.display()),
        },
        None => "no nvcc".to_owned(),
    };
    if asked {
        println!("cargo:warning=NVCC or CUDA_HOME is set, but {found}: building for the CPU only");
    }
    format!("{found}, CPU only")
}

fn find() -> Option<PathBuf> {
    if let Some(nvcc) = env::var_os("NVCC") {
        return Some(nvcc.into());
    }
    let home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = home.into_iter().chain(env::split_paths(&path));
    folders.map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file())
}

/// Reads `release 12.4,` out of `nvcc --version`.
fn version(nvcc: &Path) -> Option<(u32, u32)> {
    let output = Command::new(nvcc).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let release = text.split("release ").nth(1)?.split(',').next()?;
    let (major, minor) = release.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
