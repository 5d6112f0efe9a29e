//! tokenizer.json of every kind of model, and vocab.txt.

use std::path::Path;
use std::sync::LazyLock;

use anyhow::Result;
use serde_json::{Value, json};
use taskloom::data::{Tokenizer, encode_texts};

use super::{Input, data, pack};
use crate::mutate;
use crate::random::Random;
use crate::tree::{self, Tree};

/// One tokenizer for each model, with other normalizers, pre-tokenizers and added tokens around it.
static SEEDS: LazyLock<Vec<Tree>> = LazyLock::new(|| {
    let token = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "##s", "film", "a"];
    let vocabulary: Value = words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let pieces: Vec<Value> = ["<unk>", "<s>", "</s>", "▁", "▁good", "g", "o", "d", "a", "▁film"]
        .iter()
        .enumerate()
        .map(|(rank, piece)| json!([piece, -(rank as f64)]))
        .collect();
    let letters = ["<unk>", "<s>", "</s>", "g", "o", "d", "go", "od", "good", "Ġ", "a", "Ġa"];
    let bytes: Value = letters.iter().enumerate().map(|(id, piece)| ((*piece).to_owned(), json!(id))).collect();
    let whole = |model: Value, normalizer: Value, pre: Value, decoder: Value, post: Value, added: Vec<Value>| {
        json!({
            "version": "1.0", "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
            "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": post, "decoder": decoder, "model": model,
        })
    };
    let bert = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true});
    let word_piece = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocabulary});
    let word_level = json!({"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"});
    let unigram = json!({"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": false});
    let bpe = json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": bytes, "merges": [["g", "o"], ["o", "d"], ["go", "od"], ["Ġ", "a"]]});
    let template = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}}});
    let split = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\d{1,3}|\\s+(?!\\S)"}, "behavior": "Isolated", "invert": false},
        {"type": "Digits", "individual_digits": true}, {"type": "Punctuation", "behavior": "Isolated"}, {"type": "WhitespaceSplit"}]});
    let normalizers = json!({"type": "Sequence", "normalizers": [
        {"type": "NFKC"}, {"type": "Lowercase"}, {"type": "NFD"}, {"type": "StripAccents"}, {"type": "Strip", "strip_left": true, "strip_right": true},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}, {"type": "Replace", "pattern": {"String": "q"}, "content": "a"},
        {"type": "Prepend", "prepend": "▁"}]});
    let meta = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let bert_added: Vec<Value> = words[..5].iter().enumerate().map(|(id, word)| token(id as u32, word)).collect();
    let other_added = vec![token(1, "<s>"), token(2, "</s>"), token(99, "<extra 1>")];
    let documents = [
        whole(
            word_piece.clone(),
            bert,
            json!({"type": "BertPreTokenizer"}),
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            template,
            bert_added.clone(),
        ),
        whole(word_piece, json!(null), split.clone(), json!(null), json!(null), bert_added.clone()),
        whole(
            word_level,
            normalizers.clone(),
            json!({"type": "Whitespace"}),
            json!(null),
            json!({"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}),
            bert_added,
        ),
        whole(unigram, normalizers, meta.clone(), meta, json!(null), other_added.clone()),
        whole(bpe.clone(), json!(null), level.clone(), level.clone(), level, other_added.clone()),
        whole(bpe, json!({"type": "NFC"}), split, json!({"type": "BPEDecoder", "suffix": "</w>"}), json!(null), other_added),
    ];
    documents.iter().map(Tree::from_json).collect()
});

/// The vocabulary of the folder's BERT as a tokenizer.json.
pub fn word_piece() -> Vec<u8> {
    static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hugging_face/vocab.txt");
        let tokenizer = Tokenizer::open(&path.display().to_string(), true).expect("a vocabulary");
        tokenizer.to_json().expect("can be written").expect("is no words").into_bytes()
    });
    WHOLE.clone()
}

pub fn json(random: &mut Random) -> Input {
    let mut tree = SEEDS[random.below(SEEDS.len())].clone();
    tree::mutate(random, &mut tree, &SEEDS);
    let mut text = tree.json().into_bytes();
    if random.once_in(8) {
        mutate::bytes(random, &mut text);
    }
    input(random, "tokenizer.json", text)
}

pub fn vocab(random: &mut Random) -> Input {
    let mut text = data::VOCABULARY.to_owned();
    for _ in 0..random.size(3) {
        let piece = random.pick(&["##", "[UNK]", "é", "", " ", "a b", "\u{0}", "日"]).repeat(1 + random.size(200));
        text += &(piece + random.pick(&["\n", "\r\n", "\r", "\u{85}", ""]));
    }
    let mut bytes = text.into_bytes();
    if random.once_in(2) {
        mutate::bytes(random, &mut bytes);
    }
    input(random, "vocab.txt", bytes)
}

fn input(random: &mut Random, name: &str, content: Vec<u8>) -> Input {
    let (name, content) = if random.once_in(4) { pack::pack(random, name, content) } else { (name.to_owned(), content) };
    let mut texts = vec![
        String::new(),
        "good films, a BAD\u{301} film".to_owned(),
        "日本 \u{0}\u{feff}[CLS] <s> q  1234567 é𝕏\r\n".to_owned(),
    ];
    let mut odd = b"good film".to_vec();
    (0..1 + random.size(20)).for_each(|_| mutate::bytes(random, &mut odd));
    odd.truncate(20_000);
    texts.push(String::from_utf8_lossy(&odd).into_owned());
    texts.push(random.pick(&["good ", "a", "é", "1", "-", "[MASK]"]).repeat(1 + random.size(5000)));
    Input { files: vec![(name.clone(), content)], words: std::iter::once(name).chain(texts).collect() }
}

/// Opens the tokenizer that the first word names, and encodes the other words.
pub fn run(place: &Path, words: &[String]) -> Result<()> {
    for lowercase in [true, false] {
        let tokenizer = Tokenizer::open(&place.join(&words[0]).display().to_string(), lowercase)?;
        let size = tokenizer.vocab_size().expect("is no words");
        let special = tokenizer.special_ids();
        assert!(special.cls.is_none_or(|id| (id as usize) < size), "a special token beyond the vocabulary");
        for texts in [&words[1..2], &words[2..4], &words[3..5], &words[4..5]] {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let (ids, first) = encode_texts(&tokenizer, &texts, 64)?;
            assert!(first <= ids.len() && ids.len() <= 64, "more ids than asked for");
            assert!(ids.iter().all(|id| (*id as usize) < size), "an id beyond the vocabulary");
        }
        drop(tokenizer.to_json()?);
    }
    Ok(())
}
