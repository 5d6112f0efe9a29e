//! What the host does for a round in the steady state, on a driver's library whose calls do nothing (scripts/null_driver.c): one graph, one
//! wait, a few bytes an example, and as many kernels for many tasks as for two.

#![allow(clippy::print_stderr, reason = "says what is skipped")]
#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

/// The library's folder; none without a C compiler, or in a build without kernels.
static LIBRARY: LazyLock<Option<String>> = LazyLock::new(|| {
    let version = Command::new(env!("CARGO_BIN_EXE_taskloom")).arg("--version").output().expect("the program starts");
    if !String::from_utf8_lossy(&version.stdout).contains("kernels for") {
        eprintln!("skipped: a build without kernels");
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/null-driver.sh");
    let made = Command::new(script).output().expect("a shell");
    if !made.status.success() {
        eprintln!("skipped: no C compiler");
        return None;
    }
    Some(String::from_utf8(made.stdout).expect("a path").trim().to_owned())
});

/// Numbers of `bench step`.
struct Round(Value);

impl Round {
    fn of(encoder: &str, tasks: u64, batch: u64) -> Option<Self> {
        let [tasks, batch] = [tasks, batch].map(|number| number.to_string());
        let words = ["bench", "step", "--device", "cuda", "--encoder", encoder, "--tasks", &tasks, "--batch", &batch];
        let output = Command::new(env!("CARGO_BIN_EXE_taskloom"))
            .args(words)
            .args(["--seq", "16", "--runs", "3", "--json"])
            .env("LD_LIBRARY_PATH", LIBRARY.as_ref()?)
            .output()
            .expect("the program starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(Self(serde_json::from_slice(&output.stdout).expect("one line of JSON")))
    }

    fn count(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or_else(|| panic!("{key} of {}", self.0))
    }
}

/// A digit more of the keys by which rows of a table are sorted takes three.
const KERNELS_OF_A_DIGIT: u64 = 3;

#[test]
fn kernels_do_not_grow_with_the_tasks() {
    for encoder in ["linear", "bag", "transformer"] {
        let Some(few) = Round::of(encoder, 2, 4) else { return };
        let few = few.count("launches");
        for tasks in [8, 64] {
            let many = Round::of(encoder, tasks, 4).expect("as before").count("launches");
            assert!(few <= many && many <= few + KERNELS_OF_A_DIGIT, "{encoder}: {many} for {tasks} tasks, {few} for two");
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
