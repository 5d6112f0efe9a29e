//! `observe.trackio`: the file that Trackio opens has the run's scalars once, whatever happened to the run; without the key there is
//! no file.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Outcome, Place, checkpoints, metrics, outcome, run, taskloom, training};
use rusqlite::Connection;
use serde_json::{Value, json};

/// A row of `metrics`: its run's id and name, its step, and its values.
type Row = (String, String, i64, Value);

fn rows(folder: &Path) -> Vec<Row> {
    let database = Connection::open(folder.join("tried-2.db")).expect("a database");
    let mut statement = database.prepare("SELECT run_id, run_name, step, metrics FROM metrics ORDER BY id").expect("the table");
    let values = |text: String| serde_json::from_str(&text).expect("JSON");
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, values(row.get(3)?))));
    rows.expect("rows").map(|row| row.expect("a row")).collect()
}

fn configs(folder: &Path) -> Vec<(String, Value)> {
    let database = Connection::open(folder.join("tried-2.db")).expect("a database");
    let mut statement = database.prepare("SELECT run_id, config FROM configs ORDER BY id").expect("the table");
    let config = |text: String| serde_json::from_str(&text).expect("JSON");
    let rows = statement.query_map([], |row| Ok((row.get(0)?, config(row.get(1)?))));
    rows.expect("rows").map(|row| row.expect("a row")).collect()
}

/// Steps and some values of what metrics.jsonl has, in its order.
fn expected(run: &Path) -> Vec<(i64, Value)> {
    let scalar = |line: &Value| match line["kind"].as_str()? {
        "round" => Some(line["lr"].clone()),
        "conflict" => Some(line["share"].clone()),
        "eval" => Some(line["mean_primary"].clone()),
        "end" => line["scores"].get("dev").map(|scores| scores["mean_primary"].clone()),
        _ => None,
    };
    metrics(run).iter().filter_map(|line| Some((line["round"].as_i64()?, scalar(line)?))).collect()
}

/// The same of the file's rows of a run.
fn found(rows: &[Row], run: &str) -> Vec<(i64, Value)> {
    let tags = ["train/lr", "conflict/share", "dev/mean_primary", "final_dev/mean_primary"];
    let own = rows.iter().filter(|(_, name, ..)| name == run);
    own.map(|(_, _, step, values)| (*step, tags.iter().find_map(|tag| values.get(tag)).expect("one of these").clone())).collect()
}

fn with_folder(mut command: Command, folder: &Path) -> Outcome {
    outcome(command.env("TRACKIO_DIR", folder).output())
}

fn resuming(run: &Path, sets: &[&str]) -> Command {
    let mut command = taskloom();
    command.arg("resume").arg(run);
    sets.iter().for_each(|set| {
        command.args(["--set", set]);
    });
    command
}

#[test]
fn a_run_is_in_the_project_once() {
    let place = Place::new();
    let (config, folder) = (place.linear(), place.path("trackio"));
    let sets = ["observe.trackio=tried-2", "checkpoint.every=4", "eval.every=4", "observe.conflict_every=3"];
    let [whole, stopped] = ["whole", "stopped"].map(|name| place.path(name));
    with_folder(training(&config, &sets, &whole), &folder).ok();
    assert_eq!(found(&rows(&folder), "whole"), expected(&whole));
    let rounds = rows(&folder).into_iter().map(|row| row.3).filter(|values| !values["train/lr"].is_null());
    for (values, line) in rounds.zip(metrics(&whole).iter().filter(|line| line["kind"] == "round")) {
        let losses = line["losses"].as_object().expect("by task");
        assert!(
            !losses.is_empty() && losses.iter().all(|(task, loss)| values[&format!("loss/{task}")] == *loss),
            "{values} {line}"
        );
    }
    // From the checkpoint before the last one: what happens again is there once.
    let mut command = training(&config, &[&sets[..], &["checkpoint.keep=9"]].concat(), &stopped);
    command.args(["--until", "6"]);
    assert_eq!(with_folder(command, &folder).code, Some(130));
    assert_eq!(found(&rows(&folder), "stopped"), expected(&stopped));
    std::fs::remove_dir_all(checkpoints(&stopped).pop().expect("a checkpoint")).expect("can be removed");
    with_folder(resuming(&stopped, &[]), &folder).ok();
    assert_eq!(found(&rows(&folder), "stopped"), expected(&stopped));
    assert_eq!(found(&rows(&folder), "stopped"), found(&rows(&folder), "whole"));
    let mut ids: Vec<String> = rows(&folder).into_iter().map(|row| row.0).collect();
    ids.sort();
    ids.dedup();
    let configs = configs(&folder);
    assert!(ids.len() == 2 && configs.len() == 2 && configs.iter().all(|(id, _)| ids.contains(id)), "{ids:?} {configs:?}");
    assert_eq!((&configs[0].1["run.seed"], &configs[0].1["observe.trackio"]), (&json!(7), &json!("tried-2")));
}

#[test]
fn without_the_key_there_is_no_file() {
    let place = Place::new();
    let folder = place.path("trackio");
    let trained = place.path("run");
    with_folder(training(&place.linear(), &["train.rounds=2"], &trained), &folder).ok();
    assert!(!folder.exists() && !trained.join("trackio-id").exists());
    // A run that began without it has all of its past in it.
    with_folder(resuming(&trained, &["observe.trackio=tried-2", "train.rounds=4"]), &folder).ok();
    assert_eq!(found(&rows(&folder), "run"), expected(&trained));
}

#[test]
fn what_cannot_be_opened_is_said_before_there_is_a_run() {
    let place = Place::new();
    let (config, trained) = (place.linear(), place.path("run"));
    let folder: PathBuf = place.write("no-folder", "a file");
    let set = ["observe.trackio=tried-2"];
    with_folder(training(&config, &set, &trained), &folder).failed(2, &["observe.trackio: cannot use", "no-folder/tried-2.db"]);
    assert!(!trained.exists(), "a refused run leaves nothing behind");
    for (name, problem) in [("a b", "is no name"), ("registry-a", "registries"), ("model_configs", "ends in `_configs`")] {
        let set = format!("observe.trackio={name}");
        run(&["check", config.to_str().expect("UTF-8"), "--set", &set]).failed(2, &["observe.trackio", problem]);
    }
}

#[test]
fn a_run_goes_on_without_its_project() {
    let place = Place::new();
    let (config, folder, trained) = (place.linear(), place.path("trackio"), place.path("run"));
    let mut command = training(&config, &["observe.trackio=tried-2", "train.rounds=8"], &trained);
    command.args(["--until", "4"]);
    assert_eq!(with_folder(command, &folder).code, Some(130));
    std::fs::write(folder.join("tried-2.db"), "spoiled".repeat(1000)).expect("can write");
    with_folder(resuming(&trained, &[]), &folder).failed(2, &["observe.trackio: cannot use", "set the key to \"\""]);
    with_folder(resuming(&trained, &["observe.trackio=\"\""]), &folder).ok();
}
