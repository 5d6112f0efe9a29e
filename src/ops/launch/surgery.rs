//! kernels/gram.cu, solve.cu and update.cu: from the rows of J to moved parameters.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::{Address, Launch};
use crate::device::driver::PLAIN_SHARED;
use crate::ops::adamw::Rule;

/// Columns of one block of statistics (a layer, a tensor, the model) and of one parameter group.
#[derive(Clone, Debug, PartialEq)]
pub struct Columns {
    pub columns: Range<u64>,
    pub block: u32,
    pub group: u32,
}

/// The columns of a run cut into chunks, each of one block and one group: what the kernels' grids run over.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunks {
    /// (chunks) each
    pub firsts: Vec<u64>,
    pub lengths: Vec<u32>,
    pub blocks: Vec<u32>,
    pub groups: Vec<u32>,
}

impl Chunks {
    /// Ranges come with their blocks in ascending order.
    pub fn new(ranges: &[Columns], length: u32) -> Self {
        let mut chunks = Self::default();
        for range in ranges {
            let mut first = range.columns.start;
            while first < range.columns.end {
                let end = (first + u64::from(length)).min(range.columns.end);
                chunks.firsts.push(first);
                chunks.lengths.push((end - first) as u32);
                chunks.blocks.push(range.block);
                chunks.groups.push(range.group);
                first = end;
            }
        }
        chunks
    }

    /// Chunk length for the Gram matrices of `columns` in all: about eight blocks for each of 132 multiprocessors, in whole
    /// rounds of a block's warps (8 x 1024 columns).
    pub fn gram_length(columns: u64) -> u32 {
        const ROUND: u64 = 8 * 1024;
        (columns.div_ceil(132 * 8).div_ceil(ROUND) * ROUND).clamp(ROUND, 16 * ROUND) as u32
    }

    /// Chunk length for the update: eight vectors of 4 a thread.
    pub const UPDATE_LENGTH: u32 = 8192;

    pub fn len(&self) -> usize {
        self.firsts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.firsts.is_empty()
    }

    /// (blocks + 1) bounds of each block's chunks.
    pub fn starts(&self, blocks: u32) -> Vec<u32> {
        (0..=blocks).map(|block| self.blocks.partition_point(|&own| own < block) as u32).collect()
    }
}

/// Device arrays of [`Chunks`].
#[derive(Clone, Copy, Debug)]
pub struct ChunksOnDevice {
    pub count: usize,
    pub firsts: Address,
    pub lengths: Address,
    pub blocks: Address,
    pub groups: Address,
}

/// The Jacobian on the device: (tasks x stride) f32.
#[derive(Clone, Copy, Debug)]
pub struct Jacobian {
    pub at: Address,
    pub stride: u64,
    pub tasks: usize,
}

/// partials (chunks x tasks x tasks) f64.
pub fn gram(partials: Address, jacobian: Jacobian, chunks: ChunksOnDevice) -> Launch {
    let kernels = [(2, "gram_2"), (4, "gram_4"), (8, "gram_8"), (12, "gram_12"), (16, "gram_16")];
    let launch = match kernels.iter().find(|(most, _)| jacobian.tasks <= *most) {
        Some((_, kernel)) => Launch::line(kernel, chunks.count, 256),
        None => {
            let groups = jacobian.tasks.div_ceil(8);
            Launch::new("gram_tile", [groups * (groups + 1) / 2, chunks.count, 1], 256)
        }
    };
    launch.addresses([partials, jacobian.at]).long(jacobian.stride).int(jacobian.tasks).addresses([chunks.firsts, chunks.lengths])
}

/// gram and cosines (blocks x tasks x tasks) f64, conflicts (blocks) u32, from partials starts[b]..starts[b + 1] of each block.
pub fn gram_finish(
    [gram, cosines, conflicts]: [Address; 3],
    partials: Address,
    starts: Address,
    blocks: usize,
    tasks: usize,
) -> Launch {
    Launch::line("gram_finish", blocks, 1024).addresses([gram, cosines, conflicts, partials, starts]).int(tasks)
}

/// Methods that [`solve`] knows, by their number in kernels/solve.cu.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// All weights 1.
    Sum,
    PcGrad,
    GradVac {
        beta: f64,
        eps: f64,
    },
}

/// Buffers and numbers of `surgery_solve`; see kernels/solve.cu for shapes.
#[derive(Clone, Copy, Debug)]
pub struct Solve {
    pub weights: Address,
    pub factors: Address,
    pub shared_factors: Address,
    pub head_factors: Address,
    pub summary: Address,
    pub rates: Address,
    pub targets: Address,
    pub parts: Address,
    pub products: Address,
    pub gram: Address,
    pub orders: Address,
    pub tasks: Address,
    pub balance: Address,
    pub losses: Address,
    pub head_squares: Address,
    pub method: Method,
    pub blocks: usize,
    pub count: usize,
    pub run_tasks: usize,
    /// On the weights, between sum and mean.
    pub rescale: f64,
    /// 0: none.
    pub clip_norm: f64,
    /// Clip each task's gradient, not the update.
    pub clip_tasks: bool,
    pub heads_weighted: bool,
}

pub fn solve(a: &Solve) -> Launch {
    let (method, beta, eps) = match a.method {
        Method::Sum => (0, 0.0, 0.0),
        Method::PcGrad => (1, 0.0, 0.0),
        Method::GradVac { beta, eps } => (2, beta, eps),
    };
    assert!(!a.heads_weighted || a.blocks == 1, "heads take the weights of one block");
    Launch::line("surgery_solve", 1, 256)
        .addresses([a.weights, a.factors, a.shared_factors, a.head_factors, a.summary, a.rates, a.targets, a.parts, a.products])
        .addresses([a.gram, a.orders, a.tasks, a.balance, a.losses, a.head_squares])
        .signed(method)
        .int(a.blocks)
        .int(a.count)
        .int(a.run_tasks)
        .double(beta)
        .double(eps)
        .double(a.rescale)
        .double(a.clip_norm)
        .signed(i32::from(a.clip_tasks))
        .signed(i32::from(a.heads_weighted))
}

/// What a round's step works with, as `Rates` of kernels/update.cuh.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Rates {
    pub rule: i32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub correction1: f32,
    pub correction2: f32,
    pub momentum: f32,
    pub halted: u32,
}

// SAFETY: eight numbers of 4 bytes; any bits are valid.
unsafe impl Zeroable for Rates {}
// SAFETY: as above.
unsafe impl Pod for Rates {}

impl From<Rule> for Rates {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::AdamW { beta1, beta2, eps, correction1, correction2 } => {
                Self { rule: 0, beta1, beta2, eps, correction1, correction2, momentum: 0.0, halted: 0 }
            }
            Rule::Sgd { momentum } => Self { rule: 1, momentum, ..Self::zeroed() },
        }
    }
}

/// As `GroupRates` of kernels/update.cuh.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct GroupRates {
    pub lr: f32,
    pub weight_decay: f32,
}

// SAFETY: two f32; any bits are valid.
unsafe impl Zeroable for GroupRates {}
// SAFETY: as above.
unsafe impl Pod for GroupRates {}

/// Parameters, moments (`second` null under SGD) and the bf16 copy (or null), each by column of J.
#[derive(Clone, Copy, Debug)]
pub struct State {
    pub values: Address,
    pub first: Address,
    pub second: Address,
    pub copy: Address,
}

/// Device addresses of one [`Rates`] and of the groups' [`GroupRates`].
#[derive(Clone, Copy, Debug)]
pub struct RatesOnDevice {
    pub rates: Address,
    pub groups: Address,
}

/// weights (blocks x tasks) f32. The stride is a multiple of 4.
pub fn update_weights(
    state: State,
    jacobian: Jacobian,
    weights: Address,
    rates: RatesOnDevice,
    chunks: ChunksOnDevice,
) -> Launch {
    assert!(jacobian.stride.is_multiple_of(4), "rows of J begin at multiples of 16 bytes");
    Launch::line("update_weights", chunks.count, 256)
        .addresses([state.values, state.first, state.second, state.copy, jacobian.at])
        .long(jacobian.stride)
        .int(jacobian.tasks)
        .addresses([weights, rates.rates, rates.groups, chunks.firsts, chunks.lengths, chunks.blocks, chunks.groups])
}

/// A rule for columns and what it draws from.
#[derive(Clone, Copy, Debug)]
pub struct ColumnRule {
    pub rule: Columnwise,
    /// (tasks) f64
    pub factors: Address,
    pub seed: u64,
    /// One u64.
    pub round: Address,
}

/// RoundOptions by their number in kernels/update.cuh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Columnwise {
    GradDrop { leak: f64 },
    TrimmedMean { trim: u64 },
}

impl Columnwise {
    pub(super) fn numbers(self) -> (i32, f64) {
        match self {
            Self::GradDrop { leak } => (0, leak),
            Self::TrimmedMean { trim } => (1, trim as f64),
        }
    }
}

/// Most tasks of a round: the kernels count the cells of a T x T matrix in 32 bits.
pub const MOST_TASKS: usize = 46_340;

/// Most tasks of a rule for columns.
pub const RULE_TASKS: usize = PLAIN_SHARED / (8 * 32);

/// Threads of the passes under a rule, which keep `tasks` doubles each in shared memory: at most 48 KiB a block, beside the few
/// bytes of the kernel's own.
pub(super) fn rule_threads(tasks: usize) -> u32 {
    let most = PLAIN_SHARED / (8 * tasks) / 32 * 32;
    assert!(most >= 32, "a rule for columns takes at most {RULE_TASKS} tasks on a device, found {tasks}");
    most.min(256) as u32
}

pub fn update_columns(
    state: State,
    jacobian: Jacobian,
    rule: ColumnRule,
    rates: RatesOnDevice,
    chunks: ChunksOnDevice,
) -> Launch {
    let threads = rule_threads(jacobian.tasks);
    let (number, parameter) = rule.rule.numbers();
    Launch::line("update_columns", chunks.count, threads)
        .shared(8 * jacobian.tasks * threads as usize)
        .addresses([state.values, state.first, state.second, state.copy, jacobian.at])
        .long(jacobian.stride)
        .int(jacobian.tasks)
        .signed(number)
        .double(parameter)
        .addresses([rule.factors])
        .long(rule.seed)
        .addresses([rule.round, rates.rates, rates.groups, chunks.firsts, chunks.lengths, chunks.groups])
}

/// squares (chunks) f64 of the update that a rule makes.
pub fn column_squares(squares: Address, jacobian: Jacobian, rule: ColumnRule, chunks: ChunksOnDevice) -> Launch {
    let threads = rule_threads(jacobian.tasks);
    let (number, parameter) = rule.rule.numbers();
    Launch::line("column_squares", chunks.count, threads)
        .shared(8 * jacobian.tasks * threads as usize)
        .addresses([squares, jacobian.at])
        .long(jacobian.stride)
        .int(jacobian.tasks)
        .signed(number)
        .double(parameter)
        .addresses([rule.factors])
        .long(rule.seed)
        .addresses([rule.round, chunks.firsts, chunks.lengths])
}

/// squares (segments) f64 of values[bounds[2 s]..bounds[2 s + 1]]; bounds u64.
pub fn segment_squares(squares: Address, values: Address, bounds: Address, segments: usize) -> Launch {
    Launch::line("segment_squares", segments, 256).addresses([squares, values, bounds])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_their_ranges() {
        let ranges = [Columns { columns: 0..10, block: 0, group: 1 }, Columns { columns: 10..14, block: 2, group: 0 }];
        let chunks = Chunks::new(&ranges, 4);
        assert_eq!(chunks.firsts, [0, 4, 8, 10]);
        assert_eq!(chunks.lengths, [4, 4, 2, 4]);
        assert_eq!(chunks.groups, [1, 1, 1, 0]);
        assert_eq!(chunks.starts(3), [0, 3, 3, 4]);
    }
}
