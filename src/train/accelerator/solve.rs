//! A whole round on the device: surgery is solved there as well, so that nothing waits between gradients and step.

use anyhow::Result;

use super::pass::Round;
use super::program::Program;
use super::settle::{Factors, Products, SharedFactors, head_chunks, push_rates};
use super::{Accelerator, push_chunks};
use crate::device::driver::{Address, DeviceError, Driver};
use crate::model::Parameters;
use crate::ops::launch::surgery::{self, Method, Solve};
use crate::surgery::methods::Order;
use crate::surgery::update::Rates;

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

/// How the device solves a round's surgery.
#[derive(Clone, Copy, Debug)]
pub struct Solving {
    pub method: Method,
    pub order: Order,
    /// On the weights.
    pub rescale: f64,
    /// 0: none.
    pub clip_norm: f64,
    /// Clip each task's gradient, not the update.
    pub clip_tasks: bool,
    pub heads_weighted: bool,
}

/// What surgery on the device came to; `finite` tells whether anything has moved.
pub struct Solved {
    /// (T) by set.
    pub weights: Vec<Vec<f64>>,
    pub norm: f64,
    pub clip: f64,
    pub finite: bool,
}

impl Accelerator {
    /// Gradients, surgery and step; waits for all of it.
    pub fn round(
        &mut self,
        round: Round,
        parameters: &mut Parameters,
        solving: &Solving,
        rates: &Rates,
    ) -> Result<(Products, Solved), DeviceError> {
        let count = round.tasks.len();
        let packed = self.pack(round, parameters)?;
        let mut packet = self.steps.packet();
        let chunks = head_chunks(round.network, round.tasks);
        let rates = push_rates(&mut packet, rates);
        let head_chunks = push_chunks(&mut packet, &chunks);
        let visits: Vec<u32> = self.visits(round, solving.order);
        let [orders, tasks] =
            [packet.push(&visits), packet.push(&round.tasks.iter().map(|&task| task as u32).collect::<Vec<_>>())];
        let balance = packet.push(&vec![1.0f64; count]);
        packet.close();
        self.steps.fill(&mut *self.driver, &packet)?;

        let stream = self.streams.lanes[0];
        let mut program = Program::default();
        program.push(self.steps.send(stream, &packet.sections[0]));
        self.add_pass(&mut program, round, &packed, true);
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
                method: solving.method,
                blocks: cut.sets,
                count,
                run_tasks: solver.run_tasks,
                rescale: solving.rescale,
                clip_norm: solving.clip_norm,
                clip_tasks: solving.clip_tasks,
                heads_weighted: solving.heads_weighted,
            }),
        );
        let shared = SharedFactors::Sets(solver.shared_factors);
        let factors = Factors { shared, heads: solver.head_factors, rates, head_chunks };
        self.add_update(&mut program, &packed, &factors, count);
        let values = self.read(program, count)?;
        Ok((self.products(&values, count), self.solved(&values, count)))
    }

    /// (sets x T x T) which rows each row visits, in order.
    fn visits(&self, round: Round, order: Order) -> Vec<u32> {
        let count = round.tasks.len();
        let (seed, number) = (round.random.seed, u64::from(round.random.round));
        let own: Vec<u32> = (0..count).flat_map(|row| order.visits(count, seed, number, row)).map(|at| at as u32).collect();
        own.repeat(self.cut.sets)
    }

    fn solved(&self, values: &[f64], count: usize) -> Solved {
        let results = &self.results;
        let weights = values[results.weights()..].chunks_exact(count).take(self.cut.sets);
        let summary = &values[results.summary()..];
        Solved { weights: weights.map(<[f64]>::to_vec).collect(), norm: summary[0], clip: summary[1], finite: summary[2] != 0.0 }
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
