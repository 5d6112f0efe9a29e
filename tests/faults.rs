//! Failures made on purpose in real training: the others finish, the one that fails follows its states, the summary says what
//! happened, and a resumed run ends in the same bytes.

mod common;

use std::path::Path;

use common::{Outcome, Place, assert_same_files, checkpoints, final_checkpoint, metrics, resume, weights};
use serde_json::Value;

const MODES: [&str; 2] = ["schedule.mode=synchronous", "schedule.mode=time_sliced"];

fn summary(run: &Path) -> Value {
    let text = std::fs::read_to_string(run.join("summary.json")).expect("a run ends with a summary");
    serde_json::from_str(&text).expect("JSON")
}

/// What the summary says of a task.
fn task(run: &Path, name: &str) -> Value {
    let summary = summary(run);
    let tasks = summary["tasks"].as_array().expect("a list of tasks");
    tasks.iter().find(|task| task["task"] == name).unwrap_or_else(|| panic!("no {name} in {summary}")).clone()
}

/// `faults.x` hits alone_1 from round 23 on.
fn fault(kind: &str, times: u64) -> [String; 4] {
    let times = format!("faults.x.times={times}");
    [format!("faults.x.kind={kind}"), "faults.x.task=alone_1".into(), "faults.x.round=23".into(), times]
}

struct Try<'a> {
    place: &'a Place,
    config: &'a Path,
}

impl Try<'_> {
    fn run(&self, run: &Path, mode: &str, fault: &[String], more: &[&str]) -> Outcome {
        let sets: Vec<&str> = [mode].into_iter().chain(fault.iter().map(String::as_str)).chain(more.iter().copied()).collect();
        self.place.outcome_of_training(self.config, &sets, run)
    }
}

#[test]
fn a_passing_failure_costs_one_round() {
    let place = Place::new();
    let config = place.synthetic();
    let test = Try { place: &place, config: &config };
    for mode in MODES {
        for (kind, retries, rollbacks, says) in [
            ("not_finite", 0, 1, "gradient norm NaN on train examples"),
            ("crash", 1, 0, "its reader died: made on purpose: tried again after 0.0 s of planned time"),
            ("out_of_memory", 1, 0, "an allocation failed (made on purpose): tried again"),
        ] {
            let run = place.path(&format!("{kind}-{mode}"));
            test.run(&run, mode, &fault(kind, 1), &["schedule.retry_base=0.01"]).ok().says(&["alone_1", says, "1 lost"]);
            let end = task(&run, "alone_1");
            assert_eq!([&end["rounds_lost"], &end["retries"], &end["rollbacks"]], [1, retries, rollbacks], "{end}");
            assert_eq!(end["state"], "done");
            assert_eq!(task(&run, "agree_1a")["last_error"], Value::Null);
            let failures: Vec<Value> = metrics(&run).into_iter().filter(|line| line["kind"] == "failure").collect();
            assert_eq!(failures.len(), 1);
            assert_eq!(failures[0]["task"], "alone_1");
        }
    }
}

/// Whoever fails leaves no trace in the others' round: a reader that dies before anything is computed and a gradient that is found
/// to be NaN after all of it have the same result. So has memory that runs out, but for the rounding of smaller micro-batches.
#[test]
fn the_others_do_not_see_why_one_is_missing() {
    let place = Place::new();
    let config = place.synthetic();
    let test = Try { place: &place, config: &config };
    for mode in MODES {
        // FAMO remembers losses, which a failed attempt must not add to.
        for method in ["surgery.method=pcgrad", "balance.method=famo"] {
            let end = |kind: &str| {
                let run = place.path(&format!("{kind}-{mode}-{method}"));
                // SGD: AdamW's first steps would show rounding near zero in full.
                let sets = [method, "schedule.retry_base=0", "optimizer.kind=sgd", "optimizer.lr=0.01"];
                test.run(&run, mode, &fault(kind, 2), &sets).ok();
                assert_eq!(task(&run, "alone_1")["rounds_lost"], 2);
                assert_eq!(task(&run, "alone_1")["micro_batch"], if kind == "out_of_memory" { 8 } else { 16 });
                weights(&checkpoints(&run).pop().expect("a checkpoint"))
            };
            let [nan, crash, memory] = ["not_finite", "crash", "out_of_memory"].map(end);
            assert_eq!(nan, crash, "{mode} {method}");
            for (name, ours) in &nan {
                let largest = ours.iter().fold(0f32, |most, x| most.max(x.abs()));
                let error = ours.iter().zip(&memory[name]).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
                // 120 rounds whose sums over 16 examples differ by as many roundings.
                assert!(error <= 120.0 * 16.0 * f32::EPSILON * largest, "{name}: {error:e} of {largest:e}");
            }
        }
    }
}

#[test]
fn a_task_that_goes_on_failing_is_given_up_alone() {
    let place = Place::new();
    let config = place.synthetic();
    let test = Try { place: &place, config: &config };
    for mode in MODES {
        for kind in ["not_finite", "crash", "out_of_memory"] {
            let run = place.path(&format!("{kind}-{mode}"));
            let sets = ["schedule.retry_base=0.01", "schedule.max_retries=2", "task_defaults.rounds=20"];
            let child = ["tasks.agree_1b.depends_on=[\"alone_1\"]", "tasks.agree_1b.rounds=3", "faults.x.round=3"];
            let outcome = test.run(&run, mode, &fault(kind, 99), &[&sets[..], &child].concat());
            assert_eq!(outcome.code, Some(3), "{}", outcome.err);
            assert!(outcome.out.contains("mean primary"), "the others have scores: {}", outcome.out);
            outcome.says(&[
                "error: 2 of 5 tasks failed: agree_1b (depends on alone_1, which failed), alone_1 (",
                "given up after 3 failures in a row, and with it agree_1b",
            ]);
            let states =
                ["agree_1a", "agree_1b", "alone_1", "oppose_1a", "oppose_1b"].map(|name| task(&run, name)["state"].clone());
            assert_eq!(states, ["done", "failed", "failed", "done", "done"]);
            assert_eq!(task(&run, "alone_1")["rounds_lost"], 3);
            assert_eq!(task(&run, "oppose_1b")["rounds"], 20, "the others do all their rounds");
            // A resumed run has nothing more to do, and says the same.
            let again = resume(&run);
            assert_eq!(again.code, Some(3));
            assert!(again.err.contains("2 of 5 tasks failed"), "{}", again.err);
        }
    }
}

#[test]
fn a_run_with_failures_resumes_to_the_same_bytes() {
    let place = Place::new();
    let config = place.synthetic();
    let test = Try { place: &place, config: &config };
    for mode in MODES {
        for (kind, times) in [("not_finite", 2), ("crash", 2), ("out_of_memory", 3), ("crash", 99)] {
            let names = ["whole", "cut"].map(|name| place.path(&format!("{name}-{kind}-{times}-{mode}")));
            for run in &names {
                let sets = ["schedule.retry_base=0.02", "checkpoint.keep=20", "eval.every=end", "train.rounds=60"];
                test.run(run, mode, &fault(kind, times), &sets);
            }
            // As if it had been killed after round 20, 30, ...: before, amid and after the failures.
            for kept in [4, 2, 1] {
                for newer in &checkpoints(&names[1])[kept..] {
                    std::fs::remove_dir_all(newer).expect("can be removed");
                }
                resume(&names[1]);
                assert_same_files(&final_checkpoint(&names[1]), &final_checkpoint(&names[0]), &format!("{mode} {kind} {kept}"));
                assert_eq!(summary(&names[1])["tasks"], summary(&names[0])["tasks"]);
            }
        }
    }
}

/// A task that stalls holds its own quantum up and nobody's result.
#[test]
fn a_stall_changes_no_byte() {
    let place = Place::new();
    let config = place.synthetic();
    let test = Try { place: &place, config: &config };
    let [slow, quick] = ["stall", "none"].map(|name| {
        let run = place.path(name);
        let mut fault = if name == "stall" { fault("stall", 2).to_vec() } else { Vec::new() };
        fault.extend((name == "stall").then(|| "faults.x.ms=20".to_owned()));
        test.run(&run, MODES[0], &fault, &["train.rounds=30"]).ok();
        weights(&checkpoints(&run).pop().expect("a checkpoint"))
    });
    assert_eq!(slow, quick);
}

/// Every quantum, wait, commit, evaluation and retry: one track per lane, one per task.
#[test]
fn the_trace_shows_it_all() {
    let place = Place::new();
    let config = place.synthetic();
    let test = Try { place: &place, config: &config };
    for (mode, groups, per_task) in [(MODES[0], 2, 40), (MODES[1], 1, 8)] {
        let run = place.path(mode);
        let sets = ["train.rounds=40", "train.fuse=3", "faults.x.round=12", "eval.every=20"];
        test.run(&run, mode, &fault("not_finite", 1), &sets).ok();
        let read = || -> Vec<Value> {
            let text = std::fs::read_to_string(run.join("trace.json")).expect("a trace");
            serde_json::from_str(&text).expect("JSON")
        };
        let spans = |name: &str, track: Option<&str>| {
            let events = read();
            let tid = |thread: &str| {
                let named = |event: &&Value| event["ph"] == "M" && event["args"]["name"] == thread;
                let event = events.iter().find(named).unwrap_or_else(|| panic!("no track {thread}"));
                (event["pid"].clone(), event["tid"].clone())
            };
            let track = track.map(tid);
            let fits = |event: &&Value| {
                event["ph"] == "X"
                    && event["name"] == name
                    && track.as_ref().is_none_or(|(pid, tid)| event["pid"] == *pid && event["tid"] == *tid)
            };
            events.iter().filter(fits).cloned().collect::<Vec<Value>>()
        };
        let taken = task(&run, "alone_1")["rounds"].as_u64().expect("rounds") as usize;
        assert!(taken + 1 == per_task || (mode == MODES[1] && taken == per_task), "{mode}: {taken}");
        for kind in ["gradient", "commit"] {
            assert_eq!(spans(kind, Some("alone_1")).len(), taken, "{mode} {kind}");
        }
        let failed = spans("failure", Some("alone_1"));
        assert_eq!((failed.len(), spans("failure", None).len()), (1, 1));
        assert!(failed[0]["args"]["note"].as_str().is_some_and(|note| note.starts_with("round 12") || mode == MODES[1]));
        let again = |event: &&Value| event["args"]["note"].as_str().is_some_and(|note| note.ends_with("tried again"));
        assert_eq!(spans("gradient", Some("alone_1")).iter().filter(again).count(), 1);
        assert!(spans("wait", Some("alone_1")).len() > per_task / 2);
        let commits = spans("commit", Some("lane 0")).len();
        assert_eq!(commits, if mode == MODES[0] { 40 } else { 39 });
        assert_eq!(spans("gradient", Some("lane 0")).len(), groups * commits);
        assert_eq!(spans("evaluation", Some("lane 0")).len(), 2);
        assert_eq!(spans("checkpoint", Some("lane 0")).len(), 4, "every ten rounds");
        // A resumed run goes on with the trace.
        std::fs::remove_dir_all(checkpoints(&run).pop().expect("a checkpoint")).expect("can be removed");
        resume(&run).ok();
        assert_eq!(spans("commit", Some("lane 0")).len(), commits + 10);
    }
    let run = place.path("none");
    test.run(&run, MODES[0], &[], &["observe.trace_rounds=0", "train.rounds=5"]).ok();
    assert!(!run.join("trace.json").exists());
}
