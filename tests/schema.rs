//! The JSON schemas hold what the program takes: what is shipped is valid, and any key is held to its name, type and range.

use std::path::{Path, PathBuf};

use jsonschema::Validator;
use serde_json::{Value, json};
use taskloom::config::keys::{Kind, sections};
use taskloom::config::{run_schema, sweep_schema, workload_schema};

fn compiled(schema: &str) -> Validator {
    let schema = serde_json::from_str(schema).expect("a schema is JSON");
    jsonschema::draft4::new(&schema).unwrap_or_else(|error| panic!("{error}"))
}

fn shipped(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect()
}

/// A file whose table `path` holds one key.
fn file(path: &str, name: &str, value: Value) -> Value {
    let tables = path.rsplit('.').filter(|table| !table.is_empty());
    tables.fold(json!({ name: value }), |inner, table| json!({ table: inner }))
}

/// Values at the ends of a range, and those just outside of it.
fn ends(kind: &Kind) -> (Vec<Value>, Vec<Value>) {
    match kind {
        Kind::Int(least, i64::MAX) => (vec![json!(least), json!(i64::MAX)], vec![json!(least - 1)]),
        Kind::Int(least, most) => (vec![json!(least), json!(most)], vec![json!(least - 1), json!(most + 1)]),
        Kind::Float(bounds) => {
            let [low, high] = bounds.extremes();
            let beyond = [low.next_down(), high.next_up()].into_iter().filter(|value| value.is_finite());
            (vec![json!(low), json!(high)], beyond.map(Value::from).collect())
        }
        Kind::OneOf(values) => (values.iter().map(|value| json!(value)).collect(), vec![json!("none of these")]),
        Kind::Bytes => (vec![json!(0), json!("8GiB"), json!("512 MiB")], vec![json!(-1), json!("8GB"), json!("1.5GiB")]),
        Kind::Every => (vec![json!("epoch"), json!("end"), json!(1)], vec![json!(0), json!("round")]),
        Kind::Device => (vec![json!("cpu"), json!("cuda:12")], vec![json!("gpu"), json!("cuda:")]),
        Kind::Name => (vec![json!("a.b-c_1")], vec![json!(""), json!(".a"), json!("a/b")]),
        Kind::List(item) => {
            let (within, outside) = ends(item);
            let list = |values: &[Value]| values.iter().map(|value| json!([value])).collect::<Vec<_>>();
            ([list(&within), within].concat(), [list(&outside), outside].concat())
        }
        _ => (Vec::new(), Vec::new()),
    }
}

#[test]
fn what_is_shipped_is_valid_and_names_its_schema() {
    for (folder, schema, page) in [
        ("configs", run_schema(), "../docs/schema/run.json"),
        ("configs/sweeps", sweep_schema(), "../../docs/schema/sweep.json"),
        ("configs/workloads", workload_schema(), "../../docs/schema/workload.json"),
    ] {
        let schema = compiled(&schema);
        let files = shipped(folder);
        assert!(!files.is_empty());
        for path in files {
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text.lines().next(), Some(format!("#:schema {page}").as_str()), "{}", path.display());
            assert!(path.parent().unwrap().join(page).exists());
            let document = json!(toml::from_str::<toml::Value>(&text).unwrap());
            schema.validate(&document).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

#[test]
fn a_typo_or_a_wrong_type_in_any_key_is_invalid() {
    let schema = compiled(&run_schema());
    for (path, section) in sections() {
        for key in section.keys.iter() {
            assert!(!schema.is_valid(&file(&path, &format!("{}_", key.name), json!(1))), "{path}.{}", key.name);
            for wrong in [json!({ "no": { "such": "table" } }), json!([[]]), json!(null)] {
                assert!(!schema.is_valid(&file(&path, key.name, wrong)), "{path}.{}", key.name);
            }
        }
    }
}

#[test]
fn values_are_valid_up_to_the_ends_of_their_range() {
    let schema = compiled(&run_schema());
    for (path, section) in sections() {
        for key in section.keys.iter() {
            let (within, outside) = ends(&key.kind);
            for value in within {
                let document = file(&path, key.name, value);
                schema.validate(&document).unwrap_or_else(|error| panic!("{document}: {error}"));
            }
            for value in outside {
                let document = file(&path, key.name, value);
                assert!(!schema.is_valid(&document), "{document}");
            }
        }
    }
}

#[test]
fn workloads_are_held_to_the_same() {
    let schema = compiled(&workload_schema());
    let task = json!({ "cost_ms": 1, "blocks": 2, "memory": "1MiB" });
    assert!(schema.is_valid(&json!({ "base": "b.toml", "tasks": { "a": task } })));
    for wrong in [json!({ "cost": 1 }), json!({ "cost_ms": 0 }), json!({ "cost_ms": "1" }), json!({ "blocks": 64 })] {
        assert!(!schema.is_valid(&json!({ "tasks": { "a": wrong } })));
    }
}
