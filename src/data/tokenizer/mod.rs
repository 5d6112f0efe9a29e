//! Text to token ids: hashed `words`, a WordPiece `vocab.txt`, or a Hugging Face `tokenizer.json`.

mod cache;
mod charsmap;
mod checks;
mod guard;
mod hugging_face;
mod words;

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};

use self::hugging_face::HuggingFace;
use super::read::open_text;

/// A tokenizer, ready for use by many threads at once.
pub struct Tokenizer {
    kind: Kind,
    fingerprint: String,
}

enum Kind {
    Words,
    HuggingFace(Box<HuggingFace>),
}

/// Ids of the special tokens that a vocabulary has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecialIds {
    pub cls: Option<u32>,
    pub sep: Option<u32>,
    pub pad: Option<u32>,
    pub mask: Option<u32>,
    pub unk: Option<u32>,
}

impl Tokenizer {
    /// `spec` is `words`, or the path of a `vocab.txt` or `tokenizer.json`, also with .gz or .zst.
    /// `lowercase` (fold case, strip accents) counts for `vocab.txt` only: `words` always folds, a tokenizer.json says itself.
    pub fn open(spec: &str, lowercase: bool) -> Result<Tokenizer> {
        if spec == "words" {
            return Ok(Tokenizer { kind: Kind::Words, fingerprint: fingerprint("words", b"") });
        }
        let content = read_all(Path::new(spec)).context("encoder.tokenizer")?;
        let (kind, settings) = if is_json(spec) {
            (HuggingFace::from_json(&content), "tokenizer.json")
        } else {
            let text = std::str::from_utf8(&content).with_context(|| format!("encoder.tokenizer: {spec}: not UTF-8"))?;
            let settings = if lowercase { "vocab.txt lowercase" } else { "vocab.txt cased" };
            (HuggingFace::from_vocab(text, lowercase), settings)
        };
        let kind = kind.with_context(|| format!("encoder.tokenizer: {spec}"))?;
        Ok(Tokenizer { kind: Kind::HuggingFace(Box::new(kind)), fingerprint: fingerprint(settings, &content) })
    }

    /// Appends the ids of `text` to `out`, without special tokens.
    pub fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        self.encode_up_to(text, usize::MAX, out)
    }

    /// As [`Tokenizer::encode`], but no more than the first `limit` ids.
    pub fn encode_up_to(&self, text: &str, limit: usize, out: &mut Vec<u32>) -> Result<()> {
        match &self.kind {
            Kind::Words => {
                words::encode(text, limit, out);
                Ok(())
            }
            Kind::HuggingFace(inner) => inner.encode(text, limit, out),
        }
    }

    /// One above the largest id; none for `words`, whose ids are 32-bit hashes.
    pub fn vocab_size(&self) -> Option<usize> {
        match &self.kind {
            Kind::Words => None,
            Kind::HuggingFace(inner) => Some(inner.vocab_size()),
        }
    }

    pub fn special_ids(&self) -> SpecialIds {
        let Kind::HuggingFace(inner) = &self.kind else { return SpecialIds::default() };
        let first = |names: [&str; 2]| names.into_iter().find_map(|name| inner.token_to_id(name));
        SpecialIds {
            cls: first(["[CLS]", "<s>"]),
            sep: first(["[SEP]", "</s>"]),
            pad: first(["[PAD]", "<pad>"]),
            mask: first(["[MASK]", "<mask>"]),
            unk: first(["[UNK]", "<unk>"]),
        }
    }

    /// The special tokens that the vocabulary has: what transformers calls them, the token and its id.
    pub fn special_tokens(&self) -> Vec<(&'static str, String, u32)> {
        let Kind::HuggingFace(inner) = &self.kind else { return Vec::new() };
        let SpecialIds { cls, sep, pad, mask, unk } = self.special_ids();
        let roles = [("cls_token", cls), ("sep_token", sep), ("pad_token", pad), ("mask_token", mask), ("unk_token", unk)];
        roles.into_iter().filter_map(|(role, id)| Some((role, inner.id_to_token(id?)?, id?))).collect()
    }

    /// blake3, in hex, of the file's content and the settings it is read with.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The tokenizer as a tokenizer.json; none for `words`.
    pub fn to_json(&self) -> Result<Option<String>> {
        match &self.kind {
            Kind::Words => Ok(None),
            Kind::HuggingFace(inner) => inner.to_json().map(Some),
        }
    }
}

/// One example's ids, cut to `max_len`: the first text's, then the second's. Returns them and the first text's length.
pub fn encode_texts(tokenizer: &Tokenizer, texts: &[&str], max_len: usize) -> Result<(Vec<u32>, usize)> {
    let mut ids = Vec::new();
    match texts {
        [text] => {
            tokenizer.encode_up_to(text, max_len, &mut ids)?;
            let first = ids.len();
            Ok((ids, first))
        }
        [first, second] => {
            // More than max_len of either text never survives, whatever the other one's length.
            tokenizer.encode_up_to(first, max_len, &mut ids)?;
            let most_first = ids.len();
            tokenizer.encode_up_to(second, max_len, &mut ids)?;
            let mut lengths = [most_first, ids.len() - most_first];
            // Of an odd number the longer text keeps one more, so it counts which one that is.
            if lengths == [max_len; 2] && !max_len.is_multiple_of(2) {
                for (length, text) in lengths.iter_mut().zip(texts) {
                    let mut whole = Vec::new();
                    tokenizer.encode(text, &mut whole)?;
                    *length = whole.len();
                }
            }
            let (first, second) = truncated_pair(lengths[0], lengths[1], max_len);
            ids.drain(first..most_first);
            ids.truncate(first + second);
            Ok((ids, first))
        }
        _ => bail!("an example has one or two texts, not {}", texts.len()),
    }
}

/// Longest-first truncation: tokens go from the longer text until both fit. As in Hugging Face's tokenizers.
fn truncated_pair(first: usize, second: usize, max_len: usize) -> (usize, usize) {
    if first + second <= max_len {
        return (first, second);
    }
    let shorter = first.min(second).min(max_len / 2);
    let longer = max_len - shorter;
    if first <= second { (shorter, longer) } else { (longer, shorter) }
}

fn is_json(spec: &str) -> bool {
    let stem = spec.strip_suffix(".gz").or_else(|| spec.strip_suffix(".zst")).unwrap_or(spec);
    stem.ends_with(".json")
}

fn read_all(path: &Path) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut input = open_text(path, Default::default())?;
    input.read_to_end(&mut content).with_context(|| format!("{}: cannot read", path.display()))?;
    Ok(content)
}

fn fingerprint(settings: &str, content: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(settings.as_bytes()).update(b"\0").update(content);
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_cut_longest_first() {
        assert_eq!(truncated_pair(3, 4, 10), (3, 4));
        assert_eq!(truncated_pair(2, 100, 10), (2, 8));
        assert_eq!(truncated_pair(100, 2, 10), (8, 2));
        assert_eq!(truncated_pair(100, 100, 10), (5, 5));
        assert_eq!(truncated_pair(100, 100, 11), (5, 6));
        assert_eq!(truncated_pair(101, 100, 11), (6, 5));
        assert_eq!(truncated_pair(5, 5, 0), (0, 0));
    }

    #[test]
    fn a_pair_is_the_start_of_each_text() -> Result<()> {
        let tokenizer = Tokenizer::open("words", true)?;
        let (ids, first) = encode_texts(&tokenizer, &["a b c d", "e f g h"], 5)?;
        let (expected, _) = encode_texts(&tokenizer, &["a b e f g"], 99)?;
        assert_eq!((ids, first), (expected, 2));
        for (texts, kept) in [(["a b c d e", "f g h"], "a b f"), (["a b c", "f g h i j"], "a f g"), (["a b c", "f g h"], "a f g")]
        {
            let (expected, _) = encode_texts(&tokenizer, &[kept], 99)?;
            assert_eq!(encode_texts(&tokenizer, &texts, 3)?.0, expected, "{texts:?}");
        }
        assert!(encode_texts(&tokenizer, &[], 5).is_err());
        Ok(())
    }

    #[test]
    fn words_has_no_vocabulary() -> Result<()> {
        let tokenizer = Tokenizer::open("words", true)?;
        assert_eq!(tokenizer.vocab_size(), None);
        assert_eq!(tokenizer.special_ids(), SpecialIds::default());
        assert_eq!(tokenizer.to_json()?, None);
        Ok(())
    }
}
