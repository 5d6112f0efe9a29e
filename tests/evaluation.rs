//! `eval.batches_per_round`: a copy of the parameters is evaluated between rounds, and training is the same as if it had waited.

mod common;

use std::path::Path;

use common::{Place, assert_same_files, checkpoints, files, final_checkpoint, metrics, resume, weights};
use serde_json::Value;

/// Evaluations of a run, without what depends on when their outcome was known.
fn evaluations(run: &Path) -> Vec<Value> {
    let mut found: Vec<Value> = metrics(run).into_iter().filter(|line| line["kind"] == "eval").collect();
    for line in &mut found {
        let fields = line.as_object_mut().expect("an object");
        ["seconds", "held_up", "time", "n", "known"].iter().for_each(|name| drop(fields.remove(*name)));
    }
    found
}

/// How many rounds after its parameters each evaluation was known.
fn delays(run: &Path) -> Vec<u64> {
    let lines = metrics(run).into_iter().filter(|line| line["kind"] == "eval");
    let round = |line: &Value, key: &str| line[key].as_u64();
    lines.map(|line| round(&line, "known").map_or(0, |known| known - round(&line, "round").expect("a round"))).collect()
}

fn same_scores_and_weights(place: &Place, config: &Path, sets: &[&str]) -> Vec<u64> {
    let waiting = place.train(config, sets);
    let beside = place.train(config, &[sets, &["eval.batches_per_round=2"]].concat());
    assert_eq!(evaluations(&beside), evaluations(&waiting), "{sets:?}");
    assert_same_files(&final_checkpoint(&beside), &final_checkpoint(&waiting), "the last checkpoint");
    assert_eq!(weights(&beside.join("best")), weights(&waiting.join("best")), "best");
    delays(&beside)
}

#[test]
fn evaluating_between_rounds_changes_nothing_but_when_it_is_known() {
    let place = Place::new();
    for config in [place.bag(), place.linear()] {
        for more in ["train.fuse=0", "schedule.mode=time_sliced", "schedule.lanes=2"] {
            let delays = same_scores_and_weights(&place, &config, &["eval.every=8", "eval.batch=8", more]);
            let (last, before) = delays.split_last().expect("evaluations");
            assert!(*last == 0 && !before.is_empty() && before.iter().all(|&delay| delay > 1 && delay < 8), "{delays:?}");
        }
    }
}

#[test]
fn what_is_left_is_done_when_the_next_one_is_due() {
    let place = Place::new();
    let delays = same_scores_and_weights(&place, &place.bag(), &["eval.every=2", "eval.batch=3"]);
    assert!(delays.iter().filter(|&&delay| delay == 2).count() > 1, "{delays:?}");
}

/// From every checkpoint on, also those that found an evaluation under way; with a target and an early stop that hang on it.
#[test]
fn a_resumed_run_goes_on_with_the_evaluation_under_way() {
    let place = Place::new();
    let config = place.bag();
    let sets = ["eval.every=8", "eval.batch=8", "eval.batches_per_round=2", "checkpoint.every=1", "checkpoint.keep=1000"];
    let sets = [&sets[..], &["tasks.topic.target=0.3", "best.patience=3", "checkpoint.background=true"]].concat();
    let whole = place.train(&config, &sets);
    let known: Vec<Value> =
        metrics(&whole).into_iter().filter(|line| line["kind"] == "eval" || line["kind"] == "target").collect();
    let cuts = checkpoints(&whole);
    let under_way = cuts.iter().filter(|path| path.join("evaluated.safetensors").is_file()).count();
    assert!(under_way > 2, "{under_way} of {} checkpoints", cuts.len());
    for cut in 1..cuts.len() {
        let run = place.train(&config, &sets);
        checkpoints(&run).into_iter().skip(cut).for_each(|newer| std::fs::remove_dir_all(newer).expect("can remove"));
        resume(&run).ok();
        assert_same_files(&final_checkpoint(&run), &final_checkpoint(&whole), &format!("cut {cut}"));
        assert_eq!(files(&run.join("best"))["model.safetensors"], files(&whole.join("best"))["model.safetensors"], "cut {cut}");
        let again: Vec<Value> =
            metrics(&run).into_iter().filter(|line| line["kind"] == "eval" || line["kind"] == "target").collect();
        let rounds =
            |lines: &[Value]| lines.iter().map(|line| (line["round"].clone(), line["known"].clone())).collect::<Vec<_>>();
        assert_eq!(rounds(&again), rounds(&known), "cut {cut}");
    }
}

#[test]
fn it_is_refused_where_it_would_do_nothing() {
    let place = Place::new();
    let sets = ["eval.every=end", "eval.batches_per_round=1"];
    let refused = place.outcome_of_training(&place.bag(), &sets, &place.path("no"));
    refused.failed(2, &["eval.batches_per_round", "does nothing"]);
}

/// What the tables at the end say is in summary.json and in the last line of metrics.jsonl, and what `eval` computes afterwards.
#[test]
fn the_scores_at_the_end_are_kept() {
    let place = Place::new();
    let run = place.path("run");
    let sets =
        ["eval.test=true", "tasks.numbers.metrics=[\"r2\", \"rmse\"]", "tasks.topic.metrics=[\"macro_f1\", \"precision\"]"];
    let out = place.outcome_of_training(&place.linear(), &sets, &run).ok().out;
    let summary: Value = serde_json::from_slice(&files(&run)["summary.json"]).expect("JSON");
    let last = metrics(&run).pop().expect("lines");
    assert_eq!(last["scores"], summary["scores"]);
    for split in ["dev", "test"] {
        let scores = &summary["scores"][split];
        let words = ["eval", run.to_str().expect("UTF-8"), "--json", "--split", split];
        assert_eq!(common::run(&words).ok().json(), *scores);
        let numbers = &scores["tasks"]["numbers"];
        let of = |values: &Value| values["r2"].as_f64().expect("a number");
        let mean = (of(&numbers["outputs"]["score"]) + of(&numbers["outputs"]["speed"])) / 2.0;
        assert!((mean - of(numbers)).abs() < 1e-12, "{numbers}");
        assert!(out.contains(&format!("macro_f1 {:.4}", scores["tasks"]["topic"]["macro_f1"].as_f64().expect("a number"))));
    }
}
