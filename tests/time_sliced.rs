//! Rounds that belong to one task each: the order, the budget, and resuming.

mod common;

use std::path::Path;

use common::{Place, assert_same_files, checkpoints, final_checkpoint, metrics, resume, run, weights};

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
    let queue = [&budget, "memory.on_pressure=queue"];
    assert_eq!(plan(&queue)["total_bytes"], smallest);
    let tight = place.train(&config, &[&sets[..], &queue].concat());
    assert_same_files(&final_checkpoint(&tight), &final_checkpoint(&free), "under a budget");
}

#[test]
fn a_resumed_run_finds_its_order_again() {
    let place = Place::new();
    let config = place.synthetic();
    for policy in ["round_robin", "weighted", "priority"] {
        let policy = format!("schedule.policy={policy}");
        let sets = [
            "schedule.mode=time_sliced",
            "schedule.clock=planned",
            &policy,
            "task_defaults.period=2",
            "train.rounds=30",
            "eval.every=end",
        ];
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

/// A child starts in the round after the evaluation at which its parent reached its target, and a resumed run knows.
#[test]
fn a_target_reached_lets_the_child_start() {
    let place = Place::new();
    let config = place.synthetic();
    for mode in ["synchronous", "time_sliced"] {
        let mode = format!("schedule.mode={mode}");
        let sets = [
            &mode,
            // From below: the correlation after 20 rounds is above this, at the start it is none.
            "tasks.alone_1.target=0.05",
            "tasks.alone_1.metrics=[\"pearson\"]",
            "tasks.agree_1a.depends_on=[\"alone_1\"]",
            "eval.every=20",
            "checkpoint.keep=12",
        ];
        let whole = place.train(&config, &sets);
        let reached: Vec<_> = metrics(&whole).into_iter().filter(|line| line["kind"] == "target").collect();
        assert_eq!(reached.len(), 1, "{mode}");
        let at = reached[0]["round"].as_u64().expect("a round");
        assert!(at < 120 && reached[0]["value"].as_f64() >= Some(0.05), "{reached:?}");
        let rounds_of = |task: &str| -> Vec<u64> {
            let lines = metrics(&whole).into_iter().filter(|line| line["kind"] == "round" && !line["losses"][task].is_null());
            lines.map(|line| line["round"].as_u64().expect("a round")).collect()
        };
        assert!(rounds_of("alone_1").iter().all(|&round| round < at), "a task at its target is done");
        assert!(rounds_of("agree_1a").iter().all(|&round| round >= at), "its child waits for it");
        assert!(!rounds_of("agree_1a").is_empty());
        let cut = place.train(&config, &sets);
        for kept in [9, 1] {
            for newer in &checkpoints(&cut)[kept..] {
                std::fs::remove_dir_all(newer).expect("can be removed");
            }
            resume(&cut).ok();
            assert_same_files(&final_checkpoint(&cut), &final_checkpoint(&whole), &mode);
        }
    }
    let sets = ["synthetic.dev=0", "best.keep=false", "tasks.alone_1.target=0.5"];
    place.outcome_of_training(&config, &sets, &place.path("no-dev")).failed(2, &["tasks.alone_1.target", "no dev rows"]);
}

/// A transformer under a budget computes its layers again and task after task; neither changes a byte.
#[test]
fn a_transformer_gives_way_without_a_trace() {
    let place = Place::new();
    let config = place.bag();
    place.write(
        "vocab.txt",
        "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\ndull\nfast\nslow\nkind\nloud\nsoft\ncold\ngood\nbad\nnew\nold\n",
    );
    let text = std::fs::read_to_string(&config).expect("the configuration");
    let encoder = "kind = \"transformer\"\ntokenizer = \"vocab.txt\"\nhidden = 32\nheads = 2\nlayers = 3\nintermediate = 64\ndropout = 0.1\n";
    let (start, rest) = text.split_once("kind = \"bag\"\n").expect("an encoder");
    let (_, end) = rest.split_once("[task_defaults]").expect("defaults");
    let config = place.write("transformer.toml", format!("{start}{encoder}[task_defaults]{end}"));
    let sets = ["surgery.method=sum", "observe.conflict_every=0", "train.rounds=8", "eval.batch=8"];
    let free = place.train(&config, &sets);
    let bytes = |more: &[&str]| {
        let words: Vec<&str> = sets.iter().chain(more).flat_map(|set| ["--set", set]).collect();
        let plan = run(&[&["plan", config.to_str().expect("UTF-8"), "--json"], &words[..]].concat()).ok().json();
        plan["total_bytes"].as_u64().expect("bytes")
    };
    let [all, queued, both] = [&[][..], &["train.fuse=1"], &["train.fuse=1", "encoder.recompute=true"]].map(bytes);
    assert!(both < queued && queued < all, "{both} {queued} {all}");
    for (budget, ways, says) in [
        (queued, "[\"queue\", \"recompute\"]", "fused groups of at most 1 tasks, one after another"),
        (both, "[\"recompute\", \"queue\"]", "the encoder's layers are computed again in the backward pass"),
    ] {
        let run = place.path(&budget.to_string());
        let more = [format!("memory.device={budget}"), format!("memory.on_pressure={ways}")];
        let more = more.each_ref().map(String::as_str);
        place.outcome_of_training(&config, &[&sets[..], &more].concat(), &run).ok().says(&["memory.device is tight", says]);
        assert_same_files(&final_checkpoint(&run), &final_checkpoint(&free), ways);
    }
}
