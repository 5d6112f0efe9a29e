//! Small configurations and files for the tests of this room.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::config::schema::Config;
use crate::data::{Corpus, Inputs, Split, load};

/// A folder of data files that goes away with the test.
pub struct Files(TempDir);

impl Files {
    pub fn new() -> Result<Files> {
        Ok(Files(TempDir::new()?))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes `content`, packed as the name says.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path(name);
        let content = content.as_ref();
        let packed = match path.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => gzip(content)?,
            Some("zst") => zstd::encode_all(content, 3)?,
            _ => content.to_vec(),
        };
        std::fs::write(&path, packed)?;
        Ok(path)
    }
}

pub fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content)?;
    Ok(encoder.finish()?)
}

/// A task with every field present: classification of `text` by `label`; `changes` on top.
pub fn task(changes: Value) -> Value {
    let base = json!({
        "train": null, "dev": null, "test": null, "file": null, "split": null,
        "train_splits": ["train"], "dev_splits": ["dev"], "test_splits": ["test"],
        "format": null, "columns": [], "quoted": null, "text": ["text"], "features": [], "feature_scale": "standard", "label_scale": "none", "class_weights": null, "temperature": 0.05, "label": ["label"],
        "head": "classification", "classes": [], "weight": 1.0, "priority": 0, "deadline_ms": null, "adaptive": null, "period": 1, "rounds": null, "target": null, "depends_on": [],
        "metrics": [], "share": 1.0, "memory": 0, "synthetic": null,
    });
    merged(base, changes)
}

/// A configuration over `tasks` (name to [`task`]); `changes` on top.
pub fn config(tasks: Value, changes: Value) -> Result<Config> {
    let base = json!({
        "run": {"name": "t", "seed": 1, "device": "cpu", "out": "runs", "threads": 0},
        "data": {"root": ".", "origin": "", "on_bad_row": "error", "resident": "auto"},
        "encoder": {"kind": "bag", "hidden": 8, "activation": "none", "residual": false, "dropout": 0.0,
            "tokenizer": "words", "lowercase": true, "max_len": 512, "ngrams": 1, "buckets": 64, "embedding_dim": 0,
            "embedding_init": 0.0, "word_dropout": 0.0, "from": null, "vocabulary": 0, "layers": 1, "heads": 0,
            "intermediate": 0, "positions": 512, "pooling": "cls", "attention_dropout": 0.0, "norm_eps": 1e-12, "init": 0.02,
            "freeze": [], "recompute": false, "cache_frozen": false},
        "train": {"epochs": 1.0, "rounds": null, "micro_batch": 2, "accumulate": 1, "fuse": 0, "label_smoothing": 0.0,
            "equal_heads": false, "max_bad_rounds": 1},
        "optimizer": {"kind": "adamw", "lr": 0.001, "head_lr_scale": 1.0, "embedding_lr_scale": 1.0,
            "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "momentum": 0.0, "row_moment": "element", "embedding": "lazy",
            "schedule": {"kind": "constant", "warmup": 0.0, "end": 0.0}},
        "clip": {"norm": 0.0, "scope": "update"},
        "balance": {"method": "equal"},
        "surgery": {"method": "mean", "granularity": "model", "storage": "f32", "scale": "native", "heads": "own", "order": "random"},
        "schedule": {"mode": "synchronous", "policy": "round_robin", "server_share": 0.05, "example_us": 1.0,
            "clock": "auto", "max_staleness": 0, "depth": 2, "max_retries": 3, "retry_base": 5.0, "retry_cap": 60.0, "lanes": 1},
        "memory": {"device": 0, "on_pressure": []},
        "sampler": {"kind": "proportional", "temperature": 1.0, "cap": 0},
        "eval": {"every": "epoch", "batch": 8, "batches_per_round": 0, "test": false, "slices": {}},
        "best": {"metric": "mean(primary)", "patience": 0, "keep": false},
        "checkpoint": {"every": "epoch", "keep": 1, "final": "all", "background": false},
        "observe": {"log_every": 1, "conflict_every": 0, "trace_rounds": 0, "trackio": ""},
        "faults": {},
        "synthetic": null, "tasks_from": null, "task_defaults": task(json!({})),
    });
    let mut config = merged(base, changes);
    config["tasks"] = tasks;
    config["tasks"].as_object_mut().into_iter().flatten().for_each(|(_, task)| listed(task));
    serde_json::from_value(config).context("the test configuration does not fit the schema")
}

/// One file becomes a list of it, as it does where a configuration is read.
fn listed(task: &mut Value) {
    for key in ["train", "dev", "test"] {
        if task[key].is_string() {
            task[key] = json!([task[key]]);
        }
    }
}

/// Tables merge, everything else replaces.
fn merged(mut base: Value, changes: Value) -> Value {
    let Value::Object(changes) = changes else { return base };
    for (key, value) in changes {
        let old = base[key.as_str()].take();
        base[key.as_str()] = if old.is_object() { merged(old, value) } else { value };
    }
    base
}

/// Loads one task `t` from `train`, with `changes` to its settings.
pub fn load_one(train: &Path, changes: Value) -> Result<Corpus> {
    load_with(train, changes, json!({}))
}

/// As [`load_one`], with changes to the configuration too.
pub fn load_with(train: &Path, changes: Value, config_changes: Value) -> Result<Corpus> {
    let settings = merged(task(json!({"train": train})), changes);
    load(&config(json!({"t": settings}), config_changes)?, &|_| {})
}

pub const SKIP: &str = "skip";

/// `data.on_bad_row = "skip"`.
pub fn skipping() -> Value {
    json!({"data": {"on_bad_row": SKIP}})
}

/// The full message of the error that loading ends with.
pub fn message<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => "no error".to_owned(),
        Err(error) => format!("{error:#}"),
    }
}

pub fn assert_contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
}

/// Token ids of every example of a split.
pub fn tokens(split: &Split) -> Vec<Vec<u32>> {
    let Inputs::Tokens(store) = &split.inputs else { return Vec::new() };
    let read = |i| {
        let mut ids = Vec::new();
        store.read(i, &mut ids);
        ids
    };
    (0..store.len()).map(read).collect()
}

/// `shared/data`, or none and a note where it is absent.
pub fn shared_data(file: &str) -> Option<PathBuf> {
    let root = std::env::var_os("TASKLOOM_DATA").map(PathBuf::from);
    let root = root.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"));
    let path = root.join(file);
    if !path.exists() {
        eprintln!("SKIPPED: {} is absent (TASKLOOM_DATA names the folder of the data sets)", path.display());
        return None;
    }
    Some(path)
}
