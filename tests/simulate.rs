//! `taskloom simulate` as it is used: the ready workloads, their traces and pictures, and what bad input is answered with.

mod common;

use std::path::{Path, PathBuf};

use common::{Place, run};
use serde_json::Value;

fn workloads() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/workloads");
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("there are workloads").map(|entry| entry.expect("one").path()).collect();
    found.sort();
    found
}

fn simulated(path: &Path, more: &[&str]) -> Value {
    run(&[&["simulate", path.to_str().expect("UTF-8"), "--json"], more].concat()).ok().json()
}

#[test]
fn ready_workloads_run_the_same_each_time() {
    let names: Vec<String> =
        workloads().iter().map(|path| path.file_stem().expect("named").to_string_lossy().into_owned()).collect();
    assert_eq!(names, ["balanced", "burst", "eval-heavy", "train-heavy"]);
    for path in workloads() {
        let report = simulated(&path, &[]);
        assert_eq!(report, simulated(&path, &[]), "{}", path.display());
        let other = simulated(&path, &["--set", "schedule.seed=7"]);
        assert_ne!(report["event_hash"], other["event_hash"], "{}", path.display());
        assert_eq!(report["sweep"].as_array().map(Vec::len), Some(3));
        assert_eq!(report["samples"]["dropped"], 0);
        assert!(report["busy_share"].as_f64().is_some_and(|share| share > 0.3 && share <= 1.0));
    }
}

#[test]
fn promises_of_the_ready_workloads() {
    let [balanced, burst, eval_heavy, train_heavy] = [0, 1, 2, 3].map(|i| simulated(&workloads()[i], &[]));
    assert_eq!(balanced["deadline_misses"], 0);
    // Alone, an urgent burst of ten takes 20 ms; one background quantum of at most 24 ms may be in its way.
    assert!(burst["classes"]["urgent"]["latency_ms"]["p50"].as_f64().is_some_and(|ms| ms < 22.0));
    assert!(eval_heavy["conflicts"]["read_write"].as_u64().is_some_and(|count| count > 0));
    assert!(train_heavy["share_error"].as_f64().is_some_and(|error| error < 0.02));
    assert!(train_heavy["peak_bytes"].as_u64() <= train_heavy["budget_bytes"].as_u64());
}

#[test]
fn the_picture_in_the_documentation_is_what_the_program_draws() {
    let place = Place::new();
    let (svg, trace) = (place.path("a.svg"), place.path("trace.json"));
    let workload = workloads().swap_remove(0);
    let words = ["simulate", workload.to_str().expect("UTF-8"), "--json", "--svg-ms", "150", "--svg"];
    let more = [svg.to_str().expect("UTF-8"), "--trace", trace.to_str().expect("UTF-8")];
    let report = run(&[&words[..], &more].concat()).ok().json();
    let drawn = std::fs::read_to_string(&svg).expect("a picture");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schedule-timeline.svg");
    if std::env::var_os("TASKLOOM_WRITE_DOCS").is_some() {
        std::fs::write(&page, &drawn).expect("the page can be written");
    }
    assert!(std::fs::read_to_string(&page).is_ok_and(|known| known == drawn), "run this test with TASKLOOM_WRITE_DOCS=1");
    let events: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(&trace).expect("a trace")).expect("JSON");
    let on_lanes = events.iter().filter(|event| event["ph"] == "X" && event["pid"] == 1).count();
    assert_eq!(Some(on_lanes as u64), report["quanta"].as_u64());
}

#[test]
fn bad_workloads() {
    let place = Place::new();
    let refused = |text: &str, parts: &[&str]| {
        let path = place.write("w.toml", text);
        run(&["simulate", path.to_str().expect("UTF-8")]).failed(2, parts);
    };
    refused("[tasks.a]\ncost_ms = 1\nweight = 0\n", &["w.toml:3:10: tasks.a.weight: expected a number above 0, found 0"]);
    refused(
        "[tasks.a]\ncost_ms = 1\nperiod_ms = -5\n",
        &["tasks.a.period_ms: expected a number above 0 and at most 31536000000, found -5"],
    );
    refused("[tasks.a]\ncots_ms = 1\n", &["did you mean `cost_ms`?"]);
    refused("", &["there is no task"]);
    let cycle = "[tasks.a]\ncost_ms = 1\ndepends_on = \"b\"\n[tasks.b]\ncost_ms = 1\ndepends_on = \"c\"\n\
                 [tasks.c]\ncost_ms = 1\ndepends_on = \"b\"\n";
    refused(cycle, &["tasks wait for each other: b -> c -> b"]);
    let late = "[schedule]\npolicy = \"edf\"\n[tasks.a]\ncost_ms = 6\nperiod_ms = 10\ndeadline_ms = 5\n";
    refused(late, &["the deadline of task a (5.000 ms)", "takes 6.000 ms", "1.000 ms too much"]);
    let small = "[memory]\ndevice = \"1GiB\"\nshared = \"512MiB\"\n[tasks.a]\ncost_ms = 1\n[tasks.big]\ncost_ms = 1\nscratch = \"600MiB\"\n";
    refused(small, &["task big needs 629145600 bytes", "536870912 shared", "92274688 too few"]);
    let own = "[tasks.a]\ncost_ms = 1\nscratch = 100\nmemory = 60\n";
    refused(own, &["task a needs 100 bytes", "its own budget is 60: 40 too few"]);
    refused("[tasks.a]\ncost_ms = 1\nquanta = 4294967295\n", &["tasks.a.quanta: expected an integer from 1 to 1000000"]);
    let many = "[tasks.a]\ncost_ms = 1\ncount = 1000000\n";
    refused(many, &["w.toml:1:", "tasks: makes 100000000 quanta of all tasks together; at most 1000000 can be simulated"]);
    let sweep = "[sweep]\nconcurrency = [10, 1000000]\n[tasks.a]\ncost_ms = 1\n";
    refused(sweep, &["w.toml:2:15: sweep.concurrency: 1000000 makes 100001000 quanta"]);
    let edges = "[tasks.a]\ncost_ms = 1\nquanta = 1\ncount = 10000\n[tasks.b]\ncost_ms = 1\nquanta = 1\ncount = 10000\ndepends_on = \"a\"\n";
    refused(edges, &["makes 100000000 pairs of a task and one it depends on"]);
    let bytes = "[tasks.a]\ncost_ms = 1\ncount = 4\npersistent = 9223372036854775807\n";
    refused(bytes, &["more bytes than can be counted"]);
    refused("[tasks.a]\ncost_ms = 31536000000\nquanta = 1000\n", &["takes longer than 584 years"]);
    run(&["simulate", "none.toml"]).failed(2, &["cannot read none.toml"]);
}

/// What lies between two rounds that somebody is present in takes no time, however many rounds it is.
#[test]
fn rare_tasks_do_not_hold_up_a_simulation() {
    let place = Place::new();
    let text = "[schedule]\nmode = \"synchronous\"\n[tasks.rare]\ncost_ms = 1\nquanta = 200000\nperiod = 1000000\n\
                [tasks.child]\ncost_ms = 1\nquanta = 3\nperiod = 7\ndepends_on = \"rare\"\n";
    let report = simulated(&place.write("w.toml", text), &[]);
    assert_eq!(report["samples"]["committed"], 200_003);
    // A commit after each round.
    assert_eq!(report["quanta"], 400_006);
}
