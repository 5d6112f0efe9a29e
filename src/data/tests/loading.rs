//! From files to a corpus: labels, splits, slices, sharing, and independence of the thread count.

use std::sync::Arc;

use anyhow::{Context, Result};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::json;

use super::support::{Files, assert_contains, config, load_one, load_with, message, task, tokens};
use crate::data::{Corpus, Inputs, SplitName, Targets, encode_texts, load};

#[test]
fn a_missing_label_skips_the_row_for_that_task_only() -> Result<()> {
    let files = Files::new()?;
    let path = files.write("x.tsv", "text\tlabel\ty\na\t1\t\nb\t\t2.5\nc\t0\t1\n")?;
    let tasks = json!({
        "class": task(json!({"train": path})),
        "value": task(json!({"train": path, "label": ["y"], "head": "regression"})),
    });
    let corpus = load(&config(tasks, json!({}))?, &|_| {})?;
    let [class, value] = corpus.tasks.as_slice() else { panic!("two tasks") };
    assert_eq!(class.train.targets, Targets::Class(vec![1, 0]));
    assert_eq!(class.classes, ["0", "1"]);
    assert_eq!(value.train.targets, Targets::Values { dim: 1, values: vec![2.5, 1.0] });
    assert_eq!(value.outputs, 1);
    assert_eq!(class.report.missing_labels[&SplitName::Train], 1);
    assert_eq!(value.report.missing_labels[&SplitName::Train], 1);
    assert_eq!(tokens(&class.train)[1], tokens(&value.train)[1]);
    assert_eq!(corpus.files.len(), 1, "one file is read once");
    assert_eq!(corpus.files[0].rows, 3);
    Ok(())
}

#[test]
fn multilabel_cells_are_masked_one_by_one() -> Result<()> {
    let files = Files::new()?;
    let json = r#"{"text":"a","l1":1,"l2":null}
{"text":"b","l1":false,"l2":"1"}
{"text":"c"}
"#;
    let path = files.write("x.jsonl", json)?;
    let corpus = load_one(&path, json!({"head": "multilabel", "label": ["l1", "l2"]}))?;
    let task = &corpus.tasks[0];
    let Targets::Values { dim: 2, values } = &task.train.targets else { panic!("two labels") };
    assert_eq!((values[0], values[2], values[3], values.len()), (1.0, 0.0, 1.0, 4));
    assert!(values[1].is_nan());
    assert_eq!((task.outputs, task.classes.as_slice()), (2, ["l1".to_owned(), "l2".to_owned()].as_slice()));
    assert_eq!(task.report.missing_labels[&SplitName::Train], 1);
    Ok(())
}

/// Rows of two names, of one, of none that applies, and without a label, in every format.
#[test]
fn multilabel_names_in_one_column() -> Result<()> {
    let files = Files::new()?;
    let tsv = files.write("x.tsv", "text\tlabel\na\tsad, angry\nb\tsad\nc\t[]\nd\t\n")?;
    let csv = files.write("x.csv", "text,label\na,sad;angry\nb,\"sad,\"\nc,[]\nd,\n")?;
    let json = files.write(
        "x.jsonl",
        r#"{"text":"a","label":["sad","angry"]}
{"text":"b","label":"sad"}
{"text":"c","label":[]}
{"text":"d","label":null}
"#,
    )?;
    let parquet = files.path("x.parquet");
    write_lists(&parquet)?;
    for path in [tsv, csv, json, parquet] {
        let corpus = load_one(&path, json!({"head": "multilabel"}))?;
        let task = &corpus.tasks[0];
        assert_eq!(task.classes, ["angry", "sad"]);
        let values = vec![1.0, 1.0, 0.0, 1.0, 0.0, 0.0];
        assert_eq!(task.train.targets, Targets::Values { dim: 2, values }, "{}", path.display());
        assert_eq!(task.report.missing_labels[&SplitName::Train], 1, "{}", path.display());
    }
    Ok(())
}

/// The labels of [`multilabel_names_in_one_column`] as lists, the last one null.
fn write_lists(path: &std::path::Path) -> Result<()> {
    let schema = "message m { REQUIRED BYTE_ARRAY text (UTF8);
        OPTIONAL GROUP label (LIST) { REPEATED GROUP list { REQUIRED BYTE_ARRAY element (UTF8); } } }";
    let schema = Arc::new(parse_message_type(schema)?);
    let mut writer = SerializedFileWriter::new(std::fs::File::create(path)?, schema, Arc::default())?;
    let mut group = writer.next_row_group()?;
    let mut write = |values: &[&str], definition: Option<&[i16]>, repetition: Option<&[i16]>| -> Result<()> {
        let mut column = group.next_column()?.context("the schema has more columns")?;
        let values: Vec<ByteArray> = values.iter().map(|&value| value.into()).collect();
        column.typed::<ByteArrayType>().write_batch(&values, definition, repetition)?;
        Ok(column.close()?)
    };
    write(&["a", "b", "c", "d"], None, None)?;
    write(&["sad", "angry", "sad"], Some(&[2, 2, 2, 1, 0]), Some(&[0, 1, 0, 0, 0]))?;
    group.close()?;
    writer.close()?;
    Ok(())
}

#[test]
fn splits_and_slices_come_from_columns() -> Result<()> {
    let files = Files::new()?;
    let path = files.write(
        "x.jsonl",
        r#"{"text":"a","label":0,"split":"train","seen":0}
{"text":"b","label":1,"split":"test","seen":0}
{"text":"c","label":1,"split":"train","seen":1}
{"text":"d","label":0,"split":"test","seen":2}
{"text":"e","label":0,"split":"validation","seen":0}
{"text":"f","label":0,"split":"junk","seen":0}
"#,
    )?;
    let slices = json!({"eval": {"slices": {"clean": {"column": "seen", "equals": "0"}}}});
    let settings = task(json!({"file": path, "split": "split", "dev_splits": ["dev", "validation"]}));
    let corpus = load(&config(json!({"t": settings}), slices.clone())?, &|_| {})?;
    let task = &corpus.tasks[0];
    assert_eq!((task.train.len(), task.train.slices.len()), (2, 0));
    assert_eq!(task.dev.as_ref().map(|split| split.len()), Some(1));
    let test = task.test.as_ref().context("test has rows")?;
    assert_eq!(test.slices["clean"], [true, false]);
    assert_eq!(test.targets, Targets::Class(vec![1, 0]));
    assert_eq!(corpus.files[0].other_splits["junk"], 1);
    // Files of train rows only need no slice column; a test file does.
    let plain = files.write("y.tsv", "text\tlabel\na\t0\nb\t1\n")?;
    assert!(load_with(&plain, json!({}), slices.clone()).is_ok());
    let error = message(load_with(&plain, json!({"test": plain}), slices));
    assert_contains(&error, &["y.tsv: no column `seen`"]);
    Ok(())
}

#[test]
fn a_split_column_without_training_rows_says_what_it_holds() -> Result<()> {
    let files = Files::new()?;
    let path = files.write("x.tsv", "text\tlabel\tsplit\na\t0\tTRAIN\nb\t1\tTRAIN\n")?;
    let settings = task(json!({"file": path, "split": "split"}));
    let error = message(load(&config(json!({"t": settings}), json!({}))?, &|_| {}));
    assert_contains(&error, &["task `t`: no training examples", "`TRAIN`"]);
    Ok(())
}

#[test]
fn pairs_know_where_the_first_text_ends() -> Result<()> {
    let files = Files::new()?;
    let path = files.write("x.tsv", "s1\ts2\tlabel\na b\tc\t0\nd\te f g h\t1\n\t\t1\n")?;
    let pair = json!({"text": ["s1", "s2"]});
    let corpus = load_with(&path, pair, json!({"encoder": {"max_len": 4}}))?;
    let Inputs::Tokens(store) = &corpus.tasks[0].train.inputs else { panic!("text") };
    let tokenizer = corpus.tokenizer.as_ref().context("text has a tokenizer")?;
    let mut ids = Vec::new();
    assert_eq!(store.read(1, &mut ids), 1);
    assert_eq!(ids, encode_texts(tokenizer, &["d e f g"], 9)?.0);
    assert_eq!((store.read(0, &mut Vec::new()), store.token_count(0), store.token_count(2)), (2, 3, 0));
    Ok(())
}

/// Each is cut by itself, and held out with the other; another task has the same columns as one sequence.
#[test]
fn texts_that_are_compared_are_sequences_of_their_own() -> Result<()> {
    let files = Files::new()?;
    let path = files.write("x.tsv", "s1\ts2\tlabel\na b c\td\t0\n\te f g\t1\ng\th\t\n")?;
    let columns = json!({"train": path, "text": ["s1", "s2"]});
    let mut compared = columns.clone();
    compared
        .as_object_mut()
        .context("a table")?
        .extend([("head".to_owned(), json!("similarity")), ("label".to_owned(), json!([]))]);
    let tasks = json!({"joined": task(columns), "pairs": task(compared)});
    let corpus = load(&config(tasks, json!({"encoder": {"max_len": 2}}))?, &|_| {})?;
    let [joined, pairs] = corpus.tasks.as_slice() else { panic!("two tasks") };
    let tokenizer = corpus.tokenizer.as_ref().context("text has a tokenizer")?;
    let expected = ["a b", "d", "", "e f", "g", "h"].map(|text| encode_texts(tokenizer, &[text], 9).map(|(ids, _)| ids));
    assert_eq!(tokens(&pairs.train), expected.into_iter().collect::<Result<Vec<_>>>()?);
    assert_eq!((pairs.train.len(), pairs.train.rows(), pairs.outputs), (3, 6, 8));
    assert_eq!(pairs.train.targets, Targets::Pairs);
    assert_eq!((joined.train.len(), joined.train.rows()), (2, 2), "a row without a label is skipped where there is one to learn");
    Ok(())
}

#[test]
fn features_come_as_columns_lists_or_text() -> Result<()> {
    let files = Files::new()?;
    let columns = files.write("a.csv", "f1,f2,label\n0.5,-2,x\n1e-3,4,y\n")?;
    let list = files.write("b.jsonl", "{\"f\":[0.5,-2],\"label\":\"x\"}\n{\"f\":[1e-3,4],\"label\":\"y\"}\n")?;
    let text = files.write("c.tsv", "f\tlabel\n0.5 -2\tx\n[1e-3, 4]\ty\n")?;
    for (path, names) in [(columns, vec!["f1", "f2"]), (list, vec!["f"]), (text, vec!["f"])] {
        let corpus = load_one(&path, json!({"text": [], "features": names}))?;
        let Inputs::Features(store) = &corpus.tasks[0].train.inputs else { panic!("features") };
        assert_eq!((store.dim(), store.row(0), store.row(1)), (2, vec![0.5, -2.0], vec![1e-3, 4.0]));
        assert_eq!(corpus.feature_dim, Some(2));
        assert!(corpus.tokenizer.is_none());
    }
    Ok(())
}

fn many_rows(rows: usize) -> String {
    let rows = (0..rows).map(|i| format!("word{} and word{} again\t{}\n", i % 977, i * 31 % 1_013, i % 3));
    format!("text\tlabel\n{}", rows.collect::<String>())
}

fn fingerprints(corpus: &Corpus) -> Vec<[u8; 32]> {
    corpus.tasks.iter().map(|task| task.fingerprint).collect()
}

#[test]
fn the_thread_count_changes_nothing() -> Result<()> {
    let files = Files::new()?;
    let path = files.write("x.tsv.gz", many_rows(10_000))?;
    let settings = config(json!({"t": task(json!({"train": path, "dev": path}))}), json!({}))?;
    let mut results = Vec::new();
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        // From inside the pool: its only thread waits for the reader.
        let corpus = pool.install(|| load(&settings, &|_| {}))?;
        results.push((tokens(&corpus.tasks[0].train), fingerprints(&corpus)));
    }
    assert_eq!(results[0].0.len(), 10_000);
    assert!(results[0] == results[1]);
    Ok(())
}

#[test]
fn the_fingerprint_follows_what_training_sees() -> Result<()> {
    let files = Files::new()?;
    let print =
        |name: &str, content: &str| -> Result<_> { Ok(load_one(&files.write(name, content)?, json!({}))?.tasks[0].fingerprint) };
    let base = print("a.tsv", "text\tlabel\na\t0\nb\t1\n")?;
    assert_eq!(base, print("b.csv", "label,text\n0,a\n1,b\n")?);
    for other in ["a\t0\nc\t1\n", "a\t1\nb\t0\n", "b\t1\na\t0\n", "a\t0\nb\t2\n", "a\t0\nb\t1\nb\t1\n"] {
        assert_ne!(base, print("c.tsv", &format!("text\tlabel\n{other}"))?, "{other}");
    }
    Ok(())
}

#[test]
fn progress_reaches_the_end_of_the_file() -> Result<()> {
    let files = Files::new()?;
    let path = files.write("x.tsv.gz", many_rows(5_000))?;
    let settings = config(json!({"t": task(json!({"train": path}))}), json!({}))?;
    let seen = std::sync::Mutex::new(Vec::new());
    load(&settings, &|progress| {
        if let Ok(mut seen) = seen.lock() {
            seen.push((progress.label.to_owned(), progress.rows, progress.bytes == progress.total_bytes));
        }
    })?;
    let seen = seen.into_inner().unwrap_or_default();
    assert_eq!(seen.len(), 3);
    assert_eq!(seen.last(), Some(&("x.tsv.gz".to_owned(), 5_000, true)));
    Ok(())
}

#[test]
fn contradictory_settings_are_named() -> Result<()> {
    let files = Files::new()?;
    let path = files.write("x.tsv", "text\tlabel\na\t0\nb\t1\n")?;
    assert_contains(&message(load_one(&path, json!({"features": ["f"]}))), &["both `text` and `features`"]);
    assert_contains(&message(load_one(&path, json!({"label": []}))), &["task `t` has no `label`"]);
    assert_contains(&message(load_one(&path, json!({"file": path}))), &["both `file` and `train`"]);
    let error = message(load_with(&path, json!({}), json!({"encoder": {"tokenizer": null}})));
    assert_contains(&error, &["set encoder.tokenizer"]);
    Ok(())
}
