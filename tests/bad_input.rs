//! Bad input: one clear message that says where, what was found and what to do; the right exit code; nothing lost.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Outcome, Place, assert_same_files, checkpoints, files, final_checkpoint, outcome, resume, rounds, run, training};

/// One text task over `data`, which is written as `name`.
fn text_task(place: &Place, name: &str, data: impl AsRef<[u8]>) -> PathBuf {
    place.write(name, data);
    let config = format!(
        "[run]\nname = \"x\"\n[encoder]\nkind = \"bag\"\ntokenizer = \"words\"\nhidden = 8\nbuckets = 64\n\
         [tasks.t]\ntrain = \"{name}\"\ntext = \"text\"\nlabel = \"label\"\nhead = \"classification\"\n\
         [train]\nrounds = 2\nmicro_batch = 2\n"
    );
    place.write("x.toml", config)
}

const GOOD: &str = "text\tlabel\na b\t1\nb c\t0\n";

/// Training on `data` ends with exit code 2 and a message of these parts, and leaves no run behind.
fn refused(name: &str, data: impl AsRef<[u8]>, sets: &[&str], parts: &[&str]) {
    let place = Place::new();
    let config = text_task(&place, name, data);
    let run = place.path("run");
    place.outcome_of_training(&config, sets, &run).failed(2, parts);
    assert!(!run.join("config.toml").exists(), "a refused run leaves no run folder");
}

#[test]
fn data_files() {
    refused("t.tsv", "", &[], &["x.toml:9:9: tasks.t.train", "t.tsv: the file is empty"]);
    refused("t.tsv", "text\tlable\na\t1\n", &[], &["x.toml:11:9: tasks.t.label", "no column `label`", "did you mean `lable`?"]);
    let classes = "tasks.t.classes=[\"0\", \"1\"]";
    refused("t.tsv", "text\tlabel\na\t1\nb\t7\n", &[classes], &["t.tsv:3: label `7` is none of", "`0`, `1`", "on_bad_row"]);
    refused("t.tsv", b"text\tlabel\na\t1\nb\xff\t0\n", &[], &["t.tsv:3: invalid UTF-8", "0xff", "on_bad_row"]);
    let flags = ["tasks.t.head=multilabel", "tasks.t.label=[\"label\", \"more\"]"];
    refused("t.tsv", "text\tlabel\tmore\na\t1\t0\nb\t2\t0\n", &flags, &["t.tsv:3: ", "holds `2`, expected 0 or 1"]);
}

#[test]
fn a_missing_file_says_where_the_set_comes_from() {
    let place = Place::new();
    let config = text_task(&place, "t.tsv", GOOD);
    std::fs::remove_file(place.path("t.tsv")).expect("can remove");
    let sets = ["data.origin=ask Bob"];
    let expected = ["x.toml:9:9: tasks.t.train: no such file", "t.tsv", "the set comes from: ask Bob"];
    place.outcome_of_training(&config, &sets, &place.path("run")).failed(2, &expected);
}

#[test]
fn a_folder_instead_of_a_file() {
    let place = Place::new();
    let config = text_task(&place, "t.tsv", GOOD);
    std::fs::remove_file(place.path("t.tsv")).expect("can remove");
    std::fs::create_dir(place.path("t.tsv")).expect("can create");
    place.outcome_of_training(&config, &[], &place.path("run")).failed(2, &["x.toml:9:9: tasks.t.train", "t.tsv is a folder"]);
    let folder = place.path("t.tsv");
    let words = |command| [command, folder.to_str().expect("UTF-8")];
    run(&words("check")).failed(2, &["cannot read", "t.tsv", "Is a directory"]);
    run(&words("resume")).failed(2, &["is no run folder", "config.toml"]);
    run(&words("eval")).failed(2, &["is neither a run folder", "nor a checkpoint"]);
}

#[test]
fn a_truncated_archive() {
    let mut lines = String::from("text\tlabel\n");
    (0..20_000u32).for_each(|line| lines += &format!("word{}\t{}\n", line.wrapping_mul(2_654_435_761), line % 2));
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(lines.as_bytes()).expect("memory takes all");
    let packed = encoder.finish().expect("memory takes all");
    refused("t.tsv.gz", &packed[..packed.len() / 2], &[], &["t.tsv.gz", "truncated after ", " lines"]);
}

#[test]
fn a_line_of_ten_megabytes_is_read_or_refused_by_name() {
    let place = Place::new();
    let config = text_task(&place, "t.tsv", format!("{GOOD}{}\t1\n", "long ".repeat(2_100_000)));
    // A text is a text: what exceeds encoder.max_len is cut.
    place.outcome_of_training(&config, &[], &place.path("run")).ok();
    let config = text_task(&place, "t.tsv", format!("{GOOD}{}\n", "long ".repeat(2_100_000)));
    let short = place.outcome_of_training(&config, &[], &place.path("run-2"));
    let short = short.failed(2, &["t.tsv:4: ", "found 1 fields, expected the 2"]);
    assert!(short.err.len() < 1000, "the message repeats the line");
}

#[test]
fn features_that_are_no_numbers() {
    let place = Place::new();
    place.write("f.tsv", "a\tb\tlabel\n1\t2\t1\n1\tNaN\t1\n");
    let config = "[encoder]\nkind = \"linear\"\nhidden = 8\n[tasks.t]\ntrain = \"f.tsv\"\nfeatures = [\"a\", \"b\"]\n\
                  label = \"label\"\nhead = \"regression\"\n[train]\nrounds = 2\n";
    let config = place.write("f.toml", config);
    let sets = ["data.on_bad_row=error"];
    place.outcome_of_training(&config, &sets, &place.path("run")).failed(2, &["f.tsv:3: ", "column `b` holds `NaN`", "finite"]);
    let skipped = place.outcome_of_training(&config, &["data.on_bad_row=skip"], &place.path("run")).ok();
    assert!(skipped.err.contains("f.tsv:3"), "skipped rows are counted:\n{}", skipped.err);
}

#[test]
fn tasks_with_features_of_different_widths() {
    let place = Place::new();
    place.write("f.tsv", "a\tb\tlabel\n1\t2\t1\n1\t3\t0\n");
    place.write("g.jsonl", "{\"x\": [1, 2, 3], \"label\": 1}\n{\"x\": [1, 2, 4], \"label\": 0}\n");
    let config = "[encoder]\nkind = \"linear\"\nhidden = 8\n[train]\nrounds = 2\n[task_defaults]\nlabel = \"label\"\n\
                  [tasks.t]\ntrain = \"f.tsv\"\nfeatures = [\"a\", \"b\"]\n[tasks.u]\ntrain = \"g.jsonl\"\nfeatures = \"x\"\n";
    let config = place.write("f.toml", config);
    let check = |sets: &[&str]| run(&[&["check", config.to_str().expect("UTF-8")], sets].concat());
    let parts = ["f.toml:13:12: tasks.u.features: has 3 features, tasks.t.features 2", "the same number"];
    check(&[]).failed(2, &parts);
    place.outcome_of_training(&config, &[], &place.path("run")).failed(2, &parts);
    let wide = ["--set", "tasks.t.features=[\"a\"]", "--set", "tasks.u.train=f.tsv", "--set", "tasks.u.features=b"];
    check(&wide).ok();
    let narrow = [&wide[..], &["--set", "encoder.hidden=1", "--set", "encoder.residual=true"]].concat();
    check(&narrow).ok();
    check(&[
        "--set",
        "tasks.u.train=f.tsv",
        "--set",
        "tasks.u.features=[\"a\", \"b\"]",
        narrow[6],
        narrow[7],
        narrow[8],
        narrow[9],
    ])
    .failed(2, &["encoder.residual: adds the 2 features to encoder.hidden = 1 outputs"]);
}

/// A typo in every table, all reported at once with line, column and a suggestion.
#[test]
fn typos_in_every_table() {
    let place = Place::new();
    let tables = [
        ("run", "sed", "seed"),
        ("data", "rot", "root"),
        ("encoder", "hiden", "hidden"),
        ("train", "micro_bach", "micro_batch"),
        ("optimizer", "weigth_decay", "weight_decay"),
        ("optimizer.schedule", "warm_up", "warmup"),
        ("clip", "nrm", "norm"),
        ("balance", "metod", "method"),
        ("surgery", "methd", "method"),
        ("schedule", "mod", "mode"),
        ("memory", "devise", "device"),
        ("sampler", "temprature", "temperature"),
        ("eval", "bach", "batch"),
        ("eval.slices.clean", "colum", "column"),
        ("best", "patiense", "patience"),
        ("checkpoint", "kep", "keep"),
        ("observe", "log_evry", "log_every"),
        ("synthetic", "featurs", "features"),
        ("tasks_from", "fil", "file"),
        ("task_defaults", "lable", "label"),
        ("tasks.t", "trian", "train"),
    ];
    let text: String = tables.iter().map(|(table, typo, _)| format!("[{table}]\n  {typo} = 1\n")).collect();
    let config = place.write("typos.toml", format!("{text}[runn]\n"));
    let checked = run(&["check", config.to_str().expect("UTF-8")]).failed(2, &["runn: unknown key", "did you mean `run`?"]);
    for (number, (table, typo, meant)) in tables.iter().enumerate() {
        let line =
            checked.err.lines().position(|line| line.contains(&format!(":{}:3: {table}.{typo}: unknown key", 2 * number + 2)));
        let line = line.unwrap_or_else(|| panic!("nothing about {table}.{typo} in\n{}", checked.err));
        let help = checked.err.lines().nth(line + 1).unwrap_or_default();
        assert!(help.contains(&format!("did you mean `{meant}`?")), "{table}.{typo}: {help}");
    }
}

#[test]
fn impossible_configurations() {
    let place = Place::new();
    let config = text_task(&place, "t.tsv", GOOD);
    let with = |sets: &[&str], parts: &[&str]| {
        place.outcome_of_training(&config, sets, &place.path("run")).failed(2, parts);
        assert!(!place.path("run").join("config.toml").exists(), "{sets:?} leaves a run folder");
    };
    with(&["memory.device=1KiB"], &["memory.device allows 1.0 KiB", "needs", "lower train.micro_batch", "raise the budget"]);
    with(&["run.device=cuda"], &["run.device = \"cuda\"", "use \"cpu\" or \"auto\""]);
    with(&["run.device=cuda:3"], &["run.device = \"cuda:3\"", "use \"cpu\" or \"auto\""]);
    with(&["run.device=tpu"], &["run.device", "\"auto\", \"cpu\", \"cuda\"", "found the string \"tpu\""]);
    with(&["tasks.\"a/b\".train=t.tsv"], &["\"a/b\" is no name", "'/'"]);
    with(
        &["optimizer.lr=-1", "train.rounds=two", "encoder.kind=bagg"],
        &["optimizer.lr", "train.rounds", "did you mean \"bag\"?"],
    );
    let task = "train = \"t.tsv\"\ntext = \"text\"\nlabel = \"label\"\nhead = \"classification\"\nrounds = 1\n";
    let circle = format!(
        "[encoder]\nkind = \"bag\"\ntokenizer = \"words\"\n[train]\nrounds = 2\n[tasks.a]\n{task}depends_on = [\"b\"]\n\
         [tasks.b]\n{task}depends_on = [\"a\"]\n"
    );
    let circle = place.write("circle.toml", circle);
    place
        .outcome_of_training(&circle, &[], &place.path("run"))
        .failed(2, &["circle.toml:", "tasks wait for each other: a -> b -> a"]);
    let broken = place.write("broken.toml", "[run]\nname = [1\n");
    run(&["check", broken.to_str().expect("UTF-8")]).failed(2, &["broken.toml:2:", "not valid TOML"]);
    run(&["check", "no/such.toml"]).failed(2, &["cannot read no/such.toml"]);
}

/// With letters that TOML and file names take, but that are easily mishandled.
#[test]
fn sizes_beyond_the_machine() {
    let place = Place::new();
    let config = place.synthetic();
    let run_dir = place.path("run");
    let refused = |sets: &[&str], parts: &[&str]| {
        place.outcome_of_training(&config, sets, &run_dir).failed(2, parts);
        assert!(!run_dir.exists(), "a refused run leaves no run folder");
    };
    let batch = ["train.micro_batch=1048576", "encoder.hidden=65536"];
    refused(&batch, &["the run's buffers", "\"scratch: ", "are needed, this machine has", "train.micro_batch"]);
    refused(&["train.micro_batch=1048576", "train.accumulate=1048576"], &["train.accumulate = 1048576", "at most 4294967295"]);
    refused(&["train.rounds=4294967296"], &["train.rounds: expected an integer from 1 to 4294967295"]);
    refused(&["synthetic.train=4294967295"], &["the examples of [synthetic]", "are needed, this machine has"]);
    refused(&["synthetic.train=4294967296"], &["an integer from 1 to 4294967295, found 4294967296"]);
}

#[test]
fn a_long_run_is_planned_as_fast_as_a_short_one() {
    let config = common::example("budget.toml");
    let words = ["plan", config.to_str().expect("UTF-8"), "--json", "--set", "train.rounds=2147483648"];
    let plan = run(&words).ok().json();
    let tasks = plan["tasks"].as_array().expect("tasks");
    let slot = 64.0 / 512.0;
    let rounds: f64 = tasks.iter().map(|task| task["epochs"].as_f64().expect("a number") / slot).sum();
    assert!((rounds / 2_147_483_648.0 - 1.0).abs() < 1e-9, "{rounds}");
    let done = tasks.iter().find(|task| task["name"] == "alone_3").expect("there");
    assert_eq!(done["epochs"], 12.0 * slot);
}

#[test]
fn an_odd_task_name_is_a_name() {
    let place = Place::new();
    place.write("t.tsv", GOOD);
    let name = "v1.2-x_Y";
    let config = format!(
        "[encoder]\nkind = \"bag\"\ntokenizer = \"words\"\nhidden = 8\nbuckets = 64\n[train]\nrounds = 2\nmicro_batch = 2\n\
         [tasks.\"{name}\"]\ntrain = \"t.tsv\"\ndev = \"t.tsv\"\ntext = \"text\"\nlabel = \"label\"\nhead = \"classification\"\n"
    );
    let run_folder = place.train(&place.write("odd.toml", config), &[]);
    let path = run_folder.to_str().expect("UTF-8");
    let scores = run(&["eval", path, "--json"]).ok().json();
    assert!(scores["tasks"][name]["accuracy"].is_number(), "{scores}");
    run(&["predict", path, "--task", name, "--text", "a"]).ok();
    resume(&run_folder).ok();
}

#[test]
fn a_folder_that_holds_or_runs_a_run() {
    let place = Place::new();
    let config = place.synthetic();
    let done = place.train(&config, &["train.rounds=10"]);
    let before = files(&done);
    let parts = ["already holds a run", "taskloom resume", "--run-dir"];
    place.outcome_of_training(&config, &[], &done).failed(2, &parts);
    assert_same_files(&files(&done), &before, "after the refusal");

    let busy = place.path("busy");
    let mut child = training(&config, &["train.rounds=100000", "observe.conflict_every=0"], &busy).spawn().expect("starts");
    let started = Instant::now();
    while rounds(&busy, "round").is_empty() {
        assert!(started.elapsed() < Duration::from_secs(60), "no round after a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
    resume(&busy).failed(2, &["in use by another taskloom process"]);
    child.kill().expect("the child can be killed");
    drop(child.wait_with_output());
}

#[test]
fn other_data_than_the_run_started_with() {
    let place = Place::new();
    let config = place.bag();
    let run_folder = place.train(&config, &[]);
    let before = files(&run_folder);
    let table = std::fs::read_to_string(place.path("table.tsv")).expect("the table is there");
    // One number of one training row changes.
    let mut lines: Vec<String> = table.lines().map(str::to_owned).collect();
    let row = lines.iter_mut().find(|line| line.contains("\ttrain\t") && line.split('\t').nth(11) == Some("1.5"));
    let row = row.expect("a training row with this speed");
    let mut fields: Vec<&str> = row.split('\t').collect();
    fields[11] = "2.5";
    *row = fields.join("\t");
    let changed = lines.join("\n") + "\n";
    assert_ne!(changed, table);
    place.write("table.tsv", changed);
    resume(&run_folder).failed(2, &["the data of numbers is not what the run started with", "restore the files"]);
    assert_same_files(&files(&run_folder), &before, "after the refusal");
    place.write("table.tsv", table);
    resume(&run_folder).ok();
}

/// A learning rate far too large: rounds are dropped and named, then the run stops, and the last checkpoint is sound.
#[test]
fn training_that_diverges() {
    let place = Place::new();
    let config = place.synthetic();
    let run_folder = place.path("run");
    let sets = [
        "optimizer.kind=sgd",
        "optimizer.lr=3",
        "clip.norm=0",
        "surgery.method=sum",
        "checkpoint.every=1",
        "train.max_bad_rounds=4",
        "train.rounds=1000",
    ];
    let parts = ["not committed: task ", "train examples", "4 rounds in a row", "lower optimizer.lr"];
    let stopped = place.outcome_of_training(&config, &sets, &run_folder).failed(3, &parts);
    assert_eq!(stopped.err.matches("warning: round ").count(), 4, "{}", stopped.err);
    assert_eq!(rounds(&run_folder, "anomaly").len(), 4);
    let kept = checkpoints(&run_folder);
    assert_eq!(kept.len(), 3, "earlier checkpoints stay");
    for path in &kept {
        run(&["eval", path.to_str().expect("UTF-8"), "--json"]).ok();
        let finite = common::weights(path).values().flatten().all(|weight| weight.is_finite());
        assert!(finite, "{} holds weights that are not finite", path.display());
    }
    resume(&run_folder).failed(3, &["4 rounds in a row"]);
}

/// Runs the program where no file may exceed `limit` KiB, which is what a full disk looks like to it.
fn on_a_full_disk(limit: u32, command: &Command) -> Outcome {
    let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$@\"");
    let mut bash = Command::new("bash");
    bash.args(["-c", &script, "bash"]).arg(command.get_program()).args(command.get_args());
    outcome(bash.stdin(std::process::Stdio::null()).output())
}

fn resuming(run: &Path) -> Command {
    let mut command = common::taskloom();
    command.arg("resume").arg(run);
    command
}

#[test]
fn a_full_disk() {
    let place = Place::new();
    let config = place.synthetic();
    // 50 KiB of model, 100 KiB of moments, few metrics.
    let sets = ["encoder.hidden=512", "observe.log_every=60", "observe.conflict_every=0", "observe.trace_rounds=0"];
    let reference = place.train(&config, &sets);

    let fresh = place.path("fresh");
    let parts = ["cannot write checkpoint", "optimizer.safetensors", "earlier checkpoints are untouched", "File too large"];
    on_a_full_disk(80, &training(&config, &sets, &fresh)).failed(3, &parts);
    let left: Vec<String> = files(&fresh.join("checkpoints")).into_keys().collect();
    assert!(left.is_empty(), "{left:?} stay behind");

    // A run with checkpoints, killed in the middle.
    let half = place.path("half");
    let mut child = training(&config, &sets, &half).spawn().expect("starts");
    let started = Instant::now();
    while checkpoints(&half).len() < 2 {
        assert!(started.elapsed() < Duration::from_secs(60), "no checkpoints after a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("the child can be killed");
    drop(child.wait_with_output());
    let before = checkpoints(&half).into_iter().map(|path| (path.clone(), files(&path))).collect::<Vec<_>>();
    on_a_full_disk(80, &resuming(&half)).failed(3, &parts);
    for (path, content) in before {
        assert_same_files(&files(&path), &content, "an earlier checkpoint");
    }
    resume(&half).ok();
    assert_same_files(&final_checkpoint(&half), &final_checkpoint(&reference), "after the disk had room again");

    // Neither metrics nor the best parameters are lost in silence.
    let sets = ["observe.log_every=1", "observe.trace_rounds=0"];
    on_a_full_disk(4, &training(&config, &sets, &place.path("metrics"))).failed(3, &["metrics.jsonl"]);
    let best = ["encoder.hidden=512", "eval.every=1", "observe.log_every=60", "observe.conflict_every=0"];
    on_a_full_disk(40, &training(&config, &best, &place.path("best"))).failed(3, &["best", "model.safetensors"]);
}
