//! TensorBoard event files: length-framed records with masked CRC32C checksums around `Event` protocol buffers.
//!
//! Only what scalars need is encoded: Event { wall_time = 1, step = 2, file_version = 3, summary = 5 } and
//! Summary { value = 1 { tag = 1, simple_value = 2 } }; and in [`hparams`] what the tab of hyper-parameters needs.

mod hparams;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::Value;

use super::scalars::scalars;
use crate::files::scratch;
pub use hparams::HyperParameters;

/// Name of an event file, around its time.
const NAME: [&str; 2] = ["events.out.tfevents.", ".taskloom"];

pub struct TensorBoard {
    file: BufWriter<File>,
    path: PathBuf,
    folder: PathBuf,
    parameters: HyperParameters,
}

impl TensorBoard {
    /// The event file of a new run.
    pub fn create(folder: &Path, parameters: HyperParameters) -> Result<Self> {
        Self::begin(folder, parameters)?.replace()
    }

    /// An event file that is not in its place yet.
    pub fn begin(folder: &Path, parameters: HyperParameters) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let path = folder.join(format!("{}{}.{:09}{}", NAME[0], now.as_secs(), now.subsec_nanos(), NAME[1]));
        let file = File::create(scratch(&path)).with_context(|| format!("cannot create {}", path.display()))?;
        let mut events = Self { file: BufWriter::new(file), path, folder: folder.to_owned(), parameters };
        let mut version = Vec::new();
        put_double(&mut version, 1, now.as_secs_f64());
        put_bytes(&mut version, 3, b"brain.Event:2");
        events.record(&version)?;
        Ok(events)
    }

    /// Puts the file in its place, instead of those of earlier processes: under its own name, by which a TensorBoard that is open
    /// finds it.
    pub fn replace(mut self) -> Result<Self> {
        self.flush()?;
        fs::rename(scratch(&self.path), &self.path).with_context(|| format!("cannot write {}", self.path.display()))?;
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if is_file && path != self.path && name.starts_with(NAME[0]) && name.ends_with(NAME[1]) {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(self)
    }

    /// The scalars of a line of metrics.jsonl, and what it says of the run as a whole.
    pub fn write(&mut self, line: &Value) -> Result<()> {
        if let Some(event) = hparams::of_line(line, &self.parameters) {
            self.record(&event)?;
        }
        let scalars = scalars(line);
        if scalars.is_empty() {
            return Ok(());
        }
        let message = message(line["time"].as_f64().unwrap_or_default(), line["round"].as_u64().unwrap_or_default(), &scalars);
        self.record(&message)
    }

    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        self.file.write_all(&frame(data)).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn message(wall_time: f64, step: u64, scalars: &[(String, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in scalars {
        let mut entry = Vec::new();
        put_bytes(&mut entry, 1, tag.as_bytes());
        // Field 2 with wire type 5: a 32-bit float.
        entry.push(2 << 3 | 5);
        entry.extend((*value as f32).to_le_bytes());
        put_bytes(&mut summary, 1, &entry);
    }
    event(wall_time, step, &summary)
}

fn event(wall_time: f64, step: u64, summary: &[u8]) -> Vec<u8> {
    let mut event = Vec::new();
    put_double(&mut event, 1, wall_time);
    event.push(2 << 3);
    put_varint(&mut event, step);
    put_bytes(&mut event, 5, summary);
    event
}

fn put_double(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(field << 3 | 1);
    out.extend(value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Length, its checksum, data, its checksum.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_crc(data).to_le_bytes());
    record
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record and an event as TensorFlow's own writer makes them, field by field.
    #[test]
    fn events_are_framed_and_encoded() {
        let event = message(1.5, 300, &[("a/b".into(), 0.5)]);
        let expected: Vec<u8> = [
            &[0x09][..],
            &1.5f64.to_le_bytes(),
            &[0x10, 0xac, 0x02],
            &[0x2a, 12, 0x0a, 10, 0x0a, 3],
            b"a/b",
            &[0x15],
            &0.5f32.to_le_bytes(),
        ]
        .concat();
        assert_eq!(event, expected);
        let record = frame(&event);
        assert_eq!(record.len(), event.len() + 16);
        assert_eq!(record[..8], (event.len() as u64).to_le_bytes());
    }

    /// RFC 3720's test vector: CRC32C of 32 zero bytes is 0x8a9136aa.
    #[test]
    fn checksums_are_masked() {
        let crc = 0x8a91_36aa_u32;
        assert_eq!(masked_crc(&[0; 32]), crc.rotate_right(15).wrapping_add(0xa282_ead8));
    }
}
