//! Tokenizers that come as files: WordPiece `vocab.txt`, and Hugging Face's `tokenizer.json`.

use std::collections::HashMap;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokenizers::models::ModelWrapper;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{BertNormalizer, NormalizerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, NormalizedString, Normalizer, Tokenizer};

use super::cache::WordCache;
use super::checks;
use super::guard::guarded;

/// Characters of a text shown in a message.
const SHOWN: usize = 40;

const SPECIAL_TOKENS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

pub(super) struct HuggingFace {
    inner: Tokenizer,
    /// Present where a text's tokens are those of its blank-separated words, one after the other.
    words: Option<WordCache>,
    vocab_size: usize,
}

impl HuggingFace {
    /// BERT's tokenizer over a `vocab.txt`: one piece a line, the id is the line's 0-based number.
    pub(super) fn from_vocab(text: &str, lowercase: bool) -> Result<HuggingFace> {
        check_vocab(text)?;
        let vocab = WordPiece::read_bytes(text.as_bytes()).map_err(|error| anyhow!("{error}"))?;
        let model = WordPiece::builder().vocab(vocab).unk_token("[UNK]".into()).build();
        let mut inner = Tokenizer::new(model.map_err(|error| anyhow!("{error}"))?);
        inner
            .with_normalizer(Some(BertNormalizer::new(true, true, Some(lowercase), lowercase)))
            .map_err(|error| anyhow!("{error}"))?
            .with_pre_tokenizer(Some(BertPreTokenizer));
        let present: Vec<AddedToken> = SPECIAL_TOKENS
            .into_iter()
            .filter(|token| inner.token_to_id(token).is_some())
            .map(|token| AddedToken::from(token, true))
            .collect();
        inner.add_special_tokens(present).map_err(|error| anyhow!("{error}"))?;
        HuggingFace::new(inner)
    }

    /// A `tokenizer.json`. Its own padding and truncation are switched off: lengths come from `encoder.max_len`.
    pub(super) fn from_json(json: &[u8]) -> Result<HuggingFace> {
        let document = serde_json::from_slice(json).context("not a tokenizer.json")?;
        checks::check(&document)?;
        guarded(|| {
            let mut inner = Tokenizer::from_bytes(json).map_err(|error| anyhow!("not a tokenizer.json: {error}"))?;
            inner.with_padding(None).with_truncation(None).map_err(|error| anyhow!("{error}"))?;
            check_added(&inner)?;
            HuggingFace::new(inner)
        })
    }

    fn new(inner: Tokenizer) -> Result<HuggingFace> {
        // Ids may have holes: the table needs a row up to the largest.
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        ensure!(vocab_size > 0, "its vocabulary is empty");
        let words = is_word_by_word(&inner).then(WordCache::new);
        Ok(HuggingFace { inner, words, vocab_size })
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub(super) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    pub(super) fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    pub(super) fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(|error| anyhow!("cannot write the tokenizer: {error}"))
    }

    /// Appends the ids of `text` to `out`, `limit` at most; special tokens are not added.
    pub(super) fn encode(&self, text: &str, limit: usize, out: &mut Vec<u32>) -> Result<()> {
        let full = out.len().saturating_add(limit);
        match &self.words {
            None => self.encode_whole(text, out)?,
            Some(cache) => {
                for word in text.split([' ', '\t', '\n', '\r']).filter(|word| !word.is_empty()) {
                    if out.len() >= full {
                        break;
                    }
                    cache.encode(word, out, |out| self.encode_whole(word, out))?;
                }
            }
        }
        out.truncate(full);
        Ok(())
    }

    fn encode_whole(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        guarded(|| {
            let encoding = self.inner.encode_fast(text, false).map_err(|error| anyhow!("{error}"))?;
            out.extend_from_slice(encoding.get_ids());
            Ok(())
        })
        .with_context(|| format!("cannot tokenize {:?}", text.chars().take(SHOWN).collect::<String>()))
    }
}

/// BERT's normalizer and pre-tokenizer treat each blank-separated word on its own, and so do special tokens without
/// blanks in or around them. (Only ' ', \t, \n and \r count: the normalizer deletes other control characters, which
/// joins what stands around them.)
fn is_word_by_word(inner: &Tokenizer) -> bool {
    let plain = |token: &AddedToken| {
        let apart = token.lstrip || token.rstrip || token.single_word || token.normalized;
        !apart && !token.content.contains(char::is_whitespace)
    };
    matches!(inner.get_normalizer(), Some(NormalizerWrapper::BertNormalizer(_)))
        && matches!(inner.get_pre_tokenizer(), Some(PreTokenizerWrapper::BertPreTokenizer(_)))
        && matches!(inner.get_model(), ModelWrapper::WordPiece(_))
        && inner.get_added_tokens_decoder().values().all(plain)
}

/// An added token of which the normalizer leaves nothing would be found between any two characters, without end.
fn check_added(inner: &Tokenizer) -> Result<()> {
    let Some(normalizer) = inner.get_normalizer() else { return Ok(()) };
    for token in inner.get_added_tokens_decoder().values().filter(|token| token.normalized) {
        let mut content = NormalizedString::from(token.content.as_str());
        normalizer.normalize(&mut content).map_err(|error| anyhow!("{error}"))?;
        ensure!(
            !content.is_empty(),
            "added_tokens: the normalizer leaves nothing of {:?}: set \"normalized\" to false, or remove the token",
            token.content
        );
    }
    Ok(())
}

fn check_vocab(text: &str) -> Result<()> {
    let mut lines = HashMap::new();
    // The library drops blanks at the end of a line; the same must count here.
    for (index, piece) in text.lines().map(str::trim_end).enumerate() {
        let line = index + 1;
        ensure!(!piece.is_empty(), "line {line} is empty; every line of a vocab.txt is one piece");
        if let Some(before) = lines.insert(piece, line) {
            bail!("line {line} repeats `{piece}` of line {before}");
        }
    }
    ensure!(
        lines.contains_key("[UNK]"),
        "no `[UNK]` among its {} lines; is this a WordPiece vocab.txt? (a tokenizer.json ends in .json)",
        lines.len()
    );
    Ok(())
}
