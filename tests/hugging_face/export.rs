//! What else an exported folder holds.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::{self, Place, run};
use crate::{FIXTURE, config, copy, tensors};
use serde_json::{Value, json};

/// What transformers needs to give an exported model the inputs it was trained on. `hugging_face_answers.py` has transformers
/// itself read such a folder.
#[test]
fn an_export_says_how_texts_become_inputs() {
    let place = Place::new();
    let out = place.path("out");
    let trained = place.train(&config(&place, Path::new(FIXTURE)), &["encoder.pooling=mean", "encoder.max_len=9"]);
    run(&["export", trained.to_str().unwrap(), "--out", out.to_str().unwrap()]).ok();
    let read = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(out.join(name)).expect(name)).expect("JSON") };
    let expected = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "model_max_length": 12, "padding_side": "right", "truncation_side": "right", "clean_up_tokenization_spaces": false,
        "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]",
    });
    assert_eq!(read("tokenizer_config.json"), expected);
    let tokenizer = read("tokenizer.json");
    let rule = json!({"type": "BertProcessing", "cls": ["[CLS]", 2], "sep": ["[SEP]", 3]});
    assert_eq!(
        (&tokenizer["post_processor"], &tokenizer["truncation"], &tokenizer["padding"]),
        (&rule, &Value::Null, &Value::Null)
    );
    let added = tokenizer["added_tokens"].as_array().unwrap();
    assert!(added.len() == 5 && added.iter().all(|token| token["special"] == true), "{added:?}");
    let config = read("config.json");
    assert_eq!((&config["model_type"], &config["pad_token_id"], &config["vocab_size"]), (&json!("bert"), &json!(0), &json!(12)));
    let head = json!({"kind": "classification", "outputs": 2, "classes": ["no", "yes"], "pooling": "mean"});
    assert_eq!(read("heads.json"), json!({"mood": head, "pair": head}));
}

/// A tokenizer's own rule for special tokens is not the one that training follows, and tokens it lacks are not made up.
#[test]
fn an_export_has_the_rule_and_the_tokens_of_training() {
    let place = Place::new();
    let (folder, out) = (copy(&place), place.path("out"));
    let words = ["<pad>", "<unk>", "<s>", "</s>", "x", "good", "bad", "film", "book", "the", "a", "very"];
    let vocabulary: BTreeMap<&str, usize> = words.into_iter().zip(0..).collect();
    let own = json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 5},
        "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 3], "cls": ["<s>", 2], "trim_offsets": true, "add_prefix_space": false},
        "decoder": null, "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    });
    std::fs::write(folder.join("tokenizer.json"), own.to_string()).unwrap();
    let trained = place.train(&config(&place, &folder), &[]);
    run(&["export", trained.to_str().unwrap(), "--out", out.to_str().unwrap()]).ok();
    let read = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(out.join(name)).expect(name)).expect("JSON") };
    let rule = json!({"type": "BertProcessing", "cls": ["<s>", 2], "sep": ["</s>", 3]});
    let tokenizer = read("tokenizer.json");
    assert_eq!((&tokenizer["post_processor"], &tokenizer["truncation"]), (&rule, &Value::Null));
    let settings = read("tokenizer_config.json");
    assert_eq!(
        (&settings["cls_token"], &settings["pad_token"], &settings["mask_token"]),
        (&json!("<s>"), &json!("<pad>"), &Value::Null)
    );
}

#[test]
fn a_task_is_exported_as_a_classifier() {
    let place = Place::new();
    let config = config(&place, Path::new(FIXTURE));
    let table =
        std::fs::read_to_string(place.path("table.tsv")).expect("the table").replace("\tyes", "\t9.5").replace("\tno", "\t1.5");
    let numbers = place.write("numbers.tsv", table);
    let sets = [
        "encoder.pooling=pooler".to_owned(),
        format!("tasks.score={{ train = [{numbers:?}], text = \"text\", head = \"regression\", label_scale = \"standard\" }}"),
    ];
    let trained = place.train(&config, &sets.each_ref().map(String::as_str));
    let export = |task: Option<&str>, out: &Path| {
        let words = ["export", trained.to_str().unwrap(), "--out", out.to_str().unwrap()];
        run(&[&words[..], &task.map_or(vec![], |task| vec!["--task", task])].concat())
    };
    let [plain, mood, score] = ["plain", "mood", "score"].map(|name| place.path(name));
    assert!(export(None, &plain).ok().out.contains("AutoModel.from_pretrained"));
    let told = export(Some("mood"), &mood).ok().out;
    assert!(
        told.contains("AutoModelForSequenceClassification.from_pretrained") && told.contains(mood.to_str().unwrap()),
        "{told}"
    );
    assert!(std::fs::read_to_string(mood.join("README.md")).expect("a README").contains(&told));
    export(Some("score"), &score).ok();
    let [plain, of_mood, of_score] = [&plain, &mood, &score].map(|folder| tensors(folder));
    let encoder: Vec<&String> = plain.keys().filter(|name| !name.starts_with("heads.")).collect();
    assert!(encoder.contains(&&"pooler.dense.weight".to_owned()));
    for name in &encoder {
        assert_eq!(of_mood[&format!("bert.{name}")], plain[*name], "{name}");
    }
    for part in ["weight", "bias"] {
        assert_eq!(of_mood[&format!("classifier.{part}")], plain[&format!("heads.mood.{part}")]);
    }
    assert_eq!(of_mood.len(), encoder.len() + 2 + plain.keys().filter(|name| name.starts_with("heads.")).count());
    // Labels of 1.5 and 9.5, half of each: mean 5.5, deviation 4.
    let scaled = |part: &str, mean: f32| {
        plain[&format!("heads.score.{part}")].1.iter().map(|value| value * 4.0 + mean).collect::<Vec<f32>>()
    };
    for (part, mean) in [("weight", 0.0), ("bias", 5.5)] {
        let found = &of_score[&format!("classifier.{part}")].1;
        assert!(
            found.iter().zip(scaled(part, mean)).all(|(found, expected)| (found - expected).abs() < 1e-5),
            "{part}: {found:?}"
        );
    }
    let config =
        |folder: &Path| -> Value { serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap() };
    let of_mood = config(&mood);
    assert_eq!(of_mood["architectures"], json!(["BertForSequenceClassification"]));
    assert_eq!(
        (&of_mood["id2label"], &of_mood["problem_type"]),
        (&json!({"0": "no", "1": "yes"}), &json!("single_label_classification"))
    );
    assert_eq!((&config(&score)["id2label"], &config(&score)["problem_type"]), (&json!({"0": "LABEL_0"}), &json!("regression")));
    export(Some("moood"), &place.path("none")).failed(2, &["--task: there is no task `moood`; there are mood, pair, score"]);
}

#[test]
fn a_head_without_the_pooler_is_no_classifier() {
    let place = Place::new();
    let trained = place.train(&config(&place, Path::new(FIXTURE)), &[]);
    let out = place.path("out");
    let refused = run(&["export", trained.to_str().unwrap(), "--out", out.to_str().unwrap(), "--task", "mood"]);
    refused.failed(
        2,
        &[
            "--task mood: BertForSequenceClassification reads the pooler's output, this run's heads read \"cls\"",
            "encoder.pooling",
        ],
    );
    assert!(!out.exists(), "nothing is left behind");
}

#[test]
fn an_export_overwrites_nothing() {
    let place = Place::new();
    let folder = copy(&place);
    let trained = place.train(&config(&place, &folder), &[]);
    let before = common::files(&folder);
    let export = |out: &Path| run(&["export", trained.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    std::os::unix::fs::symlink(&folder, place.path("link")).unwrap();
    for out in [folder.clone(), folder.join("new/one"), place.path("link"), place.path("link/new"), place.path("refused/../copy")]
    {
        export(&out).failed(2, &["--out: ", "the encoder that the run started from (encoder.from)", "choose another folder"]);
    }
    place.write("full", "");
    export(&place.path("full")).failed(2, &["--out: ", "full"]);
    for full in [trained.clone(), place.path("")] {
        export(&full).failed(2, &["--out: ", "is not empty: choose a new folder"]);
    }
    assert_eq!(common::files(&folder), before);
    std::fs::create_dir(place.path("empty")).unwrap();
    export(&place.path("empty")).ok();
    export(&place.path("empty")).failed(2, &["is not empty"]);
    export(&place.path("new/deep")).ok();
    // The folder of the encoder may be gone.
    std::fs::remove_dir_all(&folder).unwrap();
    export(&place.path("after")).ok();
}
