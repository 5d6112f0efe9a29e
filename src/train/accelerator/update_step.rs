//! From rows of J to moved parameters: products of gradients, the host's one read of them, and the step.

use super::pass::Packed;
use super::program::{Program, Step};
use super::upload::Upload;
use super::{Accelerator, GROUPS, columns, push_chunks};
use crate::device::driver::{Address, DeviceError};
use crate::model::network::{Batch, Network};
use crate::ops::launch::rows;
use crate::ops::launch::surgery::{self, Chunks, ChunksOnDevice, ColumnRule, GroupRates, Jacobian, RatesOnDevice};
use crate::surgery::buffers::{Passes, TaskBuffers};
use crate::surgery::gram::RoundGram;
use crate::surgery::methods::{self, Columnwise};
use crate::surgery::update::Rates;
use crate::train::backend::{Backend, Balance, Forward, Products, SimpleSolve, Stop, Work};
use crate::train::solve;

/// How the tasks' shared gradients become one, on the device.
#[derive(Clone, Copy)]
pub(super) enum SharedFactors {
    /// (sets x T) f32
    Sets(Address),
    Columns(ColumnRule),
}

/// Device addresses of what the update reads.
pub(super) struct Factors {
    pub shared: SharedFactors,
    /// (T) f32
    pub heads: Address,
    pub rates: RatesOnDevice,
    pub head_chunks: ChunksOnDevice,
}

impl Backend for Accelerator {
    /// The round's one wait: with the losses come the products.
    fn forward_backward(&mut self, work: &mut Work, _: Option<Balance>) -> Result<Forward, Stop> {
        let packed = self.pack(work)?;
        let mut program = Program::default();
        self.add_pass(&mut program, work, &packed, true);
        self.add_products(&mut program, &packed, work.tasks.len());
        let values = self.read(program, work.tasks.len())?;
        self.packed = Some(packed);
        let losses = means(work.batch, &values[..work.tasks.len()]);
        self.read = values;
        Ok(Forward { losses, balanced: None })
    }

    fn products(&mut self, work: &Work) -> Result<Products, Stop> {
        Ok(self.products_of(&self.read, work.tasks.len()))
    }

    fn move_buffers(&mut self, _: &mut TaskBuffers, _: &Passes, _: &Work) -> Vec<Vec<f64>> {
        unreachable!("Engine::check_accelerable refuses methods with buffers")
    }

    /// A second wait of the round, for the methods that have no other way to know it.
    fn column_square(&mut self, work: &Work, rule: &dyn Columnwise, factors: &[f64]) -> Result<f64, Stop> {
        let packed = self.packed.take().expect("gradients before their products");
        let square = self.square_of_rule(work, &packed, rule, factors);
        self.packed = Some(packed);
        Ok(square?)
    }

    /// Returns before it has happened.
    fn step(&mut self, work: &mut Work, step: &solve::Step, rule: Option<&dyn Columnwise>, rates: &Rates) -> Result<(), Stop> {
        let packed = self.packed.take().expect("gradients before the step");
        let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<f32>>();
        let mut upload = self.steps.upload();
        let chunks = head_chunks(work.network, work.tasks);
        let shared = match rule {
            None => SharedFactors::Sets(upload.push(&step.shared().iter().flat_map(|set| narrow(set)).collect::<Vec<f32>>())),
            Some(rule) => SharedFactors::Columns(column_rule(&mut upload, work, &packed, rule, &step.factors)),
        };
        let factors = Factors {
            rates: push_rates(&mut upload, rates),
            shared,
            heads: upload.push(&narrow(&step.heads)),
            head_chunks: push_chunks(&mut upload, &chunks),
        };
        upload.close();
        self.steps.fill(&mut *self.driver, &upload)?;
        let stream = self.streams.lanes[0];
        let mut program = Program::default();
        program.push(self.steps.send(stream, &upload.sections[0]));
        self.add_update(&mut program, &packed, &factors, work.tasks.len());
        Ok(self.graphs.execute(&mut *self.driver, stream, program)?)
    }

    fn whole_round(
        &mut self,
        work: &mut Work,
        solve: &SimpleSolve,
        rates: &Rates,
    ) -> Option<Result<(Forward, Products, solve::Step), Stop>> {
        Some(self.solve_and_step(work, solve, rates).map_err(Stop::from))
    }

    fn losses(&mut self, work: &mut Work) -> Result<Vec<f64>, Stop> {
        let packed = self.pack(work)?;
        let mut program = Program::default();
        self.add_pass(&mut program, work, &packed, false);
        let values = self.read(program, work.tasks.len())?;
        Ok(means(work.batch, &values[..work.tasks.len()]))
    }
}

/// (T) mean losses from their sums over a round.
pub(super) fn means(batch: &Batch, sums: &[f64]) -> Vec<f64> {
    let mut observed = vec![0; sums.len()];
    for part in &batch.parts {
        observed[part.present] += part.targets.observed();
    }
    sums.iter().zip(observed).map(|(sum, count)| sum / count.max(1) as f64).collect()
}

impl Accelerator {
    fn square_of_rule(
        &mut self,
        work: &Work,
        packed: &Packed,
        rule: &dyn Columnwise,
        factors: &[f64],
    ) -> Result<f64, DeviceError> {
        let count = work.tasks.len();
        let mut upload = self.steps.upload();
        let rule = column_rule(&mut upload, work, packed, rule, factors);
        upload.close();
        self.steps.fill(&mut *self.driver, &upload)?;
        let (stream, results, cut) = (self.streams.lanes[0], &self.results, &self.cut);
        let mut program = Program::default();
        program.push(self.steps.send(stream, &upload.sections[0]));
        program.launch(stream, surgery::column_squares(results.partials, self.rows_of_j(count), rule, cut.gram));
        if let (Some(rows), Some(table)) = (&packed.rows, &self.table) {
            let (squares, base) = (results.partials + 8 * cut.gram.count as Address, self.shared.len as u64);
            program.launch(stream, rows::column_squares(squares, table.gradients, rows.union, count, table.dim, rule, base));
        }
        // The sum of 1 x 1 matrices, as many as there are partial products.
        let total = [results.address(results.summary()), results.cosines, results.conflicts];
        let starts = packed.starts + 4 * (cut.blocks as Address + 1);
        program.launch(stream, surgery::gram_finish(total, results.partials, starts, 1, 1));
        let values = self.read(program, count)?;
        Ok(values[self.results.summary()])
    }

    /// Adds: squares of the heads' gradients, and the Gram matrices of all blocks and of their sum.
    pub(super) fn add_products(&self, program: &mut Program, packed: &Packed, count: usize) {
        let (stream, results, cut) = (self.streams.lanes[0], &self.results, &self.cut);
        program.launch(stream, surgery::gram(results.partials, self.rows_of_j(count), cut.gram));
        if let (Some(rows), Some(table)) = (&packed.rows, &self.table) {
            let partials = results.partials + 8 * (cut.gram.count * count * count) as Address;
            program.launch(stream, rows::gram(partials, table.gradients, rows.union, count, table.dim));
        }
        let cells = (cut.blocks * count * count) as Address;
        let grams = [results.address(results.grams()), results.cosines, results.conflicts];
        program.launch(stream, surgery::gram_finish(grams, results.partials, packed.starts, cut.blocks, count));
        let [gram, cosines, conflicts] = grams;
        let total = [gram + 8 * cells, cosines + 8 * cells, conflicts + 4 * cut.blocks as Address];
        let starts = packed.starts + 4 * (cut.blocks as Address + 1);
        program.launch(stream, surgery::gram_finish(total, results.partials, starts, 1, count));
        let squares = results.address(results.squares());
        program.launch(stream, surgery::segment_squares(squares, self.head_gradients, packed.bounds, count));
    }

    /// Adds the step of all parameters.
    pub(super) fn add_update(&self, program: &mut Program, packed: &Packed, factors: &Factors, count: usize) {
        let (stream, rates) = (self.streams.lanes[0], factors.rates);
        let (state, jacobian) = (self.shared.state, self.rows_of_j(count));
        let shared = match factors.shared {
            SharedFactors::Sets(weights) => surgery::update_weights(state, jacobian, weights, rates, self.cut.update),
            SharedFactors::Columns(rule) => surgery::update_columns(state, jacobian, rule, rates, self.cut.update),
        };
        program.launch(stream, shared);
        if state.copy == 0 {
            program.launch(stream, self.weight.narrow(state.values));
        }
        let heads = Jacobian { at: self.head_gradients, stride: self.heads.len.next_multiple_of(4) as u64, tasks: 1 };
        let heads = surgery::update_weights(self.heads.state, heads, factors.heads, rates, factors.head_chunks);
        program.launch(stream, heads);
        let (Some(rows), Some(table)) = (&packed.rows, &self.table) else { return };
        let launch = match factors.shared {
            SharedFactors::Sets(weights) => {
                let weights = weights + 4 * (self.cut.table_set * count) as Address;
                rows::update_weights(rows.table, table.gradients, rows.union, weights, rates)
            }
            SharedFactors::Columns(rule) => {
                let base = self.shared.len as u64;
                rows::update_columns(rows.table, table.gradients, rows.union, count, rule, base, rates)
            }
        };
        program.launch(stream, launch);
    }

    fn rows_of_j(&self, tasks: usize) -> Jacobian {
        Jacobian { at: self.jacobian, stride: self.stride as u64, tasks }
    }

    /// Runs a program and reads what it left for `count` present tasks.
    pub(super) fn read(&mut self, mut program: Program, count: usize) -> Result<Vec<f64>, DeviceError> {
        let values = self.results.grams() + (self.cut.blocks + 1) * count * count;
        let (stream, staging) = (self.streams.lanes[0], self.results.staging);
        program.push(Step::CopyOut { stream, to: staging, from: self.results.at, bytes: 8 * values });
        self.graphs.execute(&mut *self.driver, stream, program)?;
        self.driver.synchronize(stream)?;
        Ok(bytemuck::pod_collect_to_vec(&self.driver.staging_bytes(staging)?[..8 * values]))
    }

    pub(super) fn products_of(&self, values: &[f64], count: usize) -> Products {
        let results = &self.results;
        let grams = values[results.grams()..].chunks_exact(count * count).take(self.cut.blocks);
        let gram = RoundGram { blocks: grams.map(<[f64]>::to_vec).collect(), cross: Vec::new(), added: None };
        Products { gram, heads: values[results.squares()..][..count].to_vec() }
    }
}

fn column_rule(upload: &mut Upload, work: &Work, packed: &Packed, rule: &dyn Columnwise, factors: &[f64]) -> ColumnRule {
    let rule = match rule.rule() {
        methods::ColumnRule::GradDrop { leak } => surgery::Columnwise::GradDrop { leak },
        methods::ColumnRule::TrimmedMean { trim } => surgery::Columnwise::TrimmedMean { trim },
    };
    ColumnRule { rule, factors: upload.push(factors), seed: work.random.seed, round: packed.round }
}

pub(super) fn push_rates(upload: &mut Upload, rates: &Rates) -> RatesOnDevice {
    RatesOnDevice { rates: upload.push(&[surgery::Rates::from(rates.rule)]), groups: upload.push(&groups(rates)) }
}

fn groups(rates: &Rates) -> [GroupRates; GROUPS] {
    let group = |lr: f64, decay: f64| GroupRates { lr: lr as f32, weight_decay: decay as f32 };
    let decay = rates.weight_decay;
    let shared = [group(rates.lr, decay), group(rates.lr, 0.0)];
    let heads = [group(rates.head_lr, decay), group(rates.head_lr, 0.0)];
    [shared[0], shared[1], heads[0], heads[1], group(rates.embedding_lr, decay)]
}

/// Chunks of the present tasks' heads, each task a block of its own.
pub(super) fn head_chunks(network: &Network, tasks: &[usize]) -> Chunks {
    let own = |(block, &task): (usize, &usize)| {
        network.table.head_params(task).iter().map(move |param| columns(param.range(), block, 2 + usize::from(!param.decay)))
    };
    Chunks::new(&tasks.iter().enumerate().flat_map(own).collect::<Vec<_>>(), Chunks::UPDATE_LENGTH)
}
