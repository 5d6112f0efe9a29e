//! A run may be killed or interrupted at any moment: resumed, it ends in the same bytes as if nothing had happened.

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Outcome, Place, assert_same_files, assert_same_history, assert_same_run, checkpoints, files, final_checkpoint};
use common::{history, metrics, outcome, resume, rounds, taskloom, training};
use serde_json::{Value, json};

/// Rounds of the configuration of [`Place::synthetic`].
const ROUNDS: u64 = 120;

/// Waits until the run has written `count` metrics lines of a kind; false if it ended before.
fn wait_for(child: &mut Child, run: &Path, kind: &str, count: usize) -> bool {
    let started = Instant::now();
    while rounds(run, kind).len() < count {
        assert!(started.elapsed() < Duration::from_secs(60), "no {count} {kind} lines after a minute");
        if child.try_wait().expect("the child can be asked").is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(sent.expect("there is a kill command").success());
}

/// A checkpoint that cannot be written ends the run; those before it stay.
#[test]
fn checkpoints_written_beside_training() {
    let place = Place::new();
    let config = place.bag();
    let sets = ["checkpoint.background=true", "checkpoint.every=2", "checkpoint.keep=100", "eval.every=4"];
    let (beside, waiting) = (place.train(&config, &sets), place.train(&config, &sets[1..]));
    let (ours, theirs) = (checkpoints(&beside), checkpoints(&waiting));
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_same_files(&files(ours), &files(theirs), &ours.display().to_string());
    }
    assert_same_files(&files(&beside.join("best")), &files(&waiting.join("best")), "best");
    assert_eq!(rounds(&beside, "checkpoint"), rounds(&waiting, "checkpoint"));

    // A file stands where the next checkpoint is to be.
    let kept = &ours[..2];
    ours[2..].iter().for_each(|newer| std::fs::remove_dir_all(newer).expect("can remove"));
    std::fs::write(&ours[2], "in the way").expect("can write");
    let stopped = resume(&beside).failed(3, &["round-00000006", "Not a directory"]);
    assert!(kept.iter().all(|path| path.join("COMPLETE").is_file()), "{stopped:?}");
}

/// Right after a checkpoint, an evaluation or a round is reported, the next thing is under way.
#[test]
fn killed_after_certain_lines() {
    let place = Place::new();
    for config in [place.synthetic(), place.bag()] {
        let reference = place.train(&config, &[]);
        for (number, (kind, count)) in [("checkpoint", 1), ("eval", 2), ("round", 7), ("round", 19)].into_iter().enumerate() {
            let name = config.file_stem().expect("a name").to_string_lossy();
            let run = place.path(&format!("{name}-{number}"));
            let mut child = training(&config, &[], &run).spawn().expect("the program starts");
            let running = wait_for(&mut child, &run, kind, count);
            if running {
                child.kill().expect("the child can be killed");
            }
            drop(child.wait_with_output());
            if !run.join("config.toml").exists() {
                continue;
            }
            resume(&run).ok();
            assert_same_run(&run, &reference, &format!("{name}, killed after {count} {kind} lines"));
        }
    }
}

#[test]
fn signals_end_with_a_checkpoint() {
    let place = Place::new();
    let config = place.synthetic();
    let reference = place.train(&config, &["checkpoint.every=end"]);
    for name in ["TERM", "INT", "USR1", "HUP"] {
        let run = place.path(name);
        let training = training(&config, &["checkpoint.every=end"], &run);
        // The tests themselves may have been started with `nohup`, which a program inherits.
        let mut command = Command::new("env");
        command.args(["--default-signal=HUP", "--"]).arg(training.get_program()).args(training.get_args());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        assert!(wait_for(&mut child, &run, "round", 3), "the run ended before the signal");
        signal(&child, name);
        let ended = outcome(child.wait_with_output()).failed_softly(130);
        assert!(ended.err.contains("taskloom resume"), "{}", ended.err);
        let stopped_at = checkpoints(&run);
        assert_eq!(stopped_at.len(), 1, "{name}: a checkpoint");
        let done = rounds(&run, "round").len();
        assert!(done >= 3 && done < ROUNDS as usize, "{name}: {done} rounds");
        resume(&run).ok();
        assert_same_files(&final_checkpoint(&run), &final_checkpoint(&reference), name);
        assert_same_history(&run, &reference, name);
    }
}

/// Whoever starts a run with `nohup` wants it to outlive the terminal.
#[test]
fn a_hangup_that_is_ignored_stays_so() {
    let place = Place::new();
    let run = place.path("run");
    let training = training(&place.synthetic(), &[], &run);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(training.get_program()).args(training.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("there is a shell");
    assert!(wait_for(&mut child, &run, "round", 3), "the run ended before the signal");
    signal(&child, "HUP");
    outcome(child.wait_with_output()).ok();
}

trait FailedSoftly {
    /// Ended with `code`, without an error and without results.
    fn failed_softly(self, code: i32) -> Self;
}

impl FailedSoftly for Outcome {
    fn failed_softly(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}", self.err);
        assert!(!self.err.contains("error:") && self.out.is_empty(), "{self:?}");
        self
    }
}

#[test]
fn a_finished_run_stays_as_it_is() {
    let place = Place::new();
    let run = place.train(&place.synthetic(), &[]);
    let before = files(&run.join("checkpoints"));
    let again = resume(&run).ok();
    assert!(again.out.contains("mean primary"), "{}", again.out);
    assert_same_files(&files(&run.join("checkpoints")), &before, "resumed after its end");
}

fn flip_a_bit(path: &Path) {
    let mut bytes = std::fs::read(path).expect("the file is there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(path, bytes).expect("can write");
}

#[test]
fn a_flipped_bit_costs_one_checkpoint() {
    let place = Place::new();
    let config = place.synthetic();
    let reference = place.train(&config, &[]);
    let run = place.train(&config, &[]);
    for file in ["model.safetensors", "optimizer.safetensors", "state.json", "COMPLETE"] {
        let newest = checkpoints(&run).pop().expect("a checkpoint");
        flip_a_bit(&newest.join(file));
        let again = resume(&run).ok();
        let damaged = if file == "COMPLETE" { "state.json" } else { file };
        let again = again.says(&["warning: ", "round-00000120", damaged, "is damaged", "going back to the checkpoint before it"]);
        assert!(again.err.contains("after 110 of 120 rounds"), "{}", again.err);
        assert_same_run(&run, &reference, file);
    }
}

#[test]
fn when_all_checkpoints_are_damaged_nothing_is_thrown_away() {
    let place = Place::new();
    let run = place.train(&place.synthetic(), &[]);
    let all = checkpoints(&run);
    assert_eq!(all.len(), 3, "checkpoint.keep");
    all.iter().for_each(|path| flip_a_bit(&path.join("model.safetensors")));
    let before = files(&run);
    resume(&run).failed(2, &["none of the 3 checkpoints", "is whole", "remove them to train from the start"]);
    assert_same_files(&files(&run), &before, "after the refusal");
    // As the message says: without checkpoints the run starts anew.
    std::fs::remove_dir_all(run.join("checkpoints")).expect("can remove");
    std::fs::create_dir(run.join("checkpoints")).expect("can create");
    resume(&run).ok().says(&["after 0 of 120 rounds"]);
    assert_eq!(rounds(&run, "round"), (0..ROUNDS).collect::<Vec<_>>());
}

/// A kill while a checkpoint of the same round is being replaced leaves the old one aside.
#[test]
fn a_half_done_replacement_is_undone() {
    let place = Place::new();
    let config = place.synthetic();
    let reference = place.train(&config, &["checkpoint.keep=1"]);
    let run = place.train(&config, &["checkpoint.keep=1"]);
    let newest = checkpoints(&run).pop().expect("a checkpoint");
    std::fs::rename(&newest, newest.with_extension("old")).expect("can rename");
    resume(&run).ok().says(&["after 120 of 120 rounds"]);
    assert_same_run(&run, &reference, "moved away");
    // The new one is there, but not marked yet.
    let old = newest.with_extension("old");
    std::fs::rename(&newest, &old).expect("can rename");
    std::fs::create_dir(&newest).expect("can create");
    std::fs::copy(old.join("state.json"), newest.join("state.json")).expect("can copy");
    resume(&run).ok().says(&["after 120 of 120 rounds"]);
    assert_same_run(&run, &reference, "not marked");
}

/// What a killed writer leaves goes away with the next resume, also of a run that is done: folders half written or half removed, and
/// one checkpoint too many.
#[test]
fn leftovers_are_removed() {
    let place = Place::new();
    let config = place.synthetic();
    let reference = place.train(&config, &[]);
    let run = place.train(&config, &["checkpoint.keep=4"]);
    for folder in ["checkpoints/.writing-abc", ".writing-def", "checkpoints/round-00000080"] {
        let folder = run.join(folder);
        std::fs::create_dir(&folder).expect("can create");
        std::fs::write(folder.join("model.safetensors"), "half").expect("can write");
    }
    std::fs::write(run.join(".writing-metrics.jsonl"), "half").expect("can write");
    for name in ["config.toml", "origins.json"] {
        std::fs::copy(reference.join(name), run.join(name)).expect("can copy");
    }
    resume(&run).ok();
    assert_same_run(&run, &reference, "leftovers");
}

/// Runs in which everything happens that metrics.jsonl has a line for.
const EVENTFUL: [&[&str]; 3] = [
    &[
        "surgery.method=trimmed_mean",
        "surgery.trim=2",
        "tasks.agree_1a.adaptive={target_ms=1e9, min=4, max=40}",
        "tasks.agree_1a.rounds=12",
        "tasks.agree_1b.metrics=mse",
        "tasks.agree_1b.target=1e6",
        "faults.a={task=\"oppose_1a\", kind=\"not_finite\", round=5}",
        "faults.b={task=\"oppose_1b\", kind=\"not_finite\", round=23}",
        "faults.c={task=\"oppose_1a\", kind=\"not_finite\", round=23}",
        "faults.d={task=\"alone_1\", kind=\"not_finite\", round=23}",
        "eval.every=8",
    ],
    &["eval.batches_per_round=1", "eval.batch=16", "eval.every=4", "tasks.alone_1.target=0.0", "best.patience=20"],
    &["schedule.mode=time_sliced", "schedule.policy=weighted", "schedule.feedback={ every = 6 }", "eval.every=10"],
];

/// As if killed at its very end with no checkpoint but an early one left: all that came after it happens again, and is told once.
#[test]
fn every_kind_of_line_is_told_once() {
    let place = Place::new();
    let config = place.synthetic();
    let mut kinds = BTreeSet::new();
    for (number, own) in EVENTFUL.iter().enumerate() {
        let sets = [own, &["train.rounds=40", "checkpoint.every=5", "checkpoint.keep=100"][..]].concat();
        let reference = place.train(&config, &sets);
        kinds.extend(metrics(&reference).iter().map(|line| line["kind"].as_str().expect("a kind").to_owned()));
        assert!(number > 0 || metrics(&reference).iter().any(|line| line["fallback"].is_string()), "a solver falls back");
        // What a run measures is its own, so that it is held against itself.
        let run = place.path(&format!("again-{number}"));
        for (name, bytes) in files(&reference) {
            let path = run.join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, bytes).expect("can be written");
        }
        for kept in [7, 5, 4, 3, 1, 0] {
            for newer in &checkpoints(&run)[kept..] {
                std::fs::remove_dir_all(newer).expect("can be removed");
            }
            resume(&run).ok();
            assert_same_run(&run, &reference, &format!("run {number}, {kept} checkpoints kept"));
        }
    }
    let all = [
        "adapted",
        "anomaly",
        "checkpoint",
        "conflict",
        "end",
        "eval",
        "failure",
        "measured",
        "reweighted",
        "round",
        "start",
        "target",
    ];
    assert!(kinds.iter().eq(all), "{kinds:?}");
}

/// A kill after a checkpoint is whole and before its line is written.
#[test]
fn a_checkpoint_that_was_not_told_of_is() {
    let place = Place::new();
    let config = place.synthetic();
    let reference = place.train(&config, &[]);
    let run = place.train(&config, &[]);
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let mut lines: Vec<&str> = text.lines().collect();
    let last = lines.iter().rposition(|line| line.contains("\"checkpoint\"")).expect("a checkpoint line");
    lines.truncate(last);
    std::fs::write(run.join("metrics.jsonl"), lines.join("\n")).expect("can write");
    resume(&run).ok();
    assert_same_history(&run, &reference, "one line short");
}

#[test]
fn keys_that_may_change_on_the_way() {
    let place = Place::new();
    let config = place.synthetic();
    // Every task fails in rounds 25 to 27.
    let tasks = ["agree_1a", "agree_1b", "alone_1", "oppose_1a", "oppose_1b"];
    let faults = tasks.map(|task| format!("faults.{task}={{task=\"{task}\", kind=\"not_finite\", round=25, times=3}}"));
    let sets = faults.iter().map(String::as_str).chain(["train.max_bad_rounds=2"]).collect::<Vec<_>>();
    let run = place.path("run");
    let stopped =
        place.outcome_of_training(&config, &sets, &run).failed(3, &["2 rounds in a row", "taskloom resume RUN_DIR --set"]);
    // The same rounds fail again.
    let before = history(&run);
    let again = resume(&run).failed(3, &["after 20 of 120 rounds"]);
    let error = |outcome: &Outcome| outcome.err.lines().find(|line| line.starts_with("error: ")).map(str::to_owned);
    assert_eq!(error(&again), error(&stopped));
    assert_eq!(history(&run), before);

    let resume_with = |sets: &[&str]| {
        let mut command = taskloom();
        command.arg("resume").arg(&run);
        sets.iter().for_each(|set| {
            command.args(["--set", set]);
        });
        outcome(command.output())
    };
    let before = files(&run);
    let refused = ["run.seed: cannot change in a run that has begun", "help: ", "optimizer.lr"];
    resume_with(&["optimizer.lr=1e-3", "run.seed=4"]).failed(2, &refused);
    resume_with(&["optimizer.lr=-1"]).failed(2, &["optimizer.lr"]);
    resume_with(&["optimiser.lr=1"]).failed(2, &["optimiser", "did you mean"]);
    assert_same_files(&files(&run), &before, "after the refusals");

    let changed = ["train.max_bad_rounds=9", "optimizer.lr=1e-4", "clip.norm=0.5", "train.rounds=50", "observe.conflict_every=0"];
    resume_with(&[&changed[..], &["checkpoint.every=10"]].concat()).ok().says(&["after 20 of 50 rounds"]);
    let changes: Vec<Value> = metrics(&run).into_iter().filter(|line| line["kind"] == "changed").collect();
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0]["round"], 20);
    let expected = json!({
        "train.max_bad_rounds": { "from": 2, "to": 9 },
        "optimizer.lr": { "from": 1e-3, "to": 1e-4 },
        "clip.norm": { "from": 1.0, "to": 0.5 },
        "train.rounds": { "from": 120, "to": 50 },
        "observe.conflict_every": { "from": 10, "to": 0 },
    });
    assert_eq!(changes[0]["changes"], expected, "a key that was set to what it was is no change");
    let stored = std::fs::read_to_string(run.join("config.toml")).expect("a configuration");
    assert!(stored.contains("lr = 0.0001") && stored.contains("rounds = 50") && stored.contains("norm = 0.5"), "{stored}");
    let rates: Vec<(u64, f64)> =
        metrics(&run).iter().filter_map(|line| Some((line["round"].as_u64()?, line["lr"].as_f64()?))).collect();
    assert!(rates.iter().all(|(round, lr)| (*round < 20) == (*lr > 1e-4)), "{rates:?}");
    // A second resume keeps all of it.
    let (end, lines) = (final_checkpoint(&run), history(&run));
    std::fs::remove_dir_all(checkpoints(&run).pop().expect("a checkpoint")).expect("can be removed");
    resume(&run).ok().says(&["after 40 of 50 rounds"]);
    assert_same_files(&final_checkpoint(&run), &end, "resumed once more");
    assert_eq!(history(&run), lines);
}
