//! Whole runs on the emulated device, through the program: training, evaluation, checkpoints, a lost device, too little memory.

mod common;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use common::device::{EMULATED, Operation, Tampered, is_there, losses, small};
use common::{Place, assert_same_files, checkpoints, final_checkpoint, metrics, outcome, resume, run, training, weights};
use serde_json::{Value, json};
use taskloom::config::Config;
use taskloom::data::Corpus;
use taskloom::failure::{STOPPED, exit_code};
use taskloom::machine::driver::{self, DeviceError, Driver, open_emulated};
use taskloom::observe::console::Console;
use taskloom::observe::{Listeners, Observer};
use taskloom::train::fit_memory;
use taskloom::train::plan::Plan;
use taskloom::train::run::{Built, End, Run};
use taskloom::train::run_folder::RunFolder;
use taskloom::train::setup::{load_corpus, load_run};

fn assert_close(ours: &[f64], theirs: &[f64], tolerance: f64, what: &str) {
    assert!(!ours.is_empty() && ours.len() == theirs.len(), "{what}: {} and {}", ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() <= tolerance * b.abs().max(0.1), "{what}: {a} for {b}");
    }
}

/// Dev losses along the way agree to what bf16 leaves of them after that many rounds, and the run evaluates.
#[test]
fn the_example_trains_as_on_the_cpu() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    let (device, cpu) = (place.train(&small(), &[]), place.train(&small(), &["run.device=cpu"]));
    assert_close(&losses(&device), &losses(&cpu), 0.02, "dev losses");
    let start = metrics(&device).into_iter().find(|line| line["kind"] == "start").expect("a first line");
    assert_eq!(start["device"], "emulated");
    let eval = run(&["eval", &device.display().to_string(), "--json"]).ok().json();
    assert_eq!(eval["split"], "dev");
    let again = place.train(&small(), &["eval.batches_per_round=1"]);
    assert_same_files(&final_checkpoint(&again), &final_checkpoint(&device), "the same run twice, evaluated between rounds");
    assert_eq!(losses(&again), losses(&device));
}

#[test]
fn a_bag_of_words_trains_as_on_the_cpu() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    let sets =
        ["surgery.method=gradvac", "train.fuse=2", "encoder.embedding_init=0.1", "optimizer.kind=sgd", "optimizer.lr=0.05"];
    let on = |device| [&sets[..], &[device]].concat();
    let (device, cpu) = (place.train(&place.bag(), &on(EMULATED)), place.train(&place.bag(), &on("run.device=cpu")));
    assert_close(&losses(&device), &losses(&cpu), 0.02, "dev losses");
    let [ours, theirs] = [&device, &cpu].map(|run| weights(checkpoints(run).last().expect("a checkpoint")));
    assert!(ours.keys().eq(theirs.keys()), "{:?}", ours.keys());
    let lens = |weights: &std::collections::BTreeMap<String, Vec<f32>>| weights.values().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(lens(&ours), lens(&theirs), "the same rows of the table were touched");
}

/// Losses of dev along the way agree, and the run evaluates.
fn trains_as_on_the_cpu(place: &Place, config: &Path, sets: &[&str]) {
    let on = |device| [sets, &[device]].concat();
    let [device, cpu] = [EMULATED, "run.device=cpu"].map(|device| place.train(config, &on(device)));
    assert_close(&losses(&device), &losses(&cpu), 0.03, &format!("{sets:?}"));
    let eval = run(&["eval", &device.display().to_string(), "--json"]).ok().json();
    assert_eq!(eval["split"], "dev");
}

#[test]
fn a_transformer_trains_as_on_the_cpu() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    let config = place.transformer();
    trains_as_on_the_cpu(&place, &config, &["train.rounds=4", "eval.every=2", "train.fuse=1", "eval.batches_per_round=1"]);
    for sets in [
        &["encoder.pooling=pooler", "encoder.freeze=[\"embeddings\",\"layer.0\"]"][..],
        &["schedule.mode=time_sliced", "encoder.pooling=mean", "encoder.recompute=true", "encoder.layers=1"],
        &[
            "surgery.method=trimmed_mean",
            "optimizer.embedding=dense",
            "surgery.granularity=tensor",
            "train.accumulate=2",
            "encoder.layers=1",
        ],
    ] {
        trains_as_on_the_cpu(&place, &config, &[&["train.rounds=3"], sets].concat());
    }
}

#[test]
fn a_transformer_of_words_trains_as_on_the_cpu() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    let words = place.transformer_of_words();
    for sets in [
        &["train.rounds=4", "eval.every=2", "train.fuse=1", "eval.batches_per_round=1", "tasks.words.period=2"][..],
        &["train.rounds=3", "surgery.method=modo", "encoder.pooling=pooler", "train.accumulate=2", "encoder.layers=1"],
        &["train.rounds=2", "encoder.pooling=mean", "encoder.layers=1"],
        &[
            "train.rounds=4",
            "encoder.layers=1",
            "schedule.mode=time_sliced",
            "schedule.max_staleness=1",
            "optimizer.row_moment=row",
        ],
    ] {
        trains_as_on_the_cpu(&place, &words, sets);
    }
}

/// Its parameters are on the device before the first round, frozen ones too.
#[test]
fn a_pretrained_transformer_trains_as_on_the_cpu() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    let config = place.transformer();
    let folder = place.path("pretrained").display().to_string();
    let first = place.train(&config, &["train.rounds=3"]);
    run(&["export", &first.display().to_string(), "--out", &folder]).ok();
    let from = format!("encoder.from={folder}");
    let on = |device| [&from, "encoder.freeze=[\"embeddings\",\"layer.0\"]", "eval.every=1", "train.rounds=2", device];
    let [device, cpu] = [EMULATED, "run.device=cpu"].map(|device| place.train(&config, &on(device)));
    assert_close(&losses(&device), &losses(&cpu), 0.02, "dev losses");
}

/// What lies on the device counts, and gives way to the run's own memory; what cannot lie there is said.
#[test]
fn examples_lie_on_the_device_where_there_is_room() {
    let place = Place::new();
    let bag = place.bag().display().to_string();
    let plan = |config: &str, sets: &[&str]| {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        run(&[&["plan", config, "--json"][..], &sets].concat())
    };
    let total = |sets: &[&str]| plan(&bag, sets).ok().json()["total_bytes"].as_u64().expect("bytes");
    let (kept, packed) = (total(&[EMULATED]), total(&[EMULATED, "data.resident=host"]));
    assert!(kept > packed, "{kept} with the examples, {packed} without");
    let tight = plan(&bag, &[EMULATED, &format!("memory.device={}", kept - 1)]).ok().json();
    assert_eq!(tight["on_pressure"], json!(["the training examples stay on the host"]));
    assert_eq!(tight["total_bytes"], packed);
    let transformer = place.transformer().display().to_string();
    let asked = "data.resident=device";
    plan(&transformer, &[EMULATED, asked]).ok();
    let dense = "optimizer.embedding=dense";
    plan(&transformer, &[EMULATED, asked, dense]).failed(2, &["data.resident", "optimizer.embedding", "\"auto\""]);
    let words = place.transformer_of_words().display().to_string();
    plan(&words, &[EMULATED, asked]).failed(2, &["data.resident", "masked words"]);
    plan(&bag, &["run.device=cpu", asked]).failed(2, &["data.resident", "no device"]);
    plan(&bag, &[EMULATED, asked, "surgery.method=moco"]).failed(2, &["data.resident", "buffers"]);
}

#[test]
fn transformers_that_no_device_computes_are_refused_by_check() {
    let place = Place::new();
    let config = place.transformer().display().to_string();
    let check = |sets: &[&str]| {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        run(&[&["check", &config, "--set", EMULATED][..], &sets].concat())
    };
    check(&[]).ok();
    check(&["encoder.heads=4"]).failed(2, &["no attention heads of 16 columns", "set run.device = \"cpu\""]);
    check(&["encoder.intermediate=100"]).failed(2, &["multiples of 8 as encoder.intermediate, found 100"]);
}

/// Rounds of one task each, and parts of the encoder solved on their own.
#[test]
fn other_ways_of_a_round_are_as_on_the_cpu() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    for sets in [
        &["schedule.mode=time_sliced", "schedule.policy=weighted", "schedule.clock=planned"][..],
        &["surgery.method=cagrad", "surgery.granularity=layer"],
        &["train.accumulate=2", "surgery.granularity=tensor"],
        &["surgery.method=modo", "train.fuse=2"],
        &["surgery.method=sdmgrad", "surgery.n_iter=1"],
        &["surgery.method=moco", "schedule.mode=time_sliced"],
        &["surgery.method=excess_mtl", "surgery.granularity=layer"],
        &["schedule.mode=time_sliced", "schedule.max_staleness=2"],
        &["schedule.mode=time_sliced", "schedule.max_staleness=1", "train.fuse=1", "balance.method=famo"],
        &["schedule.mode=time_sliced", "schedule.max_staleness=1", "surgery.method=graddrop"],
    ] {
        for config in [small(), place.bag()] {
            let on = |device| [sets, &["encoder.dropout=0", "train.rounds=12", "eval.every=4", device]].concat();
            let [device, cpu] = [EMULATED, "run.device=cpu"].map(|device| place.train(&config, &on(device)));
            assert_close(&losses(&device), &losses(&cpu), 0.02, &format!("{sets:?}, {}", config.display()));
        }
    }
}

/// What a run folder's settings come to.
fn planned(run: &Path, console: &Console) -> (Config, Corpus, Plan) {
    let mut config = load_run(run).expect("the program wrote it");
    let mut corpus = load_corpus(&mut config, console).expect("data");
    let (plan, _) = fit_memory::fit(&mut config, &mut corpus).expect("it fits");
    (config, corpus, plan)
}

/// The bytes that `plan` says are those that the device is asked for.
#[test]
fn the_plan_counts_what_is_allocated() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    for (config, method) in [
        (small(), "moco"),
        (place.bag(), "excess_mtl"),
        (place.transformer(), "moco"),
        (place.bag(), "mgda"),
        (place.transformer_of_words(), "mgda"),
    ] {
        let run = place.train(&config, &[EMULATED, &format!("surgery.method={method}"), "train.rounds=1", "eval.every=1"]);
        let (config, corpus, plan) = planned(&run, &Console::new());
        let buffers = plan.buffers(&config).expect("counted");
        let own = buffers.iter().filter(|(name, _)| name.starts_with("surgery: buffers")).count();
        assert_eq!(own > 0, method != "mgda", "{buffers:?}");
        let allocated = Rc::new(Cell::new(0));
        let so_far = Rc::clone(&allocated);
        let instead = move |operation: Operation| -> Option<driver::Result<()>> {
            if let Operation::Allocate(bytes) = operation {
                so_far.set(so_far.get() + bytes as u64);
            }
            None
        };
        let mut trainer = Built::new(&config, &corpus, &plan).expect("an emulated device").trainer;
        let device = Tampered { inner: open_emulated(0).expect("an emulated device"), instead };
        trainer.accelerate(Box::new(device), &plan.limits, &plan.start).expect("room");
        assert_eq!(allocated.get(), buffers.iter().map(|(_, bytes)| bytes).sum::<u64>(), "{method}");
    }
}

/// Trains in a run folder without checkpoints, as the program does, on a device of the test's own.
fn train_on(run: &Path, device: Box<dyn Driver>) -> anyhow::Result<End> {
    let folder = RunFolder::open(run).expect("a run folder");
    let console = Console::new();
    let (config, corpus, plan) = planned(run, &console);
    let observer = Observer::create(console, &folder.metrics(), run, Listeners::default()).expect("files");
    let stop = AtomicBool::new(false);
    let built = Built::new(&config, &corpus, &plan).expect("an emulated device");
    let mut training = Run::new(&config, &corpus, &plan, built, &folder, observer, &stop).expect("a run");
    training.trainer.accelerate(device, &plan.limits, &plan.start).expect("room");
    training.trainer.load_data(&corpus).expect("room");
    training.run()
}

/// As [`train_on`], on a device that is lost at the `last`th of its launches and replays.
fn train_and_lose(run: &Path, last: usize) -> anyhow::Error {
    let mut left = last;
    let instead = move |operation: Operation| -> Option<driver::Result<()>> {
        left = left.saturating_sub(usize::from(matches!(operation, Operation::Launch | Operation::Replay)));
        (left == 0).then(|| Err(DeviceError::Lost("by a test".to_owned())))
    };
    let device = Tampered { inner: open_emulated(0).expect("an emulated device"), instead };
    train_on(run, Box::new(device)).expect_err("the device is lost")
}

/// A run folder that has only the settings of another, and its tokenizer.
fn folder_like(other: &Path, folder: PathBuf) -> PathBuf {
    std::fs::create_dir(&folder).expect("a fresh folder");
    for name in ["config.toml", "tokenizer.json"] {
        let from = other.join(name);
        if from.is_file() {
            std::fs::copy(from, folder.join(name)).expect("a copy");
        }
    }
    folder
}

/// (rounds) of (lane, begin, end) of the spans of a kind on the lanes' tracks.
fn lane_spans(trace: &[Value], kind: &str, rounds: usize) -> Vec<Vec<(u64, f64, f64)>> {
    let mut by_round = vec![Vec::new(); rounds];
    for event in trace.iter().filter(|event| event["ph"] == "X" && event["pid"] == 1 && event["cat"] == kind) {
        let note = event["args"]["note"].as_str().expect("a note");
        let round = note.trim_start_matches("round ").split(',').next().and_then(|round| round.parse::<usize>().ok());
        let (start, length) = (event["ts"].as_f64().expect("a time"), event["dur"].as_f64().expect("a time"));
        let lane = event["tid"].as_u64().expect("a lane");
        by_round[round.expect("a round")].push((lane, start, start + length));
    }
    by_round
}

/// In every traced round the gradients of the two groups are in flight together, one on each lane, and its commit follows; what
/// is traced is computed to the same bytes, whatever the seed.
#[test]
fn the_trace_shows_both_lanes_at_work() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    for method in ["pcgrad", "upgrad"] {
        let sets = [&format!("surgery.method={method}"), "train.rounds=6", "eval.every=6", "checkpoint.every=6"];
        let plain = place.train(&small(), &[&sets[..], &["observe.trace_rounds=0"]].concat());
        let model = place.train(&small(), &[&sets[..], &["observe.trace_rounds=4"]].concat());
        for seed in 0..4 {
            let traced = folder_like(&model, place.path(&format!("{method}-{seed}")));
            train_on(&traced, open_emulated(seed).expect("there was one before")).expect("no fault");
            assert_same_files(&final_checkpoint(&traced), &final_checkpoint(&plain), "traced");
            let text = std::fs::read_to_string(traced.join("trace.json")).expect("a trace");
            let trace: Vec<Value> = serde_json::from_str(&text).expect("JSON");
            for lane in ["lane 0", "lane 1"] {
                assert!(trace.iter().any(|event| event["args"] == json!({ "name": lane })), "a track for {lane}");
            }
            let mut before = 0.0;
            for (gradients, commits) in lane_spans(&trace, "gradient", 4).iter().zip(lane_spans(&trace, "commit", 4)) {
                let (&[(0, start, end), (1, other_start, other_end)], [(0, commit, commit_end)]) = (&gradients[..], &commits[..])
                else {
                    panic!("two lanes and a commit: {gradients:?}, {commits:?}");
                };
                assert!(before <= start && start < other_start && other_start < end, "{gradients:?} after {before}");
                assert!(end.max(other_end) <= *commit && commit < commit_end, "{gradients:?}, {commits:?}");
                before = *commit_end;
            }
        }
    }
}

/// A device that is lost mid-run ends it with one message; the newest checkpoint is whole, and from there the run continues to
/// the bytes it would have had.
#[test]
fn a_lost_device_leaves_the_last_checkpoint() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    for (config, sets, last) in [
        (small(), vec!["surgery.method=gradnorm"], 160),
        (place.bag(), vec![EMULATED, "surgery.method=nash_mtl", "surgery.update_every=3"], 240),
    ] {
        let reference = place.train(&config, &sets);
        let lost = folder_like(&reference, place.path(&format!("lost-{}", sets.len())));
        let error = train_and_lose(&lost, last);
        assert_eq!(exit_code(&error), STOPPED);
        for part in ["the device was lost (by a test)", "the last checkpoint is intact", "taskloom resume"] {
            assert!(format!("{error:#}").contains(part), "{error:#}");
        }
        let count = |run: &Path| checkpoints(run).last().map(|path| path.file_name().map(|name| name.to_owned()));
        assert!(count(&lost).is_some() && count(&lost) < count(&reference), "{:?}", checkpoints(&lost));
        resume(&lost).ok();
        assert_same_files(&final_checkpoint(&lost), &final_checkpoint(&reference), "after a lost device");
    }
}

#[test]
fn too_little_memory_is_said_before_anything_is_allocated() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    let config = small().display().to_string();
    let budget = ["--set", "memory.device=64KiB", "--set", "memory.on_pressure=[]"];
    let parts = ["memory.device allows 64.0 KiB", "the run needs ", "raise the budget"];
    outcome(training(Path::new(&config), &["memory.device=64KiB", "memory.on_pressure=[]"], &place.path("run")).output())
        .failed(2, &parts);
    let planned = run(&[&["plan", &config][..], &budget].concat());
    assert_eq!(planned.code, Some(2), "{}", planned.err);
    assert!(planned.out.contains("jacobian: dense"), "{}", planned.out);
    // More than the emulated device has.
    let huge = [
        "encoder.hidden=65536",
        "synthetic.features=20000",
        "synthetic.train=4",
        "synthetic.dev=4",
        "synthetic.test=4",
        "memory.on_pressure=[]",
    ];
    let parts = ["emulated has 4.00 GiB of memory free", "the run needs "];
    outcome(training(Path::new(&config), &huge, &place.path("run")).output()).failed(2, &parts);
    assert!(!place.path("run").exists(), "a refused run leaves no folder");
    let buffers = run(&["plan", &config, "--json"]).ok().json();
    let names: Vec<&str> = buffers["buffers"].as_array().unwrap().iter().filter_map(|buffer| buffer["name"].as_str()).collect();
    assert!(names.contains(&"lane 1: hidden states") && names.contains(&"encoder: parameters in bf16"), "{names:?}");
}

/// Sixteen tasks within the bytes that shared parameters and the largest task take, by the plan: one task a round, smaller micro-batches,
/// and what the same run without a budget comes to, but for the order of sums.
#[test]
fn sixteen_tasks_stay_within_a_tight_budget() {
    if !is_there() {
        return;
    }
    let place = Place::new();
    let config = small();
    let sets = [
        EMULATED,
        "schedule.mode=time_sliced",
        "synthetic={ agree = 0, oppose = 0, alone = 16, features = 32, train = 64, dev = 16, test = 0 }",
        "train.micro_batch=32",
        "train.rounds=24",
        "eval.every=12",
        "eval.batch=8",
        "encoder.dropout=0",
        // They do not give way.
        "data.resident=device",
    ];
    let plan = |more: &[&str]| {
        let words: Vec<&str> = sets.iter().chain(more).flat_map(|set| ["--set", set]).collect();
        run(&[&["plan", config.to_str().expect("UTF-8"), "--json"], &words[..]].concat()).ok().json()
    };
    let budget = plan(&["train.micro_batch=8", "train.accumulate=4"])["total_bytes"].as_u64().expect("bytes");
    assert!(plan(&[])["total_bytes"].as_u64().expect("bytes") > budget);
    let tight = [format!("memory.device={budget}"), "memory.on_pressure=split".to_owned()];
    let tight = tight.each_ref().map(String::as_str);
    assert_eq!(plan(&tight)["total_bytes"], budget, "the arenas are what the budget allows");
    let [free, tight] = [&[][..], &tight].map(|more| place.train(&config, &[&sets[..], more].concat()));
    assert_close(&losses(&tight), &losses(&free), 0.02, "within a budget");
}

/// Half the bytes in bf16, and one row where nothing needs the tasks' gradients apart.
#[test]
fn the_rows_of_j_take_what_the_plan_says() {
    let place = Place::new();
    let config = place.linear().display().to_string();
    let plan = |sets: &[&str]| {
        let mut arguments = vec!["plan", &config, "--json", "--set", EMULATED];
        sets.iter().for_each(|set| arguments.extend(["--set", set]));
        let plan = run(&arguments).ok().json();
        let buffers = plan["buffers"].as_array().unwrap().clone();
        let own = buffers.iter().find(|own| own["name"].as_str().unwrap().starts_with("jacobian: dense")).unwrap();
        [own["bytes"].as_u64().unwrap(), plan["saved_bytes"].as_u64().unwrap()]
    };
    let [bytes, saved] = plan(&[]);
    assert_eq!(saved, 0);
    assert_eq!(plan(&["surgery.storage=bf16"]), [bytes / 2, 0]);
    let [row, saved] = plan(&["surgery.method=mean", "observe.conflict_every=0"]);
    assert!(row == bytes / 3 && saved > 0, "{row} of {bytes}, {saved} saved");
    assert_eq!(plan(&["surgery.method=mean", "observe.conflict_every=0", "balance.method=dwa"]), [bytes, 0]);
    // Of rounds of one task, nothing is to be saved; of rows in bf16 there are half the bytes.
    assert_eq!(plan(&["surgery.method=mean", "observe.conflict_every=0", "schedule.mode=time_sliced"]), [row, 0]);
    let [rounded, less] = plan(&["surgery.method=mean", "observe.conflict_every=0", "surgery.storage=bf16"]);
    assert!(rounded == row && 4 * less == saved, "{less} of {saved} saved");
}

#[test]
fn methods_are_taken_and_lanes_refused_by_check() {
    let place = Place::new();
    let config = place.linear().display().to_string();
    let check = |set: &str| run(&["check", &config, "--set", EMULATED, "--set", set]);
    check("surgery.method=graddrop").ok();
    check("surgery.method=modo").ok();
    check("surgery.method=moco").ok();
    check("schedule.lanes=2").failed(2, &["schedule.lanes", "a device has streams of its own"]);
}

/// Times of the emulated device mean nothing, and a machine without a card says so.
#[test]
fn kernels_are_timed_on_a_card_only() {
    run(&["bench", "kernels", "--device", "emulated"]).failed(2, &["its times mean nothing"]);
    if taskloom::machine::driver::open("cuda").is_err() {
        let refused = run(&["bench", "kernels", "--json"]);
        assert_eq!((refused.code, refused.out.as_str()), (Some(2), ""), "{}", refused.err);
    }
}
