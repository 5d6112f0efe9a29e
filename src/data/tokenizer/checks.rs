//! What a tokenizer.json must satisfy before the library reads it: with a file that breaks one of these rules the library
//! panics, does not come back, takes memory without bound, or answers differently each time.
//!
//! Keys are looked at wherever they stand, whatever `type` says: the library also reads files without it. What has another
//! shape than expected is left to the library, which refuses it.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::charsmap;

/// Bytes of a token: the library's prefix trees are as deep, and are walked by recursion.
const MOST_TOKEN_BYTES: usize = 1_024;
/// Characters of a word that is looked up piece by piece, which takes the cube of it.
const MOST_WORD_CHARS: u64 = 1_000;
/// How often a part of a regular expression may be repeated, by counts: each costs a step at every character of a text.
const MOST_REPEATS: f64 = 1_000.0;
/// How many times longer normalizers and pre-tokenizers may make a text.
const MOST_GROWTH: f64 = 4_096.0;

pub(super) fn check(document: &Value) -> Result<()> {
    if let Some(model) = document["model"].as_object() {
        check_model(model).context("model")?;
    }
    let mut growth = 1.0;
    for part in ["normalizer", "pre_tokenizer"] {
        growth *= check_part(&document[part]).context(part)?;
    }
    ensure!(
        growth <= MOST_GROWTH,
        "normalizer and pre_tokenizer can make a text {growth:.0} times as long, expected at most {MOST_GROWTH}"
    );
    Ok(())
}

fn check_model(model: &Map<String, Value>) -> Result<()> {
    let number = |key: &str| model.get(key).filter(|value| value.is_number());
    if let Some(chars) = number("max_input_chars_per_word") {
        let sound = chars.as_u64().is_some_and(|chars| (1..=MOST_WORD_CHARS).contains(&chars));
        ensure!(sound, "max_input_chars_per_word is {chars}, expected an integer from 1 to {MOST_WORD_CHARS}");
    }
    if let Some(dropout) = number("dropout") {
        let message = "dropout is {}, expected 0 or null: it draws other tokens of the same text each time";
        ensure!(dropout.as_f64() == Some(0.0), "{}", message.replace("{}", &dropout.to_string()));
    }
    match model.get("vocab") {
        Some(Value::Object(vocabulary)) => check_vocabulary(vocabulary, model),
        Some(Value::Array(pieces)) => check_pieces(pieces, model),
        _ => Ok(()),
    }
}

/// Tokens with their ids.
fn check_vocabulary(vocabulary: &Map<String, Value>, model: &Map<String, Value>) -> Result<()> {
    // Some files leave ids out; a table of rows for ids without end is a mistake.
    let end = 2 * vocabulary.len() as u64 + 1_024;
    let mut tokens = HashMap::with_capacity(vocabulary.len());
    for (token, id) in vocabulary {
        check_token(token)?;
        let Some(id) = id.as_u64() else { continue };
        ensure!(id < end, "vocab: token `{token}` has id {id}, expected less than {end} among {} tokens", vocabulary.len());
        if let Some(other) = tokens.insert(id, token) {
            bail!("vocab: the tokens `{other}` and `{token}` both have id {id}");
        }
    }
    match (model.get("merges"), model.get("unk_token")) {
        (Some(Value::Array(merges)), _) => {
            let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or("");
            merges.iter().try_for_each(|merge| check_merge(merge, prefix, vocabulary))
        }
        (_, Some(Value::String(unknown))) => {
            ensure!(vocabulary.contains_key(unknown), "unk_token is `{unknown}`, which is not in its vocab");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Two tokens of the vocabulary whose concatenation, without the second one's prefix, is a token as well.
fn check_merge(merge: &Value, prefix: &str, vocabulary: &Map<String, Value>) -> Result<()> {
    let pair = match merge {
        Value::String(line) if line.starts_with("#version") => return Ok(()),
        Value::String(line) => line.split_once(' '),
        Value::Array(pair) => match &pair[..] {
            [Value::String(first), Value::String(second)] => Some((first.as_str(), second.as_str())),
            _ => None,
        },
        _ => None,
    };
    let (first, second) = pair.with_context(|| format!("merges: {merge} is no pair of tokens"))?;
    let rest = second.strip_prefix(prefix);
    let rest =
        rest.with_context(|| format!("merges: `{second}` does not start with the continuing_subword_prefix `{prefix}`"))?;
    for token in [first, second, &format!("{first}{rest}")] {
        ensure!(vocabulary.contains_key(token), "merges: {merge} needs the token `{token}`, which is not in vocab");
    }
    Ok(())
}

/// Pieces with their scores, the id being the place in the list.
fn check_pieces(pieces: &[Value], model: &Map<String, Value>) -> Result<()> {
    let known = model.get("unk_id").and_then(Value::as_u64).is_some_and(|id| id < pieces.len() as u64);
    ensure!(
        known,
        "unk_id is not the place of a piece among the {} of vocab: a text with an unknown character has no tokens",
        pieces.len()
    );
    pieces.iter().filter_map(|piece| piece[0].as_str()).try_for_each(check_token)
}

fn check_token(token: &str) -> Result<()> {
    let bytes = token.len();
    let start: String = token.chars().take(20).collect();
    ensure!(bytes <= MOST_TOKEN_BYTES, "vocab: token `{start}...` is {bytes} bytes long, expected at most {MOST_TOKEN_BYTES}");
    Ok(())
}

/// A normalizer or pre-tokenizer with all its parts; how many times longer it can make a text.
fn check_part(value: &Value) -> Result<f64> {
    match value {
        Value::Array(parts) => parts.iter().try_fold(1.0, |growth, part| Ok(growth * check_part(part)?)),
        Value::Object(part) => {
            ensure!(part.get("length").and_then(Value::as_u64) != Some(0), "length is 0, expected at least one character");
            let pattern = part.get("pattern").unwrap_or(&Value::Null);
            if let Some(expression) = pattern["Regex"].as_str() {
                let times = most_repeats(expression);
                ensure!(
                    times <= MOST_REPEATS,
                    "pattern `{expression}` repeats a part {times:.0} times, expected at most {MOST_REPEATS}"
                );
            }
            let own = match (part.get("type").and_then(Value::as_str), part.get("content"), part.get("precompiled_charsmap")) {
                (Some("ByteLevel"), ..) => 2.0,
                (_, Some(Value::String(content)), _) => replacement_growth(pattern, content),
                (_, _, Some(Value::String(map))) => charsmap::check(map).context("precompiled_charsmap")? as f64,
                _ => 1.0,
            };
            part.values().try_fold(own, |growth, part| Ok(growth * check_part(part)?))
        }
        _ => Ok(1.0),
    }
}

/// The product of the counts `{N}` and `{N,M}` of a regular expression, which may stand within each other.
fn most_repeats(expression: &str) -> f64 {
    let counts = expression.match_indices('{').filter_map(|(place, _)| {
        // `\x{3000}` is a character.
        let is_character = [r"\x", r"\u", r"\U"].iter().any(|escape| expression[..place].ends_with(escape));
        let (count, _) = expression[place + 1..].split_once('}').filter(|_| !is_character)?;
        count.split(',').filter_map(|number| number.trim().parse().ok()).reduce(f64::max)
    });
    counts.fold(1.0, |product, count: f64| product * count.max(1.0))
}

/// An empty pattern, and a regular expression that matches nothing, stand between any two characters.
fn replacement_growth(pattern: &Value, content: &str) -> f64 {
    let most = match pattern["String"].as_str().map(str::len) {
        Some(bytes @ 1..) => content.len() as f64 / bytes as f64,
        _ if content.is_empty() => 1.0,
        _ => content.len() as f64 + 1.0,
    };
    most.max(1.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::hugging_face::HuggingFace;
    use super::*;

    /// A sound file of a model, with these parts.
    fn file(model: Value, normalizer: Value, pre_tokenizer: Value) -> Value {
        json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
               "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": null, "model": model})
    }

    fn word_piece() -> Value {
        json!({"type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
               "vocab": {"?": 0, "a": 1, "##a": 2, "b": 3}})
    }

    fn bpe() -> Value {
        json!({"type": "BPE", "dropout": null, "unk_token": "?", "continuing_subword_prefix": null, "end_of_word_suffix": null,
               "fuse_unk": false, "byte_fallback": false, "vocab": {"?": 0, "a": 1, "b": 2, "ab": 3}, "merges": ["a b"]})
    }

    fn unigram() -> Value {
        json!({"type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": [["?", -9.0], ["a", -1.0], ["ab", -1.5]]})
    }

    fn open(document: &Value) -> Result<HuggingFace> {
        HuggingFace::from_json(document.to_string().as_bytes())
    }

    fn refused(document: &Value, part: &str) {
        let error = open(document).err().map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(error.contains(part), "no `{part}` in: {error}");
    }

    /// `model` with one key changed.
    fn with(mut model: Value, key: &str, value: Value) -> Value {
        model[key] = value;
        file(model, Value::Null, Value::Null)
    }

    #[test]
    fn sound_files_are_read() {
        for model in [word_piece(), bpe(), unigram()] {
            let tokenizer = open(&file(model, Value::Null, json!({"type": "WhitespaceSplit"}))).unwrap();
            let mut ids = Vec::new();
            tokenizer.encode("a ab x", 99, &mut ids).unwrap();
            assert!(ids.contains(&1) && ids.contains(&0), "{ids:?}");
        }
        let merges = json!([["a", "b"]]);
        assert!(open(&with(bpe(), "merges", merges)).is_ok());
        let prefixed =
            json!({"type": "BPE", "continuing_subword_prefix": "##", "vocab": {"a": 0, "##b": 1, "ab": 2}, "merges": ["a ##b"]});
        assert!(open(&file(prefixed, Value::Null, Value::Null)).is_ok());
    }

    #[test]
    fn ids_belong_to_the_tokens_there_are() {
        let far = json!({"?": 0, "far": 4_000_000_000u32});
        refused(
            &with(word_piece(), "vocab", far),
            "model: vocab: token `far` has id 4000000000, expected less than 1028 among 2",
        );
        refused(&with(word_piece(), "vocab", json!({"?": 0, "a": 0})), "the tokens `?` and `a` both have id 0");
        assert_eq!(open(&with(word_piece(), "vocab", json!({"?": 0, "hole": 900}))).unwrap().vocab_size(), 901);
    }

    #[test]
    fn an_unknown_word_has_a_token() {
        refused(&with(word_piece(), "unk_token", json!("[UNK]")), "unk_token is `[UNK]`, which is not in its vocab");
        for id in [json!(null), json!(3)] {
            refused(&with(unigram(), "unk_id", id), "unk_id is not the place of a piece among the 3 of vocab");
        }
    }

    #[test]
    fn the_length_of_words_and_tokens_is_bounded() {
        for chars in [json!(0), json!(u64::MAX), json!(-1), json!(2.5)] {
            let expected = format!("max_input_chars_per_word is {chars}, expected an integer from 1 to 1000");
            refused(&with(word_piece(), "max_input_chars_per_word", chars), &expected);
        }
        // The library drops its tree of pieces by recursion.
        let long = "x".repeat(4_000_000);
        refused(
            &with(unigram(), "vocab", json!([["?", 0.0], [long, 0.0]])),
            "token `xxxxxxxxxxxxxxxxxxxx...` is 4000000 bytes long",
        );
    }

    #[test]
    fn a_text_has_the_same_tokens_each_time() {
        refused(&with(bpe(), "dropout", json!(0.1)), "dropout is 0.1, expected 0 or null");
        assert!(open(&with(bpe(), "dropout", json!(0.0))).is_ok());
    }

    #[test]
    fn merges_are_made_of_tokens() {
        refused(&with(bpe(), "merges", json!(["a a"])), "merges: \"a a\" needs the token `aa`, which is not in vocab");
        refused(&with(bpe(), "merges", json!([["a", "z"]])), "needs the token `z`");
        refused(&with(bpe(), "merges", json!(["ab"])), "merges: \"ab\" is no pair of tokens");
        refused(
            &with(bpe(), "continuing_subword_prefix", json!("é")),
            "`b` does not start with the continuing_subword_prefix `é`",
        );
    }

    #[test]
    fn texts_do_not_grow_without_end() {
        let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let chain = |part: &Value, times: usize| json!({"type": "Sequence", "normalizers": vec![part.clone(); times]});
        let of = |normalizer: Value| file(word_piece(), normalizer, Value::Null);
        let doubling = replace(json!({"String": "a"}), "aa");
        assert!(open(&of(chain(&doubling, 12))).is_ok());
        refused(&of(chain(&doubling, 60)), "can make a text 1152921504606846976 times as long, expected at most 4096");
        refused(&of(chain(&replace(json!({"Regex": ""}), "a"), 60)), "times as long");
        refused(&of(chain(&replace(json!({"String": ""}), "a"), 60)), "times as long");
        assert!(open(&of(chain(&replace(json!({"Regex": "[^a-z]"}), ""), 60))).is_ok());
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let sequence = json!({"type": "Sequence", "pretokenizers": vec![bytes; 60]});
        refused(&file(word_piece(), Value::Null, sequence), "times as long");
    }

    #[test]
    fn repetitions_are_counted() {
        for (expression, times) in
            [(r"\p{L}+|\p{N}{1,3}", 3.0), (r"[\x{3000}]", 1.0), ("(?:a{9}){3,}", 27.0), ("{", 1.0), ("é{,2}", 2.0)]
        {
            assert_eq!(most_repeats(expression), times, "{expression}");
        }
        let split = |pattern: Value| {
            file(word_piece(), Value::Null, json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false}))
        };
        let endless = split(json!({"Regex": "(?:(?=a)|(?>|a)){100000}"}));
        refused(&endless, "pre_tokenizer: pattern `(?:(?=a)|(?>|a)){100000}` repeats a part 100000 times, expected at most 1000");
        refused(&file(word_piece(), json!({"type": "Replace", "content": "a"}), Value::Null), "not a tokenizer.json");
        assert!(open(&split(json!({"Regex": r"\p{N}{1,3}|\s+(?!\S)"}))).is_ok());
    }

    #[test]
    fn an_added_token_is_not_normalized_away() {
        let mut document = file(word_piece(), json!({"type": "StripAccents"}), Value::Null);
        let token = |content: &str, normalized: bool| {
            json!({"id": 9, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": normalized,
                   "special": false})
        };
        document["added_tokens"] = json!([token("\u{301}", true)]);
        refused(&document, "added_tokens: the normalizer leaves nothing of \"\\u{301}\"");
        document["added_tokens"] = json!([token("\u{301}", false), token("e\u{301}", true)]);
        open(&document).unwrap().encode("a e\u{301} \u{301}", 99, &mut Vec::new()).unwrap();
    }

    #[test]
    fn what_the_library_panics_over_is_an_error() {
        let steps = json!([{"type": "Prepend", "prepend": ""}, {"type": "NFC"}]);
        let tokenizer = open(&file(word_piece(), json!({"type": "Sequence", "normalizers": steps}), Value::Null)).unwrap();
        let error = format!("{:#}", tokenizer.encode("a b", 99, &mut Vec::new()).unwrap_err());
        assert!(error.contains("cannot tokenize \"a b\": the tokenizers library cannot work with this file: "), "{error}");
    }

    #[test]
    fn pieces_of_a_fixed_length_have_one() {
        let split = |length: u32| file(word_piece(), Value::Null, json!({"type": "FixedLength", "length": length}));
        refused(&split(0), "pre_tokenizer: length is 0");
        assert!(open(&split(1)).is_ok());
    }
}
