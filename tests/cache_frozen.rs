//! `encoder.cache_frozen`: what a frozen prefix makes of a text is computed once, and changes no byte of a run.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::device::{EMULATED, is_there};
use common::{Outcome, Place, assert_same_files, checkpoints, files, final_checkpoint, metrics, outcome, run, training};
use serde_json::Value;

const FREEZE: &str = "encoder.freeze=[\"embeddings\", \"layer.0\"]";

/// A transformer of three layers over single texts and pairs, with dropout above the frozen blocks.
fn config(place: &Place) -> PathBuf {
    place.write("table.tsv", common::table());
    place.write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\ndull\nfast\nslow\nkind\nloud\nsoft\ncold\ngood\nnew\n");
    let encoder = "kind = \"transformer\"\ntokenizer = \"vocab.txt\"\nhidden = 32\nheads = 2\nlayers = 3\nintermediate = 64\n";
    let tasks = "[task_defaults]\nfile = \"table.tsv\"\nsplit = \"split\"\n\
                 [tasks.topic]\ntext = \"text\"\nlabel = \"topic\"\n\
                 [tasks.score]\ntext = [\"text\", \"topic\"]\nlabel = \"speed\"\nhead = \"regression\"\n";
    let rest = "[train]\nrounds = 6\nmicro_batch = 4\n[eval]\nevery = 3\n[checkpoint]\nevery = 3\n";
    place.write("config.toml", format!("[run]\nname = \"frozen\"\n[encoder]\n{encoder}dropout = 0.1\n{tasks}{rest}"))
}

/// With the folder for kept states.
fn with_cache<'a>(command: &'a mut Command, folder: &Path) -> &'a mut Command {
    command.env("TASKLOOM_CACHE", folder)
}

struct Trained {
    run: PathBuf,
    /// Splits whose states were computed.
    computed: usize,
}

fn train(place: &Place, config: &Path, name: &str, sets: &[&str]) -> Trained {
    let run = place.path(name);
    let sets = [&[FREEZE], sets].concat();
    let done = outcome(with_cache(&mut training(config, &sets, &run), &place.path("cache")).output()).ok();
    Trained { run, computed: computed(&done) }
}

fn computed(done: &Outcome) -> usize {
    done.err.matches("states of the frozen prefix: computing").count()
}

/// The dev scores of a run's metrics.
fn scores(run: &Path) -> Vec<Value> {
    metrics(run).into_iter().filter(|line| line["kind"] == "eval").map(|line| line["tasks"].clone()).collect()
}

#[test]
fn kept_states_change_no_byte() {
    let place = Place::new();
    let config = config(&place);
    let plain = train(&place, &config, "plain", &[]);
    assert_eq!((plain.computed, scores(&plain.run).len()), (0, 2));
    assert!(!place.path("cache").exists());
    let same = |other: &Trained, what: &str| {
        assert_same_files(&final_checkpoint(&other.run), &final_checkpoint(&plain.run), what);
        assert_eq!(scores(&other.run), scores(&plain.run), "{what}");
    };

    let on = "encoder.cache_frozen=true";
    let first = train(&place, &config, "first", &[on]);
    assert_eq!(first.computed, 4, "train and dev of two tasks");
    same(&first, "computed at the start");
    let kept = files(&place.path("cache"));
    assert_eq!(kept.len(), 4);

    for (name, sets) in [("again", &[on][..]), ("recompute", &[on, "encoder.recompute=true"]), ("fused", &[on, "train.fuse=1"])] {
        let again = train(&place, &config, name, sets);
        assert_eq!(again.computed, 0, "{name}");
        same(&again, name);
    }

    // A file that was cut off is not believed.
    let cut = kept.iter().next().expect("a file").0;
    std::fs::write(place.path("cache").join(cut), [0; 100]).expect("can write");
    let mended = train(&place, &config, "mended", &[on]);
    assert_eq!(mended.computed, 1);
    same(&mended, "mended");
    assert_same_files(&files(&place.path("cache")), &kept, "the mended file");

    // Other frozen parameters have files of their own; so does another prefix.
    assert_eq!(train(&place, &config, "seed", &[on, "run.seed=5"]).computed, 4);
    let shorter = "encoder.freeze=[\"embeddings\"]";
    assert_eq!(train(&place, &config, "shorter", &[on, shorter]).computed, 4);
}

/// A device keeps states in its own memory, and writes none.
#[test]
fn on_a_device_kept_states_change_no_byte() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    let config = config(&place);
    let (heads, on) = ("encoder.heads=1", "encoder.cache_frozen=true");
    for (name, sets) in [
        ("plain", &[][..]),
        ("recompute", &["encoder.recompute=true"]),
        ("embeddings alone, one task a group", &["encoder.freeze=[\"embeddings\"]", "train.fuse=1"]),
        ("mean, evaluated beside rounds", &["encoder.pooling=mean", "eval.batches_per_round=1", "eval.test=true"]),
    ] {
        let trained = |kept: &[&str], suffix: &str| {
            let sets = [&[EMULATED, heads], sets, kept].concat();
            train(&place, &config, &format!("{name}{suffix}"), &sets)
        };
        let (computed, kept) = (trained(&[], ""), trained(&[on], ", kept"));
        assert_same_files(&final_checkpoint(&kept.run), &final_checkpoint(&computed.run), name);
        assert_eq!(scores(&kept.run), scores(&computed.run), "{name}");
    }
    assert!(!place.path("cache").exists());
    let sets = [EMULATED, heads, FREEZE, on].into_iter().flat_map(|set| ["--set", set]);
    let words: Vec<&str> = ["plan", config.to_str().unwrap(), "--json"].into_iter().chain(sets).collect();
    let plan = run(&words).ok().json();
    assert!(plan["cache_bytes"].is_null(), "nothing on disk");
    let buffers = plan["buffers"].as_array().expect("a list");
    let states = buffers.iter().find(|buffer| buffer["name"] == "states of the frozen prefix").expect("a buffer");
    assert!(states["bytes"].as_u64() > Some(0));
}

#[test]
fn a_resumed_run_uses_what_was_kept() {
    let place = Place::new();
    let config = config(&place);
    let whole = train(&place, &config, "whole", &["encoder.cache_frozen=true"]);
    let run = place.path("cut");
    let sets = [FREEZE, "encoder.cache_frozen=true"];
    outcome(with_cache(&mut training(&config, &sets, &run), &place.path("cache")).output()).ok();
    let newest = checkpoints(&run).pop().expect("a checkpoint");
    std::fs::remove_dir_all(newest).expect("can remove");
    let resumed = outcome(with_cache(common::taskloom().arg("resume").arg(&run), &place.path("cache")).output()).ok();
    assert_eq!(computed(&resumed), 0);
    assert_same_files(&final_checkpoint(&run), &final_checkpoint(&whole.run), "resumed");
}

#[test]
fn the_plan_says_what_is_kept() {
    let place = Place::new();
    let config = config(&place);
    train(&place, &config, "run", &["encoder.cache_frozen=true", "eval.test=true"]);
    let on_disk: usize = files(&place.path("cache")).values().map(Vec::len).sum();
    let words = ["plan", config.to_str().unwrap(), "--json", "--set", FREEZE, "--set", "encoder.cache_frozen=true"];
    let plan = run(&[&words[..], &["--set", "eval.test=true"]].concat()).ok().json();
    assert_eq!(plan["cache_bytes"], on_disk);
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let place = Place::new();
    let config = config(&place);
    let check = |sets: &[&str]| {
        let mut words = vec!["check", config.to_str().unwrap(), "--set", "encoder.cache_frozen=true"];
        sets.iter().for_each(|set| words.extend(["--set", set]));
        run(&words)
    };
    check(&[]).failed(2, &["encoder.cache_frozen", "none is frozen", "encoder.freeze"]);
    let words = ["tasks.topic.head=mlm", "tasks.topic.label=[]"];
    check(&[&[FREEZE], &words[..]].concat()).failed(2, &["encoder.cache_frozen", "`topic` hides other words"]);
    let file = place.write("file", "");
    let sets = [FREEZE, "encoder.cache_frozen=true"];
    let refused = outcome(with_cache(&mut training(&config, &sets, &place.path("run")), &file).output());
    refused.failed(2, &["cannot create", "TASKLOOM_CACHE"]);
    assert!(!place.path("run").exists(), "a refused run leaves no folder behind");
}
