//! Rounds that belong to one task each: the order, the budget, and resuming.

mod common;

use std::path::Path;

use common::{Place, assert_same_files, checkpoints, final_checkpoint, metrics, resume, run, weights};
use serde_json::Value;

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
    for policy in ["round_robin", "weighted", "priority", "rms", "edf"] {
        let deadline = if ["rms", "edf"].contains(&policy) { "tasks.agree_1a.deadline_ms=50" } else { "eval.test=true" };
        let policy = format!("schedule.policy={policy}");
        let sets = [
            "schedule.mode=time_sliced",
            "schedule.clock=planned",
            &policy,
            deadline,
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

/// Rounds that are begun together are computed on lanes or fused: the same bytes.
#[test]
fn gradients_that_miss_commits_do_not_depend_on_lanes() {
    let place = Place::new();
    for config in [place.synthetic(), place.bag()] {
        let sets = ["schedule.mode=time_sliced", "schedule.max_staleness=2", "train.rounds=31", "eval.every=10"];
        let one = place.train(&config, &sets);
        let three = place.train(&config, &[&sets[..], &["schedule.lanes=3", "run.threads=2"]].concat());
        assert_same_files(&final_checkpoint(&three), &final_checkpoint(&one), "three lanes");
        let summary = |run: &Path| -> Value {
            serde_json::from_slice(&std::fs::read(run.join("summary.json")).expect("a summary")).expect("JSON")
        };
        // Of three rounds the second misses one commit and the third two; of 31 the last is alone.
        assert_eq!(summary(&one)["schedule"]["stale"], 20);
        let none = place.train(&config, &["schedule.mode=time_sliced", "train.rounds=31", "eval.every=10"]);
        assert_eq!(summary(&none)["schedule"]["stale"], 0);
        assert_ne!(final_checkpoint(&none)["model.safetensors"], final_checkpoint(&one)["model.safetensors"]);
    }
    let config = place.synthetic();
    let added = ["schedule.mode=time_sliced", "schedule.max_staleness=1", "surgery.method=sum", "observe.conflict_every=0"];
    place.outcome_of_training(&config, &added, &place.path("added")).failed(2, &["schedule.max_staleness = 1", "conflict_every"]);
}

/// What a run recorded is enough to decide as it did, under every policy, with failures and targets.
#[test]
fn a_replayed_schedule_is_the_runs() {
    let place = Place::new();
    let config = place.synthetic();
    let crash = "faults.lost={ task = \"alone_1\", kind = \"crash\", round = 4 }";
    let policies = ["round_robin", "weighted", "priority", "rms", "edf"].map(|name| format!("schedule.policy={name}"));
    let sliced = policies.each_ref().map(|policy| vec!["schedule.mode=time_sliced", "schedule.clock=measured", policy]);
    let feedback = vec!["schedule.mode=time_sliced", &policies[1], "schedule.feedback={ every = 7 }", "schedule.max_staleness=1"];
    let synchronous = vec!["task_defaults.period=2"];
    for own in sliced.iter().chain([&feedback, &synchronous]) {
        let mut sets = [&own[..], &["train.rounds=40", "observe.log_every=1", crash]].concat();
        if own.contains(&"schedule.policy=rms") || own.contains(&"schedule.policy=edf") {
            sets.push("tasks.agree_1a.deadline_ms=50");
        }
        let trained = place.train(&config, &sets);
        let words = ["simulate", "--json", "--replay", trained.to_str().expect("UTF-8")];
        let replayed = run(&words).ok().json();
        assert_eq!((replayed["rounds"].as_u64(), &replayed["difference"]), (Some(40), &Value::Null), "{own:?}");
        assert!(replayed["compared"].as_u64() >= Some(20), "{replayed}");
        // A line that gives its round to somebody else.
        let mut lines = metrics(&trained);
        let line = lines.iter_mut().find(|line| line["kind"] == "round" && line["round"].as_u64() >= Some(20)).expect("a round");
        line["losses"] = serde_json::json!({ "nobody": 1.0 });
        let round = line["round"].clone();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(trained.join("metrics.jsonl"), text).expect("can be written");
        let outcome = run(&words);
        assert_eq!(outcome.code, Some(3), "{own:?}: {}", outcome.err);
        let replayed: Value = serde_json::from_str(&outcome.out).expect("JSON");
        assert_eq!(replayed["difference"]["round"], round, "{own:?}");
    }
    run(&["simulate", "--replay", place.path("nothing").to_str().expect("UTF-8")]).failed(2, &["nothing"]);
    run(&["simulate"]).failed(2, &["WORKLOAD"]);
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
    let run = place.train(&config, &sets);
    let summary: Value = serde_json::from_slice(&std::fs::read(run.join("summary.json")).expect("a summary")).expect("JSON");
    let count = |task: &Value, key: &str| task[key].as_u64().expect("a count");
    let tasks = summary["tasks"].as_array().expect("tasks").iter();
    let rounds = tasks.map(|task| count(task, "deadlines_met") + count(task, "deadlines_missed"));
    assert_eq!(rounds.sum::<u64>(), 20, "each round was in time or not");
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
