//! What checkpoints take on disk: as planned, shared with the best one, and without the optimizer's state at the end.

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{Place, assert_same_files, checkpoints, files, outcome, resume, run, training};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

fn bytes(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).len()
}

/// What a safetensors file has beside its tensors.
const HEADER: u64 = 4096;

#[test]
fn the_plan_says_what_a_checkpoint_takes() {
    let place = Place::new();
    for (config, sets) in [
        (place.linear(), vec![]),
        (place.linear(), vec!["surgery.method=moco"]),
        (place.linear(), vec!["optimizer.kind=sgd"]),
        (place.transformer(), vec!["encoder.freeze=[\"embeddings\", \"layer.0\"]"]),
        (place.bag(), vec![]),
    ] {
        let words: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let plan = run(&[&["plan", text(&config), "--json"], &words[..]].concat()).ok().json();
        let disk = &plan["disk"];
        let planned = |key: &str| disk[key].as_u64().expect("a number");
        let trained = place.train(&config, &sets);
        let newest = checkpoints(&trained).pop().expect("a checkpoint");
        let (model, state) = (bytes(&newest.join("model.safetensors")), bytes(&newest.join("optimizer.safetensors")));
        // Rows of an embedding table come as they are touched, and bring their numbers.
        let is_exact = config.file_name().is_some_and(|name| name == "linear.toml");
        let what = format!("{} {sets:?}: {disk}, {model} and {state} were written", config.display());
        assert!(
            model <= planned("model_bytes") + 2 * HEADER && model + state <= planned("checkpoint_bytes") + 4 * HEADER,
            "{what}"
        );
        if is_exact {
            assert!(model >= planned("model_bytes") && model + state >= planned("checkpoint_bytes"), "{what}");
        }
        assert_eq!(planned("end_bytes"), 2 * planned("checkpoint_bytes") + planned("model_bytes"));
        assert_eq!(planned("run_bytes"), planned("end_bytes") + planned("checkpoint_bytes"));
        let table = run(&[&["plan", text(&config)], &words[..]].concat()).ok().out;
        assert!(table.contains("(on disk: one checkpoint)"), "{table}");
    }
}

#[test]
fn the_best_parameters_are_kept_once() {
    let place = Place::new();
    for background in ["false", "true"] {
        let sets = [&format!("checkpoint.background={background}"), "checkpoint.keep=9"];
        let trained = place.train(&place.linear(), &sets);
        let best = trained.join("best/model.safetensors");
        let own = std::fs::metadata(&best).expect("the best parameters");
        let same: Vec<_> = checkpoints(&trained)
            .into_iter()
            .filter(|path| std::fs::metadata(path.join("model.safetensors")).expect("parameters").ino() == own.ino())
            .collect();
        assert_eq!((same.len(), own.nlink()), (1, 2), "background = {background}");
        let other = checkpoints(&trained).into_iter().filter(|path| !same.contains(path)).collect::<Vec<_>>();
        assert!(!other.is_empty());
        for path in other {
            assert_ne!(files(&path)["model.safetensors"], std::fs::read(&best).expect("parameters"));
        }
    }
}

/// A file that is damaged is not made that of another checkpoint.
#[test]
fn damage_is_not_shared() {
    let place = Place::new();
    let config = place.linear();
    let whole = place.path("whole");
    let stop = |folder: &Path, until: &str| {
        let stopped =
            outcome(training(&config, &["checkpoint.every=\"end\"", "eval.every=8"], folder).args(["--until", until]).output());
        assert_eq!(stopped.code, Some(130), "{}", stopped.err);
    };
    stop(&whole, "8");
    // Evaluated, best, and interrupted: the checkpoint of the interruption shares the file.
    let model = |folder: &Path| std::fs::metadata(folder.join("model.safetensors")).expect("parameters").ino();
    let newest = |run: &Path| checkpoints(run).pop().expect("a checkpoint");
    assert_eq!(model(&newest(&whole)), model(&whole.join("best")));
    let damaged = place.path("damaged");
    stop(&damaged, "8");
    std::fs::remove_dir_all(newest(&damaged)).expect("can be removed");
    let best = damaged.join("best/model.safetensors");
    let mut spoiled = std::fs::read(&best).expect("parameters");
    *spoiled.last_mut().expect("bytes") ^= 1;
    std::fs::write(&best, spoiled).expect("can write");
    resume(&damaged).ok();
    resume(&whole).ok();
    assert_same_files(&files(&newest(&damaged)), &files(&newest(&whole)), "beside a damaged file");
}

#[test]
fn a_run_may_leave_its_parameters_alone() {
    let place = Place::new();
    let config = place.linear();
    let all = place.train(&config, &[]);
    let left = place.path("left");
    // An interruption is no end.
    let stopped = outcome(training(&config, &["checkpoint.final=model"], &left).args(["--until", "12"]).output());
    assert_eq!(stopped.code, Some(130), "{}", stopped.err);
    assert!(checkpoints(&left).iter().all(|path| path.join("optimizer.safetensors").is_file()));
    resume(&left).ok();
    let kept = checkpoints(&left);
    assert_eq!(kept.len(), 1);
    let (ours, mut theirs) = (files(&kept[0]), files(&checkpoints(&all).pop().expect("a checkpoint")));
    theirs.remove("optimizer.safetensors");
    assert!(ours.keys().eq(theirs.keys()), "{:?}", ours.keys());
    assert_eq!(ours["model.safetensors"], theirs["model.safetensors"]);
    // It answers as the other one does.
    let scores = |run_folder: &Path| -> Value { run(&["eval", text(run_folder), "--json"]).ok().json() };
    assert_eq!(scores(&left), scores(&all));
    assert_eq!(scores(&kept[0]), scores(&checkpoints(&all).pop().expect("a checkpoint")));
    resume(&left).failed(2, &["holds the parameters alone", "checkpoint.final = \"model\""]);
    let plan = run(&["plan", text(&config), "--json", "--set", "checkpoint.final=model"]).ok().json();
    assert_eq!(plan["disk"]["end_bytes"].as_u64(), plan["disk"]["model_bytes"].as_u64().map(|bytes| 2 * bytes));
}
