//! The real sets of `shared/data`: the tokenizer oracle, reviews, and three of GLUE.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use super::support::{Files, assert_contains, config, load_with, message, shared_data, task};
use crate::data::{Inputs, SpecialIds, Targets, Tokenizer, expand, load};

/// The oracle's ids, one list per question.
fn oracle(folder: &Path) -> Result<Vec<Vec<u32>>> {
    gunzip_json(&folder.join("oracle/tokenized_questions.json.gz"))
}

#[test]
fn both_bert_tokenizers_give_the_oracle_s_ids() -> Result<()> {
    let Some(folder) = shared_data("bert-vocab") else { return Ok(()) };
    let expected = oracle(&folder)?;
    let vocab = std::fs::read_to_string(folder.join("vocab.txt"))?;
    let pieces: Vec<&str> = vocab.lines().collect();
    // The questions as written are not always at hand; their words, put together from the pieces, are.
    let join = |ids: &Vec<u32>| ids.iter().map(|&id| pieces[id as usize]).collect::<Vec<_>>().join(" ").replace(" ##", "");
    let mut questions: Vec<(String, &Vec<u32>)> = expected.iter().map(|ids| (join(ids), ids)).collect();
    if let Some(path) = shared_data("bert-vocab/oracle/question_tokens.json.gz") {
        let written: Vec<serde_json::Value> = gunzip_json(&path)?;
        let text = |question: &serde_json::Value| question["original"].as_str().unwrap_or_default().to_owned();
        questions.extend(written.iter().map(text).zip(&expected));
    }
    assert!(expected.len() == 10_570 && questions.len().is_multiple_of(10_570));
    for name in ["vocab.txt", "tokenizer.json.gz"] {
        let tokenizer = Tokenizer::open(&folder.join(name).to_string_lossy(), true)?;
        assert_eq!(tokenizer.vocab_size(), Some(30_522));
        let special = SpecialIds { cls: Some(101), sep: Some(102), pad: Some(0), mask: Some(103), unk: Some(100) };
        assert_eq!(tokenizer.special_ids(), special);
        for (question, expected) in &questions {
            let mut ids = Vec::new();
            tokenizer.encode(question, &mut ids)?;
            assert_eq!(ids, **expected, "{name}: {question}");
        }
    }
    Ok(())
}

fn gunzip_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path)?).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

#[test]
fn word_by_word_equals_whole_texts() -> Result<()> {
    let Some(vocab) = shared_data("bert-vocab/vocab.txt") else { return Ok(()) };
    let text = std::fs::read_to_string(&vocab)?;
    let ours = Tokenizer::open(&vocab.to_string_lossy(), true)?;
    let json = ours.to_json()?.context("a vocabulary can be written")?;
    let library: tokenizers::Tokenizer = json.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
    let words: Vec<&str> = text.lines().skip(20_000).step_by(7).collect();
    let mixed = words.join("\u{c}").replace("##", " \u{85}é\u{301}Σ ΑΣ [MASK]x [ SEP ] \u{a0}\u{3000}中文 \r\n\t");
    for text in [mixed.as_str(), &words.join(" "), "don't [SEP]stop[CLS]", "", " \u{301}a \u{301}b", "a\u{0}b\u{fffd}c"] {
        let mut ids = Vec::new();
        ours.encode(text, &mut ids)?;
        let whole = library.encode(text, false).map_err(|error| anyhow::anyhow!("{error}"))?;
        assert_eq!(ids, whole.get_ids());
    }
    Ok(())
}

#[test]
fn broken_vocabularies_are_named() -> Result<()> {
    let files = Files::new()?;
    let open = |name: &str, content: &str| -> Result<String> {
        let path = files.write(name, content)?;
        Ok(message(Tokenizer::open(&path.to_string_lossy(), true)))
    };
    assert_contains(&open("v.txt", "a\nb\n")?, &["encoder.tokenizer", "v.txt", "no `[UNK]`"]);
    assert_contains(&open("v.txt", "[UNK]\na\nb\na\n")?, &["line 4 repeats `a` of line 2"]);
    assert_contains(&open("v.txt", "[UNK]\n\nb\n")?, &["line 2 is empty"]);
    assert_contains(&open("t.json", "{}")?, &["t.json", "not a tokenizer.json"]);
    assert_contains(&open("t.json.gz", "nonsense")?, &["not a tokenizer.json"]);
    assert_contains(&message(Tokenizer::open("/nowhere/vocab.txt", true)), &["no such file"]);
    assert_eq!(open("v.txt.gz", "[UNK]\r\na\r\n##b\r\n")?, "no error");
    Ok(())
}

#[test]
fn reviews_load_as_their_table_says() -> Result<()> {
    let (Some(file), Some(vocab)) = (shared_data("fdu-mtl/labelled.tsv.gz"), shared_data("bert-vocab/vocab.txt")) else {
        return Ok(());
    };
    let defaults = task(json!({"split": "split"}));
    let mut config = config(
        json!({}),
        json!({"tasks_from": {"file": file, "task": "task", "include": []}, "task_defaults": defaults,
            "encoder": {"tokenizer": vocab},
            "eval": {"slices": {"clean": {"column": "seen", "equals": "0"}}}}),
    )?;
    let start = std::time::Instant::now();
    expand(&mut config)?;
    let expanded = start.elapsed();
    let corpus = load(&config, &|_| {})?;
    eprintln!("reviews: expand {expanded:?}, both {:?}, {} threads", start.elapsed(), rayon::current_num_threads());
    let train: BTreeMap<&str, usize> = corpus.tasks.iter().map(|task| (task.name.as_str(), task.train.len())).collect();
    let smaller = [("baby", 1300), ("camera_photo", 1397), ("electronics", 1398), ("magazines", 1370), ("software", 1315)];
    assert_eq!(train.len(), 16);
    for (name, count) in &train {
        let expected = smaller.iter().find(|small| small.0 == *name).map_or(1400, |small| small.1);
        assert_eq!(*count, expected, "{name}");
    }
    let (mut clean, mut empty) = (0, Vec::new());
    for task in &corpus.tasks {
        assert!(task.report.is_clean());
        assert_eq!(task.classes, ["0", "1"]);
        assert_eq!(task.dev.as_ref().map(|split| split.len()), Some(200));
        let test = task.test.as_ref().context("every task has a test split")?;
        assert_eq!(test.len(), 400);
        clean += test.slices["clean"].iter().filter(|&&flag| flag).count();
        let Inputs::Tokens(store) = &task.train.inputs else { panic!("text") };
        empty.extend((0..store.len()).filter(|&i| store.token_count(i) == 0).map(|i| (task.name.clone(), i)));
    }
    assert_eq!(clean, 5_835);
    assert_eq!(empty, [("sports_outdoors".to_owned(), 1_120)]);
    Ok(())
}

#[test]
fn three_glue_sets_load_as_they_are() -> Result<()> {
    let Some(folder) = shared_data("glue-small") else { return Ok(()) };
    let cola = json!({"columns": ["source", "label", "mark", "sentence"], "text": ["sentence"],
        "dev": folder.join("CoLA/dev.tsv.gz")});
    let corpus = load_with(&folder.join("CoLA/train.tsv.gz"), cola, json!({}))?;
    let Targets::Class(labels) = &corpus.tasks[0].train.targets else { panic!("classes") };
    assert_eq!((labels.len(), labels.iter().sum::<u32>()), (8_551, 6_023));
    assert_eq!(corpus.tasks[0].dev.as_ref().map(|dev| dev.len()), Some(1_043));

    let mrpc = json!({"text": ["#1 String", "#2 String"], "label": ["Quality"], "format": "tsv",
        "test": folder.join("MRPC/msr_paraphrase_test.txt.gz")});
    let corpus = load_with(&folder.join("MRPC/train.tsv.gz"), mrpc, json!({}))?;
    let task = &corpus.tasks[0];
    assert_eq!((task.train.len(), task.test.as_ref().map(|test| test.len())), (3_667, Some(1_725)));

    let names = ["genre", "file", "year", "index", "score", "s1", "s2"];
    let stsb = json!({"columns": names, "text": ["s1", "s2"], "label": ["score"], "head": "regression"});
    let corpus = load_with(&folder.join("STS-B/sts-test.tsv.gz"), stsb, json!({}))?;
    let Targets::Values { dim: 1, values } = &corpus.tasks[0].train.targets else { panic!("one value") };
    assert_eq!(values.len(), 1_379);
    assert!(values.iter().all(|score| (0.0..=5.0).contains(score)));
    Ok(())
}
