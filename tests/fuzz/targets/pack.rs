//! Packed files: whole ones, damaged ones, and ones that grow a thousandfold when they are unpacked.

use std::io::Write;

use crate::mutate;
use crate::random::Random;

/// `content` as it is or packed, at times damaged afterwards; the file's name says how it is packed, or lies.
pub fn pack(random: &mut Random, name: &str, content: Vec<u8>) -> (String, Vec<u8>) {
    let (extension, mut packed) = match random.below(6) {
        0..=2 => ("", content),
        3 => (".gz", gzip(random, &content)),
        4 => (".zst", zstd(&content)),
        _ if random.once_in(16) => {
            let (extension, packed) = [(".gz", gzip(random, &content)), (".zst", zstd(&content))][random.below(2)].clone();
            let piece = content.get(..random.size(content.len())).unwrap_or_default();
            (
                extension,
                if extension == ".gz" {
                    [packed, grown_gzip(random, piece)].concat()
                } else {
                    [packed, grown_zstd(random)].concat()
                },
            )
        }
        _ => (".gz", content),
    };
    if !extension.is_empty() && random.once_in(3) {
        mutate::bytes(random, &mut packed);
    }
    packed.truncate(mutate::MOST_BYTES);
    (format!("{name}{extension}"), packed)
}

fn gzip(random: &mut Random, content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).expect("memory takes all");
    let mut packed = encoder.finish().expect("memory takes all");
    if random.once_in(6) {
        // A second member, as `cat a.gz b.gz` gives.
        packed.extend_from_within(..);
    }
    packed
}

fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 1).expect("memory takes all")
}

/// A member of up to 16 MiB of repeated text.
fn grown_gzip(random: &mut Random, piece: &[u8]) -> Vec<u8> {
    let piece = if piece.is_empty() { b"a" } else { piece };
    let block = piece.repeat((1 << 16) / piece.len() + 1);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    (0..random.size(1 << 8)).for_each(|_| encoder.write_all(&block).expect("memory takes all"));
    encoder.finish().expect("memory takes all")
}

/// A frame of blocks that say one byte and how often: 4 bytes for up to 128 KiB, 1 GiB in all.
fn grown_zstd(random: &mut Random) -> Vec<u8> {
    // Magic number, no checksum and no content size, a window of 8 MiB.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 13 << 3];
    let byte = *[b'a', b'\n', b'"', b' ', b'{', b'[', 0].get(random.below(7)).unwrap_or(&0);
    let blocks = 1 + random.size(8 << 10);
    for block in 0..blocks {
        let header = (128u32 << 10) << 3 | 1 << 1 | u32::from(block + 1 == blocks);
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(byte);
    }
    frame
}
