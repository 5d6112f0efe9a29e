//! A whole round on the device: surgery is solved there as well, so that nothing waits between gradients and step.

use anyhow::Result;

use super::Accelerator;
use super::pass::Packed;
use super::program::Program;
use super::update_step::observed;
use crate::machine::driver::DeviceError;
use crate::machine::tape::Tape;
use crate::machine::tensor::{DType, Tensor};
use crate::ops::column_rule::How;
use crate::ops::solve::Solve;
use crate::surgery::methods::Order;
use crate::surgery::update::{DecisionAt, Rates};
use crate::train::backend::{DeviceSolve, Work};
use crate::train::solve::{Step, first_fallback};

/// Room of kernels/solve.cu, for the most tasks.
pub(super) struct Solver {
    /// (sets x T) and (T) f32
    shared_factors: Tensor,
    head_factors: Tensor,
    /// (1) u32
    halted: Tensor,
    /// (sets x numbers) f64, what the method remembers; none where it remembers nothing.
    state: Tensor,
    /// (sets x numbers) f64
    scratch: Tensor,
    run_tasks: usize,
}

/// What a method takes of a device that solves it.
pub struct SolverRoom {
    /// Numbers that it remembers of each set of weights.
    pub state: usize,
    /// f64 of scratch for each set.
    pub scratch: usize,
    pub run_tasks: usize,
}

impl Accelerator {
    /// Room for solving rounds itself.
    pub fn with_solver(mut self, room: &SolverRoom) -> Result<Self, DeviceError> {
        let (sets, present) = (self.results.sets, self.results.tasks);
        let mut buffer = |name: &str, rows: usize, columns: usize, dtype: DType| {
            let at = self.driver.allocate(&format!("surgery: {name}"), rows * columns * dtype.bytes())?;
            Ok::<_, DeviceError>(Tensor::dense(at, rows, columns, dtype))
        };
        self.solver = Some(Solver {
            shared_factors: buffer("factors", sets, present, DType::F32)?,
            head_factors: buffer("factors of heads", 1, present, DType::F32)?,
            halted: buffer("whether the update is left out", 1, 1, DType::U32)?,
            state: if room.state > 0 { buffer("what the method remembers", sets, room.state, DType::F64)? } else { Tensor::NONE },
            scratch: buffer("scratch", sets, room.scratch, DType::F64)?,
            run_tasks: room.run_tasks,
        });
        Ok(self)
    }

    /// What is given to the device of a whole round: gradients, surgery and step.
    pub(super) fn whole_program(
        &mut self,
        work: &mut Work,
        solve: &DeviceSolve,
        rates: &Rates,
    ) -> Result<(Program, Packed), DeviceError> {
        let count = work.tasks.len();
        let packed = self.pack(work, true)?;
        let solver = self.solver.as_ref().expect("a run whose method the device solves has room for it");
        let (results, sets) = (&self.results, self.results.sets);
        let shared_factors = solver.shared_factors.as_rows(sets, count);
        let mut tape = Tape::default();
        tape.push(Solve {
            kernel: solve.solver.kernel,
            weights: results.tensor(results.weights(), sets, count),
            factors: results.tensor(results.factors(), 1, count),
            shared_factors,
            head_factors: solver.head_factors,
            summary: results.tensor(results.summary(), 1, 3),
            statuses: results.tensor(results.statuses(), sets, 2),
            halted: solver.halted,
            state: solver.state,
            scratch: solver.scratch,
            gram: results.solved_grams(count),
            losses: results.losses(count),
            head_squares: results.products(count).heads,
            observed: observed(work, count),
            orders: solve.solver.order.map_or_else(Vec::new, |order| visits(work, order)),
            tasks: work.tasks.iter().map(|&task| task as u32).collect(),
            run_tasks: solver.run_tasks,
            numbers: solve.solver.numbers,
            rescale: solve.scaling.factor(count),
            clip_norm: solve.clip_norm,
            clip_tasks: solve.clip_tasks,
            heads_weighted: solve.weighted_heads,
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

    /// Lets the device move parameters again after a round that was not finite.
    pub(super) fn clear_halt(&mut self) -> Result<(), DeviceError> {
        let Some(solver) = &self.solver else { return Ok(()) };
        self.driver.fill(self.streams.lanes[0], solver.halted.at, 0, 4)
    }

    /// What the kernels left; a norm that is not finite where they moved nothing.
    pub(super) fn solved(&self, values: &[f64], work: &Work, solve: &DeviceSolve) -> Step {
        let (results, count) = (&self.results, work.tasks.len());
        let weights = values[results.weights()..].chunks_exact(count).take(results.sets);
        let summary = &values[results.summary()..];
        let norm = if summary[2] != 0.0 { summary[0] } else { f64::NAN };
        let statuses = values[results.statuses()..].chunks_exact(2).take(results.sets);
        let statuses = statuses.map(|status| solve.solver.status(status[0], status[1]));
        let (factors, heads) = (Vec::new(), Vec::new());
        let status = first_fallback(statuses, work.blocks);
        Step { weights: weights.map(<[f64]>::to_vec).collect(), factors, heads, norm, clip: summary[1], status }
    }

    /// Gives the device what a method's instances remember, one after the other.
    pub fn load_method_state(&mut self, state: &[f64]) -> Result<(), DeviceError> {
        let Some(solver) = self.solver.as_ref().filter(|_| !state.is_empty()) else { return Ok(()) };
        assert_eq!(state.len(), solver.state.rows * solver.state.columns, "the state of every set");
        self.upload(solver.state.at, bytemuck::cast_slice(state))
    }

    /// Takes it back.
    pub fn store_method_state(&mut self, state: &mut [f64]) -> Result<(), DeviceError> {
        let Some(solver) = self.solver.as_ref().filter(|_| !state.is_empty()) else { return Ok(()) };
        self.download(solver.state.at, bytemuck::cast_slice_mut(state))
    }
}

/// (T x T) which rows each row visits, in order.
fn visits(work: &Work, order: Order) -> Vec<u32> {
    let count = work.tasks.len();
    (0..count).flat_map(|row| order.visits(count, work.random.seed, work.round, row)).map(|at| at as u32).collect()
}
