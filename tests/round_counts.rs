//! What the host does for a round in the steady state, on a driver's library whose calls do nothing (scripts/null_driver.c): one graph, one
//! wait, a few bytes an example, and as many kernels for many tasks as for two.

#![cfg(target_os = "linux")]

mod common;

use std::process::Command;

use common::null_driver::null_driver;
use serde_json::Value;

/// Numbers of `bench step`.
struct Round(Value);

impl Round {
    fn of(encoder: &str, tasks: u64, batch: u64) -> Option<Self> {
        Self::with(encoder, tasks, batch, &[])
    }

    fn with(encoder: &str, tasks: u64, batch: u64, more: &[&str]) -> Option<Self> {
        let [tasks, batch] = [tasks, batch].map(|number| number.to_string());
        let words = ["bench", "step", "--device", "cuda", "--encoder", encoder, "--tasks", &tasks, "--batch", &batch];
        let output = Command::new(env!("CARGO_BIN_EXE_taskloom"))
            .args(words)
            .args(["--seq", "16", "--runs", "3", "--json"])
            .args(more)
            .env("LD_LIBRARY_PATH", null_driver()?)
            .output()
            .expect("the program starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(Self(serde_json::from_slice(&output.stdout).expect("one line of JSON")))
    }

    fn count(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or_else(|| panic!("{key} of {}", self.0))
    }
}

/// A digit more of the keys by which rows of a table are sorted takes two, and sequences that fill a block of attention take one.
const KERNELS_OF_SIZES: u64 = 2 + 1;

#[test]
fn kernels_do_not_grow_with_the_tasks() {
    for encoder in ["linear", "bag", "transformer"] {
        let Some(few) = Round::of(encoder, 2, 4) else { return };
        let few = few.count("launches");
        for tasks in [8, 64] {
            let many = Round::of(encoder, tasks, 4).expect("as before").count("launches");
            assert!(few <= many && many <= few + KERNELS_OF_SIZES, "{encoder}: {many} for {tasks} tasks, {few} for two");
        }
    }
}

/// Examples that lie on the device are sent by their numbers, beside the order of visits and the tables of each task.
#[test]
fn a_round_is_a_graph_a_wait_and_a_few_bytes() {
    for encoder in ["linear", "bag"] {
        for (tasks, batch) in [(2, 4), (8, 512), (64, 4)] {
            let Some(round) = Round::of(encoder, tasks, batch) else { return };
            let case = format!("{encoder}, {tasks} tasks of {batch}: {}", round.0);
            assert_eq!([round.count("graph_launches"), round.count("host_waits")], [1, 1], "{case}");
            let most = 4096 + 8 * tasks * batch + 4 * tasks * tasks + 160 * tasks;
            assert!(round.count("uploaded_bytes") <= most, "more than {most} bytes: {case}");
        }
    }
}

/// Of a transformer also where each sequence begins, which of its tokens are read, the blocks of attention, and by layer the tables of each
/// task.
#[test]
fn a_round_of_a_transformer_brings_no_tokens() {
    const LAYERS: u64 = 2;
    for (tasks, batch) in [(2, 4), (8, 64), (64, 4)] {
        let Some(round) = Round::of("transformer", tasks, batch) else { return };
        let case = format!("{tasks} tasks of {batch}: {}", round.0);
        assert_eq!([round.count("graph_launches"), round.count("host_waits")], [1, 1], "{case}");
        let most = 4096 + 96 * tasks * batch + 4 * tasks * tasks + 160 * tasks * (LAYERS + 2);
        assert!(round.count("uploaded_bytes") <= most, "more than {most} bytes: {case}");
    }
}

#[test]
fn a_profile_has_every_kernel_of_a_round() {
    for (encoder, operation) in [("linear", "linear_forward"), ("bag", "index_rows"), ("transformer", "attention_backward")] {
        let Some(plain) = Round::of(encoder, 2, 4) else { return };
        let profile = Round::with(encoder, 2, 4, &["--profile"]).expect("as before");
        let operations = profile.0["operations"].as_array().expect("a list");
        let launches: u64 = operations.iter().map(|operation| operation["launches"].as_u64().expect("a number")).sum();
        assert_eq!(launches, plain.count("launches"), "{encoder}");
        assert!(operations.iter().any(|found| found["operation"] == operation), "{encoder}: {operation}");
        assert_eq!(profile.count("graph_launches"), 0, "one by one");
    }
}
