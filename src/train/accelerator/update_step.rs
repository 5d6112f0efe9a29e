//! From rows of J to moved parameters: the host's one read of their products, and the step.

use std::time::Instant;

use super::Accelerator;
use super::pass::Packed;
use super::program::{Program, Step};
use super::rows::Touched;
use super::upload::Upload;
use crate::machine::driver::{Address, DeviceError};
use crate::machine::launch::Command;
use crate::machine::tape::{Bytes, Tape};
use crate::machine::tensor::{DType, Tensor};
use crate::model::network::Keep;
use crate::ops::adamw::ColumnRule;
use crate::ops::column_rule::{ColumnSquare, How};
use crate::surgery::buffers::{Passes, TaskBuffers};
use crate::surgery::gram::{GradientsAt, RoundGram};
use crate::surgery::methods::Columnwise;
use crate::surgery::update::{DecisionAt, ParametersAt, Rates, update};
use crate::train::backend::{Backend, Balance, DeviceSolve, Forward, Products, Stop, Work, mean_over};
use crate::train::quanta::{Quantum, RoundTimes};
use crate::train::solve;

impl Backend for Accelerator {
    fn keep(&self) -> Keep {
        self.keep
    }

    /// The round's one wait: with the losses come the products.
    fn forward_backward(&mut self, work: &mut Work, _: Option<Balance>) -> Result<Forward, Stop> {
        let packed = self.pack(work, true)?;
        let mut program = Program::default();
        self.add_pass(&mut program, &packed);
        let values = self.read_beside(program, work)?;
        self.packed = Some(packed);
        let losses = means(work, &values[..work.tasks.len()]);
        self.read = values;
        Ok(Forward { losses, balanced: None })
    }

    fn products(&mut self, work: &Work) -> Result<Products, Stop> {
        let results = &self.results;
        let grams = part_of(&self.read[results.grams()..], results.blocks + 1, work, results.batches);
        let added = (!self.keep.stored).then(|| self.read[results.added() + results.blocks]);
        let gram = RoundGram::new(&grams, added, work.blocks, work.tasks.len(), work.shares);
        let heads = self.read[results.squares() + work.first..][..work.tasks.len()].to_vec();
        Ok(Products { gram, heads })
    }

    /// A second wait of the round.
    fn move_buffers(&mut self, buffers: &mut TaskBuffers, passes: &Passes, work: &Work) -> Result<Vec<Vec<f64>>, Stop> {
        Ok(self.pass_over_buffers(buffers, passes, work)?)
    }

    /// A second wait of the round, for the methods that have no other way to know it.
    fn column_square(&mut self, work: &Work, rule: &dyn Columnwise, factors: &[f64]) -> Result<f64, Stop> {
        self.unite(work);
        let (results, count) = (&self.results, work.tasks.len());
        let GradientsAt { jacobian, rows, .. } = self.gradients(&self.touched, work.first, count);
        let (rule, out) = (work.column_rule(rule, NOT_HERE, factors), results.tensor(results.summary(), 1, 1));
        let mut tape = Tape::default();
        tape.push(ColumnSquare { jacobian, rows, rule, out, partials: results.partials });
        let packed = self.packed.as_ref().expect("gradients before their products");
        let mut upload = self.steps[self.buffer].upload();
        let commands = tape.commands(&self.card, |table| self.place(packed, &mut upload, table));
        drop(tape);
        let mut program = Program::default();
        self.add_after_upload(&mut program, upload, &commands)?;
        let values = self.read(program, count)?;
        Ok(values[self.results.summary()])
    }

    /// Returns before it has happened, unless the round is timed.
    fn step(&mut self, work: &mut Work, step: &solve::Step, rule: Option<&dyn Columnwise>, rates: &Rates) -> Result<(), Stop> {
        let packed = self.packed.take().expect("gradients before the step");
        let (stream, follows) = (self.streams.lanes[0], self.stepping);
        self.unite(work);
        let Touched { union, slots, .. } = &mut self.touched;
        if let Some(host) = work.parameters.rows.as_mut().filter(|_| slots.len() != union.rows.len()) {
            host.touch_elsewhere(&union.rows, slots);
        }
        let mut upload = self.steps[self.buffer].upload();
        let mut narrow = |sets: &[Vec<f64>]| {
            let values: Vec<f32> = sets.iter().flatten().map(|&value| value as f32).collect();
            Tensor::dense(upload.push(&values), sets.len(), values.len() / sets.len().max(1), DType::F32)
        };
        let heads = narrow(std::slice::from_ref(&step.heads));
        let shared = match rule {
            // A row of J for each of a round's batches, which have their task's weight.
            None => How::Weights(narrow(&step.by_row(self.results.batches))),
            Some(rule) => How::Columns(work.column_rule(rule, NOT_HERE, &step.factors)),
        };
        let decision = DecisionAt { tasks: work.tasks, shared, heads, halted: Tensor::NONE };
        let commands = self.step_commands(Tape::default(), &mut upload, &packed, work, &decision, rates);
        let timers = packed.timers.as_ref().map(|timers| timers.commit);
        let mut program = Program::default();
        program.time(timers.filter(|_| follows).map(|[begin, _]| begin), stream);
        self.add_after_upload(&mut program, upload, &commands)?;
        program.time(timers.map(|[_, end]| end), stream);
        self.graphs.execute(&mut *self.driver, stream, program)?;
        self.stepping = true;
        packed.timers.iter().try_for_each(|timers| self.measure(timers, None))?;
        // For the rounds that were computed with this one.
        self.packed = Some(packed);
        Ok(())
    }

    fn times(&mut self, _: Instant, _: Quantum) -> Option<RoundTimes> {
        self.times.take()
    }

    fn whole_round(
        &mut self,
        work: &mut Work,
        solve: &DeviceSolve,
        rates: &Rates,
    ) -> Option<Result<(Forward, Products, solve::Step), Stop>> {
        self.keep.stored.then(|| self.solve_and_step(work, solve, rates).map_err(Stop::from))
    }

    fn losses(&mut self, work: &mut Work) -> Result<Vec<f64>, Stop> {
        let present = work.batch.present();
        let packed = self.pack(work, false)?;
        let mut program = Program::default();
        self.add_pass(&mut program, &packed);
        let values = self.read(program, present)?;
        // What the gradients' upload had is gone.
        self.packed.iter_mut().for_each(|packed| packed.upload().forget());
        Ok(means(work, &values[..present])[work.first..][..work.tasks.len()].to_vec())
    }
}

/// The host's form of a rule, where kernels have their own.
const NOT_HERE: ColumnRule = &|_, _, _| unreachable!("a device's kernels have the rule");

/// Of some matrices over the rows of all present tasks, the part that belongs to the tasks of a commit.
fn part_of(matrices: &[f64], count: usize, work: &Work, batches: usize) -> Vec<f64> {
    let (side, own) = (work.batch.present() * batches, work.first * batches..(work.first + work.tasks.len()) * batches);
    let row = |matrix: usize, row: usize| &matrices[(matrix * side + row) * side..][own.clone()];
    (0..count).flat_map(|matrix| own.clone().flat_map(move |at| row(matrix, at))).copied().collect()
}

/// (T) mean losses from their sums over a round.
pub(super) fn means(work: &Work, sums: &[f64]) -> Vec<f64> {
    sums.iter().zip(observed(work, sums.len())).map(|(sum, observed)| mean_over(*sum, observed)).collect()
}

/// (T) what each present task's sum of losses is over, as [`mean_over`] takes it.
pub(super) fn observed(work: &Work, present: usize) -> Vec<f64> {
    let mut observed = vec![0.0; present];
    for part in &work.batch.parts {
        observed[part.present] += work.network.observed(part);
    }
    observed
}

impl Accelerator {
    /// Gradients of `count` present tasks that are committed together, from the position `first` on.
    pub(super) fn gradients<'a>(&'a self, touched: &'a Touched, first: usize, count: usize) -> GradientsAt<'a> {
        let Keep { stored, batches, .. } = self.keep;
        let own = if stored { first * batches..(first + count) * batches } else { 0..1 };
        GradientsAt {
            jacobian: own.map(|row| self.row_of_j(row)).collect(),
            stored,
            heads: self.head_gradients,
            rows: self.trained_table().map(|table| match self.found() {
                Some(lists) => table.found_gradients(lists, count * batches),
                None => touched.gradients(table),
            }),
        }
    }

    /// Of the table's rows, those that the tasks of a commit touch are what it is about.
    pub(super) fn unite(&mut self, work: &Work) {
        let batches = self.keep.batches;
        let rows = work.first * batches..(work.first + work.tasks.len()) * batches;
        if self.trained_table().is_some() && self.found().is_none() && self.touched.united != rows {
            self.touched.unite(&work.network.spec, rows);
        }
    }

    pub(super) fn row_of_j(&self, row: usize) -> Tensor {
        self.jacobian.rows(row..row + 1)
    }

    /// Where a table of the step lies: it may be there for good, or since the round's batch came.
    pub(super) fn place(&self, packed: &Packed, upload: &mut Upload, table: Bytes) -> Address {
        let there = self.resident.place(&table).or_else(|| packed.find(&table));
        there.unwrap_or_else(|| upload.table(table))
    }

    /// What `tape` has, and then the step of all parameters.
    pub(super) fn step_commands<'a>(
        &'a self,
        mut tape: Tape<'a>,
        upload: &mut Upload,
        packed: &Packed,
        work: &Work<'a>,
        decision: &DecisionAt<'a>,
        rates: &Rates,
    ) -> Vec<Command> {
        let table = self.trained_table().map(|table| (table.state, &self.touched.slots[..]));
        let parameters = ParametersAt { shared: self.parameters.shared, heads: self.parameters.heads, table };
        let gradients = self.gradients(&self.touched, work.first, work.tasks.len());
        update(&mut tape, work.network, work.blocks, parameters, &gradients, decision, rates);
        let mut commands = tape.commands(&self.card, |table| self.place(packed, upload, table));
        commands.extend(self.parameters.narrow_after_step().map(Command::from));
        commands
    }

    /// Adds an upload of the step, and commands that wait for it.
    fn add_after_upload(&mut self, program: &mut Program, mut upload: Upload, commands: &[Command]) -> Result<(), DeviceError> {
        self.add_upload(program, &mut upload)?;
        program.run(self.streams.lanes[0], commands);
        Ok(())
    }

    /// Adds an upload of the step.
    pub(super) fn add_upload(&mut self, program: &mut Program, upload: &mut Upload) -> Result<(), DeviceError> {
        upload.close();
        let stream = self.streams.lanes[0];
        if self.stepping {
            // The step before this one is sent from the same memory.
            self.wait(stream)?;
            self.stepping = false;
        }
        let step = &self.steps[self.buffer];
        step.fill(&mut *self.driver, upload)?;
        program.push(step.send(stream, &upload.sections[0]));
        Ok(())
    }

    /// Runs a program and reads what it left for `count` present tasks.
    pub(super) fn read(&mut self, program: Program, count: usize) -> Result<Vec<f64>, DeviceError> {
        self.start(program, count)?;
        self.finish(self.buffer, count)
    }

    /// As [`Accelerator::read`] of a round's first program; while it runs, the next round's batch is laid out.
    pub(super) fn read_beside(&mut self, program: Program, work: &mut Work) -> Result<Vec<f64>, DeviceError> {
        self.start(program, work.tasks.len())?;
        let buffer = self.buffer;
        self.lay_out_next(work)?;
        self.finish(buffer, work.tasks.len())
    }

    /// Results that a program leaves for `count` present tasks.
    fn written(&self, count: usize) -> usize {
        let there = self.keep.stored || self.trained_table().is_some();
        self.results.grams() + if there { self.results.cells(count) } else { 0 }
    }

    /// Gives the device a program and the copy of what it leaves for `count` present tasks.
    pub(super) fn start(&mut self, mut program: Program, count: usize) -> Result<(), DeviceError> {
        let (stream, results) = (self.streams.lanes[0], &self.results);
        let (to, event) = (results.staging[self.buffer], results.read[self.buffer]);
        program.push(Step::CopyOut { stream, to, from: results.at, bytes: 8 * self.written(count) });
        self.graphs.execute(&mut *self.driver, stream, program)?;
        self.driver.record(event, stream)
    }

    /// What a program left that was started with the batch of this buffer.
    pub(super) fn finish(&mut self, buffer: usize, count: usize) -> Result<Vec<f64>, DeviceError> {
        self.wait_for(self.results.read[buffer])?;
        self.stepping = false;
        let (written, staging) = (self.written(count), self.results.staging[buffer]);
        let mut values: Vec<f64> = bytemuck::pod_collect_to_vec(&self.driver.staging_bytes(staging)?[..8 * written]);
        // Where all gradients are added up, their products are those of embedding rows alone.
        values.resize(self.results.grams() + self.results.cells(count), 0.0);
        Ok(values)
    }

    pub(super) fn products_of(&self, values: &[f64], work: &Work) -> Products {
        let (results, count) = (&self.results, work.tasks.len());
        let gram = RoundGram::new(&values[results.grams()..], None, work.blocks, count, work.shares);
        Products { gram, heads: values[results.squares()..][..count].to_vec() }
    }
}
