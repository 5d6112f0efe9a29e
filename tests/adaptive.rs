//! `adaptive`: micro-batches that follow the measured time. Targets that no machine can miss make what happens the same everywhere.

mod common;

use std::path::Path;

use common::{Place, assert_same_files, checkpoints, final_checkpoint, metrics, resume, run};
use serde_json::Value;

/// A target that every group stays below: the task's micro-batch of 8 doubles until it is at 64.
const GROWS: &str = "tasks.topic.adaptive={ target_ms = 1e9, grow = 2, max = 64 }";
/// A target that every group exceeds.
const SHRINKS: &str = "tasks.numbers.adaptive={ target_ms = 1e-9, min = 5 }";

/// Sizes that a task was given, by metrics.jsonl.
fn sizes(run: &Path, task: &str) -> Vec<u64> {
    let lines = metrics(run).into_iter().filter(|line| line["kind"] == "adapted" && line["task"] == task);
    lines.map(|line| line["micro_batch"].as_u64().expect("a size")).collect()
}

/// Micro-batches at the end, by summary.json.
fn last_sizes(run: &Path) -> Vec<(String, u64)> {
    let summary: Value = serde_json::from_slice(&std::fs::read(run.join("summary.json")).expect("a summary")).expect("JSON");
    let task = |task: &Value| (task["task"].as_str().expect("a name").to_owned(), task["micro_batch"].as_u64().expect("a size"));
    summary["tasks"].as_array().expect("tasks").iter().map(task).collect()
}

#[test]
fn micro_batches_follow_the_time_and_are_recorded() {
    let place = Place::new();
    for config in [place.bag(), place.linear()] {
        for more in ["train.fuse=0", "train.accumulate=2", "schedule.mode=time_sliced", "schedule.lanes=2"] {
            let run = place.train(&config, &[GROWS, SHRINKS, more]);
            assert_eq!(sizes(&run, "topic"), [16, 32, 64], "{more}");
            assert_eq!(sizes(&run, "numbers"), [7, 6, 5], "{more}");
            assert!(sizes(&run, "flags").is_empty());
            let last = [("flags", 8), ("numbers", 5), ("topic", 64)].map(|(name, size)| (name.to_owned(), size));
            assert_eq!(last_sizes(&run), last, "{more}");
        }
    }
}

/// And by the times it recorded: what was done is done again alike, whatever the time it takes now.
#[test]
fn a_resumed_run_goes_on_with_the_sizes_it_had() {
    let place = Place::new();
    let config = place.bag();
    let sets = [GROWS, SHRINKS];
    let run = place.train(&config, &sets);
    let (sizes, whole) = (last_sizes(&run), final_checkpoint(&run));
    for newer in checkpoints(&run).into_iter().skip(1) {
        std::fs::remove_dir_all(newer).expect("can remove");
    }
    resume(&run).ok();
    assert_eq!(last_sizes(&run), sizes);
    assert_same_files(&final_checkpoint(&run), &whole, "resumed");
}

/// The plan is made for the largest micro-batch; under pressure that gives way before the run's own micro-batch does.
#[test]
fn a_tight_budget_lowers_how_far_it_grows() {
    let place = Place::new();
    let config = place.linear();
    let grows = |max: u32| format!("tasks.topic.adaptive={{ target_ms = 1e9, grow = 2, max = {max} }}");
    let needed = |max: u32| {
        let words = ["plan", config.to_str().expect("UTF-8"), "--json", "--set", "eval.batch=8", "--set", &grows(max)];
        run(&words).ok().json()["total_bytes"].as_u64().expect("bytes")
    };
    let budget = format!("memory.device={}", needed(32));
    let sets = [&grows(64)[..], "eval.batch=8", &budget];
    place.outcome_of_training(&config, &sets, &place.path("no")).failed(2, &["memory.device"]);
    let folder = place.path("run");
    let split = [&sets[..], &["memory.on_pressure=[\"split\"]"]].concat();
    place.outcome_of_training(&config, &split, &folder).ok().says(&["adaptive micro-batches of at most 32"]);
    assert_eq!(sizes(&folder, "topic"), [16, 32]);
    assert_eq!(last_sizes(&folder), [("flags", 8), ("numbers", 8), ("topic", 32)].map(|(name, size)| (name.to_owned(), size)));
}

#[test]
fn bounds_the_wrong_way_round_are_refused() {
    let place = Place::new();
    let config = place.bag();
    let refused = |set: &str, parts: &[&str]| {
        place.outcome_of_training(&config, &[set], &place.path("no")).failed(2, parts);
    };
    refused("tasks.topic.adaptive={ target_ms = 5, min = 9, max = 8 }", &["tasks.topic.adaptive", "at least 9 and at most 8"]);
    refused("tasks.topic.adaptive={ grow = 2 }", &["tasks.topic.adaptive.target_ms", "is required"]);
    refused("tasks.topic.adaptive={ target_ms = 5, grow = 1 }", &["tasks.topic.adaptive.grow", "above 1"]);
}
