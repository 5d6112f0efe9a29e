//! Rounds that belong to one task each: the order, the budget, and resuming.

mod common;

use std::path::Path;

use common::{Place, assert_same_files, checkpoints, final_checkpoint, resume, run, weights};

/// `configs/budget.toml` ends where the same run without a budget does, up to the order of f32 sums, and says what it did.
#[test]
fn sixteen_tasks_under_a_tight_budget() {
    let place = Place::new();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/budget.toml");
    // SGD, since AdamW's first steps are +-lr whatever the gradient's size, so that rounding near zero would show in full.
    let sets = ["train.rounds=60", "optimizer.kind=sgd", "optimizer.lr=0.01", "eval.every=end"];
    let tight = place.path("tight");
    place
        .outcome_of_training(&config, &sets, &tight)
        .ok()
        .says(&["memory.device is tight: micro-batches of 32, 2 of them a round"]);
    let free = place.train(&config, &[&sets[..], &["memory.device=0"]].concat());
    let [tight, free] = [tight, free].map(|run| weights(&checkpoints(&run)[checkpoints(&run).len() - 1]));
    for (name, ours) in &free {
        let largest = ours.iter().fold(0f32, |most, x| most.max(x.abs()));
        let error = ours.iter().zip(&tight[name]).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        // Sums over 64 examples differ by at most 64 roundings, the weights add those of sixty rounds.
        assert!(error <= 60.0 * 64.0 * f32::EPSILON * largest, "{name}: {error:e} of {largest:e}");
    }
    let refused = ["memory.on_pressure=[]"];
    place.outcome_of_training(&config, &refused, &place.path("refused")).failed(2, &["memory.device allows 1.2 MiB"]);
}

/// Smaller fused groups change no byte.
#[test]
fn a_synchronous_run_gives_way_without_a_trace() {
    let place = Place::new();
    let config = place.synthetic();
    let sets = ["train.rounds=12", "surgery.method=sum", "observe.conflict_every=0", "train.micro_batch=64", "eval.batch=64"];
    let free = place.train(&config, &sets);
    let plan = |more: &[&str]| {
        let words: Vec<&str> = sets.iter().chain(more).flat_map(|set| ["--set", set]).collect();
        run(&[&["plan", config.to_str().expect("UTF-8"), "--json"], &words[..]].concat()).ok().json()
    };
    let smallest = plan(&["train.fuse=1"])["total_bytes"].as_u64().expect("bytes");
    assert!(smallest < plan(&[])["total_bytes"].as_u64().expect("bytes"));
    let budget = format!("memory.device={smallest}");
    let split = [&budget, "memory.on_pressure=split"];
    assert_eq!(plan(&split)["total_bytes"], smallest);
    let tight = place.train(&config, &[&sets[..], &split].concat());
    assert_same_files(&final_checkpoint(&tight), &final_checkpoint(&free), "under a budget");
}

#[test]
fn a_resumed_run_finds_its_order_again() {
    let place = Place::new();
    let config = place.synthetic();
    for policy in ["round_robin", "weighted", "priority"] {
        let policy = format!("schedule.policy={policy}");
        let sets = ["schedule.mode=time_sliced", &policy, "task_defaults.period=2", "train.rounds=30", "eval.every=end"];
        let reference = place.train(&config, &sets);
        let cut = place.train(&config, &sets);
        // As if it had been killed after round 20.
        let newest = checkpoints(&cut).pop().expect("a checkpoint");
        std::fs::remove_dir_all(newest).expect("can be removed");
        resume(&cut).ok();
        assert_same_files(&final_checkpoint(&cut), &final_checkpoint(&reference), &policy);
    }
}

#[test]
fn deadlines_that_cannot_be_met_are_refused() {
    let place = Place::new();
    let config = place.synthetic();
    // 16 examples of 100 us are 1.6 ms a round.
    let sets = ["schedule.mode=time_sliced", "schedule.policy=edf", "task_defaults.deadline_ms=5"];
    let parts = ["schedule: the deadline of task ", "too much"];
    place.outcome_of_training(&config, &sets, &place.path("late")).failed(2, &parts);
    let sets = ["schedule.mode=time_sliced", "schedule.policy=edf", "task_defaults.deadline_ms=20", "train.rounds=20"];
    place.train(&config, &sets);
}
