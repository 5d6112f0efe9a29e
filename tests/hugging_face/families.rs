//! Folders of other families than BERT's.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::{self, Place, run};
use crate::{config, copy};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// A RoBERTa and a DistilBERT compute here what they compute in transformers (`tests/fixtures/families.py` made them), and are exported as the
/// BERTs that compute the same: the script holds such a folder against transformers.
#[test]
fn other_families_are_read_as_berts() {
    for family in ["roberta", "distilbert"] {
        let place = Place::new();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(family);
        let trained = place.train(&config(&place, &folder), &["encoder.pooling=mean"]);
        let expected = std::fs::read(folder.join("expected.json")).expect("the fixture");
        let expected: Value = serde_json::from_slice(&expected).expect("JSON");
        let numbers = |value: &Value| -> Vec<f64> { serde_json::from_value(value.clone()).expect("numbers") };
        for (text, mean) in expected["texts"].as_array().expect("texts").iter().zip(expected["means"].as_array().expect("means"))
        {
            let text = text.as_str().expect("a text");
            let found = run(&["predict", trained.to_str().unwrap(), "--task", "mood", "--text", text, "--embed"]).ok().out;
            let found = numbers(&serde_json::from_str::<Value>(&found).expect("JSON")["embedding"]);
            let expected = numbers(mean);
            assert_eq!(found.len(), expected.len());
            // f32 and sums of up to 24 products of numbers around 1, through two layers.
            assert!(
                found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5),
                "{family}, {text:?}: {found:?} for {expected:?}"
            );
        }
        let out = place.path("out");
        run(&["export", trained.to_str().unwrap(), "--out", out.to_str().unwrap()]).ok();
        let document: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).expect("a file")).expect("JSON");
        let kind = [&document["model_type"], &document["type_vocab_size"], &document["max_position_embeddings"]];
        assert_eq!(kind, [&json!("bert"), &json!(2), &json!(20)]);
        // And read again as such.
        let again = place.train(&config(&place, &out), &["encoder.pooling=mean"]);
        let of = |run: &Path| common::final_checkpoint(run).remove("model.safetensors").expect("the model");
        let same = |bytes: &[u8]| -> BTreeMap<String, Vec<u8>> {
            let parsed = SafeTensors::deserialize(bytes).expect("safetensors");
            let encoder = parsed.iter().filter(|(name, _)| !name.starts_with("heads."));
            encoder.map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect()
        };
        assert!(same(&of(&again)).keys().eq(same(&of(&trained)).keys()), "{family} comes back as it went out");
    }
}

#[test]
fn a_folder_of_another_family_is_refused_by_name() {
    let place = Place::new();
    let folder = copy(&place);
    let spoil = |key: &str, value: Value| {
        let file = folder.join("config.json");
        let mut document: Value = serde_json::from_slice(&std::fs::read(&file).expect("a file")).expect("JSON");
        document[key] = value;
        std::fs::write(&file, document.to_string()).expect("can write");
    };
    spoil("model_type", json!("roberta"));
    spoil("type_vocab_size", json!(1));
    spoil("pad_token_id", json!(1));
    let check = || run(&["check", config(&place, &folder).to_str().unwrap()]);
    // Its tensors are named as a BERT's.
    check().failed(2, &["the weights do not fit config.json", "embeddings.word_embeddings.weight is missing"]);
    spoil("pad_token_id", json!(24));
    check().failed(2, &["max_position_embeddings is 24, which pad_token_id leaves no position of"]);
    spoil("pad_token_id", json!(null));
    check().failed(2, &["pad_token_id is missing"]);
    spoil("model_type", json!("gpt2"));
    check().failed(2, &["model_type is \"gpt2\", expected one of \"bert\", \"roberta\", \"distilbert\""]);
}
