//! docs/schema/metrics.schema.json holds every line that runs write, and knows every kind and field of them; docs/metrics.md is
//! made of it.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{Place, metrics, outcome, resume, taskloom, training};
use jsonschema::Validator;
use serde_json::{Value, json};

fn schema() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema/metrics.schema.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("the schema")).expect("JSON")
}

/// A validator of one kind of line: its errors say more than those of a choice.
fn of_kind(kind: &str) -> Validator {
    let mut schema = schema();
    schema["oneOf"] = json!([{ "$ref": format!("#/definitions/{kind}") }]);
    jsonschema::draft7::new(&schema).unwrap_or_else(|error| panic!("{error}"))
}

fn kinds() -> Vec<String> {
    let choices = schema()["oneOf"].as_array().expect("a choice").clone();
    let name = |choice: &Value| choice["$ref"].as_str().and_then(|path| path.rsplit('/').next().map(str::to_owned));
    choices.iter().filter_map(name).collect()
}

/// Holds every line against its kind; the kinds that were there.
fn hold(run: &Path, seen: &mut BTreeSet<String>) {
    let lines = metrics(run);
    assert!(lines.len() > 3, "{}", run.display());
    for line in lines {
        let kind = line["kind"].as_str().expect("a kind").to_owned();
        assert!(kinds().contains(&kind), "the schema has no {kind}");
        let errors: Vec<String> =
            of_kind(&kind).iter_errors(&line).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{}\n{line}", errors.join("\n"));
        seen.insert(kind);
    }
}

#[test]
fn every_line_of_runs_is_valid() {
    let place = Place::new();
    let mut seen = BTreeSet::new();
    let bag = place.bag();
    hold(&place.train(&bag, &["eval.test=true", "balance.method=dwa", "tasks.topic.target=0.05"]), &mut seen);
    hold(&place.train(&bag, &["surgery.granularity=layer", "surgery.method=mgda"]), &mut seen);
    let synthetic = place.synthetic();
    // What goes by measured times, and what goes wrong.
    let sets = [
        "train.rounds=40",
        "schedule.mode=time_sliced",
        "schedule.policy=weighted",
        "schedule.feedback={ every = 6 }",
        "task_defaults.adaptive={ target_ms = 0.4 }",
        "faults.lost={ task = \"alone_1\", kind = \"crash\", round = 5 }",
        "faults.bad={ task = \"agree_1a\", kind = \"not_finite\", round = 9, times = 2 }",
    ];
    hold(&place.train(&synthetic, &sets), &mut seen);
    // One that is stopped, changed and resumed.
    let run = place.path("resumed");
    let stopped = outcome(training(&synthetic, &["checkpoint.every=7"], &run).args(["--until", "20"]).output());
    assert_eq!(stopped.code, Some(130), "{}", stopped.err);
    outcome(taskloom().arg("resume").arg(&run).args(["--set", "optimizer.lr=1e-4"]).output()).ok();
    hold(&run, &mut seen);
    assert!(resume(&run).code.is_some());
    let usual = [
        "adapted",
        "changed",
        "checkpoint",
        "conflict",
        "end",
        "eval",
        "failure",
        "measured",
        "reweighted",
        "round",
        "start",
        "target",
    ];
    let missing: Vec<&str> = usual.into_iter().filter(|kind| !seen.contains(*kind)).collect();
    assert!(missing.is_empty(), "no line of {missing:?} was written: the runs of this test do too little");
}

#[test]
fn what_is_not_in_the_schema_is_refused() {
    let line = |more: Value| {
        let mut line = json!({"v": 1, "kind": "late", "round": 3, "time": 1.5, "n": 4, "message": "m"});
        line.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        line
    };
    let whole = jsonschema::draft7::new(&schema()).expect("a schema");
    assert!(whole.is_valid(&line(json!({}))));
    for wrong in [json!({"v": 2}), json!({"kind": "later"}), json!({"round": -1}), json!({"message": 3}), json!({"more": 1})] {
        assert!(!whole.is_valid(&line(wrong.clone())), "{wrong}");
    }
}

/// Kinds of the events that the program declares.
fn declared() -> BTreeSet<String> {
    let source = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/observe/event.rs")).expect("the source");
    let variants = source.split("pub enum Event<'a> {\n").nth(1).and_then(|rest| rest.split("\n}\n").next()).expect("the events");
    let is_variant = |line: &&str| line.starts_with("    ") && line[4..].starts_with(char::is_uppercase);
    let names = variants.lines().filter(is_variant).map(|line| line.trim().split([' ', '(']).next().unwrap_or_default());
    // The one with a name of its own.
    names.map(|name| if name == "Evaluation" { "eval".to_owned() } else { name.to_lowercase() }).collect()
}

#[test]
fn every_event_is_in_the_schema() {
    assert_eq!(declared(), kinds().into_iter().collect());
    assert_eq!(schema()["definitions"]["version"]["enum"], json!([taskloom::observe::event::VERSION]));
}

/// The page's list of fields.
fn page() -> String {
    let schema = schema();
    let mut text = "# metrics.jsonl\n\nA run folder's `metrics.jsonl` holds what happened, one JSON object a line, in order. `taskloom report`, TensorBoard's event file and \
                    `summary.json`\n(the last line once more) are made of it. [schema/metrics.schema.json](schema/metrics.schema.json) holds every line; this page is made of it by\n\
                    `TASKLOOM_WRITE_DOCS=1 cargo test --release --test metrics_schema`.\n\nA killed process may leave a last line without its end. A run that goes on drops the lines after the \
                    checkpoint\nthat it starts from, and writes them again.\n\n\
                    With [`observe.trackio`](configuration.md) the scalars that TensorBoard gets are also rows of a project of Trackio, by the same tags and \
                    rounds, written about\nonce a second; `trackio show --project NAME` draws them. A run that goes on writes its rows anew from the lines that \
                    stay. Once it has begun, a run is not stopped by\nthis file; what the file could not take is there when the run goes on. The tables are those of \
                    Trackio 0.43; versions before 0.24 have others, which are refused.\n\n\
                    MLflow takes a run by a few lines of Python (Weights & Biases by `wandb.init` and `run.log` in their places):\n\n    \
                    import json, mlflow\n    \
                    with mlflow.start_run():\n        \
                    for line in map(json.loads, open(\"runs/quickstart/metrics.jsonl\")):\n            \
                    if line[\"kind\"] == \"round\":\n                \
                    losses = {f\"loss/{task}\": loss for task, loss in line[\"losses\"].items()}\n                \
                    mlflow.log_metrics(losses, step=line[\"round\"])\n\n\
                    ## Every line\n\n"
        .to_owned();
    let definitions = &schema["definitions"];
    for (name, key) in [("v", "version"), ("round", "rounds_done"), ("time", "time"), ("n", "n")] {
        text += &format!("- `{name}`: {}\n", definitions[key]["description"].as_str().expect("described"));
    }
    text += "- `kind`: one of the following.\n";
    for kind in kinds() {
        let table = &definitions[&kind];
        text += &format!(
            "\n## `{kind}`\n\n{}\n\n| field | type | |\n| --- | --- | --- |\n",
            table["description"].as_str().expect("described")
        );
        let required: Vec<&str> = table["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (name, field) in table["properties"].as_object().into_iter().flatten() {
            if ["v", "kind", "round", "time", "n"].contains(&name.as_str()) {
                continue;
            }
            let about =
                field["description"].as_str().or(referred(definitions, field)["description"].as_str()).unwrap_or_default();
            let optional = if required.contains(&name.as_str()) { "" } else { " May be absent." };
            text += &format!("| `{name}` | {} | {about}{optional} |\n", type_of(definitions, field));
        }
    }
    text
}

fn referred<'a>(definitions: &'a Value, field: &'a Value) -> &'a Value {
    field["$ref"].as_str().and_then(|path| path.rsplit('/').next()).map_or(field, |name| &definitions[name])
}

fn type_of(definitions: &Value, field: &Value) -> String {
    let field = referred(definitions, field);
    match &field["type"] {
        Value::String(name) if name == "array" => format!("list of {}", type_of(definitions, &field["items"])),
        Value::String(name) => name.clone(),
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
        _ if field["enum"].is_array() => {
            field["enum"].as_array().into_iter().flatten().map(Value::to_string).collect::<Vec<_>>().join(", ")
        }
        _ => "any".to_owned(),
    }
}

#[test]
fn the_page_is_made_of_the_schema() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    if std::env::var_os("TASKLOOM_WRITE_DOCS").is_some() {
        std::fs::write(&path, page()).expect("can write");
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == page(),
        "docs/metrics.md is out of date; run this test with TASKLOOM_WRITE_DOCS=1"
    );
}
