//! Who may touch which block of parameters now: many readers, or one writer.
//!
//! A conflict is (O, E, R): the blocks two operations share, the operations in flight, and the rule that at least one of
//! them writes while neither happens before the other.

use crate::choices::choices;

/// Most blocks that are told apart; a set of them is one word.
pub const MOST_BLOCKS: usize = 64;

/// A set of blocks, one bit each.
pub type Blocks = u64;

/// What an operation does to its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Forward and backward: reads blocks, writes a private gradient.
    Gradient,
    /// Reads blocks.
    Evaluation,
    /// Writes blocks.
    Commit,
    /// A checkpoint: reads blocks.
    Save,
}

impl Operation {
    pub fn writes(self) -> bool {
        self == Operation::Commit
    }

    pub fn name(self) -> &'static str {
        match self {
            Operation::Gradient => "gradient",
            Operation::Evaluation => "evaluation",
            Operation::Commit => "commit",
            Operation::Save => "save",
        }
    }
}

/// Why an operation has to wait for one in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    ReadWrite,
    WriteWrite,
}

choices! {
    /// What to do with a gradient that was computed too many commits ago.
    pub enum OnStale {
        /// Compute it again.
        Recompute = "recompute",
        /// Commit it all the same.
        Allow = "allow",
        /// Drop its examples.
        Refuse = "refuse",
    }
}

/// Operations in flight and the version of every block.
#[derive(Clone, Debug)]
pub struct Access {
    readers: [u32; MOST_BLOCKS],
    read: Blocks,
    written: Blocks,
    /// Commits of each block.
    versions: [u32; MOST_BLOCKS],
}

impl Default for Access {
    fn default() -> Self {
        Self { readers: [0; MOST_BLOCKS], read: 0, written: 0, versions: [0; MOST_BLOCKS] }
    }
}

impl Access {
    /// What stands in the way of the operation.
    pub fn conflict(&self, operation: Operation, blocks: Blocks) -> Option<Conflict> {
        if blocks & self.written != 0 {
            Some(if operation.writes() { Conflict::WriteWrite } else { Conflict::ReadWrite })
        } else {
            (operation.writes() && blocks & self.read != 0).then_some(Conflict::ReadWrite)
        }
    }

    /// Starts an operation that has no conflict.
    pub fn acquire(&mut self, operation: Operation, blocks: Blocks) {
        debug_assert!(self.conflict(operation, blocks).is_none());
        if operation.writes() {
            self.written |= blocks;
        } else {
            self.read |= blocks;
            bits(blocks).for_each(|block| self.readers[block] += 1);
        }
    }

    /// Ends it; a commit that went through makes a new version of its blocks.
    pub fn release(&mut self, operation: Operation, blocks: Blocks, committed: bool) {
        if operation.writes() {
            self.written &= !blocks;
            if committed {
                self.commit(blocks);
            }
            return;
        }
        for block in bits(blocks) {
            self.readers[block] -= 1;
            if self.readers[block] == 0 {
                self.read &= !(1 << block);
            }
        }
    }

    /// A commit at once, between operations: a new version of its blocks.
    pub fn commit(&mut self, blocks: Blocks) {
        bits(blocks).for_each(|block| self.versions[block] += 1);
    }

    /// Notes the versions a gradient is computed at.
    pub fn note(&self, blocks: Blocks, seen: &mut [u32]) {
        bits(blocks).for_each(|block| seen[block] = self.versions[block]);
    }

    /// Most commits that any of the blocks had since.
    pub fn staleness(&self, blocks: Blocks, seen: &[u32]) -> u32 {
        bits(blocks).map(|block| self.versions[block] - seen[block]).max().unwrap_or(0)
    }

    pub fn is_idle(&self) -> bool {
        self.read == 0 && self.written == 0
    }
}

fn bits(mut blocks: Blocks) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let block = blocks.trailing_zeros() as usize;
        blocks &= blocks.wrapping_sub(1);
        (block < MOST_BLOCKS).then_some(block)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_a_writer_does_not() {
        let mut access = Access::default();
        access.acquire(Operation::Gradient, 0b011);
        access.acquire(Operation::Evaluation, 0b110);
        assert_eq!(access.conflict(Operation::Commit, 0b100), Some(Conflict::ReadWrite));
        assert_eq!(access.conflict(Operation::Commit, 0b1000), None);
        access.release(Operation::Evaluation, 0b110, false);
        access.acquire(Operation::Commit, 0b100);
        assert_eq!(access.conflict(Operation::Commit, 0b100), Some(Conflict::WriteWrite));
        assert_eq!(access.conflict(Operation::Gradient, 0b100), Some(Conflict::ReadWrite));
        access.release(Operation::Commit, 0b100, true);
        access.release(Operation::Gradient, 0b011, false);
        assert!(access.is_idle());
    }

    #[test]
    fn staleness_counts_commits_of_the_blocks_read() {
        let mut access = Access::default();
        let mut seen = [0; 3];
        access.note(0b11, &mut seen);
        for blocks in [0b1, 0b1, 0b100] {
            access.acquire(Operation::Commit, blocks);
            access.release(Operation::Commit, blocks, true);
        }
        assert_eq!(access.staleness(0b11, &seen), 2);
        assert_eq!(access.staleness(0b10, &seen), 0);
    }
}
