//! Machines without a usable card: every way in which the driver can be missing gives one clear sentence and exit code 2.
//!
//! The driver's library is played by small ones made here; where there is no C compiler, only the machine's own state is tried.

#![allow(clippy::print_stderr, reason = "says what is skipped")]
#![cfg(target_os = "linux")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Place, outcome, training};

/// A driver's library with these contents in `folder`, under every name that it is looked for by: one that the machine has would
/// be found under the other. False without a C compiler.
fn library(folder: &Path, source: &str) -> bool {
    std::fs::create_dir_all(folder).expect("a fresh folder");
    let file = folder.join("cuda.c");
    std::fs::write(&file, source).expect("a fresh file");
    let made = |name| {
        let command = &mut Command::new("cc");
        command.args(["-shared", "-fPIC", "-o"]).arg(folder.join(name)).arg(&file).status().is_ok_and(|status| status.success())
    };
    ["libcuda.so", "libcuda.so.1"].into_iter().all(made)
}

/// Training on a card beside a driver of this source ends with exit code 2 and a message of these parts.
fn refused(name: &str, source: &str, parts: &[&str]) {
    let place = Place::new();
    if !library(&place.path(name), source) {
        eprintln!("skipped: no C compiler");
        return;
    }
    let config = place.synthetic();
    let run = place.path("run");
    let mut command = training(&config, &["run.device=cuda"], &run);
    command.env("LD_LIBRARY_PATH", place.path(name));
    outcome(command.output()).failed(2, parts);
    assert!(!run.join("config.toml").exists(), "a refused run leaves no run folder");
}

#[test]
fn a_stub_without_functions() {
    refused("empty", "int nothing;", &["run.device = \"cuda\"", "stub without the driver's functions", "use \"cpu\""]);
}

#[test]
fn the_toolkits_stub() {
    let source = "int cuInit(unsigned f) { return 34; }\nint cuDriverGetVersion(int *v) { *v = 99000; return 0; }";
    refused("stub", source, &["run.device = \"cuda\"", "the toolkit's stub"]);
}

#[test]
fn an_old_driver() {
    let source = "int cuInit(unsigned f) { return 0; }\nint cuDriverGetVersion(int *v) { *v = 11080; return 0; }";
    // A driver as old as the compiler of the kernels serves.
    let (major, minor) = taskloom::machine::OLDEST_DRIVER;
    assert!(major >= 12);
    let needed = format!("at least {major}.{minor} is needed: update it");
    refused("old", source, &["the NVIDIA driver is for CUDA 11.8, ", &needed]);
}

#[test]
fn a_driver_that_sees_no_card() {
    let source = "int cuInit(unsigned f) { return 100; }\nint cuDriverGetVersion(int *v) { *v = 99000; return 0; }";
    refused("none", source, &["the NVIDIA driver sees no card", "use \"cpu\""]);
}
