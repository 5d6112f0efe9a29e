//! The same bytes whatever the number of threads and the fusion of tasks; equal weights however a batch is cut.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{Place, assert_same_files, checkpoints, final_checkpoint, run, weights};
use serde_json::Value;

/// Trains `config` over and over: every way of computing it must end in the same bytes.
fn same_bytes_in_every_way(place: &Place, config: &Path, method: &str) {
    let method = format!("surgery.method={method}");
    let reference = final_checkpoint(&place.train(config, &[&method, "run.threads=1", "train.fuse=0"]));
    for (threads, fuse) in [(2, 0), (3, 0), (1, 1), (2, 1), (2, 2), (3, 3)] {
        let ways = [format!("run.threads={threads}"), format!("train.fuse={fuse}")];
        let run = place.train(config, &[&method, &ways[0], &ways[1]]);
        let what = format!("{}, {method}, {ways:?}", config.display());
        assert_same_files(&final_checkpoint(&run), &reference, &what);
    }
}

#[test]
fn linear_encoder() {
    let place = Place::new();
    let config = place.linear();
    same_bytes_in_every_way(&place, &config, "pcgrad");
    same_bytes_in_every_way(&place, &config, "sum");
}

#[test]
fn bag_encoder() {
    let place = Place::new();
    let config = place.bag();
    same_bytes_in_every_way(&place, &config, "pcgrad");
    same_bytes_in_every_way(&place, &config, "sum");
}

/// Wide enough that matrices are cut into blocks and jobs, so that threads could disagree.
#[test]
fn wide_layers() {
    let place = Place::new();
    let wide = ["encoder.hidden=200", "train.rounds=4", "train.micro_batch=40"];
    for (config, more) in [(place.linear(), "encoder.dropout=0"), (place.bag(), "encoder.embedding_dim=136")] {
        let sets = |threads, fuse| [&wide[..], &[more, threads, fuse]].concat();
        let reference = final_checkpoint(&place.train(&config, &sets("run.threads=1", "train.fuse=0")));
        for (threads, fuse) in [("run.threads=2", "train.fuse=0"), ("run.threads=3", "train.fuse=1")] {
            let run = place.train(&config, &sets(threads, fuse));
            assert_same_files(&final_checkpoint(&run), &reference, &format!("{}, {threads}, {fuse}", config.display()));
        }
    }
}

/// Lanes compute the groups of a round at the same time, whatever is kept of them.
#[test]
fn any_number_of_lanes_gives_the_same_bytes() {
    let place = Place::new();
    for (config, more) in [
        (place.linear(), &["surgery.method=pcgrad"][..]),
        (place.bag(), &["surgery.method=cagrad", "train.accumulate=2"]),
        (place.bag(), &["surgery.method=modo", "surgery.storage=bf16"]),
        (place.bag(), &["surgery.method=graddrop", "train.fuse=1"]),
    ] {
        let sets = |lanes, threads| [more, &[lanes, threads]].concat();
        let reference = final_checkpoint(&place.train(&config, &sets("schedule.lanes=1", "run.threads=2")));
        for (lanes, threads) in [("schedule.lanes=2", "run.threads=2"), ("schedule.lanes=3", "run.threads=4")] {
            let run = place.train(&config, &sets(lanes, threads));
            assert_same_files(&final_checkpoint(&run), &reference, &format!("{more:?}, {lanes}, {threads}"));
        }
    }
}

#[test]
fn lanes_are_planned_and_shown() {
    let place = Place::new();
    let config = place.linear();
    let plan = |set: &str| run(&["plan", config.to_str().unwrap(), "--json", "--set", set]).ok().json();
    let [one, two] = ["schedule.lanes=1", "schedule.lanes=2"].map(plan);
    assert_eq!((one["lanes"].as_u64(), two["lanes"].as_u64()), (Some(1), Some(2)));
    let groups = |plan: &Value| plan["first_round_groups"].as_array().map(Vec::len);
    assert_eq!((groups(&one), groups(&two)), (Some(1), Some(2)));
    let names = |plan: &Value| plan["buffers"].as_array().unwrap().iter().map(|b| b["name"].to_string()).collect::<Vec<_>>();
    assert!(
        names(&two).iter().any(|name| name.contains("lane 1 scratch")) && !names(&one).iter().any(|name| name.contains("lane"))
    );

    // Under a tight budget one lane goes first: the groups are computed one after the other.
    let alone = ["plan", config.to_str().unwrap(), "--json", "--set", "train.fuse=2", "--set", "eval.batch=16"];
    let budget = format!("memory.device={}", run(&alone).ok().json()["total_bytes"]);
    let (tight, free) = (place.path("tight"), place.train(&config, &[]));
    let sets = ["schedule.lanes=2", &budget, "memory.on_pressure=[\"queue\"]"];
    place.outcome_of_training(&config, &sets, &tight).ok().says(&["memory.device is tight: one lane"]);
    assert_same_files(&final_checkpoint(&tight), &final_checkpoint(&free), "one lane under pressure");

    let folder = place.train(&config, &["schedule.lanes=2"]);
    let trace: Value = serde_json::from_slice(&std::fs::read(folder.join("trace.json")).unwrap()).unwrap();
    let spans = trace.as_array().unwrap().iter().filter(|event| event["pid"] == 1 && event["ph"] == "X");
    let lanes: BTreeSet<u64> = spans.filter(|span| span["cat"] == "gradient").map(|span| span["tid"].as_u64().unwrap()).collect();
    assert_eq!(lanes, BTreeSet::from([0, 1]));

    let refused = |sets: &[&str], parts: &[&str]| place.outcome_of_training(&config, sets, &place.path("no")).failed(2, parts);
    refused(
        &["schedule.lanes=2", "surgery.method=sum", "observe.conflict_every=0"],
        &["schedule.lanes = 2 needs the tasks' gradients apart", "observe.conflict_every"],
    );
    refused(&["schedule.lanes=2", "run.device=emulated"], &["schedule.lanes", "are the CPU's"]);
}

/// No private gradients are kept here: every task adds to one row.
#[test]
fn gradients_that_are_only_added_up() {
    let place = Place::new();
    let config = place.bag();
    let sets = |threads, fuse| ["surgery.method=sum", "observe.conflict_every=0", threads, fuse];
    let reference = final_checkpoint(&place.train(&config, &sets("run.threads=1", "train.fuse=0")));
    for (threads, fuse) in [("run.threads=2", "train.fuse=1"), ("run.threads=3", "train.fuse=2")] {
        let run = place.train(&config, &sets(threads, fuse));
        assert_same_files(&final_checkpoint(&run), &reference, &format!("{threads}, {fuse}"));
    }
}

#[test]
fn accumulation_over_several_groups() {
    let place = Place::new();
    for config in [place.linear(), place.bag()] {
        let sets = |fuse| ["train.micro_batch=4", "train.accumulate=3", "train.rounds=12", fuse];
        let reference = final_checkpoint(&place.train(&config, &sets("train.fuse=0")));
        for fuse in ["train.fuse=1", "train.fuse=2"] {
            assert_same_files(&final_checkpoint(&place.train(&config, &sets(fuse))), &reference, fuse);
        }
    }
}

#[test]
fn another_seed_gives_other_bytes() {
    let place = Place::new();
    for config in [place.linear(), place.bag(), place.synthetic()] {
        let run = |seed| final_checkpoint(&place.train(&config, &["train.rounds=8", seed]));
        let (three, again, four) = (run("run.seed=3"), run("run.seed=3"), run("run.seed=4"));
        assert_same_files(&three, &again, "the same seed");
        for file in ["model.safetensors", "optimizer.safetensors"] {
            assert_ne!(three[file], four[file], "{file} of {} does not depend on the seed", config.display());
        }
    }
}

/// 4 micro-batches of 8 hold the examples of 1 of 32, so a round's gradient is the same up to the order of f32 sums.
#[test]
fn accumulated_batches_equal_one_large_batch() {
    let place = Place::new();
    for config in [place.linear(), place.bag()] {
        // SGD, since AdamW's first steps are +-lr whatever the gradient's size, so that rounding near zero would show in full.
        let common = ["optimizer.kind=sgd", "optimizer.lr=0.05", "train.rounds=6", "surgery.method=pcgrad"];
        let train = |cut: [&str; 2]| place.train(&config, &[&common[..], &cut].concat());
        let whole = train(["train.micro_batch=32", "train.accumulate=1"]);
        let cut = train(["train.micro_batch=8", "train.accumulate=4"]);
        let [whole, cut] = [whole, cut].map(|run| weights(&checkpoints(&run)[checkpoints(&run).len() - 1]));
        assert!(whole.keys().eq(cut.keys()));
        for (name, ours) in &whole {
            let largest = ours.iter().fold(0f32, |most, x| most.max(x.abs()));
            let error = ours.iter().zip(&cut[name]).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            // A round's sums over 32 examples differ by at most 32 roundings, the weights add those of six rounds; all
            // relative to the largest weight, since lr * gradient never exceeds it here.
            let allowed = 6.0 * 32.0 * f32::EPSILON * largest;
            assert!(error <= allowed, "{name}: {error:e} exceeds {allowed:e}");
            assert!(largest > 0.0 || name.ends_with("bias"), "{name} has not moved");
        }
    }
}
