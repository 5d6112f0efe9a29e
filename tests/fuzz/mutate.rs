//! Changes of bytes that know nothing of what the bytes mean.

use crate::random::Random;

/// No input grows beyond this.
pub const MOST_BYTES: usize = 1 << 20;

/// Texts that some reader somewhere gives a meaning.
const TOKENS: [&str; 32] = [
    "\"",
    "'",
    "\\",
    "\n",
    "\r\n",
    "\r",
    "\t",
    ",",
    ";",
    "\0",
    "\u{feff}",
    "\u{85}",
    "\u{2028}",
    "{",
    "}",
    "[",
    "]",
    "=",
    "#",
    ":",
    "-1",
    "NaN",
    "inf",
    "1e999",
    "18446744073709551616",
    "null",
    "true",
    "\\u0000",
    "\\ud800",
    "é",
    "𝕏",
    "e\u{301}\u{301}\u{301}",
];

const INTERESTING: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, i64::MAX as u64, u64::MAX];

/// One to eight changes.
pub fn bytes(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.size(7) {
        change(random, bytes, 0);
    }
}

/// One change behind `start`, where a format keeps what its readers trust.
pub fn change(random: &mut Random, bytes: &mut Vec<u8>, start: usize) {
    let start = start.min(bytes.len());
    let at = start + random.below(bytes.len() - start + 1);
    let end = at + random.size(bytes.len() - at);
    match random.below(10) {
        0 | 1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        2 if at < bytes.len() => bytes[at] = random.next() as u8,
        3 => {
            let value = INTERESTING[random.below(INTERESTING.len())].to_le_bytes();
            let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
            bytes[at..at + width].copy_from_slice(&value[..width]);
        }
        4 => drop(bytes.drain(at..end)),
        5 => bytes.truncate(at),
        6 => {
            let times = 1 + random.size(4096);
            let piece = bytes[at..end].repeat(times.min(1 + (MOST_BYTES / 4) / (end - at).max(1)));
            insert(bytes, at, &piece);
        }
        7 => {
            let from = random.below(bytes.len() + 1);
            let piece = bytes[from..from + random.size(bytes.len() - from)].to_vec();
            insert(bytes, at, &piece);
        }
        8 => {
            let noise: Vec<u8> = (0..random.size(64)).map(|_| random.next() as u8).collect();
            insert(bytes, at, &noise);
        }
        _ => insert(bytes, at, random.pick(&TOKENS).as_bytes()),
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    let piece = &piece[..piece.len().min(MOST_BYTES.saturating_sub(bytes.len()))];
    bytes.splice(at..at, piece.iter().copied());
}
