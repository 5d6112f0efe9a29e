//! `predict --file`: every row of a file keeps its columns and gets the answer that `predict` gives it alone.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};

use common::{Outcome, Place, outcome, run, table, taskloom};
use safetensors::SafeTensors;
use serde_json::{Value, json};

fn words(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn predict(trained: &Path, task: &str, file: &Path, out: Option<&Path>) -> Outcome {
    let out: Vec<&str> = out.map_or(vec![], |out| vec!["--out", words(out)]);
    run(&[&["predict", words(trained), "--task", task, "--file", words(file)][..], &out].concat())
}

/// Answers to lines on stdin.
fn alone(trained: &Path, task: &str, lines: &[String]) -> Vec<Value> {
    let mut command = taskloom();
    command.args(["predict", words(trained), "--task", task]).stdin(std::process::Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let text = format!("{}\n", lines.join("\n"));
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let out = outcome(child.wait_with_output()).ok().out;
    writer.join().expect("no panic").expect("the program reads all");
    out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).expect("a file").lines().map(str::to_owned).collect()
}

/// The text table of [`table`], with its columns by name.
fn rows() -> (Vec<String>, Vec<Vec<String>>) {
    let table = table();
    let mut rows = table.lines().map(|line| line.split('\t').map(str::to_owned).collect::<Vec<String>>());
    (rows.next().expect("a header"), rows.collect())
}

/// Text tasks, whose rows are batched, answer as one text does, up to the rounding of another batch.
fn assert_same_answer(found: &Value, expected: &Value) {
    let numbers = |value: &Value| -> Vec<f64> {
        let all = [&value["values"], &value["probabilities"]];
        all.iter()
            .flat_map(|part| {
                part.as_array().into_iter().flatten().chain(part.as_object().into_iter().flat_map(|map| map.values()))
            })
            .filter_map(Value::as_f64)
            .collect()
    };
    assert_eq!(found["label"], expected["label"]);
    let (found, expected) = (numbers(found), numbers(expected));
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?} {expected:?}");
}

#[test]
fn rows_are_answered_as_they_are_alone() {
    let place = Place::new();
    let (header, rows) = rows();
    for (config, task) in [(place.bag(), "topic"), (place.linear(), "numbers"), (place.transformer(), "flags")] {
        let trained = place.train(&config, &["train.rounds=3"]);
        let column = |name: &str| header.iter().position(|column| column == name).expect("a column");
        let is_dense = config.ends_with("linear.toml");
        let asked = |row: &Vec<String>| match is_dense {
            true => format!("[{}]", (0..8).map(|x| row[column(&format!("x{x}"))].clone()).collect::<Vec<_>>().join(",")),
            false => row[column("text")].clone(),
        };
        let expected = alone(&trained, task, &rows.iter().map(asked).collect::<Vec<String>>());
        let out = place.path("answers.jsonl");
        let said = predict(&trained, task, &place.path("table.tsv"), Some(&out)).ok();
        assert_eq!(said.out, "");
        let found = lines(&out);
        assert_eq!(found.len(), rows.len());
        for ((line, row), expected) in found.iter().zip(&rows).zip(&expected) {
            let line: Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(line["text"], json!(row[column("text")]));
            assert_eq!(line.as_object().expect("an object").len(), header.len() + 1);
            assert_same_answer(&line["prediction"], expected);
        }
        // On stdout the same.
        assert_eq!(
            predict(&trained, task, &place.path("table.tsv"), None).ok().out,
            std::fs::read_to_string(&out).expect("a file")
        );
    }
}

/// A head's weight and bias on them give its answers; line by line, in batches, and on a device up to its rounding.
#[test]
fn embeddings_are_what_heads_read() {
    let place = Place::new();
    let configs = [(place.bag(), "topic"), (place.linear(), "topic"), (place.transformer(), "topic")];
    for (config, task) in configs {
        let trained = common::checkpoints(&place.train(&config, &["train.rounds=3"])).pop().expect("a checkpoint");
        let table = place.path("table.tsv");
        let embed = |more: &[&str]| {
            let words = [&["predict", words(&trained), "--task", task, "--file", words(&table), "--embed"], more].concat();
            run(&words).ok().out
        };
        let rows = |out: &str| -> Vec<Vec<f64>> {
            let line = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["embedding"].clone();
            out.lines().map(|out| serde_json::from_value(line(out)).expect("numbers")).collect()
        };
        let embeddings = rows(&embed(&[]));
        let bytes = std::fs::read(trained.join("model.safetensors")).expect("the model");
        let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
        let tensor = |name: &str| -> Vec<f64> {
            let view = tensors.tensor(&format!("heads.{task}.{name}")).expect(name);
            let values = view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")));
            values.map(f64::from).collect()
        };
        let (weight, bias) = (tensor("weight"), tensor("bias"));
        let answers = predict(&trained, task, &table, None).ok().out;
        let answers: Vec<Value> = answers.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(embeddings.len(), answers.len());
        for (embedding, answer) in embeddings.iter().zip(&answers) {
            let product = |row: &[f64]| row.iter().zip(embedding).map(|(w, x)| w * x).sum::<f64>();
            let logits = weight.chunks_exact(embedding.len()).zip(&bias).map(|(row, bias)| (product(row) + bias).exp());
            let weights: Vec<f64> = logits.collect();
            let total: f64 = weights.iter().sum();
            let given = answer["prediction"]["probabilities"].as_object().expect("by class");
            for (found, expected) in given.values().map(|p| p.as_f64().expect("a number")).zip(&weights) {
                assert!((found - expected / total).abs() < 1e-5, "{found} for {}", expected / total);
            }
        }
        // As the fields of a table.
        let out = place.path("embeddings.csv");
        embed(&["--out", words(&out)]);
        let last = format!(",embedding_{}", embeddings[0].len());
        assert!(lines(&out)[0].ends_with(&last), "{}", lines(&out)[0]);
        let fields: Vec<f64> =
            lines(&out)[1].split(',').rev().take(embeddings[0].len()).map(|x| x.parse().expect("a number")).collect();
        assert!(fields.iter().rev().eq(&embeddings[0]));
        // bf16 has 8 bits of mantissa.
        if common::device::is_there() {
            let on_device = rows(&embed(&["--device", "emulated"]));
            let (a, b) = (on_device.concat(), embeddings.concat());
            let distance = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
            let size = b.iter().map(|x| x * x).sum::<f64>().sqrt();
            assert!(a.len() == b.len() && distance <= 2e-2 * size, "{distance} of {size}");
        }
    }
    let trained = place.train(&place.linear(), &["train.rounds=1"]);
    let alone = run(&["predict", words(&trained), "--task", "topic", "--text", "[1,2,3,4,5,6,7,8]", "--embed"]).ok().out;
    assert!(serde_json::from_str::<Value>(&alone).expect("JSON")["embedding"].is_array(), "{alone}");
}

#[test]
fn a_table_has_fields_for_the_answers() {
    let place = Place::new();
    let trained = place.train(&place.linear(), &["train.rounds=3"]);
    let out = place.path("answers.csv");
    predict(&trained, "topic", &place.path("table.tsv"), Some(&out)).ok();
    let found = lines(&out);
    assert!(found[0].ends_with(",split,seen,prediction,probability_arts,probability_maths,probability_sport"), "{}", found[0]);
    let fields: Vec<&str> = found[1].split(',').collect();
    let probabilities: Vec<f64> = fields[fields.len() - 3..].iter().map(|field| field.parse().expect("a number")).collect();
    assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    predict(&trained, "numbers", &place.path("table.tsv"), Some(&out)).ok();
    assert!(lines(&out)[0].ends_with(",seen,prediction_score,prediction_speed"));
    // A line keeps every character of its own.
    let line = r#"{ "x" : [1, 2.50, 3,4,5,6,7,8], "id": 12345678901234567890, "more": {"a": [1, "ü"]} }"#;
    let json_lines = place.write("more.jsonl", format!("{line}\n\n{line}"));
    let config = std::fs::read_to_string(place.path("linear.toml")).expect("a configuration");
    let rows = place
        .write("dense.jsonl", "{\"x\": [1,2,3,4,5,6,7,8], \"topic\": \"a\"}\n{\"x\": [1,2,3,4,5,6,7,9], \"topic\": \"b\"}\n");
    let tasks =
        format!("[tasks.topic]\ntrain = \"{}\"\nfeatures = \"x\"\nlabel = \"topic\"\n[train]\nrounds = 2\n", words(&rows));
    let start = config.split("[task_defaults]").next().expect("a start");
    let trained = place.train(&place.write("dense.toml", format!("{start}{tasks}")), &[]);
    let found = predict(&trained, "topic", &json_lines, None).ok().out;
    let found: Vec<&str> = found.lines().collect();
    let own = line.trim_end_matches('}').trim_end();
    assert_eq!(found.len(), 2);
    assert!(
        found[0].starts_with(&own.replacen("{ ", "{", 1)) && found[0].contains(",\"prediction\":{\"label\":"),
        "{}",
        found[0]
    );
    predict(&trained, "topic", &json_lines, Some(&out)).ok();
    assert!(lines(&out)[1].contains("\"{\"\"a\"\":[1,\"\"ü\"\"]}\""), "{:?}", lines(&out));
}

/// What a Parquet file of answers holds, as JSON lines beside an embedding: the program reads it as any file.
fn of_parquet(trained: &Path, answers: &Path) -> Vec<Value> {
    let words = ["predict", words(trained), "--task", "topic", "--file", words(answers), "--embed"];
    let mut rows: Vec<Value> = run(&words).ok().out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    rows.iter_mut().for_each(|row| drop(row.as_object_mut().expect("an object").remove("embedding")));
    rows
}

/// What a CSV has as text, Parquet has with types; nothing else differs, up to the 24 bits of a FLOAT.
#[test]
fn parquet_has_the_fields_with_their_types() {
    let place = Place::new();
    let trained = place.train(&place.linear(), &["train.rounds=3"]);
    let (csv, parquet) = (place.path("answers.csv"), place.path("answers.parquet"));
    for task in ["topic", "numbers", "flags"] {
        predict(&trained, task, &place.path("table.tsv"), Some(&csv)).ok();
        predict(&trained, task, &place.path("table.tsv"), Some(&parquet)).ok();
        assert!(!place.path(".writing-answers.parquet").exists());
        let found = of_parquet(&trained, &parquet);
        let csv = lines(&csv);
        assert_eq!(found.len() + 1, csv.len());
        let header: Vec<&str> = csv[0].split(',').collect();
        for (row, line) in found.iter().zip(&csv[1..]) {
            let row = row.as_object().expect("an object");
            assert!(row.keys().all(|name| header.contains(&name.as_str())) && row.len() == header.len(), "{row:?} {header:?}");
            for (name, field) in header.iter().zip(line.split(',')) {
                let value = &row[*name];
                let is_number = field.parse::<f64>().is_ok();
                match value {
                    Value::Null => assert_eq!(field, "", "{name}"),
                    Value::Array(labels) => {
                        let labels: Vec<&str> = labels.iter().map(|label| label.as_str().expect("a label")).collect();
                        assert_eq!((*name, labels.join(";").as_str()), ("prediction", field));
                    }
                    Value::Number(number) if name.starts_with("pr") => {
                        let expected: f64 = field.parse().expect("a number");
                        let found = number.as_f64().expect("a number");
                        assert!((found - expected).abs() <= f64::from(f32::EPSILON) * expected.abs(), "{name}: {found} {field}");
                    }
                    Value::Number(number) => assert_eq!(number.as_f64(), field.parse().ok(), "{name}"),
                    value => assert_eq!((value, is_number), (&json!(field), false), "{name}"),
                }
            }
            assert!(row["score"].is_i64() || row["score"].is_null());
            assert!(row["speed"].is_f64() || row["speed"].is_null());
        }
    }
    // A vector is one column, and a column that is there already is none of ours.
    let embeddings = place.path("embeddings.parquet");
    let (table, parquet) = (place.path("table.tsv"), words(&parquet).to_owned());
    let embed = |file: &str, out: &Path| {
        run(&["predict", words(&trained), "--task", "topic", "--embed", "--file", file, "--out", words(out)])
    };
    embed(words(&table), &embeddings).ok();
    let taken = ["has a column `embedding`", "rename it"];
    embed(words(&embeddings), &place.path("b.parquet")).failed(2, &taken);
    predict(&trained, "topic", Path::new(&parquet), Some(&place.path("b.parquet"))).failed(2, &["has a column `prediction`"]);
    let answered = predict(&trained, "numbers", &embeddings, None).ok().out;
    let direct = run(&["predict", words(&trained), "--task", "topic", "--embed", "--file", words(&table)]).ok().out;
    assert!(answered.lines().count() > 0);
    for (answered, direct) in answered.lines().zip(direct.lines()) {
        let vector = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["embedding"].clone();
        assert_eq!(vector(answered), vector(direct));
    }
}

/// Columns of JSON lines are what all of their values are; what no column of a type holds stays as JSON.
#[test]
fn json_lines_become_typed_columns() {
    let place = Place::new();
    let trained = place.train(&place.linear(), &["train.rounds=1"]);
    let features: String = (0..8).map(|x| format!(r#""x{x}":{x}.5,"#)).collect();
    let own = [
        r#""id":1,"mixed":1,"names":[],"seen":true,"more":{"a":[1,"ü"]}"#,
        r#""id":2,"mixed":0.5,"names":["a","b"],"seen":null,"more":3"#,
        r#""id":3,"mixed":2,"names":null,"seen":false,"more":"text""#,
    ];
    let rows: Vec<String> = own.iter().map(|own| format!("{{{features}{own}}}\n")).collect();
    let (file, out) = (place.write("own.jsonl", rows.concat()), place.path("own.parquet"));
    predict(&trained, "topic", &file, Some(&out)).ok();
    let found = of_parquet(&trained, &out);
    let column = |name: &str| -> Vec<Value> { found.iter().map(|row| row[name].clone()).collect() };
    assert_eq!(column("id"), [1, 2, 3].map(|id| json!(id)));
    assert_eq!(column("mixed"), [1.0, 0.5, 2.0].map(|value| json!(value)));
    assert_eq!(column("names"), [json!([]), json!(["a", "b"]), json!(null)]);
    assert_eq!(column("seen"), [json!(true), json!(null), json!(false)]);
    assert_eq!(column("more"), [r#"{"a":[1,"ü"]}"#, "3", "text"].map(|text| json!(text)));
}

#[test]
fn parquet_on_a_full_disk_is_one_error() {
    let place = Place::new();
    let trained = place.train(&place.linear(), &["train.rounds=1"]);
    let (out, scratch) = (place.path("full.parquet"), place.path(".writing-full.parquet"));
    std::os::unix::fs::symlink("/dev/full", &scratch).expect("can link");
    let failed = predict(&trained, "topic", &place.path("table.tsv"), Some(&out));
    failed.failed(3, &["error: cannot write --out: No space left on device"]);
    assert!(!out.exists() && scratch.symlink_metadata().is_err());
}

#[test]
fn what_cannot_be_answered_is_one_clear_error() {
    let place = Place::new();
    let trained = place.train(&place.linear(), &["train.rounds=3"]);
    let out = place.path("answers.csv");
    let refused = |name: &str, content: &str, out: &Path, parts: &[&str]| {
        let file: PathBuf = place.write(name, content);
        predict(&trained, "topic", &file, Some(out)).failed(2, parts);
        assert!(!out.exists(), "nothing is left behind");
    };
    let header = "x0,x1,x2,x3,x4,x5,x6,x7";
    refused("a.csv", "x0,x1\n1,2\n", &out, &["a.csv: no column `x2`; there is: `x0`, `x1`"]);
    refused("a.csv", &format!("{header}\n1,2,3,4,5,6,7,oh\n"), &out, &["a.csv:2: feature column `x7` holds `oh`"]);
    refused("a.csv", &format!("{header},prediction\n1,2,3,4,5,6,7,8,9\n"), &out, &["has a column `prediction`", "rename it"]);
    refused(
        "a.csv",
        header,
        &place.path("answers.xlsx"),
        &["--out: ", "answers.xlsx: answers are written as .jsonl, .csv or .parquet"],
    );
    refused("a.jsonl", "{\"x0\":1}\n", &out, &["a.jsonl: no column `x1`"]);
    let file = place.write("b.csv", format!("{header}\n1,2,3,4,5,6,7,8\n"));
    predict(&trained, "topic", &file, Some(&file)).failed(2, &["b.csv is the file that is read: choose another name"]);
    predict(&trained, "topic", &place.path("none.csv"), None).failed(2, &["none.csv: no such file"]);
    run(&["predict", words(&trained), "--task", "topic", "--text", "a", "--file", "b.csv"]).failed(2, &["cannot be used with"]);
}
