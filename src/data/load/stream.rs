//! Rows of one file in chunks: a thread of its own reads ahead while the caller works on the chunk before.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Context, Result};

use crate::data::read::{FileSpec, Item, Reader};

/// A chunk ends at this many rows or at this much memory, whichever comes first.
const CHUNK_ROWS: usize = 2_048;
const CHUNK_BYTES: usize = 4 << 20;
/// Complete chunks waiting for the caller.
const CHUNKS_AHEAD: usize = 1;

/// Calls `work` with each chunk, in file order. The reader is an operating system thread and not a rayon job: a pool
/// of one thread, busy with `work`, cannot starve it.
pub(super) fn for_each_chunk(
    file: &FileSpec,
    wanted: &[String],
    bytes_read: &Arc<AtomicU64>,
    mut work: impl FnMut(Vec<Item>) -> Result<()>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (sender, chunks): (_, Receiver<Result<Vec<Item>>>) = sync_channel(CHUNKS_AHEAD);
        let bytes_read = Arc::clone(bytes_read);
        std::thread::Builder::new()
            .name("taskloom-read".to_owned())
            .spawn_scoped(scope, move || {
                if let Err(error) = read_chunks(file, wanted, bytes_read, &sender) {
                    // Nobody listens any more only when the caller has failed before us.
                    let _ = sender.send(Err(error));
                }
            })
            .context("cannot start a thread for reading")?;
        // Leaving early drops `chunks`, which ends the reader at its next send.
        chunks.into_iter().try_for_each(|chunk| work(chunk?))
    })
}

fn read_chunks(
    file: &FileSpec,
    wanted: &[String],
    bytes_read: Arc<AtomicU64>,
    sender: &SyncSender<Result<Vec<Item>>>,
) -> Result<()> {
    let mut chunk = Vec::new();
    let mut bytes = 0;
    for item in Reader::open(file, wanted, bytes_read)? {
        let item = match item {
            Ok(item) => item,
            Err(error) => {
                // The rows before come first: one of them may be bad, and its error is the earlier one.
                let _ = sender.send(Ok(chunk));
                return Err(error);
            }
        };
        bytes += weight(&item);
        chunk.push(item);
        if chunk.len() >= CHUNK_ROWS || bytes >= CHUNK_BYTES {
            bytes = 0;
            if sender.send(Ok(std::mem::take(&mut chunk))).is_err() {
                return Ok(());
            }
        }
    }
    let _ = sender.send(Ok(chunk));
    Ok(())
}

fn weight(item: &Item) -> usize {
    match item {
        Item::Row(row) => row.cells.iter().map(|cell| cell.bytes()).sum(),
        Item::Bad(_, fault) => fault.message.len(),
    }
}
