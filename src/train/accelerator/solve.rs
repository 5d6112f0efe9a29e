//! A whole round on the device: surgery is solved there as well, so that nothing waits between gradients and step.

use anyhow::Result;

use super::program::Program;
use super::update_step::{Factors, SharedFactors, head_chunks, means, push_rates};
use super::{Accelerator, push_chunks};
use crate::device::driver::{Address, DeviceError, Driver};
use crate::ops::launch::surgery::{self, Method, Solve};
use crate::surgery::methods::{Order, Simple, Status};
use crate::surgery::update::Rates;
use crate::train::backend::{Forward, Products, SimpleSolve, Work};
use crate::train::solve::Step;

/// Room of kernels/solve.cu.
pub struct Solver {
    /// (sets x T) and (T) f32
    shared_factors: Address,
    head_factors: Address,
    /// (sets x run tasks x run tasks) f64
    targets: Address,
    target_count: usize,
    /// (sets x T x T) f64 each
    parts: Address,
    products: Address,
    run_tasks: usize,
}

impl Solver {
    pub fn new(device: &mut dyn Driver, run_tasks: usize, present: usize, sets: usize) -> Result<Self, DeviceError> {
        let target_count = sets * run_tasks * run_tasks;
        let mut buffer = |name: &str, bytes: usize| device.allocate(&format!("surgery: {name}"), bytes);
        Ok(Self {
            shared_factors: buffer("factors", 4 * sets * present)?,
            head_factors: buffer("factors of heads", 4 * present)?,
            targets: buffer("moving cosines", 8 * target_count)?,
            target_count,
            parts: buffer("projected rows", 8 * sets * present * present)?,
            products: buffer("products of projected rows", 8 * sets * present * present)?,
            run_tasks,
        })
    }
}

impl Accelerator {
    /// Gradients, surgery and step; waits for all of it.
    pub(super) fn solve_and_step(
        &mut self,
        work: &mut Work,
        simple: &SimpleSolve,
        rates: &Rates,
    ) -> Result<(Forward, Products, Step), DeviceError> {
        let count = work.tasks.len();
        let packed = self.pack(work)?;
        let mut upload = self.steps.upload();
        let chunks = head_chunks(work.network, work.tasks);
        let rates = push_rates(&mut upload, rates);
        let head_chunks = push_chunks(&mut upload, &chunks);
        let visits: Vec<u32> = self.visits(work, simple.order);
        let [orders, tasks] =
            [upload.push(&visits), upload.push(&work.tasks.iter().map(|&task| task as u32).collect::<Vec<_>>())];
        let balance = upload.push(&vec![1.0f64; count]);
        upload.close();
        self.steps.fill(&mut *self.driver, &upload)?;

        let stream = self.streams.lanes[0];
        let mut program = Program::default();
        program.push(self.steps.send(stream, &upload.sections[0]));
        self.add_pass(&mut program, work, &packed, true);
        self.add_products(&mut program, &packed, count);
        let (results, solver, cut) = (&self.results, &self.solver, &self.cut);
        let first = if cut.sets > 1 { 0 } else { cut.blocks };
        program.launch(
            stream,
            surgery::solve(&Solve {
                weights: results.address(results.weights()),
                factors: results.address(results.factors()),
                shared_factors: solver.shared_factors,
                head_factors: solver.head_factors,
                summary: results.address(results.summary()),
                rates: rates.rates,
                targets: solver.targets,
                parts: solver.parts,
                products: solver.products,
                gram: results.address(results.grams() + first * count * count),
                orders,
                tasks,
                balance,
                losses: results.at,
                head_squares: results.address(results.squares()),
                method: kernel_method(simple.method),
                blocks: cut.sets,
                count,
                run_tasks: solver.run_tasks,
                rescale: simple.rescale,
                clip_norm: simple.clip_norm,
                clip_tasks: simple.clip_tasks,
                heads_weighted: simple.weighted_heads,
            }),
        );
        let shared = SharedFactors::Sets(solver.shared_factors);
        let factors = Factors { shared, heads: solver.head_factors, rates, head_chunks };
        self.add_update(&mut program, &packed, &factors, count);
        let values = self.read(program, count)?;
        let losses = means(work.batch, &values[..count]);
        Ok((Forward { losses, balanced: None }, self.products_of(&values, count), self.solved(&values, count)))
    }

    /// (sets x T x T) which rows each row visits, in order.
    fn visits(&self, work: &Work, order: Order) -> Vec<u32> {
        let count = work.tasks.len();
        let (seed, number) = (work.random.seed, work.round);
        let own: Vec<u32> = (0..count).flat_map(|row| order.visits(count, seed, number, row)).map(|at| at as u32).collect();
        own.repeat(self.cut.sets)
    }

    /// What the kernel left; a norm that is not finite where it moved nothing.
    fn solved(&self, values: &[f64], count: usize) -> Step {
        let results = &self.results;
        let weights = values[results.weights()..].chunks_exact(count).take(self.cut.sets);
        let summary = &values[results.summary()..];
        let norm = if summary[2] != 0.0 { summary[0] } else { f64::NAN };
        let (factors, heads) = (Vec::new(), Vec::new());
        Step { weights: weights.map(<[f64]>::to_vec).collect(), factors, heads, norm, clip: summary[1], status: Status::Ok }
    }

    /// Gives the device the moving cosines of a method's instances, one after the other.
    pub fn load_targets(&mut self, targets: &[f64]) -> Result<(), DeviceError> {
        assert!(targets.len() <= self.solver.target_count, "cosines of every pair and set");
        self.upload(self.solver.targets, bytemuck::cast_slice(targets))
    }

    /// Takes them back.
    pub fn store_targets(&mut self, targets: &mut [f64]) -> Result<(), DeviceError> {
        self.download(self.solver.targets, bytemuck::cast_slice_mut(targets))
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
