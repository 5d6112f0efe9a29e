//! Parquet files with the columns of the tasks: every compression and encoding that is read, nulls, lists, old types.

use std::sync::{Arc, LazyLock};

use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DoubleType, FixedLenByteArrayType, FloatType, Int32Type, Int64Type, Int96, Int96Type,
};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::mutate;
use crate::random::Random;

const SCHEMA: &str = "message rows {
    optional binary text (UTF8);
    required binary other;
    optional int64 label;
    optional group names (LIST) { repeated group list { optional binary element (UTF8); } }
    optional double score;
    required int32 red (INTEGER(8, false));
    optional boolean loud;
    required float x0;
    optional fixed_len_byte_array(4) x1 (DECIMAL(9, 2));
    optional group vector (LIST) { repeated group list { required float element; } }
    required binary split (ENUM);
    optional int96 task;
}";

const ROWS: usize = 24;

/// Each with another compression, encoding and page version.
pub static FILES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let mut files = Vec::new();
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::LZ4_RAW,
    ] {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            for is_plain in [false, true] {
                let mut properties = WriterProperties::builder().set_compression(compression).set_writer_version(version);
                properties =
                    properties.set_dictionary_enabled(!is_plain).set_data_page_row_count_limit(10).set_write_batch_size(5);
                if is_plain {
                    properties = properties.set_encoding(Encoding::PLAIN);
                }
                files.push(write(properties.build()));
            }
        }
    }
    files
});

/// Present where the row is no multiple of five.
fn levels() -> Vec<i16> {
    (0..ROWS).map(|row| i16::from(row % 5 != 0)).collect()
}

fn write(properties: WriterProperties) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(SCHEMA).expect("a schema"));
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).expect("a writer");
    // Two groups of rows, so that a reader has to go on from one to the next.
    for _ in 0..2 {
        let mut group = writer.next_row_group().expect("a group");
        let levels = levels();
        let present = levels.iter().filter(|level| **level == 1).count();
        let texts =
            |count: usize, words: &[&str]| -> Vec<ByteArray> { (0..count).map(|row| words[row % words.len()].into()).collect() };
        // Two values a row.
        let two = |defined: i16| -> (Vec<i16>, Vec<i16>) { (vec![defined; 2 * ROWS], [0, 1].repeat(ROWS)) };
        macro_rules! column {
            ($type:ty, $values:expr, $defined:expr, $repeated:expr) => {{
                let mut column = group.next_column().expect("a column").expect("one more column");
                let written = column.typed::<$type>().write_batch(&$values, $defined, $repeated);
                written.expect("values fit");
                column.close().expect("a column ends");
            }};
        }
        column!(ByteArrayType, texts(present, &["good film", "bad", "é"]), Some(&levels), None);
        column!(ByteArrayType, texts(ROWS, &["a", "b c"]), None, None);
        column!(Int64Type, (0..present as i64).map(|row| row % 3).collect::<Vec<_>>(), Some(&levels), None);
        let (defined, repeated) = two(3);
        column!(ByteArrayType, texts(2 * ROWS, &["a", "b", "c"]), Some(&defined), Some(&repeated));
        column!(DoubleType, (0..present).map(|row| row as f64 / 4.0).collect::<Vec<_>>(), Some(&levels), None);
        column!(Int32Type, (0..ROWS as i32).map(|row| row % 2).collect::<Vec<_>>(), None, None);
        column!(BoolType, (0..present).map(|row| row % 2 == 0).collect::<Vec<_>>(), Some(&levels), None);
        column!(FloatType, (0..ROWS).map(|row| row as f32).collect::<Vec<_>>(), None, None);
        let fixed: Vec<_> = (0..present as u32).map(|row| ByteArray::from(row.to_be_bytes().to_vec()).into()).collect();
        column!(FixedLenByteArrayType, fixed, Some(&levels), None);
        let (defined, repeated) = two(2);
        column!(FloatType, (0..2 * ROWS).map(|row| row as f32).collect::<Vec<_>>(), Some(&defined), Some(&repeated));
        column!(ByteArrayType, texts(ROWS, &["train", "train", "dev", "test"]), None, None);
        let moments: Vec<Int96> = (0..present as u32).map(|row| Int96::from(vec![row, 0, 2_440_588])).collect();
        column!(Int96Type, moments, Some(&levels), None);
        group.close().expect("a group ends");
    }
    writer.close().expect("a file ends");
    bytes
}

/// Wrong bytes anywhere, or in the footer and the pages' headers, where a reader finds its lengths.
pub fn spoil(random: &mut Random, bytes: &mut Vec<u8>) {
    let tail = bytes.len().saturating_sub(8);
    let length = bytes[tail..tail + 4].try_into().map_or(0, u32::from_le_bytes) as usize;
    let footer = tail.saturating_sub(length);
    for _ in 0..=random.size(5) {
        let width = bytes.len();
        match random.below(4) {
            // A byte of the footer: a compact Thrift struct, whose lengths and types are one byte mostly.
            0 | 1 => {
                let at = (footer + random.below(length)).min(width.saturating_sub(1));
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = if random.once_in(2) {
                        *byte ^ 1 << random.below(8)
                    } else {
                        [0, 1, 0x7f, 0x80, 0xff, 0x19, 0xfc][random.below(7)]
                    };
                }
            }
            // A byte before it.
            2 => {
                let at = random.below(footer.min(width));
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = if random.once_in(2) { *byte ^ 1 << random.below(8) } else { random.next() as u8 };
                }
            }
            _ => mutate::change(random, bytes, 0),
        }
    }
    // A footer that lost or gained bytes is found nevertheless, mostly.
    if bytes.len() != tail + 8 && bytes.len() > 8 && random.once_in(2) {
        let tail = bytes.len() - 8;
        let length = (length as i64 + (tail as i64 - (footer + length) as i64)).clamp(0, tail as i64) as u32;
        bytes[tail..tail + 4].copy_from_slice(&length.to_le_bytes());
        bytes[tail + 4..].copy_from_slice(b"PAR1");
    }
}
