//! A run may be killed or interrupted at any moment: resumed, it ends in the same bytes as if nothing had happened.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::{Outcome, Place, assert_same_files, checkpoints, files, final_checkpoint, metrics, outcome, resume, rounds};
use common::{taskloom, training};

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

/// Starts the run if it has no configuration yet, else continues it.
fn go_on(config: &Path, sets: &[&str], run: &Path) -> Command {
    if !run.join("config.toml").exists() {
        return training(config, sets, run);
    }
    let mut command = taskloom();
    command.arg("resume").arg(run);
    command
}

/// The run is done, and its files are those of `reference`, each round reported once.
fn assert_same_run(run: &Path, reference: &Path, what: &str) {
    assert_same_files(&final_checkpoint(run), &final_checkpoint(reference), what);
    assert_same_files(&files(&run.join("best")), &files(&reference.join("best")), &format!("{what}, best"));
    for kind in ["round", "eval", "conflict"] {
        assert_eq!(rounds(run, kind), rounds(reference, kind), "{what}: {kind} lines");
    }
    // An interruption may cut off the evaluation that is due; the checkpoint is then written again with its result.
    let ends = metrics(run).into_iter().filter(|line| line["kind"] == "end");
    let interrupted: Vec<u64> = ends
        .filter(|line| line["reason"].as_str().is_some_and(|why| why.starts_with("interrupted")))
        .filter_map(|line| line["round"].as_u64())
        .collect();
    let saved = rounds(run, "checkpoint");
    let twice = saved.windows(2).find(|pair| pair[0] == pair[1] && !interrupted.contains(&pair[0]));
    assert_eq!(twice, None, "{what}: a checkpoint was written twice");
    let leftovers: Vec<String> = files(&run.join("checkpoints")).into_keys().filter(|name| !name.starts_with("round-")).collect();
    assert!(leftovers.is_empty(), "{what}: {leftovers:?}");
}

#[test]
fn killed_at_random_moments() {
    let place = Place::new();
    let config = place.synthetic();
    let reference = place.train(&config, &[]);
    for seed in 0..6u64 {
        let run = place.path(&format!("killed-{seed}"));
        let mut state = seed;
        let mut kills = 0;
        loop {
            // Numbers of splitmix64's family are random enough here; 0 to 149 ms, a run takes some hundreds.
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let delay = (state ^ (state >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 40;
            // Every other run writes its checkpoints beside training; they are the same.
            let background = if seed % 2 == 1 { &["checkpoint.background=true"][..] } else { &[] };
            let mut child = go_on(&config, background, &run).spawn().expect("the program starts");
            // After some kills it may finish.
            if kills < 6 {
                std::thread::sleep(Duration::from_millis(delay % 150));
                child.kill().expect("the child can be killed");
            }
            let ended = outcome(child.wait_with_output());
            match ended.code {
                Some(0) => break,
                None => kills += 1,
                Some(_) => panic!("seed {seed}, after {kills} kills: {ended:?}"),
            }
        }
        assert_same_run(&run, &reference, &format!("seed {seed}, {kills} kills"));
    }
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
    for name in ["TERM", "INT", "USR1"] {
        let run = place.path(name);
        let mut child = training(&config, &["checkpoint.every=end"], &run).spawn().expect("the program starts");
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
        assert_eq!(rounds(&run, "round"), (0..ROUNDS).collect::<Vec<_>>());
    }
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

/// What a killed writer leaves goes away with the next resume.
#[test]
fn a_half_written_checkpoint_is_removed() {
    let place = Place::new();
    let config = place.synthetic();
    let reference = place.train(&config, &[]);
    let run = place.train(&config, &[]);
    let scratch = run.join("checkpoints/.writing-abc");
    std::fs::create_dir(&scratch).expect("can create");
    std::fs::write(scratch.join("model.safetensors"), "half").expect("can write");
    resume(&run).ok();
    assert_same_run(&run, &reference, "scratch folder");
}

#[test]
fn early_stopping_and_the_best_checkpoint_live_on() {
    let place = Place::new();
    let config = place.synthetic();
    // A rate at which scores go up and down.
    let sets = ["optimizer.lr=0.08", "optimizer.schedule.kind=constant", "best.patience=2", "eval.every=3", "train.rounds=2000"];
    let reference = place.train(&config, &sets);
    let end = metrics(&reference).pop().expect("a last line");
    assert!(end["reason"].as_str().is_some_and(|reason| reason.contains("best.patience")), "{end}");
    let stopped_at = end["round"].as_u64().expect("a round");
    let objectives = |run: &Path| -> BTreeMap<u64, String> {
        let evaluations = metrics(run).into_iter().filter(|line| line["kind"] == "eval");
        evaluations
            .map(|line| (line["round"].as_u64().expect("a round"), format!("{} {}", line["objective"], line["best"])))
            .collect()
    };
    // Stop between two evaluations, before and after the best one.
    for after in [2, stopped_at as usize - 4, stopped_at as usize - 1] {
        let run = place.path(&format!("stopped-{after}"));
        let mut child = training(&config, &sets, &run).spawn().expect("the program starts");
        if wait_for(&mut child, &run, "round", after) {
            signal(&child, "TERM");
        }
        drop(child.wait_with_output());
        resume(&run).ok();
        assert_same_run(&run, &reference, &format!("stopped after {after} of {stopped_at} rounds"));
        assert_eq!(objectives(&run), objectives(&reference));
    }
}
