//! Rows held out of the training files, several files, and feature columns by patterns.

use anyhow::Result;
use serde_json::{Value, json};

use super::support::{Files, assert_contains, config, load_one, load_with, message, task};
use crate::config::schema::Config;
use crate::data::{Corpus, Inputs, Split, Targets, check_sources, expand, load};

/// 60 rows of two classes, one twice as frequent; the text says which row it is.
fn table() -> String {
    let row = |row: usize| format!("r{row}\t{}\t{}.5\t{}\n", if row.is_multiple_of(3) { "b" } else { "a" }, row, row % 2);
    format!("text\tlabel\ty\tseen\n{}", (0..60).map(row).collect::<String>())
}

fn values(split: Option<&Split>) -> Vec<f32> {
    match split.map(|split| &split.targets) {
        Some(Targets::Values { values, .. }) => values.clone(),
        _ => Vec::new(),
    }
}

fn classes(split: Option<&Split>) -> [usize; 2] {
    let Some(Targets::Class(classes)) = split.map(|split| &split.targets) else { return [0; 2] };
    [0, 1].map(|class| classes.iter().filter(|&&other| other == class).count())
}

fn numbers(changes: Value) -> Value {
    json!({"head": "regression", "label": ["y"], "dev": changes["dev"], "test": changes["test"]})
}

#[test]
fn every_class_gives_its_share_and_no_row_is_lost() -> Result<()> {
    let files = Files::new()?;
    let path = files.write("x.tsv", table())?;
    let slices = json!({"eval": {"slices": {"odd": {"column": "seen", "equals": "1"}}}});
    let corpus = load_with(&path, json!({"dev": 0.1, "test": 0.2}), slices)?;
    let task = &corpus.tasks[0];
    let found = [Some(&task.train), task.dev.as_ref(), task.test.as_ref()].map(classes);
    assert_eq!(found, [[28, 14], [4, 2], [8, 4]]);
    assert!(task.train.slices.is_empty() && task.dev.as_ref().is_some_and(|dev| dev.slices["odd"].len() == 6));
    let corpus = load_one(&path, numbers(json!({"dev": 0.1, "test": 0.2})))?;
    let task = &corpus.tasks[0];
    let mut all = [Some(&task.train), task.dev.as_ref(), task.test.as_ref()].map(values).concat();
    assert_eq!(task.train.len(), 42);
    all.sort_by(f32::total_cmp);
    assert!(all.iter().enumerate().all(|(row, value)| *value == row as f32 + 0.5), "{all:?}");
    Ok(())
}

/// Where the files lie does not count, and the seed does.
#[test]
fn the_same_rows_everywhere_and_others_by_another_seed() -> Result<()> {
    let held = |seed: u64| -> Result<(Vec<f32>, [u8; 32])> {
        let files = Files::new()?;
        let corpus = load_with(&files.write("x.tsv", table())?, numbers(json!({"dev": 0.25})), json!({"run": {"seed": seed}}))?;
        Ok((values(corpus.tasks[0].dev.as_ref()), corpus.tasks[0].fingerprint))
    };
    assert_eq!(held(1)?, held(1)?);
    assert_ne!(held(1)?.0, held(2)?.0);
    let files = Files::new()?;
    let path = files.write("x.tsv", table().replace("59.5", "58.5"))?;
    let changed = load_with(&path, numbers(json!({"dev": 0.25})), json!({"run": {"seed": 1}}))?;
    assert_ne!(changed.tasks[0].fingerprint, held(1)?.1, "a change of the data is found");
    Ok(())
}

#[test]
fn a_share_of_next_to_nothing_is_an_error() -> Result<()> {
    let files = Files::new()?;
    let path = files.write("x.tsv", "text\tlabel\na\t0\nb\t1\nc\t0\n")?;
    let error = message(load_one(&path, json!({"dev": 0.1})));
    assert_contains(&error, &["task `t`: dev = 0.1 of 3 labelled training rows is no row", "give files"]);
    Ok(())
}

#[test]
fn several_files_are_one_split() -> Result<()> {
    let files = Files::new()?;
    let one = files.write("b.tsv", "text\tlabel\ty\na\t0\t1\nb\t1\t2\n")?;
    let other = files.write("a.jsonl", "{\"text\": \"c\", \"label\": 0, \"y\": 3}\n")?;
    let corpus = load_one(&one, json!({"train": [one, other], "head": "regression", "label": ["y"]}))?;
    assert_eq!(values(Some(&corpus.tasks[0].train)), [3.0, 1.0, 2.0]);
    Ok(())
}

/// `x1..x3` and the like, over a table that two tasks read.
fn dense(files: &Files, header: &str, features: Value) -> Result<Config> {
    let path = files.write("f.tsv", format!("{header}\n1\t2\t3\t4\t5\n6\t7\t8\t9\t1\n"))?;
    let own =
        |label: &str| task(json!({"train": path, "text": [], "features": features, "label": [label], "head": "regression"}));
    config(json!({"t": own("y"), "u": own("z")}), json!({"encoder": {"kind": "linear"}}))
}

fn first_row(corpus: &Corpus) -> Vec<f32> {
    let Inputs::Features(store) = &corpus.tasks[0].train.inputs else { return Vec::new() };
    store.row(0).to_vec()
}

#[test]
fn feature_columns_by_patterns() -> Result<()> {
    let cases = [
        (json!(["*"]), vec![1.0, 3.0, 4.0]),
        (json!(["x*"]), vec![1.0, 4.0]),
        (json!(["x1..x2"]), vec![1.0, 2.0, 3.0, 4.0]),
        (json!(["a..x2"]), vec![3.0, 4.0]),
        (json!(["x2", "x*", "a"]), vec![4.0, 1.0, 3.0]),
    ];
    for (features, expected) in cases {
        let files = Files::new()?;
        // A range takes what stands between its ends, so the label stands outside of it.
        let header = if features == json!(["x1..x2"]) { "x1\tb\ta\tx2\tz" } else { "x1\ty\ta\tx2\tz" };
        let mut config = dense(&files, header, features.clone())?;
        if header.contains("\tb\t") {
            config.tasks.remove("t");
        }
        assert_eq!(check_sources(&config), []);
        expand(&mut config)?;
        let features_before = config.tasks["u"].features.clone();
        expand(&mut config)?;
        assert_eq!(config.tasks["u"].features, features_before);
        assert_eq!(first_row(&load(&config, &|_| {})?), expected, "{features}");
    }
    Ok(())
}

#[test]
fn patterns_that_mean_nothing_are_errors() -> Result<()> {
    let cases = [
        (json!(["q*"]), "no column for `q*` beside labels and splits"),
        (json!(["x1..x9"]), "`x1..x9`: no column `x9`"),
        (json!(["x2..x1"]), "`x2..x1`: column `x1` stands before `x2`"),
        (json!(["x1..x2"]), "its label `y` is among its features"),
    ];
    for (features, expected) in cases {
        let files = Files::new()?;
        let mut config = dense(&files, "x1\ty\ta\tx2\tz", features)?;
        let problems = check_sources(&config);
        assert!(problems.iter().any(|(key, message)| key == "tasks.t.features" && message.contains(expected)), "{problems:?}");
        assert_contains(&message(expand(&mut config)), &[expected]);
    }
    Ok(())
}
