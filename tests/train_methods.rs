//! Every surgery method and every loss balancer trains through the program, and a run resumed from an earlier checkpoint
//! ends with the same bytes as one that was never stopped.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use taskloom::surgery::{balance, methods};

const CONFIG: &str = r#"
[run]
name = "methods"
[synthetic]
features = 12
train = 120
dev = 20
test = 20
[task_defaults]
head = "regression"
[encoder]
kind = "linear"
hidden = 16
[train]
rounds = 12
micro_batch = 8
accumulate = 2
[eval]
every = "end"
[checkpoint]
every = 6
keep = 3
[observe]
conflict_every = 4
"#;

fn taskloom(arguments: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_taskloom")).args(arguments).output().expect("the program starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Trains in `folder/NAME` and gives that folder.
fn train(folder: &Path, name: &str, sets: &[&str]) -> std::path::PathBuf {
    let config = folder.join("config.toml");
    std::fs::write(&config, CONFIG).expect("a writable folder");
    let run = folder.join(name);
    let mut arguments = vec!["train", config.to_str().expect("UTF-8"), "--run-dir", run.to_str().expect("UTF-8")];
    for set in sets {
        arguments.extend(["--set", set]);
    }
    taskloom(&arguments);
    run
}

fn lines(run: &Path, kind: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics.jsonl");
    let all = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    all.filter(|line| line["kind"] == kind).collect()
}

fn checkpoint(run: &Path, round: u64) -> std::path::PathBuf {
    run.join(format!("checkpoints/round-{round:08}"))
}

/// Names that `surgery.method` takes; the others say that a run cannot use them yet.
fn trainable() -> Vec<&'static str> {
    let names = methods::registry::DESCRIPTORS.iter().map(|method| method.name);
    names.filter(|name| taskloom::config::SURGERY_METHODS.contains(name)).collect()
}

#[test]
fn every_method_and_balancer_trains() {
    let folder = tempfile::tempdir().expect("a folder");
    let surgery = trainable().into_iter().map(|name| format!("surgery.method={name}"));
    let balance = balance::registry::DESCRIPTORS.iter().map(|balancer| format!("balance.method={}", balancer.name));
    for set in surgery.chain(balance) {
        let run = train(folder.path(), &set, &[&set]);
        let rounds = lines(&run, "round");
        assert_eq!(rounds.len(), 12, "{set}");
        for round in rounds {
            assert!(round["norm"].as_f64().is_some_and(f64::is_finite), "{set}: {round}");
        }
        assert_eq!(lines(&run, "anomaly").len(), 0, "{set}");
    }
}

/// A balancer's factors reach the gradients by two roads: in the rows of J, or in the loss where rows are not kept apart.
/// Both must move the parameters alike.
#[test]
fn balancing_does_not_depend_on_stored_gradients() {
    let folder = tempfile::tempdir().expect("a folder");
    let loss = |name: &str, every: &str| {
        let run = train(folder.path(), name, &["balance.method=gls", "surgery.method=sum", every, "clip.norm=0"]);
        let last = lines(&run, "round").pop().expect("a round");
        (last["losses"].clone(), last["balance"].clone())
    };
    let (kept, added) = (loss("kept", "observe.conflict_every=1"), loss("added", "observe.conflict_every=0"));
    for (kept, added) in [(&kept.0, &added.0), (&kept.1, &added.1)] {
        for (task, kept) in kept.as_object().expect("by task") {
            let (kept, added) = (kept.as_f64().expect("a number"), added[task].as_f64().expect("a number"));
            assert!((kept - added).abs() <= 1e-4 * kept.abs(), "{task}: {kept} {added}");
        }
    }
}

#[test]
fn a_resumed_run_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let pairs = [
        ("gradvac", "uw"),
        ("nash_mtl", "famo"),
        ("gradnorm", "dwa"),
        ("pcgrad", "stch"),
        ("db_mtl", "imtl_l"),
        ("graddrop", "rlw"),
    ];
    for (method, balancer) in pairs {
        let sets = [format!("surgery.method={method}"), format!("balance.method={balancer}")];
        let run = train(folder.path(), method, &[&sets[0], &sets[1]]);
        let read = |file: &str| std::fs::read(checkpoint(&run, 12).join(file)).expect("a checkpoint file");
        let files = ["model.safetensors", "optimizer.safetensors", "state.json"];
        let expected = files.map(read);
        std::fs::remove_dir_all(checkpoint(&run, 12)).expect("removable");
        taskloom(&["resume", run.to_str().expect("UTF-8")]);
        assert!(files.map(read) == expected, "{method} with {balancer}");
    }
}

#[test]
fn the_end_names_the_conflicting_pairs() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = train(folder.path(), "conflicts", &["train.equal_heads=true"]);
    let end = lines(&run, "end").pop().expect("an end");
    let worst = &end["conflicts"][0];
    assert_eq!(worst["tasks"], serde_json::json!(["oppose_1a", "oppose_1b"]), "{end}");
    assert!(worst["cosine"].as_f64().is_some_and(|cosine| cosine < 0.0));
    let conflict = lines(&run, "conflict");
    assert_eq!(conflict.len(), 3);
    assert_eq!(conflict[0]["yielded"].as_array().map(Vec::len), Some(5));
}
