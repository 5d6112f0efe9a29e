//! The `precompiled_charsmap` of a SentencePiece normalizer, as the library walks it, which trusts its offsets: base64 of the
//! bytes of a double-array trie (u32 its bytes, then u32 units), and after them the replacements, each ended by a zero byte.

use anyhow::{Context, Result, ensure};

/// Looks at every state that a text can lead to. Returns the bytes of the longest replacement, 1 at least.
pub(super) fn check(base64: &str) -> Result<usize> {
    let bytes = decode(base64).context("is not base64")?;
    let number = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    ensure!(bytes.len() >= 4, "ends before its first number");
    let units = number(&bytes) / 4;
    let rest = bytes[4..].split_at_checked(4 * units);
    let (trie, replacements) = rest.with_context(|| format!("ends before the {units} units of its trie"))?;
    let replacements = std::str::from_utf8(replacements).context("has replacements that are not UTF-8")?;
    let unit = |place: usize| {
        let found = trie.chunks_exact(4).nth(place).map(number);
        found.with_context(|| format!("points to unit {place} of a trie with {units}"))
    };
    let (mut longest, mut seen) = (1, vec![false; units]);
    let mut open = vec![offset(unit(0)?)];
    while let Some(state) = open.pop() {
        unit(state)?;
        if std::mem::replace(&mut seen[state], true) {
            continue;
        }
        for byte in 1..=usize::from(u8::MAX) {
            let next = unit(state ^ byte)?;
            // Also that it is no leaf, whose highest bit is set.
            if next & (1 << 31 | 0xff) != byte {
                continue;
            }
            let after = state ^ byte ^ offset(next);
            if next & 1 << 8 != 0 {
                let start = unit(after)? & !(1 << 31);
                let replacement = replacements.get(start..);
                let replacement =
                    replacement.with_context(|| format!("points to byte {start} of its replacements, where none starts"))?;
                longest = longest.max(replacement.split('\0').next().map_or(0, str::len));
            }
            open.push(after);
        }
    }
    Ok(longest)
}

fn offset(unit: usize) -> usize {
    unit >> 10 << ((unit & 1 << 9) >> 6)
}

fn decode(base64: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (mut bytes, mut kept, mut bits) = (Vec::new(), 0u32, 0);
    for c in base64.trim_end_matches('=').bytes() {
        kept = kept << 6 | u32::from(digit(c)?);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((kept >> bits) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trie that replaces "a" by what starts at byte `start`: the root's unit, then its 256 children and theirs.
    fn map(start: u32, children: u32) -> String {
        let mut units = vec![0u32; 768];
        // Offsets are kept above bit 9; bit 8 says that a key ends here.
        units[0] = 256 << 10;
        units[256 ^ 97] = children << 10 | 1 << 8 | 97;
        if let Some(leaf) = units.get_mut(256 ^ 97 ^ children as usize) {
            *leaf = start | 1 << 31;
        }
        let bytes = [4 * units.len() as u32].into_iter().chain(units).flat_map(u32::to_le_bytes);
        encode(&bytes.chain(*b"x\0longer\0\xc3\xa9").collect::<Vec<u8>>())
    }

    fn encode(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let digit = |bits: u32, shift: u32| DIGITS[(bits >> shift & 63) as usize] as char;
        let four = |part: &[u8]| {
            let bits = part.iter().chain(&[0, 0]).take(3).fold(0, |bits, byte| bits << 8 | u32::from(*byte));
            let all = [18, 12, 6, 0].map(|shift| digit(bits, shift));
            all[..part.len() + 1].iter().collect::<String>()
                + &"="[..usize::from(part.len() == 2)]
                + &"=="[..2 * usize::from(part.len() == 1)]
        };
        bytes.chunks(3).map(four).collect()
    }

    #[test]
    fn a_map_is_followed_to_its_replacements() {
        let child = 512 ^ 256 ^ 97;
        assert_eq!(check(&map(0, child)).unwrap(), 1);
        assert_eq!(check(&map(2, child)).unwrap(), 6);
        let error = |map: &str| format!("{:#}", check(map).unwrap_err());
        assert_eq!(error(&map(10, child)), "points to byte 10 of its replacements, where none starts");
        assert_eq!(error(&map(99, child)), "points to byte 99 of its replacements, where none starts");
        assert_eq!(error(&map(0, 4096)), "points to unit 4449 of a trie with 768");
    }

    #[test]
    fn what_ends_early_is_refused() {
        for (map, part) in
            [("?", "not base64"), ("", "first number"), ("CAAAAAAA", "the 2 units"), ("AAAAAA==", "points to unit 0")]
        {
            assert!(format!("{:#}", check(map).unwrap_err()).contains(part));
        }
    }
}
