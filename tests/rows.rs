//! Where rows come from and how they are scaled: several files, shares of them held out, feature columns by patterns, scaled features
//! and labels. A run with all of it goes on from any checkpoint, and is asked in the data's own units.

mod common;

use std::path::{Path, PathBuf};

use common::{Place, assert_same_run, checkpoints, files, resume, run, table};
use serde_json::{Value, json};

/// Two files; a class, and two numbers far from 0.
fn place() -> (Place, PathBuf) {
    let place = Place::new();
    let table = table();
    let (header, rows) = table.split_once('\n').expect("a header");
    let rows: Vec<String> =
        rows.lines().enumerate().map(|(number, row)| format!("{row}\t{}\t{}", 1000 + number, number % 7)).collect();
    for (name, rows) in [("part-1.tsv", &rows[..100]), ("part-2.tsv", &rows[100..])] {
        place.write(name, format!("{header}\tfar\tnear\n{}\n", rows.join("\n")));
    }
    let config = "[run]\nname = \"rows\"\nseed = 7\nthreads = 2\n[encoder]\nkind = \"linear\"\nhidden = 16\ndropout = 0.1\n\
                  [task_defaults]\ntrain = \"part-*.tsv\"\ndev = 0.2\ntest = 0.1\nfeatures = \"x*\"\n\
                  [tasks.topic]\nlabel = \"topic\"\n\
                  [tasks.numbers]\nlabel = [\"far\", \"near\"]\nhead = \"regression\"\nlabel_scale = \"standard\"\nmetrics = [\"rmse\"]\n\
                  [train]\nrounds = 24\nmicro_batch = 8\n[eval]\nevery = 8\ntest = true\n\
                  [checkpoint]\nevery = 8\nkeep = 5\n";
    let config = place.write("rows.toml", config);
    (place, config)
}

/// Forgets the newest checkpoints, as if the run had been killed before them.
fn cut(run: &Path, kept: usize) {
    checkpoints(run).into_iter().skip(kept).for_each(|newer| std::fs::remove_dir_all(newer).expect("can remove"));
}

fn state(checkpoint: &Path) -> Value {
    serde_json::from_slice(&files(checkpoint)["state.json"]).expect("JSON")
}

/// Puts another state in a checkpoint, with the mark that belongs to it.
fn put_state(checkpoint: &Path, state: &Value) {
    let text = state.to_string();
    std::fs::write(checkpoint.join("state.json"), &text).expect("can write");
    std::fs::write(checkpoint.join("COMPLETE"), blake3::hash(text.as_bytes()).to_hex().as_str()).expect("can write");
}

fn words(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_killed_run_holds_out_and_scales_the_same() {
    let (place, config) = place();
    let reference = place.train(&config, &[]);
    for kept in [1, 2] {
        let run = place.train(&config, &[]);
        cut(&run, kept);
        resume(&run).ok();
        assert_same_run(&run, &reference, &format!("{kept} checkpoints kept"));
    }
    let newest = checkpoints(&reference).pop().expect("a checkpoint");
    let task = &state(&newest)["tasks"][0];
    assert_eq!(task["features"], json!(["x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7"]));
    assert_eq!(task["label_scale"]["mean"].as_array().map(Vec::len), Some(2));
    // A changed row is found.
    let text = std::fs::read_to_string(place.path("part-1.tsv")).expect("can read").replace("\t1005\t", "\t1006\t");
    place.write("part-1.tsv", text);
    resume(&reference).failed(2, &["the data of numbers is not what the run started with"]);
}

#[test]
fn scores_and_answers_are_in_the_data_s_own_units() {
    let (place, config) = place();
    let trained = place.train(&config, &[]);
    let dev = run(&["eval", words(&trained), "--json"]).ok().json();
    let rmse = |output: &str| dev["tasks"]["numbers"]["outputs"][output]["rmse"].as_f64().expect("a number");
    // Standard deviations of 0..160 and of 0..7.
    assert!((20.0..80.0).contains(&rmse("far")) && (1.0..4.0).contains(&rmse("near")), "{dev}");
    let words = ["predict", words(&trained), "--task", "numbers", "--text", "[0.1, 1.5, 0.0, 0.3, 1.1, 0.9, 0.2, 1.0]"];
    let answer = run(&words).ok().json();
    let far = answer["values"][0].as_f64().expect("a number");
    assert!((950.0..1200.0).contains(&far), "{answer}");
    let plain = place.train(&config, &["task_defaults.feature_scale=none", "tasks.numbers.label_scale=none"]);
    assert!(state(&checkpoints(&plain)[0])["tasks"][0].get("feature_scale").is_none());
}

/// A checkpoint of an earlier version says nothing of scaling: it was trained without, and goes on so.
#[test]
fn what_was_trained_unscaled_stays_unscaled() {
    let (place, config) = place();
    let plain = ["task_defaults.feature_scale=none", "tasks.numbers.label_scale=none"];
    let reference = place.train(&config, &plain);
    let run = place.train(&config, &plain);
    let stored = std::fs::read_to_string(run.join("config.toml")).expect("can read");
    let older: String = stored.lines().filter(|line| !line.contains("_scale = ")).map(|line| format!("{line}\n")).collect();
    std::fs::write(run.join("config.toml"), older).expect("can write");
    cut(&run, 1);
    resume(&run).ok().says(&["features of numbers, topic stay unscaled, as in the checkpoint"]);
    let weights = |run: &Path| common::weights(&checkpoints(run).pop().expect("a checkpoint"));
    assert_eq!(weights(&run), weights(&reference));
}

#[test]
fn a_scale_that_cannot_be_is_refused() {
    let (place, config) = place();
    let trained = place.train(&config, &[]);
    cut(&trained, 1);
    let checkpoint = checkpoints(&trained).remove(0);
    let sound = state(&checkpoint);
    for (scale, part) in [
        (json!({"mean": [0.0], "deviation": [1.0]}), "scales 1 columns of features, there are 8"),
        (json!({"mean": vec![0.0; 8], "deviation": vec![0.0; 8]}), "scales features by what is no positive number"),
    ] {
        let mut state = sound.clone();
        state["tasks"][0]["feature_scale"] = scale;
        put_state(&checkpoint, &state);
        resume(&trained).failed(2, &["task numbers: the checkpoint does not fit the data", part]);
    }
    let mut state = sound.clone();
    state["tasks"][1]["label_scale"] = json!({"mean": [0.0], "deviation": [1.0]});
    put_state(&checkpoint, &state);
    resume(&trained).failed(2, &["task topic", "scales the labels of a task that has no numbers"]);
}

#[test]
fn bad_rows_keys_are_one_clear_error() {
    let (place, config) = place();
    let refused = |sets: &[&str], parts: &[&str]| {
        place.outcome_of_training(&config, sets, &place.path("refused")).failed(2, parts);
    };
    refused(&["task_defaults.train=none-*.tsv"], &["task_defaults.train: no file matches: ", "none-*.tsv"]);
    refused(&["task_defaults.dev=1.5"], &["task_defaults.dev: expected a number above 0 and below 1", "found 1.5"]);
    refused(&["task_defaults.dev=0.001", "task_defaults.test=0.3"], &["dev = 0.001 of ", "labelled training rows is no row"]);
    refused(&["task_defaults.features=q*"], &["features: ", "part-1.tsv: no column for `q*`"]);
    refused(&["task_defaults.features=x3..x1"], &["column `x1` stands before `x3`"]);
    refused(&["tasks.topic.label_scale=standard"], &["tasks.topic.label_scale: does nothing while `head` is \"classification\""]);
    refused(&["task_defaults.feature_scale=minmax"], &["task_defaults.feature_scale: \"minmax\" is not one of"]);
}
