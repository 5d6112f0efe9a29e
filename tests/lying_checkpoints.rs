//! Checkpoints that are not what their numbers say, though every hash fits: refused with a message, whatever is asked of them.

mod common;

use std::path::{Path, PathBuf};

use common::{Place, checkpoints, resume, run};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// A run with an embedding table whose newest checkpoint is halfway.
fn halfway(place: &Place) -> PathBuf {
    let folder = place.train(&place.bag(), &["train.rounds=8", "eval.every=4", "checkpoint.every=4"]);
    let all = checkpoints(&folder);
    std::fs::remove_dir_all(&all[1]).expect("the last checkpoint can go");
    std::fs::remove_dir_all(folder.join("best")).expect("the best parameters can go");
    folder
}

/// Writes a file of a checkpoint, and the hashes that follow from it.
fn put(checkpoint: &Path, name: &str, content: &[u8]) {
    std::fs::write(checkpoint.join(name), content).expect("can write");
    let mut state = state(checkpoint);
    state["hashes"][name] = json!(blake3::hash(content).to_hex().to_string());
    put_state(checkpoint, &state);
}

fn state(checkpoint: &Path) -> Value {
    let text = std::fs::read_to_string(checkpoint.join("state.json")).expect("a state");
    serde_json::from_str(&text).expect("JSON")
}

fn put_state(checkpoint: &Path, state: &Value) {
    let text = state.to_string();
    std::fs::write(checkpoint.join("state.json"), &text).expect("can write");
    std::fs::write(checkpoint.join("COMPLETE"), blake3::hash(text.as_bytes()).to_hex().as_str()).expect("can write");
}

/// With none of these states in a checkpoint's place does a run go on, as it does with the honest one.
fn refused<'a>(lies: impl Fn(&Value) -> Vec<(Value, [&'a str; 2])>) {
    let place = Place::new();
    let folder = halfway(&place);
    let checkpoint = &checkpoints(&folder)[0];
    let honest = state(checkpoint);
    for (lie, parts) in lies(&honest) {
        put_state(checkpoint, &lie);
        resume(&folder).failed(2, &parts);
    }
    put_state(checkpoint, &honest);
    resume(&folder).ok();
}

#[test]
fn counters_beyond_the_run() {
    let huge = json!(u64::MAX);
    let lies = [
        ("/round", huge.clone(), "for round, this run can have 8 at most"),
        ("/commits", huge.clone(), "for commits"),
        ("/evaluation", json!({"round": 4, "batches": u64::MAX}), "for evaluation.batches"),
        ("/tasks/1/cursor/position", huge.clone(), "for cursor.position of task numbers"),
        ("/tasks/0/micro_batch", json!(1u64 << 40), "for micro_batch of task flags, this run can have 8 at most"),
        ("/tasks/0/micro_batch", json!(0), "says 0 for micro_batch of task flags"),
        ("/tasks/2/reached", huge, "for reached of task topic"),
    ];
    let told = |honest: &Value, pointer: &str, lie: &Value| {
        let mut state = honest.clone();
        *state.pointer_mut(pointer).expect("the state has it") = lie.clone();
        state
    };
    refused(|honest| {
        lies.iter().map(|(pointer, lie, part)| (told(honest, pointer, lie), ["cannot resume from", *part])).collect()
    });
}

/// A file that has no end would be read for ever.
#[test]
fn a_file_that_is_none_of_a_checkpoint() {
    let named = |honest: &Value, name: &str| {
        let mut state = honest.clone();
        state["hashes"][name] = json!(blake3::hash(b"").to_hex().to_string());
        state
    };
    let names = ["/dev/zero", "../../config.toml"];
    refused(|honest| names.map(|name| (named(honest, name), [name, "which is no file of a checkpoint"])).into());
}

/// A language model reads every row of its table.
#[test]
fn a_table_that_has_lost_rows() {
    let place = Place::new();
    place.write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\nbad\n");
    place.write("t.tsv", "text\tlabel\ngood\tyes\nbad good\tno\n");
    let config = place.write(
        "config.toml",
        "[encoder]\nkind = \"transformer\"\ntokenizer = \"vocab.txt\"\nhidden = 8\nheads = 2\nlayers = 1\npositions = 16\n\
         [train]\nrounds = 4\nmicro_batch = 2\n[eval]\nevery = \"end\"\n[checkpoint]\nevery = 2\n[task_defaults]\ntrain = \"t.tsv\"\n\
         text = \"text\"\n[tasks.mood]\nlabel = \"label\"\n[tasks.words]\nlabel = []\nhead = \"mlm\"\n",
    );
    let folder = place.train(&config, &[]);
    std::fs::remove_dir_all(&checkpoints(&folder)[1]).expect("the last checkpoint can go");
    let checkpoint = &checkpoints(&folder)[0];
    let bytes = std::fs::read(checkpoint.join("model.safetensors")).expect("a model");
    let model = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let (rows, values) = ([0u32, 2].map(u32::to_le_bytes).concat(), vec![0u8; 2 * 8 * 4]);
    let others = model.iter().filter(|(name, _)| !["embeddings.rows", "embeddings.values"].contains(name));
    let rows = TensorView::new(Dtype::U32, vec![2], &rows).expect("a tensor");
    let values = TensorView::new(Dtype::F32, vec![2, 8], &values).expect("a tensor");
    let tensors = others.chain([("embeddings.rows", rows), ("embeddings.values", values)]);
    put(checkpoint, "model.safetensors", &safetensors::serialize(tensors, None).expect("memory takes all"));
    let path = folder.to_str().expect("UTF-8");
    run(&["predict", path, "--task", "mood", "--text", "good"]).failed(2, &["holds 2 embedding rows", "a table of 7"]);
    resume(&folder).failed(2, &["embeddings.rows are not all 7 rows"]);
}

#[test]
fn sizes_that_no_tensor_has() {
    let place = Place::new();
    let folder = halfway(&place);
    let checkpoint = &checkpoints(&folder)[0];
    let honest = state(checkpoint);
    let path = folder.to_str().expect("UTF-8");
    let mut state = honest.clone();
    state["tasks"][2]["outputs"] = json!(1u64 << 50);
    put_state(checkpoint, &state);
    run(&["predict", path, "--task", "topic", "--text", "a"])
        .failed(2, &["heads.topic.weight", "in the checkpoint, the model wants"]);
    put_state(checkpoint, &honest);
    let bytes = std::fs::read(checkpoint.join("model.safetensors")).expect("a model");
    let model = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let row = [0u8; 4];
    // One number without a dimension, and more rows than memory has, each of no bytes.
    for (shape, data) in [(vec![], &row[..]), (vec![1usize << 40, 0], &[][..])] {
        let others = model.iter().filter(|(name, _)| *name != "embeddings.rows");
        let lie = TensorView::new(Dtype::U32, shape, data).expect("a tensor");
        let tensors = others.chain([("embeddings.rows", lie)]);
        put(checkpoint, "model.safetensors", &safetensors::serialize(tensors, None).expect("memory takes all"));
        let parts = ["tensor embeddings.rows is", "expected a list of rows"];
        run(&["predict", path, "--task", "topic", "--text", "a"]).failed(2, &parts);
        resume(&folder).failed(2, &parts);
    }
}
