//! Everything that can be wrong with a file: one clear error, or counted when bad rows are skipped.

use anyhow::Result;
use serde_json::{Value, json};

use super::support::{Files, assert_contains, gzip, load_one, load_with, message, skipping, tokens};
use crate::data::{BadKind, Corpus, Targets};

/// Loads `content` as `name`; with bad rows as errors the message must hold all `parts`.
fn refused(name: &str, content: impl AsRef<[u8]>, parts: &[&str]) -> Result<()> {
    let files = Files::new()?;
    let path = files.write(name, content)?;
    assert_contains(&message(load_one(&path, json!({}))), parts);
    Ok(())
}

/// One bad row of `kind` at `line` among good ones: refused by default, else counted.
fn bad_row(name: &str, content: impl AsRef<[u8]>, changes: Value, kind: BadKind, line: u64, part: &str) -> Result<()> {
    let files = Files::new()?;
    let path = files.write(name, content)?;
    let place = format!("{name}:{line}: ");
    let refused = message(load_one(&path, changes.clone()));
    assert_contains(&refused, &[&place, part, "on_bad_row"]);
    let corpus = load_with(&path, changes, skipping())?;
    let bad = reasons(&corpus);
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert_eq!((bad[0].0, bad[0].1), (kind, 1));
    assert_contains(&bad[0].2, &[&place, part]);
    Ok(())
}

fn reasons(corpus: &Corpus) -> Vec<(BadKind, u64, String)> {
    let of_files = corpus.files.iter().map(|file| &file.bad);
    let all = of_files.chain(corpus.tasks.iter().map(|task| &task.report.bad));
    all.flat_map(|bad| bad.by_kind.iter()).map(|(kind, bad)| (*kind, bad.count, bad.first.clone())).collect()
}

#[test]
fn files_that_are_no_data() -> Result<()> {
    refused("x.tsv", "", &["x.tsv", "the file is empty"])?;
    refused("x.tsv", gzip(b"text\tlabel\n")?, &["the name says plain text", "gzip data"])?;
    refused("x.tsv", b"PAR1....", &["Parquet: name it .parquet"])?;
    refused("x.tsv", b"\xff\xfet\0e\0", &["UTF-16"])?;
    refused("x.txt", "text\tlabel\n", &["x.txt", "cannot tell the format", "`format`"])?;
    refused("x.json", "{}", &["format = \"jsonl\""])?;
    refused("x.parquet", "text\tlabel\n", &["not a Parquet file"])?;
    refused("x.parquet.gz", "PAR1", &["compressed inside"])?;
    let files = Files::new()?;
    std::fs::write(files.path("x.tsv.gz"), "text\tlabel\na\t1\n")?;
    assert_contains(&message(load_one(&files.path("x.tsv.gz"), json!({}))), &["the name says gzip", "neither gzip"]);
    std::fs::create_dir(files.path("folder.tsv"))?;
    assert_contains(&message(load_one(&files.path("folder.tsv"), json!({}))), &["folder.tsv", "is a directory"]);
    let missing = load_with(&files.path("y.tsv.gz"), json!({}), json!({"data": {"origin": "ask Bob"}}));
    assert_contains(&message(missing), &["no such file; did you mean `x.tsv.gz`?", "ask Bob"]);
    Ok(())
}

#[test]
fn a_truncated_or_damaged_archive_says_how_far_it_reads() -> Result<()> {
    let files = Files::new()?;
    let mut content = String::from("text\tlabel\n");
    for line in 0..50_000_u32 {
        content += &format!("text {}\t{}\n", line.wrapping_mul(2_654_435_761), line % 2);
    }
    for name in ["x.tsv.gz", "x.tsv.zst"] {
        let path = files.write(name, &content)?;
        let mut bytes = std::fs::read(&path)?;
        bytes.truncate(bytes.len() / 2);
        std::fs::write(&path, &bytes)?;
        for changes in [json!({}), skipping()] {
            let error = message(load_with(&path, json!({}), changes));
            assert_contains(&error, &[name, "truncated after ", " lines"]);
            assert!(!error.contains("after 0 lines"), "{error}");
        }
    }
    let path = files.write("y.tsv.gz", &content)?;
    let mut bytes = std::fs::read(&path)?;
    let checksum = bytes.len() - 8;
    bytes[checksum] ^= 0xff;
    std::fs::write(&path, bytes)?;
    assert_contains(&message(load_one(&path, json!({}))), &["y.tsv.gz", "damaged after 50001 lines"]);
    Ok(())
}

#[test]
fn headers() -> Result<()> {
    refused("x.tsv", "text\tlable\na\t1\n", &["no column `label`", "`text`, `lable`", "did you mean `lable`?"])?;
    refused("x.tsv", "text\tlabel\ttext\n", &["header line names `text` twice (fields 1 and 3)"])?;
    refused("x.csv", "\"te\"xt,label\n", &["x.csv:1:", "closing quote"])?;
    refused("x.jsonl", "{\"text\":\"a\",\"lable\":1}\n", &["in no row: no column `label`", "did you mean `lable`?"])?;
    refused("x.tsv", "\t".repeat(200_000), &["the header line names 200001 columns", "its delimiter"])?;
    refused("x.tsv", "text\tlabel\n", &["no training examples", "0 rows"])
}

/// Kilobytes of zstd that stand for a hundred megabytes of blank lines, and a line without end.
#[test]
fn a_file_that_grows_beyond_all_measure() -> Result<()> {
    let files = Files::new()?;
    let path = files.path("x.tsv.zst");
    let blank_lines = std::io::Read::take(std::io::repeat(b'\n'), 100 << 20);
    let content = std::io::Read::chain(&b"text\tlabel\na\t1\n"[..], blank_lines);
    std::fs::write(&path, zstd::encode_all(content, 1)?)?;
    assert_contains(&message(load_one(&path, json!({}))), &["x.tsv.zst", "unpacks to more than 1100 times its size"]);
    refused("x.tsv.gz", vec![b'a'; 33 << 20], &["x.tsv.gz:1: longer than 32 MiB"])
}

#[test]
fn bad_lines() -> Result<()> {
    let tsv = "text\tlabel\na\t1\nshort\nb\t0\n";
    bad_row("x.tsv", tsv, json!({}), BadKind::FieldCount, 3, "found 1 fields, expected the 2")?;
    let tsv = "text\tlabel\na\t1\nlong\t0\tmore\nb\t0\n";
    bad_row("x.tsv", tsv, json!({}), BadKind::FieldCount, 3, "found 3 fields, expected the 2")?;
    let tsv = b"text\tlabel\na\t1\nb\t0\nbad \xe9\t1\n";
    bad_row("x.tsv.gz", tsv, json!({}), BadKind::InvalidUtf8, 4, "byte 0xe9 at position 5")?;
    let csv = "text,label\na,1\n\"b\"c,0\nc,0\n";
    bad_row("x.csv", csv, json!({}), BadKind::BadQuotes, 3, "field 1")?;
    let json = "{\"text\":\"a\",\"label\":1}\n{\"text\":\"b\",}\n{\"text\":\"c\",\"label\":0}\n";
    bad_row("x.jsonl", json, json!({}), BadKind::BadJson, 2, "bad JSON at column 13")?;
    let json = "{\"text\":\"a\",\"label\":1}\n[1]\n{\"text\":\"c\",\"label\":0}\n";
    bad_row("x.jsonl", json, json!({}), BadKind::BadJson, 2, "expected one JSON object a line")?;
    let json = "{\"text\":\"a\",\"label\":1}\n{\"text\":\"b\",\"label\":0,\"text\":\"c\"}\n{\"text\":\"c\",\"label\":0}\n";
    bad_row("x.jsonl", json, json!({}), BadKind::BadJson, 2, "key `text` stands there twice")?;
    let json = "{\"text\":\"a\",\"label\":1}\n{\"label\":0}\n{\"text\":\"c\",\"label\":0}\n";
    bad_row("x.jsonl", json, json!({}), BadKind::MissingText, 2, "text column `text` holds nothing")
}

#[test]
fn bad_labels() -> Result<()> {
    let tsv = "text\tlabel\na\t1\nb\t2\nc\t0\n";
    let given = json!({"classes": ["0", "1"]});
    bad_row("x.tsv", tsv, given, BadKind::UnknownLabel, 3, "label `2` is none of the classes `0`, `1`")?;
    let regression = json!({"head": "regression"});
    for bad in ["good", "nan", "inf"] {
        let tsv = format!("text\tlabel\na\t1.5\nb\t{bad}\n");
        bad_row("x.tsv", tsv, regression.clone(), BadKind::BadLabel, 3, &format!("`{bad}`, expected a finite number"))?;
    }
    let flags = json!({"head": "multilabel", "label": ["l1", "l2"]});
    let tsv = "text\tl1\tl2\na\t0\t1\nb\t0\t7\n";
    bad_row("x.tsv", tsv, flags, BadKind::BadLabel, 3, "label column `l2` holds `7`, expected 0 or 1")?;
    refused("x.tsv", "text\tlabel\na\t1\nb\t1\n", &["all training rows have the label `1`"])
}

#[test]
fn bad_features() -> Result<()> {
    let columns = json!({"text": [], "features": ["f1", "f2"]});
    let tsv = "f1\tf2\tlabel\n1\t2\ta\n1\tNaN\tb\n3\t4\tb\n";
    bad_row("x.tsv", tsv, columns.clone(), BadKind::BadFeatures, 3, "feature column `f2` holds `NaN`")?;
    let tsv = "f1\tf2\tlabel\n1\t2\ta\n1\t\tb\n3\t4\tb\n";
    bad_row("x.tsv", tsv, columns, BadKind::FeatureCount, 3, "feature column `f2` holds 0 numbers")?;
    let list = json!({"text": [], "features": ["f"]});
    let json = "{\"f\":[1,2],\"label\":0}\n{\"f\":[1,2,3],\"label\":1}\n{\"f\":[3,4],\"label\":1}\n";
    bad_row("x.jsonl", json, list.clone(), BadKind::FeatureCount, 2, "found 3 features, the rows before have 2")?;
    let json = "{\"f\":[1,2],\"label\":0}\n{\"f\":[\"x\",2],\"label\":1}\n{\"f\":[3,4],\"label\":1}\n";
    bad_row("x.jsonl", json, list.clone(), BadKind::BadFeatures, 2, "expected finite numbers")?;
    let json = "{\"f\":[1,1e60],\"label\":0}\n{\"f\":[1,2],\"label\":1}\n{\"f\":[3,4],\"label\":0}\n";
    bad_row("x.jsonl", json, list, BadKind::BadFeatures, 1, "expected finite numbers")
}

#[test]
fn a_dev_label_that_training_lacks_is_a_bad_row() -> Result<()> {
    let files = Files::new()?;
    let train = files.write("train.tsv", "text\tlabel\na\tneg\nb\tpos\n")?;
    let dev = files.write("dev.tsv", "text\tlabel\na\tpos\nb\tpoz\nc\tneg\nd\tpoz\n")?;
    let error = message(load_one(&train, json!({"dev": dev})));
    assert_contains(&error, &["dev.tsv:3: label `poz` is none of the classes `neg`, `pos`; did you mean `pos`?"]);
    let corpus = load_with(&train, json!({"dev": dev}), skipping())?;
    let task = &corpus.tasks[0];
    assert_eq!(reasons(&corpus).iter().map(|bad| (bad.0, bad.1)).collect::<Vec<_>>(), [(BadKind::UnknownLabel, 2)]);
    let Some(dev) = &task.dev else { panic!("dev has two good rows") };
    assert_eq!(dev.targets, Targets::Class(vec![1, 0]));
    assert_eq!(tokens(dev).len(), 2);
    assert_eq!(tokens(dev)[0], tokens(&task.train)[0]);
    Ok(())
}

#[test]
fn the_first_bad_row_of_the_file_is_the_one_reported() -> Result<()> {
    let files = Files::new()?;
    // Line 3 is bad for its label, line 2,502 for its fields: chunks are handled out of order, errors are not.
    let tsv = format!("text\tlabel\na\t1\nb\t9\n{}short\n", "c\t0\n".repeat(2_498));
    let path = files.write("x.tsv", tsv)?;
    assert_contains(&message(load_one(&path, json!({"classes": ["0", "1"]}))), &["x.tsv:3: label `9`"]);
    Ok(())
}

#[test]
fn tasks_must_agree_on_the_number_of_features() -> Result<()> {
    use super::support::{config, task};
    let files = Files::new()?;
    let a = files.write("a.jsonl", "{\"f\":[1,2],\"label\":0}\n{\"f\":[1,2],\"label\":1}\n")?;
    let b = files.write("b.jsonl", "{\"f\":[1,2,3],\"label\":0}\n{\"f\":[1,2,3],\"label\":1}\n")?;
    let dense = |path| task(json!({"text": [], "features": ["f"], "train": path}));
    let corpus = crate::data::load(&config(json!({"a": dense(a), "b": dense(b)}), json!({}))?, &|_| {});
    assert_contains(&message(corpus), &["tasks `a` and `b` have 2 and 3 features"]);
    Ok(())
}
