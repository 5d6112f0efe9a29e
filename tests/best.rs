//! Which evaluation counts as the best, by every measure, and what a value that is undefined does to it.

mod common;

use std::path::Path;

use common::{Place, assert_same_files, checkpoints, final_checkpoint, metrics, resume, run};
use serde_json::Value;

const ROUNDS: &str = "
[run]
name = \"best\"
seed = 7
threads = 2
[encoder]
kind = \"linear\"
hidden = 8
[optimizer]
lr = 0.3
[optimizer.schedule]
kind = \"constant\"
[train]
rounds = 24
micro_batch = 8
[eval]
every = 1
[checkpoint]
every = 8
[task_defaults]
file = \"table.tsv\"
split = \"split\"
features = [\"x0\", \"x1\", \"x2\", \"x3\", \"x4\", \"x5\", \"x6\", \"x7\"]
";

/// `score` and `speed` are numbers, `topic` has classes; a rate that is too high makes them better and worse by turns.
fn config(place: &Place, tasks: &str) -> std::path::PathBuf {
    place.write("table.tsv", common::table());
    place.write("best.toml", format!("{ROUNDS}{tasks}"))
}

fn number(name: &str, metric: &str) -> String {
    format!("[tasks.{name}]\nlabel = \"{name}\"\nhead = \"regression\"\nmetrics = \"{metric}\"\n")
}

fn evaluations(run: &Path) -> Vec<Value> {
    metrics(run).into_iter().filter(|line| line["kind"] == "eval").collect()
}

/// The best of the values of all evaluations, by its place; the first of equal ones.
fn best_of(values: &[f64], is_error: bool) -> usize {
    let better = |new: f64, old: f64| if is_error { new < old } else { new > old };
    (0..values.len()).fold(0, |best, place| if better(values[place], values[best]) { place } else { best })
}

/// Trains with `best.metric` and holds what was kept against `value` of each evaluation.
fn keeps_the_best(place: &Place, config: &Path, metric: &str, is_error: bool, value: impl Fn(&Value) -> f64) {
    let run_folder = place.train(config, &[&format!("best.metric={metric}")]);
    let evaluations = evaluations(&run_folder);
    let values: Vec<f64> = evaluations.iter().map(|line| value(&line["tasks"])).collect();
    for (line, value) in evaluations.iter().zip(&values) {
        let objective = line["objective"].as_f64().expect("defined");
        assert!((objective - value).abs() < 1e-12, "{metric}: {objective}, not {value}");
    }
    let best = best_of(&values, is_error);
    assert_ne!(best, best_of(&values, !is_error), "{metric}: all the same {values:?}");
    let state = std::fs::read_to_string(run_folder.join("best/state.json")).expect("best/ is kept");
    let state: Value = serde_json::from_str(&state).expect("JSON");
    assert_eq!(state["round"], evaluations[best]["round"], "{metric} of {values:?}");
    let flagged = evaluations.iter().rposition(|line| line["best"] == true);
    assert_eq!(flagged, Some(best), "{metric}");
    // What `eval` reads is the best one.
    let scores = run(&["eval", run_folder.to_str().unwrap(), "--json"]).ok().json();
    assert_eq!(scores["tasks"], evaluations[best]["tasks"], "{metric}");
}

#[test]
fn every_metric_of_one_task_knows_its_better_side() {
    let place = Place::new();
    for (metric, is_error) in [("mse", true), ("mae", true), ("pearson", false), ("spearman", false)] {
        let config = config(&place, &number("score", metric));
        let of = |tasks: &Value| tasks["score"][metric].as_f64().unwrap();
        for form in ["mean(primary)".to_owned(), format!("score.{metric}")] {
            keeps_the_best(&place, &config, &form, is_error, of);
        }
    }
    for metric in ["accuracy", "f1", "matthews", "auroc"] {
        let config = config(&place, &format!("[tasks.topic]\nlabel = \"topic\"\nmetrics = \"{metric}\"\n"));
        keeps_the_best(&place, &config, "mean(primary)", false, |tasks| tasks["topic"][metric].as_f64().unwrap());
    }
}

#[test]
fn errors_of_several_tasks_are_an_error() {
    let place = Place::new();
    let config = config(&place, &[number("score", "mse"), number("speed", "mse")].concat());
    let both = |tasks: &Value| ["score", "speed"].map(|task| tasks[task]["mse"].as_f64().unwrap());
    let mean = |tasks: &Value| both(tasks).iter().sum::<f64>() / 2.0;
    let worst = |tasks: &Value| both(tasks).into_iter().fold(0.0, f64::max);
    keeps_the_best(&place, &config, "mean(primary)", true, mean);
    keeps_the_best(&place, &config, "mean(mse)", true, mean);
    keeps_the_best(&place, &config, "min(primary)", true, worst);
    keeps_the_best(&place, &config, "max(mse)", true, worst);
    keeps_the_best(&place, &config, "max(loss)", true, |tasks| {
        ["score", "speed"].map(|task| tasks[task]["loss"].as_f64().unwrap()).into_iter().fold(0.0, f64::max)
    });
    let refused = place.outcome_of_training(&config, &["best.metric=min(mse)"], &place.path("no"));
    refused.failed(2, &["best.metric", "help: the worst task's value is `max(mse)`"]);
}

#[test]
fn beside_scores_errors_count_as_negative_numbers() {
    let place = Place::new();
    let tasks = format!("{}[tasks.topic]\nlabel = \"topic\"\n", number("score", "mae"));
    let config = config(&place, &tasks);
    let both = |tasks: &Value| [-tasks["score"]["mae"].as_f64().unwrap(), tasks["topic"]["accuracy"].as_f64().unwrap()];
    keeps_the_best(&place, &config, "mean(primary)", false, |tasks| both(tasks).iter().sum::<f64>() / 2.0);
    keeps_the_best(&place, &config, "min(primary)", false, |tasks| both(tasks)[0].min(both(tasks)[1]));
    let run_folder = place.train(&config, &[]);
    for line in evaluations(&run_folder) {
        assert_eq!(line["mean_primary"], line["objective"]);
        let seen: f64 = both(&line["tasks"]).iter().sum::<f64>() / 2.0;
        assert!((line["mean_primary"].as_f64().unwrap() - seen).abs() < 1e-12);
    }
}

/// An early stop comes `patience` evaluations after the best one, whichever side is better.
#[test]
fn patience_waits_for_a_smaller_error() {
    let place = Place::new();
    for (metric, is_error) in [("mse", true), ("pearson", false)] {
        let config = config(&place, &number("score", metric));
        let run_folder = place.train(&config, &["best.patience=3", "train.rounds=200"]);
        let evaluations = evaluations(&run_folder);
        let values: Vec<f64> = evaluations.iter().map(|line| line["tasks"]["score"][metric].as_f64().unwrap()).collect();
        assert!(values.len() < 200, "{metric}");
        assert_eq!(best_of(&values, is_error), values.len() - 4, "{metric}: {values:?}");
    }
}

/// Two tasks on small features; a dev row of `large` has ones so large that no f32 holds what the encoder makes of them.
fn overflowing(place: &Place) -> std::path::PathBuf {
    let mut rows = "split\tx0\tx1\ty\n".to_owned();
    for row in 0..24 {
        let split = if row % 3 == 0 { "dev" } else { "train" };
        rows += &format!("{split}\t0.{}\t1.{}\t0.{}\n", row % 7, row % 5, row % 4);
    }
    place.write("small.tsv", &rows);
    place.write("large.tsv", rows + "dev\t3e38\t-3e38\t1.0\n");
    let task = |name: &str| {
        format!(
            "[tasks.{name}]\nfile = \"{name}.tsv\"\nsplit = \"split\"\nfeatures = [\"x0\", \"x1\"]\nlabel = \"y\"\nhead = \"regression\"\n"
        )
    };
    let head = ROUNDS.split("[task_defaults]").next().unwrap();
    let tasks = [task("large"), task("small")].concat();
    place.write("large.toml", format!("{head}{tasks}").replace("hidden = 8", "hidden = 256"))
}

#[test]
fn a_prediction_that_is_not_finite_is_named_and_training_goes_on() {
    let place = Place::new();
    let config = overflowing(&place);
    let run_folder = place.path("run");
    let outcome = place.outcome_of_training(&config, &["optimizer.lr=0.01"], &run_folder).ok();
    let warning = "warning: task large: predictions that are not finite on dev examples 8 (1 in all)";
    assert_eq!(outcome.err.matches("warning: task large").count(), 2, "once while training, once at its end:\n{}", outcome.err);
    let outcome = outcome.says(&[warning]);
    assert!(outcome.out.contains("pearson undefined  spearman undefined"), "{}", outcome.out);
    let evaluations = evaluations(&run_folder);
    assert_eq!(evaluations.len(), 24);
    for line in &evaluations {
        let (large, small) = (&line["tasks"]["large"], &line["tasks"]["small"]);
        for key in ["pearson", "spearman", "loss"] {
            assert!(large[key].is_null() && small[key].is_number(), "{key}: {line}");
        }
        assert_eq!(line["mean_primary"], small["pearson"]);
        assert_eq!((line["undefined"].as_u64(), line["objective_undefined"].as_u64()), (Some(1), Some(1)));
        assert!(line["warnings"][0].as_str().is_some_and(|text| text.starts_with("task large")), "{line}");
    }
    let scores = run(&["eval", run_folder.to_str().unwrap(), "--json"]).ok().says(&["warning: task large"]).json();
    assert!(scores["tasks"]["large"]["spearman"].is_null() && scores["undefined"] == 1, "{scores}");
    let asked = run(&["predict", run_folder.to_str().unwrap(), "--task", "large", "--text", "[3e38, -3e38]"]).ok().json();
    assert!(asked["value"].is_null(), "{asked}");
}

/// A measure that is never defined keeps no best parameters, runs out of patience, reaches no target, and is resumed like any other.
#[test]
fn a_measure_that_is_undefined_is_never_the_best() {
    let place = Place::new();
    let config = overflowing(&place);
    let sets =
        ["optimizer.lr=0.01", "best.metric=large.pearson", "tasks.large.target=0", "checkpoint.every=1", "checkpoint.keep=100"];
    let whole = place.train(&config, &[&sets[..], &["best.patience=20"]].concat());
    let lines = evaluations(&whole);
    assert_eq!(lines.len(), 20, "stopped early");
    assert!(lines.iter().all(|line| line["objective"].is_null() && line["best"] == false));
    assert!(metrics(&whole).iter().all(|line| line["kind"] != "target"));
    assert!(!whole.join("best").exists());
    let last = final_checkpoint(&whole);
    checkpoints(&whole).into_iter().skip(7).for_each(|newer| std::fs::remove_dir_all(newer).expect("can remove"));
    resume(&whole).ok();
    assert_same_files(&final_checkpoint(&whole), &last, "the last checkpoint");
    assert_eq!(evaluations(&whole).len(), 20);
}
