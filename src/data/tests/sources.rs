//! `tasks_from`, and the check that reads headers only.

use anyhow::Result;
use serde_json::{Value, json};

use super::support::{Files, assert_contains, config, message, task, tokens};
use crate::config::schema::Config;
use crate::data::{check_sources, expand, load};

const TABLE: &str = "task\tsplit\ttext\tlabel\ty
books\ttrain\tgood\t1\t5
dvd\ttrain\tbad\t0\t1
books\ttest\tso so\t0\t3
dvd\ttrain\tfine\t1\t4
books\ttrain\tawful\t0\t0
\ttrain\tnobody's\t0\t0
";

fn from_table(files: &Files, table: &str, include: Value, tasks: Value) -> Result<Config> {
    let path = files.write("table.tsv", table)?;
    let defaults = task(json!({"split": "split"}));
    let from = json!({"file": path, "task": "task", "include": include});
    config(tasks, json!({"tasks_from": from, "task_defaults": defaults}))
}

#[test]
fn one_task_per_value_of_the_column() -> Result<()> {
    let files = Files::new()?;
    let mut config = from_table(&files, TABLE, json!([]), json!({}))?;
    expand(&mut config)?;
    let once = config.clone();
    expand(&mut config)?;
    assert_eq!(config, once);
    let corpus = load(&config, &|_| {})?;
    let shape: Vec<_> = corpus
        .tasks
        .iter()
        .map(|task| (task.name.as_str(), task.train.len(), task.test.as_ref().map_or(0, |test| test.len())))
        .collect();
    assert_eq!(shape, [("books", 2, 1), ("dvd", 2, 0)]);
    assert_eq!(corpus.files.len(), 1);
    assert_eq!(corpus.files[0].other_tasks, 1);
    assert_eq!(tokens(&corpus.tasks[0].train).len(), 2);
    Ok(())
}

#[test]
fn settings_of_one_task_override_the_defaults() -> Result<()> {
    let files = Files::new()?;
    let tasks = json!({"dvd": task(json!({"split": "split", "label": ["y"], "head": "regression", "weight": 2.0}))});
    let mut config = from_table(&files, TABLE, json!([]), tasks)?;
    expand(&mut config)?;
    let corpus = load(&config, &|_| {})?;
    let outputs: Vec<_> = corpus.tasks.iter().map(|task| (task.outputs, task.settings.weight)).collect();
    assert_eq!(outputs, [(2, 1.0), (1, 2.0)]);
    assert_eq!(corpus.files.len(), 1);
    Ok(())
}

#[test]
fn include_filters_and_knows_the_names() -> Result<()> {
    let files = Files::new()?;
    let mut config = from_table(&files, TABLE, json!(["dvd"]), json!({}))?;
    expand(&mut config)?;
    assert_eq!(config.tasks.keys().collect::<Vec<_>>(), ["dvd"]);
    assert_eq!(load(&config, &|_| {})?.files[0].other_tasks, 4);
    let mut config = from_table(&files, TABLE, json!(["bookz"]), json!({}))?;
    assert_contains(&message(expand(&mut config)), &["tasks_from.include", "no task `bookz`", "did you mean `books`?"]);
    Ok(())
}

#[test]
fn expanding_refuses_what_cannot_be_meant() -> Result<()> {
    let files = Files::new()?;
    let mut config = from_table(&files, TABLE, json!([]), json!({"book": task(json!({}))}))?;
    assert_contains(&message(expand(&mut config)), &["tasks.book", "did you mean `books`?"]);
    let mut config = from_table(&files, TABLE, json!([]), json!({"dvd": task(json!({"train": "/x.tsv"}))}))?;
    assert_contains(&message(expand(&mut config)), &["task `dvd` has files of its own"]);
    let mut config = from_table(&files, "task\tsplit\ttext\tlabel\na b\ttrain\tx\t0\n", json!([]), json!({}))?;
    assert_contains(&message(expand(&mut config)), &["table.tsv:2: task name `a b`"]);
    let mut config = from_table(&files, "tusk\tsplit\n", json!([]), json!({}))?;
    assert_contains(&message(expand(&mut config)), &["no column `task`", "did you mean `tusk`?"]);
    Ok(())
}

#[test]
fn check_finds_every_problem_at_once() -> Result<()> {
    let files = Files::new()?;
    let good = files.write("good.tsv", "text\tlabel\n")?;
    let tasks = json!({
        "a": task(json!({"train": good, "label": ["lable"], "test": good})),
        "b": task(json!({"train": files.path("none.tsv"), "dev": good, "text": ["txt"]})),
        "c": task(json!({})),
        "d": task(json!({"synthetic": "x"})),
        "e": task(json!({"file": good, "split": "split"})),
    });
    let changes = json!({"encoder": {"tokenizer": files.path("vocab.txt")},
        "eval": {"slices": {"clean": {"column": "seen", "equals": "0"}}}});
    let problems = check_sources(&config(tasks, changes)?);
    let keys: Vec<&str> = problems.iter().map(|(key, _)| key.as_str()).collect();
    let expected = [
        "encoder.tokenizer",
        "eval.slices.clean.column",
        "tasks.a.label",
        "tasks.b.text",
        "tasks.b.train",
        "tasks.c",
        "tasks.e.split",
    ];
    assert_eq!(keys, expected, "{problems:#?}");
    assert_contains(&problems[2].1, &["good.tsv", "did you mean `label`?"]);
    Ok(())
}

#[test]
fn check_names_shared_settings_once() -> Result<()> {
    let files = Files::new()?;
    let table = TABLE.replace("\tlabel\t", "\tlabels\t");
    let mut config = from_table(&files, &table, json!([]), json!({}))?;
    let before = check_sources(&config);
    expand(&mut config)?;
    assert_eq!(check_sources(&config), before);
    assert_eq!(before.len(), 1, "{before:?}");
    assert_eq!(before[0].0, "task_defaults.label");
    let good = from_table(&files, TABLE, json!([]), json!({}))?;
    assert_eq!(check_sources(&good), []);
    Ok(())
}

#[test]
fn check_finds_a_late_key_of_json_lines() -> Result<()> {
    let files = Files::new()?;
    let early = "{\"text\":\"a\"}\n".repeat(1_500);
    let path = files.write("x.jsonl", format!("{early}{{\"text\":\"b\",\"label\":1}}\n"))?;
    let problems = |label: &str| -> Result<usize> {
        let tasks = json!({"t": task(json!({"train": path, "label": [label]}))});
        Ok(check_sources(&config(tasks, json!({}))?).len())
    };
    assert_eq!((problems("label")?, problems("lable")?), (0, 1));
    Ok(())
}
