//! A whole round on the device: surgery is solved there as well, so that nothing waits between gradients and step.

use anyhow::Result;

use super::Accelerator;
use super::pass::Packed;
use super::program::Program;
use crate::machine::driver::{DeviceError, Driver};
use crate::machine::tape::Tape;
use crate::machine::tensor::{DType, Tensor};
use crate::ops::column_rule::How;
use crate::ops::solve::{Method, Solve};
use crate::surgery::methods::{Order, Simple, Status};
use crate::surgery::update::{DecisionAt, Rates};
use crate::train::backend::{SimpleSolve, Work};
use crate::train::solve::Step;

/// Room of kernels/solve.cu, for the most tasks.
pub struct Solver {
    /// (sets x T) and (T) f32
    shared_factors: Tensor,
    head_factors: Tensor,
    /// (1) u32
    halted: Tensor,
    /// (sets x run tasks x run tasks) f64
    targets: Tensor,
    /// (sets x T T) f64 each
    parts: Tensor,
    products: Tensor,
    run_tasks: usize,
}

impl Solver {
    pub fn new(device: &mut dyn Driver, run_tasks: usize, present: usize, sets: usize) -> Result<Self, DeviceError> {
        let mut buffer = |name: &str, rows: usize, columns: usize, dtype: DType| {
            let at = device.allocate(&format!("surgery: {name}"), rows * columns * dtype.bytes())?;
            Ok(Tensor::dense(at, rows, columns, dtype))
        };
        Ok(Self {
            shared_factors: buffer("factors", sets, present, DType::F32)?,
            head_factors: buffer("factors of heads", 1, present, DType::F32)?,
            halted: buffer("whether the update is left out", 1, 1, DType::U32)?,
            targets: buffer("moving cosines", sets, run_tasks * run_tasks, DType::F64)?,
            parts: buffer("projected rows", sets, present * present, DType::F64)?,
            products: buffer("products of projected rows", sets, present * present, DType::F64)?,
            run_tasks,
        })
    }
}

impl Accelerator {
    /// What is given to the device of a whole round: gradients, surgery and step.
    pub(super) fn whole_program(
        &mut self,
        work: &mut Work,
        simple: &SimpleSolve,
        rates: &Rates,
    ) -> Result<(Program, Packed), DeviceError> {
        let count = work.tasks.len();
        let packed = self.pack(work, true)?;
        let (solver, results, sets) = (&self.solver, &self.results, self.results.sets);
        let shared_factors = solver.shared_factors.as_rows(sets, count);
        let mut tape = Tape::default();
        tape.push(Solve {
            weights: results.tensor(results.weights(), sets, count),
            factors: results.tensor(results.factors(), 1, count),
            shared_factors,
            head_factors: solver.head_factors,
            summary: results.tensor(results.summary(), 1, 4),
            halted: solver.halted,
            targets: solver.targets,
            parts: solver.parts,
            products: solver.products,
            gram: results.solved_grams(count),
            losses: results.losses(count),
            head_squares: results.products(count).heads,
            orders: self.visits(work, simple.order),
            tasks: work.tasks.iter().map(|&task| task as u32).collect(),
            run_tasks: solver.run_tasks,
            method: kernel_method(simple.method),
            rescale: if simple.mean { 1.0 / count as f64 } else { 1.0 },
            clip_norm: simple.clip_norm,
            clip_tasks: simple.clip_tasks,
            heads_weighted: simple.weighted_heads,
        });
        let shared = How::Weights(shared_factors);
        let decision = DecisionAt { tasks: work.tasks, shared, heads: solver.head_factors, halted: solver.halted };
        let mut upload = self.steps[self.buffer].upload();
        let commands = self.step_commands(tape, &mut upload, &packed, work, &decision, rates);
        let stream = self.streams.lanes[0];
        let mut program = Program::default();
        self.add_upload(&mut program, &mut upload)?;
        self.add_pass(&mut program, &packed);
        program.run(stream, &commands);
        program.time(packed.timers.as_ref().map(|timers| timers.commit[1]), stream);
        Ok((program, packed))
    }

    /// (sets x T x T) which rows each row visits, in order.
    fn visits(&self, work: &Work, order: Order) -> Vec<u32> {
        let count = work.tasks.len();
        let (seed, number) = (work.random.seed, work.round);
        let own: Vec<u32> = (0..count).flat_map(|row| order.visits(count, seed, number, row)).map(|at| at as u32).collect();
        own.repeat(self.results.sets)
    }

    /// Lets the device move parameters again after a round that was not finite.
    pub(super) fn clear_halt(&mut self) -> Result<(), DeviceError> {
        self.driver.fill(self.streams.lanes[0], self.solver.halted.at, 0, 4)
    }

    /// What the kernel left; a norm that is not finite where it moved nothing.
    pub(super) fn solved(&self, values: &[f64], count: usize) -> Step {
        let results = &self.results;
        let weights = values[results.weights()..].chunks_exact(count).take(self.results.sets);
        let summary = &values[results.summary()..];
        let norm = if summary[2] != 0.0 { summary[0] } else { f64::NAN };
        let (factors, heads) = (Vec::new(), Vec::new());
        Step { weights: weights.map(<[f64]>::to_vec).collect(), factors, heads, norm, clip: summary[1], status: Status::Ok }
    }

    /// Gives the device the moving cosines of a method's instances, one after the other.
    pub fn load_targets(&mut self, targets: &[f64]) -> Result<(), DeviceError> {
        let room = self.solver.targets.rows * self.solver.targets.columns;
        assert!(targets.len() <= room, "cosines of every pair and set");
        self.upload(self.solver.targets.at, bytemuck::cast_slice(targets))
    }

    /// Takes them back.
    pub fn store_targets(&mut self, targets: &mut [f64]) -> Result<(), DeviceError> {
        self.download(self.solver.targets.at, bytemuck::cast_slice_mut(targets))
    }
}

/// The mean is the sum on another scale.
fn kernel_method(method: Simple) -> Method {
    match method {
        Simple::Sum | Simple::Mean => Method::Sum,
        Simple::PcGrad { .. } => Method::PcGrad,
        Simple::GradVac { beta, eps, .. } => Method::GradVac { beta, eps },
    }
}
