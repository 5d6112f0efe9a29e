//! Hugging Face folders in and out: `tests/fixtures/hugging_face` is a BERT with a classifier that transformers saved in shards
//! (its script stands beside it). It is trained on with steps that leave every number but zeros as it is, exported, and must come out as it went in.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{Place, run};
use safetensors::SafeTensors;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hugging_face");

/// A run of one round over a folder's encoder.
fn config(place: &Place, from: &Path) -> PathBuf {
    place.write("table.tsv", "text\tlabel\nthe good film\tyes\na very bad book\tno\ngood book\tyes\nbad film\tno\n");
    let text = format!(
        "[run]\nname = \"in-and-out\"\n[encoder]\nkind = \"transformer\"\nfrom = {from:?}\ntokenizer = {:?}\n\
         [optimizer]\nlr = 1e-30\n[train]\nrounds = 1\nmicro_batch = 2\n\
         [tasks.mood]\ntrain = {:?}\ntext = \"text\"\nlabel = \"label\"\n",
        from.join("vocab.txt"),
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

/// What training from a folder says, which it must refuse.
fn refused(place: &Place, folder: &Path, parts: &[&str]) {
    run(&["train", config(place, folder).to_str().unwrap(), "--run-dir", place.path("run").to_str().unwrap()]).failed(2, parts);
}

#[test]
fn every_wrong_shape_is_named() {
    let place = Place::new();
    let folder = copy(&place);
    let file = folder.join("config.json");
    let text = std::fs::read_to_string(&file).unwrap().replace("\"intermediate_size\": 32", "\"intermediate_size\": 24");
    std::fs::write(file, text).unwrap();
    let mut named = Vec::new();
    for layer in 0..2 {
        named.extend([
            format!("encoder.layer.{layer}.intermediate.dense.weight is [32, 16], expected [24, 16]"),
            format!("encoder.layer.{layer}.intermediate.dense.bias is [32], expected [24]"),
            format!("encoder.layer.{layer}.output.dense.weight is [16, 32], expected [16, 24]"),
        ]);
    }
    refused(&place, &folder, &named.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_missing_shard_is_named() {
    let place = Place::new();
    let folder = copy(&place);
    std::fs::remove_file(folder.join("model-00002-of-00003.safetensors")).unwrap();
    refused(&place, &folder, &["model-00002-of-00003.safetensors"]);
}
