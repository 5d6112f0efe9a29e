//! Hugging Face folders in and out: `tests/fixtures/hugging_face` is a BERT with a classifier that transformers saved in shards
//! (its script stands beside it). It is trained on with steps that leave every number but zeros as it is, exported, and must come out as it went in.

#[path = "../common/mod.rs"]
mod common;
mod export;
mod families;
mod names;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use common::{Place, run};
use safetensors::{Dtype, SafeTensors};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hugging_face");

const TABLE: &str =
    "text\tother\tlabel\nthe good film\ta book\tyes\na very bad book\tbad\tno\ngood book\tgood\tyes\nbad film\ta film\tno\n";

/// A run of one round over a folder's encoder.
fn config(place: &Place, from: &Path) -> PathBuf {
    place.write("table.tsv", TABLE);
    let text = format!(
        "[run]\nname = \"in-and-out\"\n[encoder]\nkind = \"transformer\"\nfrom = {from:?}\n\
         [optimizer]\nlr = 1e-30\n[train]\nrounds = 1\nmicro_batch = 2\n\
         [task_defaults]\ntrain = {:?}\nlabel = \"label\"\n\
         [tasks.mood]\ntext = \"text\"\n[tasks.pair]\ntext = [\"text\", \"other\"]\n",
        place.path("table.tsv"),
    );
    place.write("config.toml", text)
}

/// A copy of the fixture, to be spoiled.
fn copy(place: &Place) -> PathBuf {
    let folder = place.path("copy");
    std::fs::create_dir(&folder).expect("a folder");
    for entry in std::fs::read_dir(FIXTURE).expect("the fixture") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, folder.join(path.file_name().expect("a name"))).expect("a copy");
    }
    folder
}

/// Tensors of all safetensors files of a folder by name: shape and values.
fn tensors(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let bytes = std::fs::read(path).expect("a file");
            let parsed = SafeTensors::deserialize(&bytes).expect("safetensors");
            for (name, view) in parsed.iter() {
                let values = view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")));
                all.insert(name.to_owned(), (view.shape().to_vec(), values.collect()));
            }
        }
    }
    all
}

#[test]
fn an_encoder_comes_out_as_it_went_in() {
    let place = Place::new();
    let folder = place.train(&config(&place, Path::new(FIXTURE)), &[]);
    let out = place.path("out");
    run(&["export", folder.to_str().unwrap(), "--out", out.to_str().unwrap()]).ok();
    let (came, mut went) = (tensors(&out), tensors(Path::new(FIXTURE)));
    went.retain(|name, _| name.starts_with("bert."));
    assert_eq!(went.len(), 39);
    for (name, tensor) in went {
        let plain = name.trim_start_matches("bert.");
        // There is no pooler under this configuration's pooling.
        if plain.starts_with("pooler.") {
            continue;
        }
        let (shape, values) = came.get(plain).unwrap_or_else(|| panic!("{plain} is missing"));
        assert_eq!(*shape, tensor.0, "{name}");
        assert!(values.iter().zip(&tensor.1).all(|(came, went)| (came - went).abs() < 1e-20), "{name}");
    }
}

/// What `check` and `train` say of a folder or a configuration, which both must refuse, leaving no run behind.
fn refused(place: &Place, config: &Path, sets: &[&str], parts: &[&str]) {
    let words = [vec!["check", config.to_str().unwrap()], sets.iter().flat_map(|set| ["--set", set]).collect()].concat();
    run(&words).failed(2, parts);
    place.outcome_of_training(config, sets, &place.path("refused")).failed(2, parts);
    assert!(!place.path("refused").exists(), "a refused run leaves no folder");
}

/// Changes a file of a folder.
fn edit(folder: &Path, name: &str, change: impl Fn(&str) -> String) {
    let file = folder.join(name);
    let text = std::fs::read_to_string(&file).expect("a file");
    std::fs::write(file, change(&text)).expect("can write");
}

#[test]
fn every_wrong_shape_is_named() {
    let place = Place::new();
    let folder = copy(&place);
    edit(&folder, "config.json", |text| text.replace("\"intermediate_size\": 32", "\"intermediate_size\": 24"));
    let mut named = Vec::new();
    for layer in 0..2 {
        named.extend([
            format!("encoder.layer.{layer}.intermediate.dense.weight is [32, 16], expected [24, 16]"),
            format!("encoder.layer.{layer}.intermediate.dense.bias is [32], expected [24]"),
            format!("encoder.layer.{layer}.output.dense.weight is [16, 32], expected [16, 24]"),
        ]);
    }
    refused(&place, &config(&place, &folder), &[], &named.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn weights_that_are_not_there_or_not_whole() {
    let place = Place::new();
    let folder = copy(&place);
    let config = config(&place, &folder);
    let shard = folder.join("model-00002-of-00003.safetensors");
    let whole = std::fs::read(&shard).unwrap();
    let huge = [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat();
    for bytes in [&whole[..whole.len() - 1], &whole[..3], &[], &huge] {
        std::fs::write(&shard, bytes).unwrap();
        refused(&place, &config, &[], &["encoder.from", "model-00002-of-00003.safetensors is no whole safetensors file"]);
    }
    std::fs::remove_file(&shard).unwrap();
    refused(&place, &config, &[], &["encoder.from", "model-00002-of-00003.safetensors"]);
    std::fs::write(&shard, &whole).unwrap();
    edit(&folder, "model.safetensors.index.json", |text| text.replacen("model-00001", "../model-00001", 1));
    refused(&place, &config, &[], &["model.safetensors.index.json", "../model-00001", "expected a file name"]);
    edit(&folder, "model.safetensors.index.json", |text| text.replace("../", "").replace("model-00002-of", "model-00001-of"));
    refused(&place, &config, &[], &["the weights do not fit config.json", " is missing"]);
}

/// The fixture's weights in one file, each tensor as `change` leaves it.
fn rewritten(folder: &Path, change: impl Fn(&str, Dtype, Vec<u8>) -> (Dtype, Vec<u8>)) {
    let changed: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = tensors(Path::new(FIXTURE))
        .into_iter()
        .map(|(name, (shape, values))| {
            let (dtype, bytes) = change(&name, Dtype::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect());
            (name, (dtype, shape, bytes))
        })
        .collect();
    let views = changed.iter().map(|(name, (dtype, shape, bytes))| {
        (name.clone(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor"))
    });
    let bytes = safetensors::serialize(views, None).expect("safetensors");
    std::fs::write(folder.join("model.safetensors"), bytes).expect("can write");
}

#[test]
fn weights_of_another_type_or_without_end() {
    const NORM: &str = "bert.encoder.layer.1.output.LayerNorm.weight";
    let place = Place::new();
    let folder = copy(&place);
    let config = config(&place, &folder);
    rewritten(&folder, |name, dtype, bytes| (if name == NORM { Dtype::I32 } else { dtype }, bytes));
    refused(&place, &config, &[], &["encoder.layer.1.output.LayerNorm.weight holds I32, expected F32, F16 or BF16"]);
    rewritten(&folder, |name, dtype, mut bytes| {
        if name == NORM {
            bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        (dtype, bytes)
    });
    let parts = ["encoder.layer.1.output.LayerNorm.weight holds a number that is not finite"];
    place.outcome_of_training(&config, &[], &place.path("nan")).failed(2, &parts);
}

#[test]
fn every_size_has_a_range() {
    let place = Place::new();
    let folder = copy(&place);
    let config = config(&place, &folder);
    for (key, whole, huge) in [
        ("num_hidden_layers", "2", "18446744073709551615"),
        ("num_hidden_layers", "2", "1025"),
        ("vocab_size", "12", "1073741825"),
        ("hidden_size", "16", "131072"),
        ("intermediate_size", "32", "1048577"),
        ("max_position_embeddings", "24", "3"),
        ("max_position_embeddings", "24", "9223372036854775808"),
        ("layer_norm_eps", "1e-12", "0"),
    ] {
        let change = |from: &str, to: &str| {
            edit(&folder, "config.json", |text| text.replace(&format!("\"{key}\": {from}"), &format!("\"{key}\": {to}")));
        };
        change(whole, huge);
        refused(
            &place,
            &config,
            &[],
            &["config.toml:5:8: encoder.from: ", "config.json: ", &format!("{key} is {huge}, expected a")],
        );
        change(huge, whole);
    }
    edit(&folder, "config.json", |text| text.replace("\"hidden_size\": 16,", ""));
    refused(&place, &config, &[], &["encoder.from: ", "config.json", "hidden_size is missing"]);
    edit(&folder, "config.json", |text| text[..text.len() / 2].to_owned());
    refused(&place, &config, &[], &["encoder.from: ", "config.json is not JSON"]);
}

#[test]
fn sizes_that_contradict_the_folder() {
    let place = Place::new();
    let config = config(&place, Path::new(FIXTURE));
    for (key, value, theirs) in [
        ("hidden", "768", "hidden_size"),
        ("layers", "3", "num_hidden_layers"),
        ("heads", "4", "num_attention_heads"),
        ("positions", "512", "max_position_embeddings"),
        ("norm_eps", "1e-5", "layer_norm_eps"),
    ] {
        let set = format!("encoder.{key}={value}");
        refused(&place, &config, &[&set], &[&format!("--set {set}: encoder.{key}: is "), theirs, "remove the key"]);
    }
    refused(&place, &config, &["encoder.freeze=[\"embeddings\", \"layer.0-1\"]"], &["encoder.freeze: freezes every layer"]);
    let all = ["encoder.hidden=16", "encoder.layers=2", "encoder.heads=2", "encoder.vocabulary=12"];
    let printed = run(&["check", config.to_str().unwrap(), "--print", "--set", all[0], "--set", all[1]]).ok().out;
    for line in ["hidden = 16", "layers = 2", "positions = 24", "vocab.txt"] {
        assert!(printed.contains(line), "no `{line}` in\n{printed}");
    }
    place.train(&config, &all);
}

#[test]
fn a_folder_that_is_none_or_lacks_its_tokenizer() {
    let place = Place::new();
    let folder = copy(&place);
    let config = config(&place, &folder);
    std::fs::rename(folder.join("vocab.txt"), place.path("words.txt")).unwrap();
    refused(
        &place,
        &config,
        &[],
        &["config.toml:5:8: encoder.from: ", "has no tokenizer.json or vocab.txt: set encoder.tokenizer"],
    );
    let own = format!("encoder.tokenizer={}", place.path("words.txt").display());
    place.train(&config, &[&own]);
    let words = std::fs::read_to_string(place.path("words.txt")).unwrap();
    place.write("words.txt", format!("{words}more\n"));
    refused(&place, &config, &[&own], &["encoder.tokenizer: ", "13 words", "12 rows"]);
    place.write("words.txt", words.replace("[CLS]", "[XYZ]"));
    refused(&place, &config, &[&own], &["encoder.tokenizer: ", "no [CLS]"]);
    let mlm = ["tasks.mood.head=mlm", "tasks.mood.label=[]", &own];
    place.write("words.txt", words.replace("[MASK]", "[XYZ]"));
    refused(&place, &config, &mlm, &["tasks.mood.head: ", "needs a [MASK]"]);
    let file = format!("encoder.from={}", place.path("words.txt").display());
    refused(&place, &config, &[&file], &["encoder.from: is a file, not a folder"]);
    let gone = format!("encoder.from={}", place.path("gone").display());
    refused(&place, &config, &[&gone], &["encoder.from: no such folder", "gone"]);
}

#[test]
fn a_run_goes_on_without_the_folder_it_started_from() {
    let place = Place::new();
    let (folder, out) = (copy(&place), place.path("out"));
    let config = config(&place, &folder);
    let sets = ["train.rounds=4", "checkpoint.every=1"];
    let whole = place.train(&config, &sets);
    let part = place.train(&config, &sets);
    let newest = common::checkpoints(&part).pop().unwrap();
    std::fs::remove_dir_all(newest).unwrap();
    let tokenizer = format!("encoder.tokenizer={}", folder.join("vocab.txt").display());
    let named = place.train(&config, &[&sets[..], &[&tokenizer]].concat());
    std::fs::remove_dir_all(&folder).unwrap();
    common::resume(&part).ok();
    common::assert_same_files(&common::final_checkpoint(&part), &common::final_checkpoint(&whole), "resumed");
    for run_folder in [&part, &named] {
        let path = run_folder.to_str().unwrap();
        run(&["eval", path, "--json"]).says(&["no task has a dev split"]);
        run(&["predict", path, "--task", "mood", "--text", "good film"]).ok();
    }
    run(&["export", part.to_str().unwrap(), "--out", out.to_str().unwrap()]).ok();
    // One that has not got to its first checkpoint needs the weights.
    std::fs::remove_dir_all(named.join("checkpoints")).unwrap();
    std::fs::create_dir(named.join("checkpoints")).unwrap();
    common::resume(&named).failed(2, &["no checkpoint yet", "encoder.from", "copy"]);
}

#[test]
fn predict_takes_what_its_task_reads() {
    let place = Place::new();
    let trained = place.train(&config(&place, Path::new(FIXTURE)), &[]);
    let ask = |task: &str, text: &str| run(&["predict", trained.to_str().unwrap(), "--task", task, "--text", text]);
    ask("mood", "good film").ok();
    ask("pair", "good film\tbook").ok();
    ask("mood", "good film\tbook").failed(2, &["task \"mood\" reads one text, found 2"]);
    ask("pair", "good film").failed(2, &["task \"pair\" reads a pair of texts separated by a tab, found 1"]);
    ask("pair", "a\tb\tc").failed(2, &["task \"pair\" reads a pair of texts separated by a tab, found 3"]);
    let line = "{\"text\": \"good film\", \"label\": \"yes\"}";
    // One who means it can say so.
    ask("mood", line).ok();
    for (task, line) in [("mood", line), ("pair", line), ("mood", " {}")] {
        let mut child = common::taskloom();
        let child = child.arg("predict").arg(&trained).args(["--task", task]).stdin(std::process::Stdio::piped()).spawn();
        let mut child = child.expect("starts");
        writeln!(child.stdin.take().expect("a pipe"), "{line}").expect("the program reads");
        let outcome = common::outcome(child.wait_with_output());
        outcome.failed(2, &["stdin, line 1: found a JSON object", "as plain text", "separated by a tab"]);
    }
}
