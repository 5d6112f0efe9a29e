//! `eval --file`: the scores of a trained model on any file with labels, without its training data.

mod common;

use std::path::Path;

use common::{Outcome, Place, run, table};
use serde_json::Value;

fn eval(trained: &Path, file: &Path, more: &[&str]) -> Outcome {
    let words = ["eval", trained.to_str().expect("UTF-8"), "--file", file.to_str().expect("UTF-8")];
    run(&[&words[..], more].concat())
}

/// Rows of the table with this value in the split column, under its header.
fn rows_of(split: &str) -> String {
    let table = table();
    let (header, rows) = table.split_once('\n').expect("a header");
    let rows: Vec<&str> = rows.lines().filter(|row| row.contains(&format!("\t{split}\t"))).collect();
    format!("{header}\n{}\n", rows.join("\n"))
}

/// Up to the rounding of other batches.
fn assert_near(found: &Value, expected: &Value) {
    let numbers = |value: &Value| -> Vec<f64> {
        let all = value.as_object().into_iter().flatten().filter(|(name, _)| *name != "slices");
        all.filter_map(|(_, value)| value.as_f64()).collect()
    };
    let (found, expected) = (numbers(found), numbers(expected));
    assert!(!expected.is_empty() && found.len() == expected.len(), "{found:?} {expected:?}");
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?} {expected:?}");
}

#[test]
fn a_split_in_a_file_of_its_own_scores_the_same() {
    let place = Place::new();
    for config in [place.bag(), place.linear(), place.transformer()] {
        let sets = ["train.rounds=4", "data.on_bad_row=error"];
        let trained = place.train(&config, &sets);
        let expected = run(&["eval", trained.to_str().expect("UTF-8"), "--json"]).ok().json();
        let file = place.write("dev-rows.tsv", rows_of("dev"));
        std::fs::rename(place.path("table.tsv"), place.path("gone.tsv")).expect("can rename");
        let found = eval(&trained, &file, &["--json"]).ok().json();
        std::fs::rename(place.path("gone.tsv"), place.path("table.tsv")).expect("can rename");
        assert_eq!(found["split"], "file");
        let tasks = expected["tasks"].as_object().expect("tasks");
        assert_eq!(found["tasks"].as_object().expect("tasks").len(), tasks.len());
        tasks.iter().for_each(|(name, scores)| assert_near(&found["tasks"][name.as_str()], scores));
        let one = eval(&trained, &file, &["--json", "--task", "flags"]).ok().json();
        assert_eq!(one["tasks"].as_object().expect("tasks").keys().collect::<Vec<_>>(), ["flags"]);
    }
}

/// Tasks whose columns are not there are left out; a task column says whose a row is.
#[test]
fn a_file_is_scored_on_the_tasks_that_it_has() {
    let place = Place::new();
    let trained = place.train(&place.bag(), &["train.rounds=4"]);
    let file = place.write("some.csv", "text,topic\nred fast,arts\nslow,maths\n");
    let found = eval(&trained, &file, &[]).ok().out;
    assert!(found.contains("topic") && found.contains("(2 examples)") && !found.contains("flags"), "{found}");
    let row = |number: usize| {
        let (task, split) = (["books", "dvd"][number % 2], if number % 5 == 4 { "dev" } else { "train" });
        format!("{task}\t{split}\t{}\t{}\n", ["good film", "bad film"][number / 2 % 2], number / 2 % 2)
    };
    place.write("all.tsv", format!("task\tsplit\ttext\tlabel\n{}", (0..40).map(row).collect::<String>()));
    let config = "[run]\nthreads = 2\n[encoder]\nkind = \"bag\"\ntokenizer = \"words\"\nhidden = 8\nbuckets = 64\n\
                  [task_defaults]\ntext = \"text\"\nlabel = \"label\"\n[tasks_from]\nfile = \"all.tsv\"\nsplit = \"split\"\n\
                  [train]\nrounds = 3\n";
    let trained = place.train(&place.write("from.toml", config), &[]);
    let file = place.write(
        "more.jsonl",
        "{\"task\":\"dvd\",\"text\":\"good\",\"label\":0}\n{\"task\":\"vhs\",\"text\":\"bad\",\"label\":1}\n",
    );
    let found = eval(&trained, &file, &["--json"]).ok().json();
    assert_eq!(found["tasks"]["dvd"]["examples"], 1);
    assert!(found["tasks"].get("books").is_none());
    eval(&trained, &file, &["--task", "books"]).failed(2, &["more.jsonl: column `task` names no task to score in any row"]);
    let file = place.write("plain.csv", "text,label\ngood,0\nbad,1\n");
    let found = eval(&trained, &file, &["--json", "--task", "books"]).ok().json();
    assert_eq!(found["tasks"]["books"]["examples"], 2);
}

#[test]
fn what_cannot_be_scored_is_one_clear_error() {
    let place = Place::new();
    let trained = place.train(&place.bag(), &["train.rounds=4"]);
    let refused = |content: &str, more: &[&str], parts: &[&str]| {
        eval(&trained, &place.write("a.csv", content), more).failed(2, parts);
    };
    refused(
        "txt,topic\na,arts\n",
        &[],
        &["a.csv has not the columns of any task to score: task flags: no column `text`", "did you mean `txt`?"],
    );
    refused("text,topic\na,arts\na,music\n", &[], &["a.csv:3: label `music` is none of the classes `arts`, `maths`, `sport`"]);
    refused("text,topic\na,\n", &[], &["task `topic`: no rows with a label"]);
    refused(
        "text,topic\na,arts\n",
        &["--task", "topics"],
        &["--task: there is no task \"topics\"; there are flags, numbers, topic"],
    );
    refused("text,topic\na,arts\n", &["--split", "dev"], &["cannot be used with"]);
    eval(&trained, &place.path("none.csv"), &[]).failed(2, &["none.csv: no such file"]);
}
