//! Rounds on the CPU: forward and backward of every fused group, on one lane or several, and the passes over their gradients.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Result;

use super::backend::{Backend, Balance, Forward, Products, Stop, Work, mean_over};
use super::lanes::Lanes;
use super::quanta::{self, Quanta, Quantum, RoundTimes};
use super::round_options::RoundOptions;
use super::solve::Step;
use crate::machine::host::HostMemory;
use crate::machine::memory::Memory;
use crate::machine::tape::Tape;
use crate::machine::tensor::Tensor;
use crate::model::Parameters;
use crate::model::network::{Batch, Gradients, Keep, Limits, Network, Part, Scratch};
use crate::ops::column_rule::{ColumnSquare, How};
use crate::ops::row_gradients::{RowGradient, RowGradients, Union};
use crate::ops::row_pass::PassRows;
use crate::ops::storage::Storage;
use crate::surgery::balance::Factors;
use crate::surgery::buffers::{PassAt, Passes, TaskBuffers};
use crate::surgery::gram::{GradientsAt, ProductsAt, RoundGram, products};
use crate::surgery::methods::{ColumnBlock, Columnwise, columns};
use crate::surgery::update::{DecisionAt, ParametersAt, Rates, update};

/// The memory that rounds on the CPU work in.
pub struct Host {
    pub gradients: Gradients,
    touched: Touched,
    /// Where and when each fused group of the last round was computed.
    computed: Vec<Quantum>,
    pub quanta: Quanta,
    pub lanes: Lanes,
    /// Activations, by lane; evaluation uses the first.
    pub arenas: Vec<Scratch>,
}

/// The rows of the embedding table that a round touches, and where they lie in it.
#[derive(Default)]
struct Touched {
    union: Union,
    slots: Vec<u32>,
}

impl Host {
    pub fn new(
        memory: &mut Memory,
        network: &Network,
        round_options: &RoundOptions,
        keep: Keep,
        limits: &Limits,
    ) -> Result<Self> {
        let gradients = Gradients::new(memory, network, keep, limits)?;
        let lanes = Lanes::new(if memory.is_dry() { 1 } else { round_options.lanes })?;
        let mut arenas = Vec::with_capacity(round_options.lanes);
        let before = memory.used();
        for lane in 0..round_options.lanes {
            memory.within(if lane > 0 { format!("lane {lane} ") } else { String::new() });
            let scratch = Scratch::new(memory, &*network.spec.encoder, limits)?;
            let staged = keep.storage() == Storage::Bf16;
            arenas.push(if staged { scratch.staged(memory, network.spec.encoder.largest_piece())? } else { scratch });
        }
        memory.within(String::new());
        let scratch = (memory.used() - before) / round_options.lanes as u64;
        let quanta = Quanta::new(network.spec.heads.len(), round_options.lanes, scratch);
        Ok(Self { gradients, touched: Touched::default(), computed: Vec::new(), quanta, lanes, arenas })
    }

    /// Each task's gradient in its own row of J; groups without a common task on all lanes at once.
    fn separate_gradients(&mut self, work: &Work, means: &mut MeanLosses, begun: Instant) -> Result<(), Stop> {
        let &Work { network, batch, random, .. } = work;
        for wave in waves(batch) {
            let before = begun.elapsed();
            let own = self.gradients.split(network, batch, &wave);
            let weights = work.parameters.weights();
            let group = |(parts, own)| {
                let parts: &&[Part] = parts;
                quanta::Group { task: parts[0].task, job: (*parts, own) }
            };
            let groups = wave.iter().zip(own).map(group).collect();
            let done = self.quanta.gradients(&self.lanes, &mut self.arenas, groups, |scratch, (parts, gradients)| {
                network.forward(weights, batch, parts, scratch, Some(random));
                let losses = network.losses(parts, scratch);
                if losses.iter().all(|loss| loss.is_finite()) {
                    network.backward(weights, batch, parts, scratch, gradients, random);
                }
                losses
            });
            for (parts, (losses, quantum)) in wave.into_iter().zip(done) {
                means.add(network, parts, losses)?;
                self.computed.push(Quantum { start: before + quantum.start, ..quantum });
            }
        }
        Ok(())
    }

    /// The tasks' gradients added up in one row, group after group; with `balance` scaled by it on the way.
    fn added_gradients(
        &mut self,
        work: &mut Work,
        means: &mut MeanLosses,
        mut balance: Option<Balance>,
        begun: Instant,
    ) -> Result<Option<Factors>, Stop> {
        let mut factors = None;
        if let Some(balance) = balance.as_mut().filter(|_| work.batch.groups.len() > 1) {
            // How far back a loss counts is known once all of them are: one more pass forward instead of T rows of J.
            factors = Some(balance(&self.losses(work)?));
        }
        for group in &work.batch.groups {
            let parts = &work.batch.parts[group.clone()];
            let (start, quantum) = (begun.elapsed(), self.quanta.begin_gradient(parts[0].task));
            let done = self.added_gradient(work, parts, means, &mut balance, &mut factors);
            self.computed.push(Quantum { lane: 0, start, time: self.quanta.end(quantum) });
            done?;
        }
        Ok(factors)
    }

    fn added_gradient(
        &mut self,
        work: &Work,
        parts: &[Part],
        means: &mut MeanLosses,
        balance: &mut Option<Balance>,
        factors: &mut Option<Factors>,
    ) -> Result<(), Stop> {
        let &Work { network, batch, random, .. } = work;
        self.forward(work, parts, means)?;
        if let Some(balance) = balance {
            let known = factors.get_or_insert_with(|| balance(&means.means()));
            network.scale_logit_gradients(parts, &mut self.arenas[0], &known.factors);
        }
        let gradients = self.gradients.of_group(network, batch, parts);
        network.backward(work.parameters.weights(), batch, parts, &mut self.arenas[0], gradients, random);
        Ok(())
    }

    /// One group's losses; its logit gradients are left in the scratch.
    fn forward(&mut self, work: &Work, parts: &[Part], means: &mut MeanLosses) -> Result<(), Stop> {
        let scratch = &mut self.arenas[0];
        work.network.forward(work.parameters.weights(), work.batch, parts, scratch, Some(work.random));
        means.add(work.network, parts, work.network.losses(parts, scratch))
    }
}

impl Backend for Host {
    fn keep(&self) -> Keep {
        self.gradients.keep
    }

    fn forward_backward(&mut self, work: &mut Work, balance: Option<Balance>) -> Result<Forward, Stop> {
        let (mut means, begun) = (MeanLosses::new(work.tasks.len()), Instant::now());
        self.computed.clear();
        let mut balanced = None;
        if self.gradients.keep.stored {
            self.separate_gradients(work, &mut means, begun)?;
        } else {
            balanced = self.added_gradients(work, &mut means, balance, begun)?;
        }
        work.network.row_gradients(work.batch, &mut self.gradients, work.tasks.len());
        Ok(Forward { losses: means.means(), balanced })
    }

    fn products(&mut self, work: &Work) -> Result<Products, Stop> {
        let Work { network, blocks, tasks, shares, .. } = work;
        let rows = self.gradients.rows_of(work.first, tasks.len());
        let count = tasks.len() * self.gradients.keep.batches;
        let own = if self.gradients.rows.is_empty() { &[][..] } else { &self.gradients.rows[rows] };
        let own: Vec<&[u32]> = own.iter().map(|own| &own.index.rows[..]).collect();
        self.touched.union.merge(&own);
        if let Some(table) = network.spec.table_stepped_whole() {
            self.touched.union.cover(table.rows);
        }
        let mut grams = vec![0.0; (blocks.count() + 1) * count * count];
        let (mut added, mut heads) = (vec![0.0; blocks.count() + 1], vec![0.0; tasks.len()]);
        let mut memory = HostMemory::new();
        let out = ProductsAt {
            grams: memory.lend_mut(&mut grams),
            added: memory.lend_mut(&mut added),
            heads: memory.lend_mut(&mut heads),
            partials: Tensor::NONE,
        };
        let gradients = lend_gradients(&mut memory, &self.gradients, &self.touched.union, work);
        let mut tape = Tape::default();
        products(&mut tape, network, blocks, tasks, &gradients, out);
        tape.run(&memory);
        drop((tape, memory));
        let added = (!self.gradients.keep.stored).then(|| added[blocks.count()]);
        Ok(Products { gram: RoundGram::new(&grams, added, blocks, tasks.len(), shares), heads })
    }

    fn move_buffers(&mut self, buffers: &mut TaskBuffers, passes: &Passes, work: &Work) -> Result<Vec<Vec<f64>>, Stop> {
        let own = self.gradients.rows_of(work.first, work.tasks.len());
        let Gradients { jacobian, rows, .. } = &mut self.gradients;
        let rows = if rows.is_empty() { &mut [][..] } else { &mut rows[own.clone()] };
        let slots = buffers.touch(work.tasks, &rows.iter().map(|row| &row.index.rows[..]).collect::<Vec<_>>());
        let mut sums = vec![0.0; work.blocks.sets() * work.tasks.len()];
        let mut memory = HostMemory::new();
        let [dense, table] = buffers.lend(&mut memory, work.tasks);
        let dim = rows.first().map_or(0, RowGradient::dim);
        let gradients: Vec<Tensor> = rows.iter_mut().map(|row| row.lend_mut(&mut memory)).collect();
        let at = PassAt {
            jacobian: jacobian.lend_mut(&mut memory, own),
            buffers: dense,
            rows: (!gradients.is_empty()).then_some(PassRows { gradients, buffers: table, slots, dim }),
            sums: memory.lend_mut(&mut sums),
            partials: Tensor::NONE,
        };
        let mut tape = Tape::default();
        tape.push(passes.over(work.blocks, at));
        tape.run(&memory);
        drop((tape, memory));
        Ok(passes.by_set(&sums))
    }

    fn column_square(&mut self, work: &Work, rule: &dyn Columnwise, factors: &[f64]) -> Result<f64, Stop> {
        let mut square = [0.0];
        let host = scaled_rule(rule, factors, work);
        let mut memory = HostMemory::new();
        let out = memory.lend_mut(&mut square);
        let GradientsAt { jacobian, rows, .. } = lend_gradients(&mut memory, &self.gradients, &self.touched.union, work);
        let rule = work.column_rule(rule, &host, factors);
        let mut tape = Tape::default();
        tape.push(ColumnSquare { jacobian, rows, rule, out, partials: Tensor::NONE });
        tape.run(&memory);
        drop((tape, memory));
        Ok(square[0])
    }

    fn step(&mut self, work: &mut Work, step: &Step, rule: Option<&dyn Columnwise>, rates: &Rates) -> Result<(), Stop> {
        let Touched { union, slots } = &mut self.touched;
        if let Some(table) = work.parameters.rows.as_mut().filter(|_| !self.gradients.rows.is_empty()) {
            table.touch(&union.rows, slots);
        }
        // A row of J for each of a round's batches, which have their task's weight.
        let sets: Vec<f32> = step.by_row(self.gradients.keep.batches).iter().flatten().map(|&weight| weight as f32).collect();
        let heads: Vec<f32> = step.heads.iter().map(|&factor| factor as f32).collect();
        let host = rule.map(|rule| scaled_rule(rule, &step.factors, work));
        let shared_rule = rule.zip(host.as_ref()).map(|(rule, host)| work.column_rule(rule, host, &step.factors));
        let mut memory = HostMemory::new();
        let gradients = lend_gradients(&mut memory, &self.gradients, union, work);
        let shared = match shared_rule {
            Some(rule) => How::Columns(rule),
            None => How::Weights(memory.lend(&sets).as_rows(step.weights.len(), sets.len() / step.weights.len())),
        };
        let decision = DecisionAt { tasks: work.tasks, shared, heads: memory.lend(&heads), halted: Tensor::NONE };
        let Parameters { shared, heads, rows, .. } = work.parameters;
        let parameters = ParametersAt {
            shared: shared.lend(&mut memory),
            heads: heads.lend(&mut memory),
            table: rows.as_mut().filter(|_| gradients.rows.is_some()).map(|table| (table.lend(&mut memory), &slots[..])),
        };
        let mut tape = Tape::default();
        update(&mut tape, work.network, work.blocks, parameters, &gradients, &decision, rates);
        let quantum = self.quanta.begin_commit();
        tape.run(&memory);
        self.quanta.end(quantum);
        Ok(())
    }

    fn times(&mut self, began: Instant, commit: Quantum) -> Option<RoundTimes> {
        Some(RoundTimes { began, groups: std::mem::take(&mut self.computed), commit })
    }

    fn losses(&mut self, work: &mut Work) -> Result<Vec<f64>, Stop> {
        let mut means = MeanLosses::new(work.batch.present());
        for group in &work.batch.groups {
            self.forward(work, &work.batch.parts[group.clone()], &mut means)?;
        }
        Ok(means.means()[work.first..][..work.tasks.len()].to_vec())
    }
}

/// The gradients of the tasks that commit, as tapes see them.
fn lend_gradients<'a>(memory: &mut HostMemory<'a>, gradients: &'a Gradients, union: &'a Union, work: &Work) -> GradientsAt<'a> {
    let own = gradients.rows_of(work.first, work.tasks.len());
    let rows = (!gradients.rows.is_empty()).then(|| &gradients.rows[own.clone()]);
    GradientsAt {
        jacobian: gradients.jacobian.lend(memory, if gradients.keep.stored { own } else { 0..1 }),
        stored: gradients.keep.stored,
        heads: memory.lend(&gradients.heads),
        rows: rows.map(|rows| RowGradients::lend(memory, union, rows)),
    }
}

/// A method's rule on gradients scaled by the (T) tasks' factors, as [`crate::ops::adamw::ColumnRule`] wants it.
#[allow(clippy::type_complexity, reason = "the very form of ColumnRule, which as an alias of a reference cannot be returned")]
fn scaled_rule<'a>(
    rule: &'a dyn Columnwise,
    factors: &'a [f64],
    work: &Work,
) -> impl Fn(&[(usize, &[f32])], u64, &mut [f32]) + Sync + use<'a> {
    let (seed, round) = (work.random.seed, work.round);
    move |rows, first, out| {
        let rows: Vec<(f64, &[f32])> = rows.iter().map(|&(task, row)| (factors[task], row)).collect();
        columns::combine(rule, &ColumnBlock { rows: &rows, count: factors.len(), first, round, seed }, out);
    }
}

/// The groups of a batch in order, cut where a task comes again: those of one wave do not depend on each other.
fn waves(batch: &Batch) -> Vec<Vec<&[Part]>> {
    let mut waves = vec![Vec::new()];
    let mut seen = BTreeSet::new();
    for group in &batch.groups {
        let parts = &batch.parts[group.clone()];
        if parts.iter().any(|part| seen.contains(&part.task)) {
            seen.clear();
            waves.push(Vec::new());
        }
        seen.extend(parts.iter().map(|part| part.task));
        waves.last_mut().expect("there is one").push(parts);
    }
    waves
}

/// Losses of a round as they come in, group by group.
struct MeanLosses {
    sums: Vec<f64>,
    observed: Vec<f64>,
}

impl MeanLosses {
    fn new(count: usize) -> Self {
        Self { sums: vec![0.0; count], observed: vec![0.0; count] }
    }

    /// A group's losses, unless one of them is not finite.
    fn add(&mut self, network: &Network, parts: &[Part], losses: Vec<f64>) -> Result<(), Stop> {
        for (part, loss) in parts.iter().zip(losses) {
            if !loss.is_finite() {
                return Err(Stop::anomaly(Some(part.task), "loss", loss));
            }
            self.sums[part.present] += loss;
            self.observed[part.present] += network.observed(part);
        }
        Ok(())
    }

    /// (T)
    fn means(&self) -> Vec<f64> {
        self.sums.iter().zip(&self.observed).map(|(sum, &observed)| mean_over(*sum, observed)).collect()
    }
}
