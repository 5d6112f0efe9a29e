//! What the host allocates for a round in the steady state, on a driver's library whose calls do nothing: where examples lie on the device,
//! lists of their numbers, keys and targets, and nothing of their features or n-grams.

#![allow(clippy::print_stderr, reason = "says what is skipped")]
#![cfg(target_os = "linux")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use common::null_driver::null_driver;
use taskloom::commands::bench::{self, Bench};

/// The system's allocator, which adds up what it is asked for.
struct Counting;

static BYTES: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        BYTES.fetch_add(size.saturating_sub(layout.size()) as u64, Ordering::Relaxed);
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Parser)]
struct Words {
    #[command(subcommand)]
    bench: Bench,
}

/// Bytes allocated while this many rounds are computed, and all that comes before and after.
fn allocated(encoder: &str, batch: &str, rounds: u64) -> u64 {
    let rounds = rounds.to_string();
    let words = ["bench", "step", "--device", "cuda", "--tasks", "2", "--encoder", encoder, "--batch", batch, "--runs", &rounds];
    let before = BYTES.load(Ordering::Relaxed);
    bench::run(&Words::parse_from(words).bench).expect("rounds");
    BYTES.load(Ordering::Relaxed) - before
}

/// Of a round of two tasks, where the first rounds' shapes have come back.
fn of_a_round(encoder: &str, batch: &str) -> u64 {
    const FEW: u64 = 20;
    const MORE: u64 = 100;
    // Threads and the library are there from here on.
    allocated(encoder, batch, FEW);
    (allocated(encoder, batch, FEW + MORE) - allocated(encoder, batch, FEW)) / MORE
}

const CHILD: &str = "TASKLOOM_TEST_CHILD";

#[test]
fn a_round_allocates_little_for_an_example() {
    if std::env::var_os(CHILD).is_some() {
        for encoder in ["linear", "bag"] {
            let [few, many] = [("64", 128), ("1024", 2048)].map(|(batch, examples)| (of_a_round(encoder, batch), examples));
            let own = (many.0.saturating_sub(few.0)) as f64 / f64::from(many.1 - few.1);
            eprintln!("{encoder}: {} and {} bytes a round, {own:.1} an example", few.0, many.0);
            // Numbers, keys, targets and the order that tasks draw in, some of them twice; features are 1,536 bytes, n-grams about 400.
            assert!(own <= 64.0, "{encoder}: {own} bytes an example");
        }
        return;
    }
    let Some(library) = null_driver() else { return };
    let name = "a_round_allocates_little_for_an_example";
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .env("LD_LIBRARY_PATH", library)
        .output()
        .expect("the program starts");
    eprintln!("{}", String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
}
