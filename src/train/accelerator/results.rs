//! What the host reads after a round, and where the device leaves it.

use crate::machine::driver::{Address, DeviceError, Driver, EventId, StagingId};
use crate::machine::tensor::{DType, Tensor};
use crate::surgery::blocks::Blocks;
use crate::surgery::gram::ProductsAt;

/// What the host reads after a round, all f64: T loss sums, T squares of head gradients, T balancing and task clipping,
/// 3 of summary, sets x 2 of status, sets x T weights, squares by block and in all of the one row that all gradients were added to,
/// then the Gram matrices of all blocks and of their sum.
pub(super) struct Results {
    pub at: Address,
    pub bytes: usize,
    /// T, most tasks present.
    pub tasks: usize,
    /// Independent batches of a round.
    pub batches: usize,
    pub sets: usize,
    pub blocks: usize,
    /// (partial sums x T T) f64 on the way to Gram matrices.
    pub partials: Tensor,
    /// By the buffer of a round's batch: what was read, how many rows of the table have slots where the device gives them, and when
    /// both are there.
    pub staging: [StagingId; 2],
    pub slots: [StagingId; 2],
    pub read: [EventId; 2],
}

impl Results {
    pub fn squares(&self) -> usize {
        self.tasks
    }

    pub fn factors(&self) -> usize {
        2 * self.tasks
    }

    pub fn summary(&self) -> usize {
        3 * self.tasks
    }

    pub fn statuses(&self) -> usize {
        self.summary() + 3
    }

    pub fn weights(&self) -> usize {
        self.statuses() + 2 * self.sets
    }

    pub fn added(&self) -> usize {
        self.weights() + self.sets * self.tasks
    }

    pub fn grams(&self) -> usize {
        self.added() + self.blocks + 1
    }

    /// (rows x columns) from the result of this number on.
    pub fn tensor(&self, first: usize, rows: usize, columns: usize) -> Tensor {
        Tensor::dense(self.at + 8 * first as Address, rows, columns, DType::F64)
    }

    /// Numbers of all Gram matrices of `count` present tasks.
    pub fn cells(&self, count: usize) -> usize {
        (self.blocks + 1) * (count * self.batches).pow(2)
    }

    /// (sets x T T) the Gram matrices that are solved.
    pub fn solved_grams(&self, count: usize) -> Tensor {
        let first = if self.sets > 1 { 0 } else { self.blocks };
        self.tensor(self.grams() + first * count * count, self.sets, count * count)
    }

    /// (T)
    pub fn losses(&self, count: usize) -> Tensor {
        self.tensor(0, 1, count)
    }

    pub fn products(&self, count: usize) -> ProductsAt {
        ProductsAt {
            grams: self.tensor(self.grams(), self.blocks + 1, (count * self.batches).pow(2)),
            added: self.tensor(self.added(), self.blocks + 1, 1),
            heads: self.tensor(self.squares(), 1, count),
            partials: self.partials,
        }
    }

    pub fn new(
        device: &mut dyn Driver,
        tasks: usize,
        batches: usize,
        blocks: &Blocks,
        partials: usize,
    ) -> Result<Self, DeviceError> {
        let cells = (tasks * batches).pow(2);
        let (gram, sets, blocks) = (8 * cells, blocks.sets(), blocks.count());
        let bytes = 8 * (3 * tasks + 3 + sets * (2 + tasks) + blocks + 1) + (blocks + 1) * gram;
        let at = device.allocate("losses and products of gradients", bytes)?;
        let room = device.allocate("partial products", partials * gram)?;
        let partials = Tensor::dense(room, partials, cells, DType::F64);
        let staging = [device.staging(bytes)?, device.staging(bytes)?];
        let slots = [device.staging(4)?, device.staging(4)?];
        let read = [device.event()?, device.event()?];
        Ok(Self { at, bytes, tasks, batches, sets, blocks, partials, staging, slots, read })
    }
}
