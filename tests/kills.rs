//! Runs are killed (signal 9) at random moments and resumed: they end as if nothing had happened, and nothing is left over.
//!
//! `scripts/kill-test.sh N` kills N times; as one of the tests it is done a few times only.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Place, assert_same_run, example, metrics, outcome, resume, taskloom, training};
use taskloom::random::Random;

/// Kills without `TASKLOOM_KILLS`, which `scripts/kill-test.sh` sets.
const FEW: u64 = 20;

/// Of one run, which is then left to end.
const KILLS_OF_A_RUN: u64 = 6;

/// Short runs that checkpoint and evaluate most of the time.
const SHORT: [&str; 9] = [
    "run.device=cpu",
    "run.threads=2",
    "encoder.hidden=64",
    "synthetic.train=300",
    "synthetic.dev=100",
    "synthetic.test=20",
    "train.rounds=40",
    "train.micro_batch=16",
    "checkpoint.keep=2",
];

/// What the runs differ in.
const KINDS: [&[&str]; 8] = [
    &["checkpoint.every=1", "eval.every=5"],
    &["checkpoint.every=3", "eval.every=4", "checkpoint.background=true"],
    &["checkpoint.every=4", "eval.every=6", "eval.batches_per_round=1", "eval.batch=16"],
    &["checkpoint.every=2", "eval.every=3", "eval.batches_per_round=2", "eval.batch=32", "checkpoint.background=true"],
    &["checkpoint.every=5", "eval.every=10", "schedule.mode=time_sliced"],
    &[
        "checkpoint.every=7",
        "eval.every=7",
        "schedule.mode=time_sliced",
        "schedule.policy=weighted",
        "schedule.clock=planned",
        "checkpoint.background=true",
    ],
    // What follows from measured times differs from run to run, but not from what the run recorded of them.
    &[
        "checkpoint.every=5",
        "eval.every=9",
        "schedule.mode=time_sliced",
        "schedule.policy=weighted",
        "schedule.max_staleness=2",
        "schedule.lanes=2",
        "schedule.feedback={ every = 6 }",
        "task_defaults.adaptive={ target_ms = 0.4 }",
        "faults.lost={ task = \"alone_1\", kind = \"crash\", round = 5 }",
        "faults.bad={ task = \"agree_1a\", kind = \"not_finite\", round = 9, times = 2 }",
    ],
    &["checkpoint.every=6", "eval.every=8", "task_defaults.adaptive={ target_ms = 0.6 }", "schedule.lanes=2"],
];

/// Starts the run if it has no configuration yet, else continues it.
fn go_on(config: &Path, sets: &[&str], run: &Path) -> Command {
    if !run.join("config.toml").exists() {
        return training(config, sets, run);
    }
    let mut command = taskloom();
    command.arg("resume").arg(run);
    command
}

/// The run once more from its beginning, by the times that it recorded.
fn again(run: &Path, folder: &Path) -> PathBuf {
    std::fs::create_dir(folder).expect("a folder");
    std::fs::create_dir(folder.join("checkpoints")).expect("a folder");
    for name in ["config.toml", "metrics.jsonl", "origins.json"] {
        std::fs::copy(run.join(name), folder.join(name)).expect("can be copied");
    }
    resume(folder).ok();
    folder.to_owned()
}

#[test]
fn killed_at_random_moments() {
    let asked = std::env::var("TASKLOOM_KILLS").ok();
    let asked = asked.map_or(FEW, |text| text.parse().expect("TASKLOOM_KILLS is a number"));
    let place = Place::new();
    let config = example("quickstart.toml");
    let sets = KINDS.map(|own| [&SHORT[..], own].concat());
    let references = sets.each_ref().map(|sets| {
        let clock = Instant::now();
        let run = place.train(&config, sets);
        (run, clock.elapsed())
    });
    let mut random = Random(asked);
    let (mut kills, mut number) = (0, 0);
    while kills < asked {
        let (sets, (reference, time)) = (&sets[number % KINDS.len()], &references[number % KINDS.len()]);
        let run = place.path(&format!("killed-{number}"));
        let mut own = 0;
        loop {
            let mut child = go_on(&config, sets, &run).spawn().expect("the program starts");
            if own < KILLS_OF_A_RUN && kills < asked {
                std::thread::sleep(Duration::from_micros(random.below(time.as_micros() as usize) as u64));
                child.kill().expect("the child can be killed");
            }
            let ended = outcome(child.wait_with_output());
            match ended.code {
                Some(0) => break,
                // It may also have finished in time.
                None => (own, kills) = (own + 1, kills + 1),
                Some(_) => panic!("run {number} ({sets:?}), after {own} kills: {ended:?}"),
            }
        }
        let recorded = metrics(&run).iter().any(|line| line["kind"] == "measured");
        let again = recorded.then(|| again(&run, &place.path(&format!("again-{number}"))));
        assert_same_run(&run, again.as_ref().unwrap_or(reference), &format!("run {number} ({sets:?}), {own} kills"));
        [Some(run), again].iter().flatten().for_each(|run| std::fs::remove_dir_all(run).expect("can be removed"));
        number += 1;
    }
    // Shown with --nocapture.
    println!("{kills} kills of {number} runs: each ended like the uninterrupted one");
}
