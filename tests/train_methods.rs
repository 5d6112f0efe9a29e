//! Methods and balancers through the program: what a run tells of them, and that one resumed from an earlier checkpoint ends with the
//! same bytes as one that was never stopped. What they compute is in rounds_in_f64.rs.

mod common;

use std::path::{Path, PathBuf};

use common::{Place, example, metrics, resume};
use serde_json::Value;
use taskloom::surgery::methods;

const CONFIG: &str = r#"
[run]
name = "methods"
[synthetic]
features = 12
train = 120
dev = 20
test = 20
[task_defaults]
head = "regression"
[encoder]
kind = "linear"
hidden = 16
[train]
rounds = 12
micro_batch = 8
accumulate = 2
[eval]
every = "end"
[checkpoint]
every = 6
keep = 3
[observe]
conflict_every = 4
"#;

fn train(place: &Place, sets: &[&str]) -> PathBuf {
    place.train(&place.write("config.toml", CONFIG), sets)
}

fn lines(run: &Path, kind: &str) -> Vec<Value> {
    metrics(run).into_iter().filter(|line| line["kind"] == kind).collect()
}

fn checkpoint(run: &Path, round: u64) -> PathBuf {
    run.join(format!("checkpoints/round-{round:08}"))
}

/// A balancer's factors reach the gradients by two roads: in the rows of J, or in the loss where rows are not kept apart.
/// Both must move the parameters alike.
#[test]
fn balancing_does_not_depend_on_stored_gradients() {
    let place = Place::new();
    let loss = |every: &str| {
        let run = train(&place, &["balance.method=gls", "surgery.method=sum", every, "clip.norm=0"]);
        let last = lines(&run, "round").pop().expect("a round");
        (last["losses"].clone(), last["balance"].clone())
    };
    let (kept, added) = (loss("observe.conflict_every=1"), loss("observe.conflict_every=0"));
    for (kept, added) in [(&kept.0, &added.0), (&kept.1, &added.1)] {
        for (task, kept) in kept.as_object().expect("by task") {
            let (kept, added) = (kept.as_f64().expect("a number"), added[task].as_f64().expect("a number"));
            assert!((kept - added).abs() <= 1e-4 * kept.abs(), "{task}: {kept} {added}");
        }
    }
}

/// J in bf16 changes a run by its rounding and nothing else.
#[test]
fn rounded_gradients_train_alike() {
    let place = Place::new();
    for method in ["pcgrad", "graddrop", "upgrad", "trimmed_mean", "sdmgrad"] {
        let losses = |storage: &str| {
            let sets = [format!("surgery.method={method}"), format!("surgery.storage={storage}")];
            let run = train(&place, &sets.each_ref().map(String::as_str));
            let last = lines(&run, "round").pop().expect("a round");
            let losses = last["losses"].as_object().expect("by task").values().map(|loss| loss.as_f64().expect("a number"));
            losses.collect::<Vec<_>>()
        };
        let (wide, rounded) = (losses("f32"), losses("bf16"));
        assert_ne!(wide, rounded, "{method}");
        for (wide, rounded) in wide.iter().zip(&rounded) {
            assert!((wide - rounded).abs() <= 0.01 * wide.abs(), "{method}: {wide} {rounded}");
        }
    }
}

#[test]
fn a_resumed_run_ends_with_the_same_bytes() {
    let place = Place::new();
    let settings = [
        ("gradvac", "uw", "tensor"),
        ("nash_mtl", "famo", "model"),
        ("gradnorm", "dwa", "layer"),
        ("pcgrad", "stch", "tensor"),
        ("db_mtl", "imtl_l", "model"),
        ("graddrop", "rlw", "tensor"),
        ("moco", "equal", "tensor"),
        ("excess_mtl", "equal", "model"),
        ("modo", "equal", "model"),
        ("sdmgrad", "uw", "tensor"),
    ];
    for (number, (method, balancer, granularity)) in settings.into_iter().enumerate() {
        let storage = if number < 4 { "bf16" } else { "f32" };
        let sets = [
            ("surgery.method", method),
            ("balance.method", balancer),
            ("surgery.granularity", granularity),
            ("surgery.storage", storage),
        ];
        let sets = sets.map(|(key, value)| format!("{key}={value}"));
        let run = train(&place, &sets.each_ref().map(String::as_str));
        let read = |file: &str| std::fs::read(checkpoint(&run, 12).join(file)).expect("a checkpoint file");
        let files = ["model.safetensors", "optimizer.safetensors", "state.json"];
        let expected = files.map(read);
        std::fs::remove_dir_all(checkpoint(&run, 12)).expect("removable");
        resume(&run).ok();
        assert!(files.map(read) == expected, "{method} with {balancer}");
    }
}

/// Tensors solved apart have their own weights and statistics.
#[test]
fn every_tensor_has_its_own_weights_and_conflicts() {
    let place = Place::new();
    let run = train(&place, &["surgery.granularity=tensor", "surgery.method=mgda", "train.equal_heads=true"]);
    let names = ["encoder.dense.bias", "encoder.dense.weight"];
    let keys = |value: &Value| value.as_object().map(|found| found.keys().cloned().collect::<Vec<_>>());
    let round = lines(&run, "round").remove(0);
    assert_eq!(keys(&round["block_weights"]).expect("by block"), names, "{round}");
    assert_ne!(round["block_weights"][names[0]], round["block_weights"][names[1]]);
    let conflict = lines(&run, "conflict").remove(0);
    assert_eq!(keys(&conflict["blocks"]).expect("by block"), names);
    let square = |value: &Value| value["norms"][0].as_f64().expect("a norm").powi(2);
    let parts: f64 = names.iter().map(|name| square(&conflict["blocks"][name])).sum();
    assert!((square(&conflict) - parts).abs() <= 1e-12 * parts, "{conflict}");
    let end = lines(&run, "end").pop().expect("an end");
    let contested = end["contested_blocks"].as_array().expect("blocks");
    assert!(contested.iter().any(|block| block["block"] == names[1]), "{end}");
}

/// A data root with the files that configs/reviews.toml names: 16 tasks of short synthetic reviews in the sets' form.
fn reviews(root: &Path) {
    let words = ["good", "bad", "book", "film", "very", "not", "dull", "fine", "read", "seen"];
    let vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].iter().chain(&words).copied().collect::<Vec<_>>();
    std::fs::create_dir_all(root.join("bert-vocab")).expect("a writable folder");
    std::fs::write(root.join("bert-vocab/vocab.txt"), vocabulary.join("\n")).expect("a writable folder");
    let mut table = String::from("task\tsplit\trow\tlabel\tseen\ttext\n");
    for task in 0..16 {
        for row in 0..24 {
            let split = ["train", "train", "dev", "test"][row % 4];
            let text: Vec<&str> = (0..6).map(|at| words[(row * (task + 3) + at * at) % words.len()]).collect();
            table += &format!("t{task:02}\t{split}\t{row}\t{}\t0\t{}\n", (row / 4) % 2, text.join(" "));
        }
    }
    std::fs::create_dir_all(root.join("fdu-mtl")).expect("a writable folder");
    let file = std::fs::File::create(root.join("fdu-mtl/labelled.tsv.gz")).expect("a writable folder");
    let mut file = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    std::io::Write::write_all(&mut file, table.as_bytes()).and_then(|()| file.finish()).expect("a writable folder");
}

/// configs/reviews.toml as it is, on data of its form: text, the bag encoder and its row-sparse table.
#[test]
fn the_reviews_train_with_every_method() {
    let place = Place::new();
    reviews(&place.path(""));
    let root = format!("data.root={}", place.path("").display());
    for method in methods::registry::DESCRIPTORS {
        let name = format!("surgery.method={}", method.name);
        let small = ["encoder.hidden=32", "encoder.embedding_dim=32", "encoder.buckets=512", "checkpoint.every=3"];
        let sets = [&small[..], &["train.micro_batch=4", "checkpoint.keep=9", &root, &name]].concat();
        let run = place.train(&example("reviews.toml"), &sets);
        assert_eq!(lines(&run, "anomaly").len(), 0, "{}", method.name);
        let end = lines(&run, "end").pop().expect("an end");
        let rounds = end["round"].as_u64().expect("a round");
        assert!(rounds > 6, "{end}");
        if method.needs.row_state || method.needs.second_batch {
            let read = || std::fs::read(checkpoint(&run, rounds).join("optimizer.safetensors")).expect("a checkpoint");
            let expected = read();
            for round in 4..=rounds {
                let _ = std::fs::remove_dir_all(checkpoint(&run, round));
            }
            resume(&run).ok();
            assert!(read() == expected, "{} resumed", method.name);
        }
    }
}

#[test]
fn the_end_names_the_conflicting_pairs() {
    let place = Place::new();
    let run = train(&place, &["train.equal_heads=true"]);
    let end = lines(&run, "end").pop().expect("an end");
    let worst = &end["conflicts"][0];
    assert_eq!(worst["tasks"], serde_json::json!(["oppose_1a", "oppose_1b"]), "{end}");
    assert!(worst["cosine"].as_f64().is_some_and(|cosine| cosine < 0.0));
    let conflict = lines(&run, "conflict");
    assert_eq!(conflict.len(), 3);
    assert_eq!(conflict[0]["yielded"].as_array().map(Vec::len), Some(5));
}
