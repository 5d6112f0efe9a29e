//! Surgery solved by a device itself: a method's kernel, and what makes of its weights the factors of an update. The host solves with
//! the methods themselves.

use bytemuck::{Pod, Zeroable};

use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::Tensor;

/// Buffers and numbers of a problem; see kernels/solve/problem.cuh.
pub struct Solve {
    /// The method's, in kernels/solve.cu.
    pub kernel: &'static str,
    /// (sets x T) f64
    pub weights: Tensor,
    /// (T) f64
    pub factors: Tensor,
    /// (sets x T) f32 and (T) f32, for the update.
    pub shared_factors: Tensor,
    pub head_factors: Tensor,
    /// (3) f64: norm of the update, clip, whether all is finite.
    pub summary: Tensor,
    /// (sets x 2) f64: a code and its value.
    pub statuses: Tensor,
    /// (1) u32, both read and written: set where anything is not finite, and left alone where it is set.
    pub halted: Tensor,
    /// (sets x numbers) f64: what the method remembers.
    pub state: Tensor,
    /// (sets x numbers) f64, for the kernel's own use.
    pub scratch: Tensor,
    /// (sets x T T) f64
    pub gram: Tensor,
    /// (T) f64 each; losses are sums.
    pub losses: Tensor,
    pub head_squares: Tensor,
    /// (T) targets that each loss is the sum over, or the sum of their classes' weights.
    pub observed: Vec<f64>,
    /// (T x T) which rows each row visits, in order; empty where none does.
    pub orders: Vec<u32>,
    /// (T) run-wide indices.
    pub tasks: Vec<u32>,
    pub run_tasks: usize,
    /// The method's parameters.
    pub numbers: [f64; 3],
    /// On the weights, between sum and mean.
    pub rescale: f64,
    /// 0: none.
    pub clip_norm: f64,
    /// Clip each task's gradient, not the update.
    pub clip_tasks: bool,
    pub heads_weighted: bool,
}

/// As in kernels/solve/problem.cuh.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Problem {
    gram: Address,
    losses: Address,
    head_squares: Address,
    weights: Address,
    factors: Address,
    shared_factors: Address,
    head_factors: Address,
    summary: Address,
    statuses: Address,
    halted: Address,
    state: Address,
    scratch: Address,
    numbers: [f64; 3],
    rescale: f64,
    clip_norm: f64,
    sets: i32,
    count: i32,
    run_tasks: i32,
    state_size: i32,
    scratch_size: i32,
    clip_tasks: i32,
    heads_weighted: i32,
    unused: i32,
}

/// Threads of a block that solves a set, and of the one that finishes.
const THREADS: [u32; 2] = [128, 256];

impl Solve {
    fn problem(&self) -> Problem {
        let int = |size: usize| i32::try_from(size).expect("sizes of kernels are 32-bit");
        Problem {
            gram: self.gram.at,
            losses: self.losses.at,
            head_squares: self.head_squares.at,
            weights: self.weights.at,
            factors: self.factors.at,
            shared_factors: self.shared_factors.at,
            head_factors: self.head_factors.at,
            summary: self.summary.at,
            statuses: self.statuses.at,
            halted: self.halted.at,
            state: self.state.at,
            scratch: self.scratch.at,
            numbers: self.numbers,
            rescale: self.rescale,
            clip_norm: self.clip_norm,
            sets: int(self.weights.rows),
            count: int(self.tasks.len()),
            run_tasks: int(self.run_tasks),
            state_size: int(self.state.columns),
            scratch_size: int(self.scratch.columns),
            clip_tasks: i32::from(self.clip_tasks),
            heads_weighted: i32::from(self.heads_weighted),
            unused: 0,
        }
    }
}

impl Op for Solve {
    fn name(&self) -> &'static str {
        self.kernel
    }

    fn operands(&self) -> Operands {
        let written = [self.weights, self.factors, self.shared_factors, self.head_factors, self.summary, self.statuses];
        let mut operands = Operands::new([self.gram, self.losses, self.head_squares], written);
        operands.writes.extend([self.halted, self.scratch]);
        operands.writes.extend(Some(self.state).filter(|state| !state.is_none()));
        operands
    }

    fn host(&self, _: &HostMemory) {
        unreachable!("the host solves with the methods of surgery");
    }

    /// The problem, and behind it what changes with the batch.
    fn tables(&self) -> Vec<Bytes> {
        assert!(!self.heads_weighted || self.weights.rows == 1, "heads take the weights of one set");
        let behind = [bytes_of(&self.observed), bytes_of(&self.tasks), bytes_of(&self.orders)].concat();
        vec![[bytes_of(&[self.problem()]), behind].concat()]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let [solving, finishing] = THREADS;
        let solve = Launch::line(self.kernel, self.weights.rows, solving).addresses([tables[0]]);
        let finish = Launch::line("surgery_finish", 1, finishing).addresses([tables[0]]);
        vec![solve.into(), finish.into()]
    }
}
