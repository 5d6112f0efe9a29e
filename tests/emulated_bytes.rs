//! Whole runs on the emulated device that have to end in the same bytes: resumed, packed ahead, with their examples on the device, with
//! rounds in flight.

mod common;

use std::path::Path;

use common::device::{EMULATED, is_there, losses, small};
use common::{Place, assert_same_files, checkpoints, final_checkpoint, metrics, resume};
use serde_json::{Value, json};

/// Stopped after a checkpoint and gone on with, a run comes to the same bytes.
#[test]
fn a_transformer_resumes_to_the_same_bytes() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    for (config, layers) in [(place.transformer(), 2), (place.transformer_of_words(), 1)] {
        let layers = format!("encoder.layers={layers}");
        let run = place
            .train(&config, &[EMULATED, "train.rounds=3", "eval.every=3", "checkpoint.every=2", "checkpoint.keep=9", &layers]);
        let whole = final_checkpoint(&run);
        std::fs::remove_dir_all(checkpoints(&run).last().expect("the last one")).expect("it is there");
        resume(&run).ok();
        assert_same_files(&final_checkpoint(&run), &whole, &format!("{} resumed", config.display()));
    }
}

/// Buffers by task come back from a checkpoint to where they were: a run that goes on from one ends with the bytes of one that was
/// never stopped.
#[test]
fn buffers_by_task_resume_to_the_same_bytes() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    let always = [EMULATED, "train.rounds=4", "checkpoint.every=2", "checkpoint.keep=9", "eval.every=4"];
    for (config, method, granularity) in [
        (small(), "excess_mtl", "model"),
        (place.bag(), "excess_mtl", "tensor"),
        (place.bag(), "moco", "tensor"),
        (place.transformer(), "moco", "layer"),
    ] {
        let own = [format!("surgery.method={method}"), format!("surgery.granularity={granularity}")];
        let run = place.train(&config, &[&always[..], &own.each_ref().map(String::as_str)].concat());
        let whole = final_checkpoint(&run);
        std::fs::remove_dir_all(checkpoints(&run).last().expect("the last one")).expect("it is there");
        resume(&run).ok();
        assert_same_files(&final_checkpoint(&run), &whole, &format!("{method} resumed, {}", config.display()));
    }
}

/// Batches are packed ahead where no faults are injected, and here in their rounds, as one is that never comes.
#[test]
fn batches_packed_ahead_are_those_of_their_rounds() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    let sliced = &["schedule.mode=time_sliced"][..];
    let stale = &["schedule.mode=time_sliced", "schedule.max_staleness=1"][..];
    let losses_again = &["balance.method=famo", "encoder.word_dropout=0.3"][..];
    for (config, task, more) in [
        (small(), "alone_1", &["train.fuse=2"][..]),
        (place.bag(), "topic", sliced),
        (place.bag(), "topic", stale),
        (place.bag(), "topic", losses_again),
        (place.bag(), "topic", &["surgery.method=modo"]),
        (place.transformer(), "topic", &["surgery.method=modo", "train.fuse=1", "train.micro_batch=2", "encoder.layers=1"]),
        (place.transformer_of_words(), "topic", &["tasks.words.period=2", "encoder.layers=1"]),
    ] {
        let always = [&[EMULATED, "train.rounds=3", "eval.every=3"], more].concat();
        let task = format!("faults.x.task={task}");
        let never = ["faults.x.kind=crash", "faults.x.round=3", &task];
        let [ahead, in_time] = [&[][..], &never].map(|faults| place.train(&config, &[&always[..], faults].concat()));
        let parameters = |run| final_checkpoint(run).remove("model.safetensors").expect("a checkpoint holds the model");
        assert!(parameters(&ahead) == parameters(&in_time), "{more:?}");
    }
}

/// Whether the device fetches its examples or their tokens, sorts their rows and gives these slots, or the host packs them: every file is the same, and
/// that of a run which goes on from a checkpoint.
#[test]
fn examples_on_the_device_are_those_of_packed_batches() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    let always = [EMULATED, "train.rounds=6", "checkpoint.every=3", "checkpoint.keep=9", "eval.every=3"];
    for (config, more) in [
        (small(), &["encoder.hidden=61", "synthetic.features=13", "train.fuse=2", "encoder.dropout=0.2"][..]),
        (small(), &["train.accumulate=2", "surgery.method=mgda"]),
        (place.bag(), &["encoder.word_dropout=0.3", "encoder.embedding_init=0.1", "train.fuse=1"]),
        (place.bag(), &["train.accumulate=2", "surgery.method=modo", "optimizer.row_moment=row", "eval.batches_per_round=1"]),
        (place.bag(), &["surgery.method=graddrop", "balance.method=famo", "schedule.mode=time_sliced"]),
        (place.transformer(), &["encoder.pooling=mean", "encoder.layers=1", "train.fuse=2"]),
        (place.transformer(), &["encoder.layers=1", "train.accumulate=2", "surgery.method=modo", "eval.batches_per_round=1"]),
        (place.transformer(), &["encoder.recompute=true", "surgery.method=sum", "optimizer.row_moment=row"]),
    ] {
        let with = |kept: &str| place.train(&config, &[&always[..], more, &[&format!("data.resident={kept}")]].concat());
        let [fetched, packed] = ["device", "host"].map(with);
        assert_eq!(losses(&fetched), losses(&packed), "{more:?}");
        let mut whole = final_checkpoint(&packed);
        assert_same_files(&final_checkpoint(&fetched), &whole, &format!("{more:?}"));
        std::fs::remove_dir_all(checkpoints(&fetched).last().expect("the last one")).expect("it is there");
        resume(&fetched).ok();
        assert_same_files(&final_checkpoint(&fetched), &std::mem::take(&mut whole), &format!("{more:?}, resumed"));
    }
}

/// A device that is given a round before the host has read the one before leaves every file as it would be, also where a round fails: a
/// label of one example overflows, in whatever round it is drawn.
#[test]
fn rounds_in_flight_change_nothing() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    let configs = [place.linear(), place.bag(), place.transformer()];
    let mut table: Vec<Vec<String>> = common::table().lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect();
    let speed = table[0].iter().position(|name| name == "speed").expect("a column");
    table[8][speed] = "1e30".to_owned();
    place.write("table.tsv", table.iter().map(|line| line.join("\t") + "\n").collect::<String>());
    let always = [EMULATED, "schedule.retry_base=0.002", "schedule.max_retries=2", "checkpoint.keep=9"];
    let [linear, bag, transformer] = &configs;
    let cases = [
        (linear, "numbers", &["surgery.method=gradvac", "surgery.granularity=layer"][..]),
        (linear, "numbers", &["schedule.mode=time_sliced", "train.rounds=60"]),
        (bag, "numbers", &["data.resident=device", "surgery.method=pcgrad"]),
        (bag, "numbers", &["data.resident=host", "surgery.method=mean", "surgery.scale=mean"]),
        (bag, "numbers", &["data.resident=device", "schedule.mode=time_sliced", "eval.batches_per_round=1", "train.rounds=60"]),
        (transformer, "score", &["train.rounds=6", "train.micro_batch=16", "encoder.layers=1"]),
    ];
    for (number, (config, failing, more)) in cases.into_iter().enumerate() {
        let [alone, in_flight] = [1, 2].map(|depth| {
            let run = place.path(&format!("{number}-{depth}"));
            let depth = format!("schedule.depth={depth}");
            place.outcome_of_training(config, &[&always[..], more, &[&depth]].concat(), &run).ended(3, &[failing, "failed"]);
            run
        });
        let failures = |run: &Path| -> Vec<Value> {
            metrics(run)
                .into_iter()
                .filter(|line| line["kind"] == "failure")
                .map(|line| json!([line["round"], line["why"]]))
                .collect()
        };
        assert!(!failures(&alone).is_empty(), "{more:?}");
        assert_eq!(failures(&in_flight), failures(&alone), "{more:?}");
        assert_eq!(losses(&in_flight), losses(&alone), "{more:?}");
        let names = |run: &Path| checkpoints(run).iter().map(|path| path.file_name().map(ToOwned::to_owned)).collect::<Vec<_>>();
        assert_eq!(names(&in_flight), names(&alone), "{more:?}");
        assert_same_files(&final_checkpoint(&in_flight), &final_checkpoint(&alone), &format!("{more:?}"));
    }
}
