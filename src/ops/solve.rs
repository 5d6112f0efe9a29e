//! Surgery solved by a device itself, for methods with a closed form over T x T; the host solves with the methods themselves.

use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::Tensor;

/// Methods by their number in kernels/solve.cu.
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

/// Buffers and numbers of `surgery_solve`; see kernels/solve.cu.
pub struct Solve {
    /// (sets x T) f64
    pub weights: Tensor,
    /// (T) f64
    pub factors: Tensor,
    /// (sets x T) f32 and (T) f32, for the update.
    pub shared_factors: Tensor,
    pub head_factors: Tensor,
    /// (4) f64: norm of the update, clip, whether all is finite, conflicting pairs.
    pub summary: Tensor,
    /// (1) u32, both read and written: set where anything is not finite, and left alone where it is set.
    pub halted: Tensor,
    /// (sets x run tasks x run tasks) f64
    pub targets: Tensor,
    /// (sets x T x T) f64 each, for the kernel's own use
    pub parts: Tensor,
    pub products: Tensor,
    /// (sets x T T) f64
    pub gram: Tensor,
    /// (T) f64 each
    pub losses: Tensor,
    pub head_squares: Tensor,
    /// (sets x T x T) which rows each row visits, in order.
    pub orders: Vec<u32>,
    /// (T) run-wide indices.
    pub tasks: Vec<u32>,
    pub run_tasks: usize,
    pub method: Method,
    /// On the weights, between sum and mean.
    pub rescale: f64,
    /// 0: none.
    pub clip_norm: f64,
    /// Clip each task's gradient, not the update.
    pub clip_tasks: bool,
    pub heads_weighted: bool,
}

impl Solve {
    fn sets(&self) -> usize {
        self.orders.len() / self.tasks.len().pow(2)
    }
}

impl Op for Solve {
    fn name(&self) -> &'static str {
        "surgery_solve"
    }

    fn operands(&self) -> Operands {
        let written = [self.weights, self.factors, self.shared_factors, self.head_factors, self.summary, self.halted];
        let mut operands = Operands::new([self.gram, self.losses, self.head_squares], written);
        operands.writes.extend([self.targets, self.parts, self.products]);
        operands
    }

    fn host(&self, _: &HostMemory) {
        unreachable!("the host solves with the methods of surgery");
    }

    /// Visits, tasks, and the balancing of each task's gradient, which is none.
    fn tables(&self) -> Vec<Bytes> {
        vec![bytes_of(&self.orders), bytes_of(&self.tasks), bytes_of(&vec![1.0f64; self.tasks.len()])]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let (method, beta, eps) = match self.method {
            Method::Sum => (0, 0.0, 0.0),
            Method::PcGrad => (1, 0.0, 0.0),
            Method::GradVac { beta, eps } => (2, beta, eps),
        };
        let sets = self.sets();
        assert!(!self.heads_weighted || sets == 1, "heads take the weights of one set");
        let launch = Launch::line("surgery_solve", 1, 256)
            .addresses([self.weights.at, self.factors.at, self.shared_factors.at, self.head_factors.at])
            .addresses([self.summary.at, self.halted.at, self.targets.at, self.parts.at, self.products.at, self.gram.at])
            .addresses([tables[0], tables[1], tables[2], self.losses.at, self.head_squares.at])
            .signed(method)
            .int(sets)
            .int(self.tasks.len())
            .int(self.run_tasks)
            .double(beta)
            .double(eps)
            .double(self.rescale)
            .double(self.clip_norm)
            .signed(i32::from(self.clip_tasks))
            .signed(i32::from(self.heads_weighted));
        vec![launch.into()]
    }
}
