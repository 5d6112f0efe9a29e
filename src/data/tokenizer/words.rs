//! The `words` tokenizer: no vocabulary, a token is the 32-bit hash of a lower-cased word.
//!
//! A word is a run of Unicode letters and digits. Every other character that is neither blank nor a control character
//! (punctuation, symbols) is a word of its own. The hash is FNV-1a over the word's UTF-8 bytes, fixed forever: trained
//! tables depend on it.

const FNV_OFFSET: u32 = 0x811c_9dc5;
const FNV_PRIME: u32 = 0x0100_0193;

/// Appends the tokens of `text` to `out`, `limit` at most.
pub(super) fn encode(text: &str, limit: usize, out: &mut Vec<u32>) {
    let full = out.len().saturating_add(limit);
    let mut word: Option<u32> = None;
    for c in text.chars() {
        if out.len() >= full {
            return;
        }
        if c.is_alphanumeric() {
            word = Some(add_lowercase(word.unwrap_or(FNV_OFFSET), c));
            continue;
        }
        out.extend(word.take());
        if out.len() < full && !c.is_whitespace() && !c.is_control() {
            out.push(add_lowercase(FNV_OFFSET, c));
        }
    }
    if out.len() < full {
        out.extend(word);
    }
}

fn add_lowercase(hash: u32, c: char) -> u32 {
    if c.is_ascii() {
        return add_byte(hash, c.to_ascii_lowercase() as u8);
    }
    let mut utf8 = [0; 4];
    c.to_lowercase().fold(hash, |hash, c| c.encode_utf8(&mut utf8).bytes().fold(hash, add_byte))
}

fn add_byte(hash: u32, byte: u8) -> u32 {
    (hash ^ u32::from(byte)).wrapping_mul(FNV_PRIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        encode(text, usize::MAX, &mut out);
        out
    }

    fn word(text: &str) -> u32 {
        text.bytes().fold(FNV_OFFSET, add_byte)
    }

    #[test]
    fn hashes_are_the_published_fnv_1a_values() {
        assert_eq!(tokens("a"), [0xe40c_292c]);
        assert_eq!(tokens("foobar"), [0xbf9c_f968]);
    }

    #[test]
    fn words_fold_case_and_punctuation_stands_alone() {
        assert_eq!(tokens("Don't  STOP!\n"), [word("don"), word("'"), word("t"), word("stop"), word("!")]);
        assert_eq!(tokens("Ünï Ж7"), [word("ünï"), word("ж7")]);
        assert_eq!(tokens("a\u{85}b\u{0}c"), [word("a"), word("b"), word("c")]);
        assert_eq!(tokens(" \t"), [0_u32; 0]);
    }

    #[test]
    fn stops_at_the_limit() {
        let mut out = vec![7];
        encode("one two three", 2, &mut out);
        assert_eq!(out, [7, word("one"), word("two")]);
        out.clear();
        encode("one", 0, &mut out);
        assert!(out.is_empty());
    }
}
