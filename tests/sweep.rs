//! `taskloom sweep`: which runs it makes, that it goes on where it stopped, who goes on from a rung, and what it says of
//! failures.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Outcome, Place, assert_same_run, checkpoints, metrics, outcome, run, taskloom};
use serde_json::Value;

/// Runs of a second or less.
const RUN: &str = "[run]\nthreads = 1\n[synthetic]\nfeatures = 8\ntrain = 64\ndev = 32\ntest = 16\n[task_defaults]\nhead = \"regression\"\n\
                   [encoder]\nkind = \"linear\"\nhidden = 16\n[train]\nrounds = 24\nmicro_batch = 8\n[eval]\nevery = 4\ntest = true\n\
                   [checkpoint]\nevery = 4\n";

struct Sweep {
    place: Place,
    file: PathBuf,
    out: PathBuf,
}

impl Sweep {
    fn new(text: &str) -> Self {
        let place = Place::new();
        place.write("run.toml", RUN);
        let out = place.path("out");
        let file = place.write("sweep.toml", format!("config = \"run.toml\"\nout = {out:?}\n{text}"));
        Self { place, file, out }
    }

    /// The same sweep from the start, in another folder.
    fn move_to(&mut self, name: &str) {
        let out = self.place.path(name);
        let text = std::fs::read_to_string(&self.file).expect("a sweep").replace(&format!("{:?}", self.out), &format!("{out:?}"));
        std::fs::write(&self.file, text).expect("can write");
        self.out = out;
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = taskloom();
        command.arg("sweep").arg(&self.file).args(more);
        command
    }

    fn run(&self, more: &[&str]) -> Outcome {
        outcome(self.command(more).output())
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.out.join("runs").join(name)
    }

    fn summary(&self) -> Value {
        let text = std::fs::read_to_string(self.out.join("summary.json")).expect("a summary");
        serde_json::from_str(&text).expect("JSON")
    }
}

fn names(listed: &str) -> Vec<String> {
    listed.lines().map(|line| line.split_whitespace().next().unwrap_or_default().to_owned()).collect()
}

/// The objective that metrics.jsonl tells of the best evaluation within so many rounds.
fn best(run: &Path, rounds: u64) -> f64 {
    let lines = metrics(run).into_iter().filter(|line| line["kind"] == "eval" && line["best"] == true);
    let mut within = lines.filter(|line| line["round"].as_u64().is_some_and(|round| round <= rounds));
    within.next_back().and_then(|line| line["objective"].as_f64()).expect("an evaluation")
}

const GRID: &str = "seeds = [1, 2]\nparallel = 2\n[parameters]\nsurgery.method = [\"sum\", \"pcgrad\"]\n";

#[test]
fn a_grid_is_run_ranked_and_summed_up() {
    let sweep = Sweep::new(GRID);
    let done = sweep.run(&[]).ok();
    assert!(done.err.contains("4 runs of 2 points, 2 points to do"), "{}", done.err);
    let summary = sweep.summary();
    assert_eq!(summary["objective"], "mean(primary)");
    let points = summary["points"].as_array().expect("points");
    let means: Vec<f64> = points.iter().map(|point| point["objective"].as_f64().expect("a mean")).collect();
    assert!(means.len() == 2 && means[0] >= means[1], "{means:?}");
    for point in points {
        let runs = point["runs"].as_array().expect("runs");
        let values: Vec<f64> = runs.iter().map(|run| run["objective"].as_f64().expect("a value")).collect();
        assert!((values.iter().sum::<f64>() / 2.0 - point["objective"].as_f64().unwrap_or(f64::NAN)).abs() < 1e-12);
        for (run, value) in runs.iter().zip(values) {
            let folder = Path::new(run["folder"].as_str().expect("a folder"));
            assert_eq!(value, best(folder, u64::MAX));
            assert_eq!((&run["status"], &run["rounds"]), (&Value::from("done"), &Value::from(24)));
            assert!(run["scores"]["dev"].is_f64() && run["scores"]["test"].is_f64(), "{run}");
        }
    }
    let csv = std::fs::read_to_string(sweep.out.join("summary.csv")).expect("a table");
    assert_eq!(csv.lines().next(), Some("rank,point,seed,surgery.method,status,rounds,objective,dev,test,error,folder"));
    assert_eq!(csv.lines().count(), 5);
    let report = std::fs::read_to_string(sweep.out.join("report.html")).expect("a report");
    assert!(report.contains("4 runs in 2 groups"));
    assert!(done.out.starts_with("rank  point  surgery.method"), "{}", done.out);
    // Nothing is left to do, and the same is said.
    let again = sweep.run(&[]).ok();
    assert!(again.err.contains("0 points to do") && !again.err.contains("starts"), "{}", again.err);
    assert_eq!((again.out, sweep.summary()), (done.out, summary));
}

#[test]
fn the_same_words_list_the_same_runs() {
    let text = "search = \"random\"\npoints = 5\nseeds = [3, 4]\nset = [\"train.rounds=8\"]\n[parameters]\n\
                optimizer.lr = { log_uniform = [1e-4, 1e-2] }\ntrain.micro_batch = { int = [4, 16] }\n";
    let listed = || Sweep::new(text).run(&["--dry-run"]).ok().out;
    let all = listed();
    assert_eq!(all, listed());
    assert_eq!(all.lines().count(), 10);
    assert!(all.lines().all(|line| line.contains(" train.rounds=8 optimizer.lr=")), "{all}");
    let other = Sweep::new(text).run(&["--dry-run", "--set", "seed=43"]).ok().out;
    assert_eq!(names(&other), names(&all));
    assert_ne!(other, all);
    // Every run is in one shard.
    let shards = [0, 1, 2].map(|own| Sweep::new(text).run(&["--dry-run", "--shard", &format!("{own}/3")]).ok().out);
    let mut joined: Vec<&str> = shards.iter().flat_map(|shard| shard.lines()).collect();
    joined.sort_unstable();
    assert_eq!(joined, all.lines().collect::<Vec<_>>());
    assert_eq!(shards.map(|shard| shard.lines().count()), [4, 3, 3]);
}

#[test]
fn shards_do_their_part_and_the_whole_sums_up() {
    let sweep = Sweep::new(GRID);
    for shard in ["0/2", "1/2"] {
        let done = sweep.run(&["--shard", shard]).ok();
        assert!(done.err.contains("2 runs of 2 points"), "{}", done.err);
    }
    assert!(!sweep.out.join("summary.csv").exists());
    let whole = sweep.run(&["--json"]).ok();
    assert!(!whole.err.contains("starts"), "{}", whole.err);
    assert_eq!(whole.json(), sweep.summary());
}

/// Long enough to be stopped on the way.
const LONG: &str = "parallel = 2\nset = [\"train.rounds=2000\", \"eval.every=500\", \"checkpoint.every=20\"]\n\
                    [parameters]\noptimizer.lr = [1e-3, 2e-3, 3e-3]\n";

fn wait_for_checkpoint(run: &Path) {
    for _ in 0..600 {
        if !checkpoints(run).is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("no checkpoint in {}", run.display());
}

#[test]
fn what_was_interrupted_goes_on() {
    let mut sweep = Sweep::new(LONG);
    sweep.run(&[]).ok();
    let reference = sweep.out.clone();
    for signal in ["-INT", "-KILL"] {
        sweep.move_to(signal);
        let mut child = sweep.command(&[]).spawn().expect("the program starts");
        wait_for_checkpoint(&sweep.folder("point-000"));
        let killed = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill");
        assert!(killed.success());
        let status = child.wait().expect("it ends");
        if signal == "-INT" {
            assert_eq!(status.code(), Some(130));
            let rows = sweep.summary()["points"].as_array().expect("points").clone();
            assert!(rows.iter().any(|point| point["runs"][0]["status"] == "unfinished"));
        }
        // After a kill, its runs may still be at work: they are waited for.
        let again = sweep.run(&[]).ok();
        assert!(signal == "-KILL" || again.err.contains("point-000 resumes"), "{}", again.err);
        for name in ["point-000", "point-001", "point-002"] {
            assert_same_run(&sweep.folder(name), &reference.join("runs").join(name), &format!("{name} after {signal}"));
        }
        assert_eq!(sweep.run(&[]).ok().err.matches("starts").count(), 0);
    }
}

#[test]
fn halving_goes_on_with_the_best() {
    let text = "parallel = 2\n[halving]\neta = 2\nmin_rounds = 6\n[parameters]\noptimizer.lr = [1e-6, 3e-3, 1e-5, 1e-2]\n";
    let sweep = Sweep::new(text);
    sweep.run(&[]).ok();
    let mut first: Vec<(f64, usize)> =
        (0..4).map(|point| (best(&sweep.folder(&format!("point-{point:03}")), 6), point)).collect();
    first.sort_by(|one, other| other.0.total_cmp(&one.0));
    let mut second: Vec<(f64, usize)> =
        first[..2].iter().map(|&(_, point)| (best(&sweep.folder(&format!("point-{point:03}")), 12), point)).collect();
    second.sort_by(|one, other| other.0.total_cmp(&one.0));
    let summary = sweep.summary();
    let points = summary["points"].as_array().expect("points");
    let ranked: Vec<u64> = points.iter().filter_map(|point| point["point"].as_u64()).collect();
    let expected = [second[0].1, second[1].1, first[2].1, first[3].1].map(|point| point as u64);
    assert_eq!(ranked, expected);
    let told: Vec<(&str, u64)> = points
        .iter()
        .map(|point| (point["runs"][0]["status"].as_str().unwrap_or(""), point["runs"][0]["rounds"].as_u64().unwrap_or(0)))
        .collect();
    assert_eq!(told, [("done", 24), ("stopped", 12), ("stopped", 6), ("stopped", 6)]);
    // Stopping on the way has changed nothing.
    let name = format!("point-{:03}", ranked[0]);
    let value = &points[0]["parameters"]["optimizer.lr"];
    let alone =
        sweep.place.train(&sweep.place.path("run.toml"), &[&format!("optimizer.lr={value}"), &format!("run.name={name}")]);
    assert_same_run(&sweep.folder(&name), &alone, "a run that was stopped at two rungs");
}

#[test]
fn a_rung_without_scores_says_what_to_do() {
    let sweep = Sweep::new("[halving]\nmin_rounds = 2\n[parameters]\noptimizer.lr = [1e-3, 2e-3]\n");
    sweep.run(&[]).failed(2, &["no run has a value of mean(primary) within its first 2 rounds", "eval.every"]);
}

#[test]
fn a_run_that_fails_is_a_row() {
    let sweep = Sweep::new("set = [\"optimizer.kind=sgd\"]\n[parameters]\noptimizer.lr = [1e-3, 1e30]\n");
    let failed = sweep.run(&[]).ended(3, &["1 of 2 runs failed", "tries them again"]);
    let points = sweep.summary()["points"].as_array().expect("points").clone();
    let told: Vec<&Value> = points.iter().map(|point| &point["runs"][0]["status"]).collect();
    assert_eq!(told, ["done", "failed"]);
    let error = points[1]["runs"][0]["error"].as_str().unwrap_or_default();
    assert!(!error.is_empty() && failed.out.contains(&format!("point-001: {error}")), "{}", failed.out);
    let csv = std::fs::read_to_string(sweep.out.join("summary.csv")).expect("a table");
    assert!(csv.contains(",failed,"), "{csv}");
}

#[test]
fn bad_sweeps_are_refused() {
    let refused = |text: &str, words: &[&str]| {
        let sweep = Sweep::new(text);
        sweep.run(&[]).failed(2, words);
        assert!(!sweep.out.exists(), "nothing is left behind");
    };
    refused("paralel = 2\nseeds = [1]\n", &["sweep.toml:3:1: paralel: unknown key", "did you mean `parallel`?"]);
    refused("", &["there is nothing to vary"]);
    refused("[parameters]\noptimizer.lrr = [1]\n", &["sweep.toml:4:11", "optimizer.lrr: unknown key", "did you mean `lr`?"]);
    refused("[parameters]\noptimizer.lr = [1e-3, -1]\n", &["optimizer.lr: expected a number above 0", "with optimizer.lr=-1"]);
    refused("[parameters]\noptimizer.lr = { log_uniform = [1, 2] }\n", &["a grid needs `values`"]);
    refused("search = \"random\"\n[parameters]\noptimizer.lr = [1]\n", &["points: is required by search = \"random\""]);
    refused("seeds = [1]\nobjective = \"speed\"\n", &["objective: \"speed\" is not one of"]);
    refused("seeds = [1]\nset = [\"train.round=3\"]\n", &["train.round: unknown key", "did you mean `rounds`?"]);
    let sweep = Sweep::new("seeds = [1]\n[halving]\nmin_rounds = 1\n");
    sweep.run(&["--shard", "0/2"]).failed(2, &["halving compares all runs"]);
    sweep.run(&["--shard", "2/2"]).failed(2, &["\"2/2\" is no I/N"]);
    run(&["sweep", "/none/sweep.toml"]).failed(2, &["cannot read /none/sweep.toml"]);
    let other = Sweep::new(GRID);
    other.run(&["--set", "set=[\"train.rounds=1\"]"]).ok();
    other.run(&[]).failed(2, &["holds another sweep", "choose another `out`"]);
    other.run(&["--set", "memory=1", "--set", "out=\"elsewhere\"", "--set", "seeds=[7]", "--dry-run"]).ok();
}

#[test]
fn memory_limits_what_runs() {
    let sweep = Sweep::new("memory = \"1KiB\"\n[parameters]\noptimizer.lr = [1e-3]\n");
    let failed = sweep.run(&[]).ended(3, &["1 of 1 runs failed"]);
    assert!(failed.out.contains("the sweep has 1.0 KiB (`memory`)"), "{}", failed.out);
}
