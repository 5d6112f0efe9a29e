//! The kernels of compute capability 9.0 (kernels/hopper/attention.cu): for heads of 64 columns, large and small blocks in one launch,
//! whose blocks stay and take turns.

use super::{Blocks, Sequences};
use crate::machine::driver::Card;
use crate::machine::launch::Launch;

/// One of these kernels, without and with dropout.
pub(super) struct Kernel {
    names: [&'static str; 2],
    threads: [u32; 2],
    /// Turns that a block takes at a time.
    teams: [usize; 2],
}

pub(super) const FORWARD: Kernel =
    Kernel { names: ["attention_forward_hopper", "attention_forward_hopper_drop"], threads: [640, 384], teams: [2, 1] };
pub(super) const BACKWARD: Kernel =
    Kernel { names: ["attention_backward_hopper", "attention_backward_hopper_drop"], threads: [384; 2], teams: [1; 2] };
pub(super) const BACKWARD_QUERIES: Kernel = Kernel {
    names: ["attention_backward_queries_hopper", "attention_backward_queries_hopper_drop"],
    threads: [384; 2],
    teams: [1; 2],
};

/// All shared memory that a block may have.
const SHARED: usize = 227 << 10;

/// Whether these kernels compute what is asked.
pub(super) fn takes(card: &Card, shape: &Sequences) -> bool {
    card.hopper && shape.dim == 64
}

/// For all blocks: a turn is a large one and a head, or a small one and two.
pub(super) fn launch(kernel: Kernel, shape: &Sequences, card: &Card, blocks: &Blocks) -> Launch {
    let drops = usize::from(shape.drops().is_some());
    let [large, small] = blocks.counts();
    let turns = large * shape.heads + small * shape.heads.div_ceil(2);
    let grid = turns.div_ceil(kernel.teams[drops]).min(card.multiprocessors);
    Launch::line(kernel.names[drops], grid, kernel.threads[drops]).shared(SHARED)
}
