//! kernels/heads.cu and kernels/loss.cu: all tasks' output layers and losses.

use bytemuck::{Pod, Zeroable};

use super::{Address, Launch};
use crate::device::driver::MOST_BLOCKS;

/// One task's rows and head, as `HeadSegment` of kernels/heads.cu.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct HeadSegment {
    /// Packed rows, from `start` to `end`.
    pub start: u32,
    pub end: u32,
    pub outputs: u32,
    pub task: u32,
    /// Where weights (outputs x width), bias (outputs) and logits (rows x outputs) begin.
    pub weight: u64,
    pub bias: u64,
    pub logits: u64,
}

// SAFETY: four u32 and three u64 without padding; any bits are valid.
unsafe impl Zeroable for HeadSegment {}
// SAFETY: as above.
unsafe impl Pod for HeadSegment {}

/// Losses by their number in kernels/loss.cu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Loss {
    CrossEntropy = 0,
    BinaryCrossEntropy = 1,
    SquaredError = 2,
}

/// One task's logits and targets, as `LossSegment` of kernels/loss.cu.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct LossSegment {
    pub start: u32,
    pub end: u32,
    pub outputs: u32,
    /// A [`Loss`].
    pub loss: u32,
    pub task: u32,
    /// Factor on d(sum of losses).
    pub scale: f32,
    pub logits: u64,
    /// Where its targets begin: u32 classes (rows) or f32 values (rows x outputs), counted in 4 bytes.
    pub targets: u64,
}

// SAFETY: six numbers of 4 bytes and two of 8 without padding; any bits are valid.
unsafe impl Zeroable for LossSegment {}
// SAFETY: as above.
unsafe impl Pod for LossSegment {}

const THREADS: u32 = 256;
/// A warp a row.
const ROWS: usize = 8;

/// Device array of [`HeadSegment`] that covers the packed rows in order.
#[derive(Clone, Copy, Debug)]
pub struct Segments {
    pub at: Address,
    pub count: usize,
    pub rows: usize,
}

/// logits f32 = hidden (rows x width, bf16) W_t^T + b_t
pub fn forward(logits: Address, hidden: Address, values: Address, segments: Segments, width: usize) -> Launch {
    Launch::line("heads_forward", segments.rows.div_ceil(ROWS), THREADS)
        .addresses([logits, hidden, values, segments.at])
        .int(segments.count)
        .int(segments.rows)
        .int(width)
}

/// dhidden (rows x width, bf16) = dlogits W_t
pub fn input(dhidden: Address, dlogits: Address, values: Address, segments: Segments, width: usize) -> Launch {
    Launch::line("heads_input", segments.rows.div_ceil(ROWS), THREADS)
        .addresses([dhidden, dlogits, values, segments.at])
        .int(segments.count)
        .int(segments.rows)
        .int(width)
}

/// Most outputs of a head.
pub fn most_outputs(width: usize) -> usize {
    MOST_BLOCKS[0] as usize / width.div_ceil(32).max(1)
}

/// gradients = or += those of every head; `add` (segments) u32; `outputs` of the widest head.
pub fn weight(
    gradients: Address,
    dlogits: Address,
    hidden: Address,
    segments: Segments,
    add: Address,
    width: usize,
    outputs: usize,
) -> Launch {
    Launch::new("heads_weight", [outputs * width.div_ceil(32), segments.count, 1], THREADS)
        .addresses([gradients, dlogits, hidden, segments.at, add])
        .int(width)
}

/// dlogits, and row_losses (rows) f64. `segments` of [`LossSegment`]; `factors` (tasks) f32 on the gradients, or null.
pub fn loss_rows(
    dlogits: Address,
    row_losses: Address,
    logits: Address,
    targets: Address,
    segments: Segments,
    smoothing: f64,
    factors: Address,
) -> Launch {
    Launch::line("loss_rows", segments.rows.div_ceil(ROWS), THREADS)
        .addresses([dlogits, row_losses, logits, targets, segments.at])
        .int(segments.count)
        .int(segments.rows)
        .double(smoothing)
        .addresses([factors])
}

/// sums (tasks) f64 = or += the row losses of each segment; `add` (segments) u32.
pub fn loss_sums(sums: Address, row_losses: Address, segments: Segments, add: Address) -> Launch {
    Launch::line("loss_sums", segments.count, THREADS).addresses([sums, row_losses, segments.at, add])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_of_very_many_outputs_has_a_grid_that_a_card_takes() {
        let segments = Segments { at: 0, count: 3, rows: 9 };
        let [x, y, z] = weight(0, 0, 0, segments, 0, 768, most_outputs(768)).grid;
        assert!(x <= MOST_BLOCKS[0] && (y, z) == (3, 1));
        assert_eq!(weight(0, 0, 0, segments, 0, 768, 70_000).grid, [70_000 * 24, 3, 1]);
    }
}
