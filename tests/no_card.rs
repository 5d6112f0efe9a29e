//! Machines without a usable card: every way in which the driver can be missing gives one clear sentence and exit code 2.
//!
//! The driver's library is played by small ones made here; where there is no C compiler, only the machine's own state is tried.
#![cfg(target_os = "linux")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Place, outcome, training};

/// A libcuda.so.1 with these contents in `folder`; false without a C compiler.
fn library(folder: &Path, source: &str) -> bool {
    std::fs::create_dir_all(folder).expect("a fresh folder");
    let file = folder.join("cuda.c");
    std::fs::write(&file, source).expect("a fresh file");
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(folder.join("libcuda.so.1")).arg(&file).status();
    made.is_ok_and(|status| status.success())
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
    let source = "int cuInit(unsigned f) { return 34; }\nint cuDriverGetVersion(int *v) { *v = 13000; return 0; }";
    refused("stub", source, &["run.device = \"cuda\"", "the toolkit's stub"]);
}

#[test]
fn an_old_driver() {
    let source = "int cuInit(unsigned f) { return 0; }\nint cuDriverGetVersion(int *v) { *v = 11080; return 0; }";
    refused("old", source, &["the NVIDIA driver is for CUDA 11.8, at least 12.4 is needed: update it"]);
}

#[test]
fn a_driver_that_sees_no_card() {
    let source = "int cuInit(unsigned f) { return 100; }\nint cuDriverGetVersion(int *v) { *v = 13000; return 0; }";
    refused("none", source, &["the NVIDIA driver sees no card", "use \"cpu\""]);
}
