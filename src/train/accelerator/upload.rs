//! Arrays that go to the device together, through pinned memory, into a region that is there from the start.

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;

use bytemuck::NoUninit;
use foldhash::fast::FixedState;
use rayon::prelude::*;

use super::program::Step;
use crate::machine::driver::{Address, Driver, Result, StagingId, StreamId};
use crate::machine::tape::Bytes;

/// Where each array of an upload begins: wide vector loads want multiples of 16 bytes.
const ALIGN: usize = 16;

/// Bytes of a small table.
const SMALL: usize = 64;

/// Bytes that one thread copies at a time.
const PIECE: usize = 1 << 16;

/// Where tables lie, by what they hold. Whole tables are hashed, so that it has to be fast; nobody outside chooses what they hold.
pub type Places = HashMap<Bytes, Address, FixedState>;

/// Room on the device for one upload at a time, and as much pinned memory.
pub struct StagingBuffer {
    at: Address,
    staging: StagingId,
    bytes: usize,
    /// Where uploads are put together: fresh memory would cost more than what is written into it.
    room: Cell<Vec<u8>>,
}

impl StagingBuffer {
    pub fn new(driver: &mut dyn Driver, name: &str, bytes: usize) -> Result<Self> {
        let bytes = bytes.next_multiple_of(ALIGN).max(ALIGN);
        Ok(Self { at: driver.allocate(name, bytes)?, staging: driver.staging(bytes)?, bytes, room: Cell::default() })
    }

    /// An upload into this buffer.
    pub fn upload(&self) -> Upload {
        let mut bytes = self.room.take();
        bytes.clear();
        Upload { at: self.at, bytes, sections: Vec::new(), tables: Places::default() }
    }

    /// Lays an upload into pinned memory. The one before has arrived: its stream was waited for since.
    pub fn fill(&self, driver: &mut dyn Driver, upload: &mut Upload) -> Result<()> {
        let bytes = std::mem::take(&mut upload.bytes);
        assert!(bytes.len() <= self.bytes, "an upload of {} bytes, the plan foresaw {}", bytes.len(), self.bytes);
        let pinned = &mut driver.staging_bytes(self.staging)?[..bytes.len()];
        pinned.par_chunks_mut(PIECE).zip(bytes.par_chunks(PIECE)).for_each(|(to, from)| to.copy_from_slice(from));
        self.room.set(bytes);
        Ok(())
    }

    /// Sends a section of the upload that was laid out last.
    pub fn send(&self, stream: StreamId, section: &Range<usize>) -> Step {
        Step::CopyIn { stream, to: self.at + section.start as Address, from: self.staging, bytes: section.clone() }
    }
}

/// Arrays end to end, each at a multiple of 16 bytes, in sections that are sent one by one.
pub struct Upload {
    at: Address,
    bytes: Vec<u8>,
    pub sections: Vec<Range<usize>>,
    /// Where each table is.
    tables: Places,
}

impl Upload {
    /// Where the array will be on the device.
    pub fn push<T: NoUninit>(&mut self, values: &[T]) -> Address {
        self.align();
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytemuck::cast_slice(values));
        self.at + start as Address
    }

    /// As [`Upload::push`] of a table, unless an equal one is on its way already. Small ones are laid out in any case: where
    /// arrays lie should depend on their sizes alone, and small ones are equal by chance.
    pub fn table(&mut self, bytes: Bytes) -> Address {
        if bytes.len() < SMALL {
            return self.push(&bytes);
        }
        if let Some(&at) = self.tables.get(&bytes) {
            return at;
        }
        let at = self.push(&bytes);
        self.tables.insert(bytes, at);
        at
    }

    /// Where an equal table is.
    pub fn find(&self, bytes: &Bytes) -> Option<Address> {
        self.tables.get(bytes).copied()
    }

    /// Nothing of it is on the device any more.
    pub fn forget(&mut self) {
        self.tables.clear();
    }

    /// Ends the section of all arrays pushed since the one before.
    pub fn close(&mut self) {
        self.align();
        let start = self.sections.last().map_or(0, |section| section.end);
        self.sections.push(start..self.bytes.len());
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_begin_at_multiples_of_16_and_sections_follow_each_other() {
        let mut upload = Upload { at: 4096, bytes: Vec::new(), sections: Vec::new(), tables: Places::default() };
        assert_eq!([upload.push(&[1u8; 3]), upload.push(&[1u32; 5])], [4096, 4112]);
        upload.close();
        assert_eq!(upload.push(&[1u64]), 4144);
        upload.close();
        assert_eq!(upload.sections, [0..48, 48..64]);
    }
}
