//! Numbers at the ends of their ranges: each key of the configuration alone, and those that multiply together.

#![allow(clippy::print_stdout, reason = "says what was refused, where a test fails")]

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use taskloom::commands::plan::planned;
use taskloom::config::keys::{Key, Kind, Only, sections};

const REST: &str = "
    [train]
    rounds = 2
    micro_batch = 4
    [faults.f]
    task = \"alone_1\"
    kind = \"stall\"
";
const LINEAR: &str = "
    [synthetic]
    features = 8
    train = 8
    dev = 4
    test = 0
    [encoder]
    kind = \"linear\"
    hidden = 8
    [tasks.alone_1]
";
const TEXT: &str = "
    [encoder]
    hidden = 64
    buckets = 64
    layers = 1
    positions = 16
    tokenizer = \"vocab.txt\"
    [tasks.alone_1]
    train = \"a.csv\"
    text = \"x\"
    label = \"y\"
";

/// A folder with a small run on features, and one on text.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let files = [
        ("linear.toml", format!("{LINEAR}{REST}")),
        ("text.toml", format!("{TEXT}{REST}")),
        ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n".to_owned()),
        ("a.csv", "x,y\na b,0\nb,1\na a b,0\n".to_owned()),
    ];
    files.into_iter().for_each(|(name, text)| std::fs::write(folder.path().join(name), text).unwrap());
    folder
}

/// The least and the largest value of a number.
fn extremes(kind: &Kind) -> Vec<String> {
    match kind {
        Kind::Int(least, most) => vec![least.to_string(), most.to_string()],
        Kind::Float(bounds) => bounds.extremes().map(|value| format!("{value:?}")).into(),
        Kind::Bytes => vec!["1".to_owned(), i64::MAX.to_string()],
        Kind::Every => vec![i64::MAX.to_string()],
        Kind::List(inner) => extremes(inner),
        _ => Vec::new(),
    }
}

/// `KEY=VALUE` for a key of the table of keys, in the configurations above.
fn set(table: &str, name: &str, value: &str) -> String {
    let table = table.replace("tasks.NAME", "tasks.alone_1").replace("faults.NAME", "faults.f");
    format!("{table}.{name}={value}")
}

fn find(table: &str, name: &str) -> &'static Key {
    let (_, section) = sections().into_iter().find(|(path, _)| path == table).unwrap();
    section.find(name).unwrap()
}

/// What has to be set for a key to act: its own condition, and that of the key it depends on.
fn conditions(table: &str, only: Option<&Only>) -> Vec<String> {
    let Some(only) = only else { return Vec::new() };
    let (parent, name) = only.key.rsplit_once('.').unwrap();
    let parent = if parent.is_empty() { table } else { parent };
    let mut sets = conditions(parent, find(parent, name).only.as_ref());
    sets.push(set(parent, name, only.values[0]));
    sets
}

/// Plans in a thread of its own; panics where that does not answer.
fn plan(folder: &tempfile::TempDir, sets: &[String]) -> Result<Value> {
    let is_text = sets.iter().any(|set| set.starts_with("encoder.kind=") && !set.ends_with("linear"));
    let path: PathBuf = folder.path().join(if is_text { "text.toml" } else { "linear.toml" });
    let (sets, (sender, receiver)) = (sets.to_vec(), mpsc::channel());
    let shown = sets.join(" ");
    std::thread::spawn(move || {
        let planned = taskloom::commands::check::load(&path, &sets).and_then(|found| planned(&mut { found.config }));
        sender.send(planned)
    });
    let planned = receiver.recv_timeout(Duration::from_secs(120)).unwrap_or_else(|_| panic!("no answer, or a panic: {shown}"));
    planned.inspect_err(|refusal| {
        let refusal = format!("{refusal:#}");
        println!("{shown}: {refusal}");
        assert!(!refusal.is_empty() && !refusal.contains("a bug in taskloom"));
    })
}

#[test]
fn a_number_at_the_end_of_its_range_is_planned_or_refused() {
    let folder = folder();
    let mut answers = 0;
    for (table, section) in sections() {
        for key in section.keys.iter() {
            let adaptive = table.ends_with(".adaptive").then(|| set(&table, "target_ms", "1"));
            let sets: Vec<String> = conditions(&table, key.only.as_ref()).into_iter().chain(adaptive).collect();
            for value in extremes(&key.kind) {
                let planned = plan(&folder, &[&sets[..], &[set(&table, key.name, &value)]].concat());
                answers += usize::from(planned.is_ok_and(|document| document["total_bytes"].as_u64() > Some(0)));
            }
        }
    }
    assert!(answers > 150, "{answers}");
}

#[test]
fn numbers_that_multiply_are_planned_or_refused() {
    let folder = folder();
    let largest = |path: &&str| {
        let (table, name) = path.rsplit_once('.').unwrap();
        set(table, name, &extremes(&find(table, name).kind).pop().unwrap())
    };
    let sets: [(&str, &[&str]); 8] = [
        ("encoder.kind=linear", &["train.micro_batch", "train.accumulate", "encoder.hidden", "synthetic.features"]),
        ("encoder.kind=linear", &["synthetic.train", "synthetic.features", "synthetic.alone"]),
        ("encoder.kind=linear", &["synthetic.alone", "synthetic.agree", "synthetic.oppose", "synthetic.features"]),
        ("schedule.mode=time_sliced", &["train.rounds", "train.micro_batch", "train.accumulate", "schedule.example_us"]),
        ("schedule.mode=time_sliced", &["train.rounds", "tasks.NAME.period", "tasks.NAME.rounds"]),
        ("encoder.kind=bag", &["encoder.buckets", "encoder.embedding_dim", "encoder.hidden", "eval.batch", "train.micro_batch"]),
        ("encoder.kind=transformer", &["encoder.hidden", "encoder.layers", "encoder.intermediate", "encoder.vocabulary"]),
        ("encoder.kind=transformer", &["train.micro_batch", "train.accumulate", "encoder.positions", "schedule.lanes"]),
    ];
    for (first, keys) in sets {
        let sets: Vec<String> = std::iter::once(first.to_owned()).chain(keys.iter().map(largest)).collect();
        let _ = plan(&folder, &sets);
    }
}
