//! A large file streams through: memory grows with the number of rows, not with their text.

use std::io::{BufWriter, Write};

use anyhow::{Context, Result};
use serde_json::json;

use super::support::{Files, config, task};
use crate::data::load;

const ROWS: usize = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };
/// Offsets and labels take 24 bytes a row (twice that while a vector grows), chunks and buffers tens of MiB.
const MOST_GROWTH: u64 = 300 << 20;

/// Resident memory that is not a mapped file, in bytes.
fn anonymous_memory() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("RssAnon")).context("the kernel reports RssAnon")?;
    let kib: u64 = line.split_whitespace().nth(1).context("RssAnon has a value")?.parse()?;
    Ok(kib << 10)
}

#[cfg(target_os = "linux")]
#[test]
fn a_million_rows_stream_in_bounded_memory() -> Result<()> {
    let files = Files::new()?;
    let path = files.path("big.tsv");
    let mut out = BufWriter::new(std::fs::File::create(&path)?);
    writeln!(out, "text\tlabel")?;
    let filler = "some words that make the text of this row about as long as a review's sentence ".repeat(2);
    for row in 0..ROWS {
        writeln!(out, "row {row} {filler}\t{}", row % 4)?;
    }
    out.flush()?;
    let bytes = std::fs::metadata(&path)?.len();
    let settings = config(json!({"t": task(json!({"train": path}))}), json!({}))?;
    let before = anonymous_memory()?;
    let peak = std::sync::atomic::AtomicU64::new(before);
    let start = std::time::Instant::now();
    let corpus = load(&settings, &|_| {
        peak.fetch_max(anonymous_memory().unwrap_or(u64::MAX), std::sync::atomic::Ordering::Relaxed);
    })?;
    let growth = peak.into_inner().max(anonymous_memory()?).saturating_sub(before);
    eprintln!("{ROWS} rows, {} MiB in {:?}, {} MiB more", bytes >> 20, start.elapsed(), growth >> 20);
    assert_eq!(corpus.tasks[0].train.len(), ROWS);
    assert!(growth < MOST_GROWTH, "{} MiB more than before, for {} MiB of text", growth >> 20, bytes >> 20);
    Ok(())
}
