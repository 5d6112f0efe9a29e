//! What each command prints: results on stdout, everything else on stderr.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use common::{Place, metrics, outcome, run, taskloom};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().map(|map| map.keys().map(String::as_str).collect()).unwrap_or_default()
}

/// The longest text may end one pass over the data and begin the next: both are in one micro-batch then.
#[test]
fn a_task_of_fewer_examples_than_a_micro_batch() {
    let place = Place::new();
    place.write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\nbad\n");
    place.write("t.tsv", "text\tscore\ngood bad good bad good\t1\n");
    let config = place.write(
        "config.toml",
        "[encoder]\nkind = \"transformer\"\ntokenizer = \"vocab.txt\"\nhidden = 8\nheads = 2\nlayers = 1\npositions = 16\n\
         [train]\nrounds = 3\nmicro_batch = 4\n[task_defaults]\ntrain = \"t.tsv\"\ntext = \"text\"\n\
         [tasks.score]\nlabel = \"score\"\nhead = \"regression\"\n[tasks.words]\nlabel = []\nhead = \"mlm\"\n",
    );
    place.train(&config, &[]);
}

/// No word of such texts can be masked, in training or on dev.
#[test]
fn a_language_model_of_empty_texts() {
    let place = Place::new();
    place.write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\nbad\n");
    place.write("t.tsv", "text\tscore\n\"\"\t1\n\"\"\t2\n");
    let config = place.write(
        "config.toml",
        "[encoder]\nkind = \"transformer\"\ntokenizer = \"vocab.txt\"\nhidden = 8\nheads = 2\nlayers = 1\npositions = 16\n\
         [train]\nrounds = 2\nmicro_batch = 2\n[task_defaults]\ntrain = \"t.tsv\"\ndev = \"t.tsv\"\ntext = \"text\"\nquoted = true\n\
         [tasks.words]\nlabel = []\nhead = \"mlm\"\n",
    );
    place.train(&config, &[]);
}

#[test]
fn check() {
    let place = Place::new();
    let config = place.bag();
    let quiet = run(&["check", text(&config)]).ok();
    assert_eq!(quiet.out, "", "no results");
    assert!(quiet.err.contains("no errors"), "{}", quiet.err);
    let printed = run(&["check", text(&config), "--print", "--set", "optimizer.lr=0.25"]).ok().out;
    for expected in ["lr = 0.25", "--set", "bag.toml:", "default"] {
        assert!(printed.contains(expected), "no `{expected}` in\n{printed}");
    }
    // What is printed is a configuration again, and means the same.
    let again = place.write("printed.toml", &printed);
    let twice = run(&["check", text(&again), "--print"]).ok().out;
    let values = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| line.split(" #").next().unwrap_or_default().trim_end().to_owned())
            .filter(|line| !line.is_empty())
            .collect()
    };
    assert_eq!(values(&printed), values(&twice));
}

#[test]
fn plan_counts_what_training_takes() {
    let place = Place::new();
    for config in [place.bag(), place.linear(), place.synthetic()] {
        let plan = run(&["plan", text(&config), "--json"]).ok().json();
        let buffers = plan["buffers"].as_array().expect("a list of buffers");
        let sum: u64 = buffers.iter().filter_map(|buffer| buffer["bytes"].as_u64()).sum();
        assert_eq!(Some(sum), plan["total_bytes"].as_u64());
        let run_folder = place.train(&config, &[]);
        let lines = metrics(&run_folder);
        assert_eq!(lines[0]["kind"], "start");
        assert_eq!(lines[0]["bytes"], plan["total_bytes"], "planned and taken bytes of {}", config.display());
        assert_eq!(lines[0]["rounds"], plan["rounds"]);
        assert_eq!(lines.iter().filter(|line| line["kind"] == "round").count() as u64, plan["rounds"].as_u64().unwrap_or(0));
        // A budget of exactly this size is enough, one byte less is not.
        let enough = format!("memory.device={sum}");
        place.train(&config, &[&enough, "train.rounds=2"]);
        let short = format!("memory.device={}", sum - 1);
        place.outcome_of_training(&config, &[&short], &place.path("short")).failed(2, &["memory.device allows"]);
        let table = run(&["plan", text(&config)]).ok().out;
        assert!(table.contains("rounds") && table.contains("bytes"), "{table}");
    }
}

#[test]
fn eval() {
    let place = Place::new();
    for config in [place.bag(), place.linear()] {
        let run_folder = place.train(&config, &[]);
        for split in ["dev", "test"] {
            let scores = run(&["eval", text(&run_folder), "--split", split, "--json"]).ok().json();
            assert_eq!(keys(&scores), ["mean_primary", "slices", "split", "tasks"]);
            assert_eq!(scores["split"], split);
            assert_eq!(keys(&scores["tasks"]), ["flags", "numbers", "topic"]);
            let mut primary = [0.0, 0.0];
            for (task, metric) in [("flags", "f1"), ("numbers", "pearson"), ("topic", "accuracy")] {
                let own = &scores["tasks"][task];
                let first = if own[metric].is_number() { metric } else { keys(own)[0] };
                let slice = &own["slices"]["seen"];
                for part in [own, slice] {
                    assert!(part["loss"].as_f64().is_some_and(f64::is_finite), "{task}: {part}");
                    assert!(part[first].is_number(), "{task}: {part}");
                }
                let counts = [own, slice].map(|part| part["examples"].as_u64().unwrap_or(0));
                assert!(counts[0] > counts[1] && counts[1] > 0, "{task}: {counts:?}");
                primary[0] += own[first].as_f64().unwrap_or(f64::NAN) / 3.0;
                primary[1] += slice[first].as_f64().unwrap_or(f64::NAN) / 3.0;
            }
            for (ours, theirs) in primary.iter().zip([&scores["mean_primary"], &scores["slices"]["seen"]["mean_primary"]]) {
                assert!(theirs.as_f64().is_some_and(|theirs| (theirs - ours).abs() < 1e-9), "{ours} against {theirs}");
            }
        }
        // The best checkpoint's dev scores are those the run reported, to the bit.
        let best = metrics(&run_folder).into_iter().rfind(|line| line["kind"] == "eval" && line["best"] == true);
        let dev = run(&["eval", text(&run_folder), "--json"]).ok().json();
        assert_eq!(best.expect("a best evaluation")["tasks"], dev["tasks"]);
        let newest = common::checkpoints(&run_folder).pop().expect("a checkpoint");
        run(&["eval", text(&newest), "--json"]).ok().json();
        let table = run(&["eval", text(&run_folder)]).ok().out;
        assert!(table.contains("mean primary"), "{table}");
    }
    let run_folder = place.train(&place.synthetic(), &["train.rounds=2", "synthetic.test=0"]);
    run(&["eval", text(&run_folder), "--split", "test"]).failed(2, &["no task has a test split"]);
}

fn predict(run_folder: &Path, task: &str, lines: &str) -> common::Outcome {
    let mut child =
        taskloom().arg("predict").arg(run_folder).args(["--task", task]).stdin(Stdio::piped()).spawn().expect("starts");
    child.stdin.take().expect("stdin is a pipe").write_all(lines.as_bytes()).expect("the program reads");
    outcome(child.wait_with_output())
}

fn answers(run_folder: &Path, task: &str, lines: &str) -> Vec<Value> {
    let printed = predict(run_folder, task, lines).ok().out;
    printed.lines().map(|line| serde_json::from_str(line).expect("one JSON document a line")).collect()
}

#[test]
fn predict_texts_and_features() {
    let place = Place::new();
    let features = "[1.2, 0, 1, 0.5, 0, 0, 1, 0]";
    for (config, input) in [(place.bag(), "good old red"), (place.linear(), features)] {
        let run_folder = place.train(&config, &[]);
        // Texts need no data any more.
        std::fs::remove_file(place.path("table.tsv")).expect("can remove");
        let one = run(&["predict", text(&run_folder), "--task", "topic", "--text", input]).ok().json();
        assert_eq!(keys(&one["probabilities"]), ["arts", "maths", "sport"]);
        let sum: f64 = one["probabilities"].as_object().into_iter().flatten().filter_map(|(_, p)| p.as_f64()).sum();
        assert!((sum - 1.0).abs() < 1e-6 && one["label"].is_string(), "{one}");
        let several = answers(&run_folder, "topic", &format!("{input}\n{input}\n"));
        assert_eq!(several, [one.clone(), one]);
        let numbers = answers(&run_folder, "numbers", &format!("{input}\n"));
        assert_eq!(numbers[0]["values"].as_array().map(Vec::len), Some(2), "{numbers:?}");
        let flags = answers(&run_folder, "flags", &format!("{input}\n"));
        assert!(flags[0]["labels"].is_array(), "{flags:?}");
        assert_eq!(keys(&flags[0]["probabilities"]), ["cold", "loud", "red"]);
        let unknown = run(&["predict", text(&run_folder), "--task", "tpoic", "--text", input]);
        unknown.failed(2, &["no task \"tpoic\"", "flags, numbers, topic"]);
        place.bag();
    }
    let run_folder = place.train(&place.linear(), &[]);
    for (bad, part) in [("good", "JSON list"), ("[1, 2]", "found 2 features, the model takes 8")] {
        let refused = predict(&run_folder, "topic", &format!("{features}\n{bad}\n"));
        assert_eq!(refused.code, Some(2));
        assert_eq!(refused.out.lines().count(), 1, "the good line is answered");
        refused.says(&["stdin, line 2", part]);
    }
}

#[test]
fn bench_schedule() {
    let words = [
        "bench",
        "schedule",
        "--batch",
        "2",
        "--quanta",
        "20",
        "--requests",
        "10",
        "--request",
        "2",
        "--pause-ms",
        "1",
        "--json",
    ];
    let report = run(&words).ok().json();
    assert_eq!((report["name"].as_str(), report["requests"].as_u64()), (Some("schedule"), Some(10)));
    let positive = [
        "ms",
        "overhead_us",
        "overhead_empty_us",
        "request_p99_ms",
        "request_p99_alone_ms",
        "request_p99_ratio",
        "single_ms",
        "single_alone_ms",
        "single_p99_ms",
        "single_p99_alone_ms",
        "background_share",
    ];
    for number in positive {
        assert!(report[number].as_f64().is_some_and(|value| value > 0.0), "{number}: {report}");
    }
    assert!(report["share_error_points"].as_f64().is_some_and(|error| error < 100.0));
    assert!(report["single_extra_quanta"].is_number(), "{report}");
    run(&["bench", "schedule", "--requests", "9"]).failed(2, &["--requests", "expected a whole number from 10 to 1000000"]);
}

#[test]
fn bench_schedule_with_many_tasks_at_once() {
    let words = "bench schedule --contention 3,40 --jobs 5 --batch 2 --seconds 60 --json";
    let out = run(&words.split(' ').collect::<Vec<_>>()).ok().out;
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.iter().map(|line| line["tasks"].as_u64()).collect::<Vec<_>>(), [Some(3), Some(40)]);
    for (line, tasks) in lines.iter().zip([3, 40]) {
        assert_eq!((line["name"].as_str(), line["runs"].as_u64()), (Some("contention"), Some(5 * tasks)));
        for side in [&line["measured"], &line["simulated"]] {
            let number = |key: &str| side[key].as_f64().unwrap_or(f64::NAN);
            assert_eq!((number("jobs"), number("jobs_left")), (5.0 * tasks as f64, 0.0));
            assert!(number("latency_mean_ms") > number("wait_mean_ms") && number("wait_mean_ms") >= 0.0, "{line}");
            assert!(number("latency_p50_ms") <= number("latency_p99_ms"), "{line}");
            assert!(number("wait_p99_ms") <= number("latency_p99_ms") && number("jobs_per_second") > 0.0, "{line}");
            assert!(number("timeouts") <= number("jobs"), "{line}");
        }
    }
    let words = "bench schedule --contention 2 --jobs 5 --batch 2 --timeout-ms 0.001";
    let text = run(&words.split(' ').collect::<Vec<_>>()).ok().out;
    assert!(text.contains("timeouts from 0.001 ms"), "{text}");
    let row = text.lines().find(|line| line.contains("measured")).expect("a measured row");
    // Tasks, side and jobs come first; no round takes less than a microsecond.
    let fields: Vec<&str> = row.split_whitespace().collect();
    assert_eq!((&fields[..3], fields[fields.len() - 2]), (&["2", "measured", "10"][..], "10"), "{row}");
}

#[test]
fn bench_schedule_with_a_workload() {
    let place = Place::new();
    let workload = "[schedule]\nlanes = 2\n[tasks.a]\ncount = 3\nquanta = 4\ncost_ms = 1\n\
                    [tasks.late]\nquanta = 2\ncost_ms = 1\narrival = \"trace\"\nat_ms = [2, 3600000]\nwrite_share = 0\n";
    let path = place.write("w.toml", workload);
    let words = |more: &[&'static str]| [&["bench", "schedule", "--workload", text(&path)], more].concat();
    let line = run(&words(&["--seconds", "1", "--json"])).ok().json();
    assert_eq!((line["name"].as_str(), line["lanes"].as_u64()), (Some("workload"), Some(2)));
    // The last job of `late` comes after an hour.
    assert_eq!((line["runs"].as_u64(), line["tasks"].as_u64()), (Some(13), Some(4)));
    for side in [&line["measured"], &line["simulated"]] {
        assert_eq!((side["quanta"].as_u64(), side["quanta_left"].as_u64()), (Some(13), Some(1)), "{line}");
        for (class, jobs) in [("a", 12), ("late", 1)] {
            let class = &side["classes"][class];
            assert_eq!(class["jobs"], jobs, "{line}");
            let [mean, p99] = ["latency_mean_ms", "latency_p99_ms"].map(|key| class[key].as_f64().unwrap_or(f64::NAN));
            // No quantum ends before the time drawn for it.
            assert!(mean >= 1.0 && p99 >= 1.0, "{line}");
        }
    }
    let said = run(&words(&["--seconds", "0.5"])).ok().out;
    assert!(said.contains("stopped after 0.5 s: 1 quanta left, 1 in the simulator (--seconds)"), "{said}");
    let later = place.write("later.toml", "[tasks.a]\ncost_ms = 1\narrival = \"trace\"\nat_ms = [3600000]\n");
    let later = ["bench", "schedule", "--workload", text(&later), "--seconds", "0.01"];
    run(&later).failed(2, &["later.toml", "no quantum began within 0.01 s", "--seconds"]);
    let wide = place.write("wide.toml", "[schedule]\nlanes = 65\n[tasks.a]\ncost_ms = 1\n");
    run(&["bench", "schedule", "--workload", text(&wide)]).failed(2, &["wide.toml", "schedule.lanes is 65; at most 64"]);
    let long = place.write("long.toml", "[tasks.a]\ncost_ms = 61000\n");
    run(&["bench", "schedule", "--workload", text(&long)]).failed(2, &["long.toml", "task a may take 61.000 s; at most 60 s"]);
    run(&["bench", "schedule", "--workload", "none.toml"]).failed(2, &["cannot read none.toml"]);
    run(&words(&["--contention", "2"])).failed(2, &["--contention", "--workload"]);
    run(&words(&["--batch", "2"])).failed(2, &["--workload", "--batch"]);
}

/// Rounds of a device, and its lanes: the emulated one's quanta are as long as its own time says.
#[test]
fn bench_schedule_on_a_device() {
    let place = Place::new();
    let path = place.write(
        "w.toml",
        "[schedule]\nlanes = 2\npolicy = \"priority\"\n[tasks.a]\ncount = 2\nquanta = 3\ncost_ms = 0.005\n\
                                      [tasks.urgent]\nquanta = 2\ncost_ms = 0.005\npriority = 1\n",
    );
    let words =
        |device: &'static str| ["bench", "schedule", "--workload", text(&path), "--device", device, "--seconds", "600", "--json"];
    run(&words("gpu")).failed(2, &["--device gpu", "known are"]);
    run(&["bench", "schedule", "--device", "cpu"]).failed(2, &["--device"]);
    if !common::device::is_there() {
        return;
    }
    let line = run(&words("emulated")).ok().json();
    assert_eq!((line["device"].as_str(), line["measured"]["quanta"].as_u64()), (Some("emulated"), Some(8)), "{line}");
    assert_eq!(line["measured"]["classes"]["urgent"]["jobs"], 2, "{line}");
    let line = run(&"bench schedule --contention 2 --jobs 2 --batch 2 --device emulated --seconds 600 --json"
        .split(' ')
        .collect::<Vec<_>>());
    let line = line.ok().json();
    assert_eq!((line["device"].as_str(), line["measured"]["jobs"].as_u64()), (Some("emulated"), Some(4)), "{line}");
}

#[test]
fn bench_step() {
    for encoder in ["linear", "bag", "transformer"] {
        let words = [
            "bench",
            "step",
            "--encoder",
            encoder,
            "--tasks",
            "2",
            "--batch",
            "4",
            "--runs",
            "3",
            "--method",
            "pcgrad",
            "--seq",
            "9",
            "--json",
        ];
        let line = run(&words).ok().json();
        assert_eq!((line["name"].as_str(), line["encoder"].as_str()), (Some("step"), Some(encoder)));
        for key in ["tasks", "batch", "ms", "ms_p10", "ms_p90", "runs", "examples_per_second", "peak_bytes"] {
            assert!(line[key].as_f64().is_some_and(|value| value > 0.0), "{key} of {line}");
        }
        assert_eq!(keys(&line["parts"]), ["forward_backward", "gram", "other", "solve", "update"]);
        assert_eq!(line["runs"], 3);
    }
    let lanes = run(&["bench", "step", "--tasks", "3", "--batch", "4", "--runs", "2", "--lanes", "2", "--json"]).ok().json();
    assert_eq!(lanes["lanes"], 2);
    run(&["bench", "step", "--method", "sum", "--lanes", "2"]).failed(2, &["--lanes", "gradients apart", "sum"]);
    run(&["bench", "step", "--method", "pcgard", "--json"]).failed(2, &["--method", "pcgard"]);
}

#[test]
fn benchmarks_refuse_what_no_machine_can_take() {
    let refused = |words: &str, parts: &[&str]| {
        run(&words.split(' ').collect::<Vec<_>>()).failed(2, parts);
    };
    refused("bench surgery --tasks 100000 --params 1000000000", &["--tasks", "expected a whole number from 1 to 256"]);
    refused(
        "bench surgery --tasks 256 --params 1000000000000",
        &["--tasks 256 x --params 1000000000000 in f32", "968575.48 GiB"],
    );
    refused("bench step --tasks 512 --batch 65536", &["--tasks 512 x --batch 65536 are 33554432 examples", "at most 262144"]);
    refused(
        "bench step --encoder transformer --tasks 128 --batch 2048 --seq 512",
        &["--seq 512 are 134217728 tokens a round; at most 16777216"],
    );
    for (part, option) in [
        ("step", "--tasks"),
        ("step", "--batch"),
        ("step", "--layers"),
        ("step", "--seq"),
        ("step", "--lanes"),
        ("step", "--runs"),
        ("surgery", "--tasks"),
        ("surgery", "--params"),
        ("surgery", "--runs"),
        ("kernels", "--params"),
        ("kernels", "--runs"),
        ("schedule", "--batch"),
        ("schedule", "--quanta"),
        ("schedule", "--requests"),
        ("schedule", "--request"),
        ("schedule", "--contention"),
        ("schedule", "--jobs"),
    ] {
        for count in ["0", "18446744073709551615", "18446744073709551616", "many"] {
            refused(&format!("bench {part} {option} {count}"), &[option, "expected a whole number from"]);
        }
    }
    refused("bench schedule --pause-ms nan", &["--pause-ms", "expected milliseconds from 0 to 60000"]);
    refused("bench schedule --contention 2 --timeout-ms 0", &["--timeout-ms", "expected milliseconds from 0.001 to 1000000000"]);
    refused("bench schedule --contention 2 --seconds inf", &["--seconds", "expected seconds from 0.001 to 86400"]);
    refused("bench schedule --contention 1000 --batch 1000", &["--contention 1000 x --batch 1000", "at most 262144"]);
    refused("bench schedule --contention 2 --quanta 3", &["--quanta", "--contention"]);
    refused("bench schedule --jobs 3", &["--contention"]);
}

#[test]
fn version_says_what_was_built_in() {
    let version = run(&["--version"]).ok().out;
    assert!(version.starts_with(&format!("taskloom {} (cuda: ", env!("CARGO_PKG_VERSION"))), "{version}");
}

#[test]
fn training_prints_scores_on_stdout_and_progress_on_stderr() {
    let place = Place::new();
    let trained = place.outcome_of_training(&place.bag(), &["eval.test=true"], &place.path("run")).ok();
    assert!(trained.out.starts_with("dev\n") && trained.out.contains("\ntest\n"), "{}", trained.out);
    assert!(trained.err.contains("run folder") && trained.err.contains("round"), "{}", trained.err);
    assert!(!trained.err.contains('\r') && !trained.err.contains('\u{1b}'), "no bars without a terminal");
}
