//! Surgery problems: a line of JSON, or a safetensors file.

use std::path::Path;
use std::sync::LazyLock;

use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value, json};
use taskloom::commands;
use taskloom::surgery::methods::registry::DESCRIPTORS;
use taskloom::surgery::request::answer_line;

use super::{Input, pack, tables};
use crate::mutate;
use crate::random::Random;
use crate::tree::{self, Tree};

/// The reference's problems, and one per method with everything a request can carry.
static SEEDS: LazyLock<Vec<Tree>> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/surgery_vectors.jsonl");
    let text = std::fs::read_to_string(path).expect("the reference's problems");
    let known = ["method", "params", "jacobian", "jacobian2", "losses", "orders", "seed"];
    let vectors = text.lines().map(|line| {
        let mut value: Map<String, Value> = serde_json::from_str(line).expect("a line is an object");
        value.retain(|key, _| known.contains(&key.as_str()));
        Value::Object(value)
    });
    let full = DESCRIPTORS.iter().map(|descriptor| {
        let params: Map<String, Value> = descriptor.params.iter().map(|param| (param.name.to_owned(), json!(1))).collect();
        json!({
            "method": descriptor.name, "params": params, "jacobian": [[1.0, 2.0, -1.0], [-2.0, 0.5, 0.25], [0.0, 1.0, 1e-3]],
            "jacobian2": [[1.5, 2.0, -1.0], [-2.0, 0.75, 0.25], [0.0, 1.0, 1e-2]], "losses": [1.0, 0.5, 2.0],
            "orders": [[1, 2], [0, 2], [1, 0]], "seed": 7,
        })
    });
    vectors.chain(full).map(|value| Tree::from_json(&value)).collect()
});

pub fn request(random: &mut Random) -> Input {
    let mut tree = SEEDS[random.below(SEEDS.len())].clone();
    if random.once_in(3) {
        let (tasks, columns) = (1 + random.size(12), 1 + random.size(40));
        tree.set("jacobian", matrix(random, tasks, columns));
        tree.set("losses", Tree::List((0..tasks).map(|_| number(random)).collect()));
        if random.once_in(3) {
            tree.set("jacobian2", matrix(random, tasks, columns));
        }
    }
    if !random.once_in(4) {
        tree::mutate(random, &mut tree, &SEEDS);
    }
    let mut line = tree.json().into_bytes();
    if random.once_in(8) {
        mutate::bytes(random, &mut line);
    }
    line.truncate(mutate::MOST_BYTES);
    Input { files: vec![("request.json".into(), line)], words: Vec::new() }
}

fn matrix(random: &mut Random, tasks: usize, columns: usize) -> Tree {
    let row = |random: &mut Random| Tree::List((0..columns).map(|_| number(random)).collect());
    let first = row(random);
    // Equal and opposed rows, and rows of zeros, are what solvers fail on.
    let rows = (0..tasks).map(|_| match random.below(6) {
        0 => first.clone(),
        1 => Tree::List(vec![Tree::Literal("0".to_owned()); columns]),
        _ => row(random),
    });
    Tree::List(rows.collect())
}

fn number(random: &mut Random) -> Tree {
    let exponent = if random.once_in(8) { random.below(300) as i32 - 150 } else { 0 };
    let value = (random.next() as i64 as f64 / i64::MAX as f64) * 10f64.powi(exponent);
    Tree::Literal(format!("{value:e}"))
}

/// An answer is JSON, whatever was asked.
pub fn answer(place: &Path, _: &[String]) -> Result<()> {
    let bytes = std::fs::read(place.join("request.json"))?;
    let line = std::str::from_utf8(&bytes)?;
    let answer: Value = serde_json::from_str(&answer_line(line)).expect("an answer is JSON");
    match answer["error"].as_str() {
        Some(error) => bail!("{error}"),
        None => Ok(()),
    }
}

pub fn file(random: &mut Random) -> Input {
    let (tasks, columns) = (1 + random.size(6), 1 + random.size(300));
    let scale = if random.once_in(6) { 1e38 } else { 1.0 };
    let floats = |random: &mut Random, count: usize| -> Vec<u8> {
        let values = (0..count).map(|_| (random.next() as i64 as f32 / i64::MAX as f32) * scale);
        values.flat_map(f32::to_le_bytes).collect()
    };
    let mut tensors = vec![
        tables::Tensor {
            name: "jacobian".into(),
            dtype: "F32".into(),
            shape: vec![tasks, columns],
            data: floats(random, tasks * columns),
        },
        tables::Tensor { name: "losses".into(), dtype: "F32".into(), shape: vec![tasks], data: floats(random, tasks) },
    ];
    if random.once_in(2) {
        let data = floats(random, tasks * columns);
        tensors.push(tables::Tensor { name: "jacobian2".into(), dtype: "F32".into(), shape: vec![tasks, columns], data });
    }
    let content = if random.once_in(3) { tables::write(&tensors) } else { tables::hostile(random, tensors) };
    let (_, content) = if random.once_in(50) { pack::pack(random, "j", content) } else { (String::new(), content) };
    let descriptor = &DESCRIPTORS[random.below(DESCRIPTORS.len())];
    let mut words = vec![descriptor.name.to_owned()];
    for param in descriptor.params.iter() {
        if random.once_in(4) {
            words.push(format!("{}={}", param.name, random.pick(&["0", "-1", "1", "1e308", "nan", "x", "1e-300", "3", "[]"])));
        }
    }
    Input { files: vec![("j.safetensors".into(), content)], words }
}

pub fn solve(place: &Path, words: &[String]) -> Result<()> {
    ensure!(!words.is_empty(), "no method");
    commands::surgery::run(&commands::surgery::Args {
        jacobian: Some(place.join("j.safetensors")),
        method: Some(words[0].clone()),
        params: words[1..].to_vec(),
        out: Some(place.join("out.safetensors")),
    })
}
