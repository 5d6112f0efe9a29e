//! `eval` and `predict` with `--device`: on the emulated device the answers of the CPU, and one sentence where a device cannot serve.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use common::device::is_there;
use common::{Outcome, Place, outcome, run, taskloom};
use serde_json::Value;

const CPU: &str = "run.device=cpu";

fn eval(run_folder: &Path, device: &str) -> Outcome {
    run(&["eval", &run_folder.display().to_string(), "--json", "--device", device])
}

/// The answers to lines of input.
fn predict(run_folder: &Path, task: &str, lines: &[&str], device: &str) -> Outcome {
    let mut command = taskloom();
    command.arg("predict").arg(run_folder).args(["--task", task, "--device", device]).stdin(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut input = child.stdin.take().expect("an input");
    lines.iter().for_each(|line| writeln!(input, "{line}").expect("the program reads its input"));
    drop(input);
    outcome(child.wait_with_output())
}

/// Two documents of the same form, whose numbers agree to what bf16 leaves of them.
fn assert_close(ours: &Value, theirs: &Value, at: &str) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            assert!(a.keys().eq(b.keys()), "{at}: {ours} and {theirs}");
            a.iter().for_each(|(key, value)| assert_close(value, &b[key], &format!("{at}.{key}")));
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{at}");
            a.iter().zip(b).for_each(|(ours, theirs)| assert_close(ours, theirs, at));
        }
        (Value::Number(a), Value::Number(b)) => {
            let [a, b] = [a, b].map(|number| number.as_f64().expect("a number"));
            assert!((a - b).abs() <= 0.03 * b.abs().max(1.0), "{at}: {a} for {b}");
        }
        _ => assert_eq!(ours, theirs, "{at}"),
    }
}

/// A run answers on a device as on the CPU, on a whole split and line by line.
fn answers_agree(run_folder: &Path, questions: &[(&str, &[&str])]) {
    let [device, cpu] = ["emulated", "cpu"].map(|device| eval(run_folder, device).ok().json());
    assert_close(&device, &cpu, "eval");
    assert_ne!(device, cpu, "a device rounds to bf16");
    for (task, lines) in questions {
        let [device, cpu] = ["emulated", "cpu"].map(|device| predict(run_folder, task, lines, device).ok().out);
        assert_eq!([&device, &cpu].map(|out| out.lines().count()), [lines.len(); 2]);
        for (ours, theirs) in device.lines().zip(cpu.lines()) {
            let [ours, theirs] = [ours, theirs].map(|line| serde_json::from_str::<Value>(line).expect("a JSON line"));
            assert_close(&ours, &theirs, task);
        }
    }
}

#[test]
fn dense_features_are_answered_as_on_the_cpu() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    let run_folder = place.train(&place.linear(), &[CPU]);
    let lines = ["[1.2, 0.4, 0, 1, 0.3, 0, 1.7, 0.1]", "[-3, 0, 0, 0, 0, 0, 0, 2.5]"];
    answers_agree(&run_folder, &[("topic", &lines), ("numbers", &lines), ("flags", &lines[..1])]);
}

/// Rows that no training touched start from their draw on a device too; a text may be longer than any of the data.
#[test]
fn bags_are_answered_as_on_the_cpu() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    let run_folder = place.train(&place.bag(), &[CPU, "encoder.embedding_init=0.1"]);
    let long = "red soft new ".repeat(300);
    answers_agree(&run_folder, &[("topic", &["red fast", "", "words that nobody has seen", &long])]);
}

#[test]
fn a_transformer_answers_as_on_the_cpu() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    let config = place.transformer();
    for sets in
        [&["train.rounds=3"][..], &["encoder.pooling=mean", "encoder.freeze=[\"embeddings\",\"layer.0\"]", "train.rounds=2"]]
    {
        let run_folder = place.train(&config, &[sets, &[CPU]].concat());
        let long = "red soft new ".repeat(300);
        answers_agree(&run_folder, &[("topic", &["red fast", "", &long]), ("score", &["red\tcold", "good\tnew loud"])]);
    }
}

/// Which words are guessed, and the order of numbers, hang on the rounding of a model that has hardly been trained; losses do not.
#[test]
fn words_are_predicted_as_on_the_cpu() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    let config = place.transformer_of_words();
    for frozen in ["encoder.freeze=[]", "encoder.freeze=[\"embeddings\"]"] {
        let run_folder = place.train(&config, &[CPU, "train.rounds=3", frozen]);
        let [device, cpu] = ["emulated", "cpu"].map(|device| eval(&run_folder, device).ok().json()["tasks"].clone());
        for task in ["topic", "words"] {
            assert_close(&device[task]["loss"], &cpu[task]["loss"], task);
        }
        assert_ne!(device["words"]["loss"], cpu["words"]["loss"], "a device rounds to bf16");
        predict(&run_folder, "topic", &["red fast"], "emulated").ok();
    }
}

/// What was trained on a device is evaluated there along the way, and afterwards by the same kernels.
#[test]
fn the_scores_are_those_of_the_training() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    for config in [place.linear(), place.transformer_of_words()] {
        scores_are_those_of_the_training(&place, &config);
    }
}

fn scores_are_those_of_the_training(place: &Place, config: &Path) {
    let run_folder = place.train(config, &["run.device=emulated"]);
    let last = common::metrics(&run_folder).into_iter().rfind(|line| line["kind"] == "eval").expect("an evaluation");
    let newest = common::checkpoints(&run_folder).pop().expect("a checkpoint");
    let again = eval(&newest, "emulated").ok().json();
    for (task, scores) in last["tasks"].as_object().expect("scores by task") {
        assert_eq!(scores["loss"], again["tasks"][task]["loss"], "{task}");
    }
}

#[test]
fn a_device_that_cannot_serve_is_refused() {
    let place = Place::new();
    let run_folder = place.train(&place.linear(), &[CPU, "train.rounds=1"]);
    for device in ["tpu", "cuda:900", "cuda:x", ""] {
        let parts = [&format!("--device {device}: "), "use \"cpu\""];
        eval(&run_folder, device).failed(2, &parts);
        predict(&run_folder, "topic", &[], device).failed(2, &parts);
    }
    assert_eq!(eval(&run_folder, "auto").ok().out, eval(&run_folder, "cpu").ok().out);
}

#[test]
fn what_no_device_computes_is_refused() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    let heads = place.train(&place.transformer(), &[CPU, "train.rounds=1", "encoder.heads=4"]);
    eval(&heads, "emulated").failed(2, &["--device emulated", "no attention heads of 16 columns"]);
}
