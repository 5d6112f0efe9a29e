//! A round's fused groups on the device: their inputs and tables laid out, and their tapes in the order of two lanes.

use std::ops::Range;

use super::Accelerator;
use super::inference::{Forward, GroupOf, Inputs};
use super::lane::Lane;
use super::prepared::Prepared;
use super::program::Program;
use super::timers::RoundTimers;
use super::upload::Upload;
use crate::machine::driver::{DeviceError, StreamId};
use crate::machine::launch::Command;
use crate::machine::tape::{Tape, bytes_of};
use crate::machine::tensor::Tensor;
use crate::model::Model;
use crate::model::encoders::{self, Gradients};
use crate::model::network::{Batch, Keep, Network, Part};
use crate::ops::embedding_bag::EmbeddingRowsInit;
use crate::ops::gemm::Write;
use crate::ops::jacobian_rows::{JacobianRows, Segment};
use crate::ops::row_gradients::RowGradientsBackward;
use crate::schedule::Nanos;
use crate::surgery::gram::products;
use crate::train::backend::Work;
use crate::train::quanta::planned_lanes;

/// A round's batch, on the device.
pub(super) struct Packed {
    /// What the first group's forward pass waits for.
    before: Vec<Command>,
    groups: Vec<Group>,
    /// What waits for all groups.
    after: Vec<Command>,
    pub upload: Upload,
    /// If the round is timed.
    pub timers: Option<RoundTimers>,
}

/// A fused group, on the device.
struct Group {
    lane: usize,
    commands: Vec<Command>,
    /// A task of it has had an earlier micro-batch, or batch.
    adds: bool,
}

impl Accelerator {
    /// Lays the round's batch into pinned memory: losses, and with `backward` private gradients and their products.
    pub(super) fn pack(&mut self, work: &mut Work, backward: bool) -> Result<Packed, DeviceError> {
        self.times = None;
        let prepared = self.prepared.take();
        let prepared = prepared.unwrap_or_else(|| Prepared::of(&work.network.spec, work.batch, self.keep.batches));
        let mut upload = self.batches.upload();
        let mut before = Vec::new();
        let table = self.table.as_ref().filter(|table| table.trained);
        if let (Some(table), Some(host)) = (table, &mut work.parameters.rows) {
            self.touched = prepared.touched;
            let touched = &mut self.touched;
            let known = host.touched().len();
            host.touch(&touched.union.rows, &mut touched.slots);
            let mut tape = Tape::default();
            let rows = &host.touched()[known..];
            tape.push(EmbeddingRowsInit { values: table.state.values, rows, first_slot: known, init: table.init });
            before = tape.commands(&self.card, |table| upload.push(&table));
        }
        upload.close();
        let mut groups = Vec::with_capacity(work.batch.groups.len());
        let tokens = |range: &Range<usize>| work.batch.input_rows(&work.batch.parts[range.clone()]).len() as Nanos;
        let lanes = planned_lanes(&work.batch.groups.iter().map(tokens).collect::<Vec<_>>(), self.lanes.len());
        let inputs = work.batch.groups.iter().zip(&prepared.tokens);
        for ((range, tokens), &lane) in inputs.zip(&lanes) {
            let parts = &work.batch.parts[range.clone()];
            let inputs = Inputs { tokens: tokens.as_ref(), features: &prepared.features };
            let commands = self.group(&mut upload, work, parts, inputs, &self.lanes[lane], backward);
            groups.push(Group { lane, commands, adds: parts.iter().any(|part| !part.first || part.batch > 0) });
            upload.close();
        }
        let after = if backward { self.after_groups(&mut upload, work) } else { Vec::new() };
        upload.close();
        self.batches.fill(&mut *self.driver, &mut upload)?;
        let timers = if backward { self.timers.of_round(&mut *self.driver, &lanes)? } else { None };
        Ok(Packed { before, groups, after, upload, timers })
    }

    /// Gradients of the embedding table, and products of all gradients.
    fn after_groups(&self, upload: &mut Upload, work: &Work) -> Vec<Command> {
        let (touched, mut tape) = (&self.touched, Tape::default());
        if let Some(table) = self.trained_table() {
            let (indexes, scales) = (&touched.indexes, &work.batch.bags.scales);
            tape.push(RowGradientsBackward { indexes, out: table.gradients(indexes), dout: table.dinput, scales });
            // For the update.
            upload.table(bytes_of(&touched.slots));
            upload.table(bytes_of(&touched.union.rows));
        }
        let gradients = self.gradients(0, work.tasks.len());
        products(&mut tape, work.network, work.blocks, work.tasks, &gradients, self.results.products(work.tasks.len()));
        tape.commands(&self.card, |table| self.resident.place(&table).unwrap_or_else(|| upload.table(table)))
    }

    /// Logits of a batch without training, part after part; waits for them. Of the parameters that [`Accelerator::load_snapshot`] copied,
    /// where there is room for them: the model then is the snapshot.
    pub fn predict(&mut self, model: &Model, batch: &Batch) -> Result<&[f32], DeviceError> {
        let from = self.snapshot.unwrap_or_else(|| self.readable());
        let Self { card, driver, graphs, streams, batches, lanes, pieces, logits, .. } = self;
        let forward = Forward { card, stream: streams.lanes[0], batches, lane: &lanes[0], pieces, from };
        forward.logits(&mut **driver, graphs, model, batch, logits)?;
        Ok(logits)
    }

    /// A group's tape, as the encoder emits it; its inputs and tables are laid out.
    fn group(
        &self,
        upload: &mut Upload,
        work: &Work,
        parts: &[Part],
        inputs: Inputs,
        lane: &Lane,
        backward: bool,
    ) -> Vec<Command> {
        let &Work { network, batch, random, .. } = work;
        let group = GroupOf { network, parameters: work.parameters, batch, parts, inputs };
        let own = group.tensors(upload, lane, self.readable());
        let mut tape = Tape::default();
        network.emit_forward(&mut tape, &own, Some(random));
        network.emit_losses(&mut tape, &own, self.results.losses(batch.present()), lane.row_losses);
        if backward {
            network.emit_backward(&mut tape, &own, self.gradients_of_group(network, &own), random);
        }
        tape.commands(&self.card, |table| upload.table(table))
    }

    /// Adds all groups. One that adds to an earlier micro-batch's gradients follows it.
    pub(super) fn add_pass(&self, program: &mut Program, packed: &Packed) {
        let (streams, timers) = (&self.streams, packed.timers.as_ref());
        let [first, second] = streams.lanes;
        let mut sections = packed.upload.sections.iter();
        let mut send = |program: &mut Program, lane: StreamId| {
            program.push(self.batches.send(streams.copies, sections.next().expect("a section for each stage")));
            program.order(streams.copies, streams.arrived, lane);
        };
        program.time(timers.map(|timers| timers.begin), first);
        program.order(first, streams.fork, streams.copies);
        send(program, first);
        program.run(first, &packed.before);
        let both = self.lanes.len() > 1 && packed.groups.len() > 1;
        if both {
            program.order(first, streams.done[0], second);
        }
        for (number, group) in packed.groups.iter().enumerate() {
            let lane = group.lane;
            let stream = streams.lanes[lane];
            send(program, stream);
            if both && group.adds {
                program.order(streams.lanes[1 - lane], streams.done[1 - lane], stream);
            }
            let [begin, end] = [0, 1].map(|side| timers.map(|timers| timers.groups[number].1[side]));
            program.time(begin, stream);
            program.run(stream, &group.commands);
            program.time(end, stream);
        }
        send(program, first);
        if both {
            program.order(second, streams.done[1], first);
        }
        program.time(timers.map(|timers| timers.commit[0]), first);
        program.run(first, &packed.after);
    }

    fn gradients_of_group(&self, network: &Network, group: &encoders::Group) -> Gradients {
        let segment = |(part, rows)| {
            let part: &Part = part;
            let Keep { stored, batches, .. } = self.keep;
            let write = if part.first && (stored || part.present == 0) { Write::Replace } else { Write::Add };
            Segment { rows, row: self.row_of_j(if stored { part.present * batches + part.batch } else { 0 }), write }
        };
        let segments = group.parts.iter().zip(group.batch.input_segments(group.parts)).map(segment).collect();
        let heads = self.head_gradients;
        let rows = group.batch.input_rows(group.parts);
        Gradients {
            jacobian: JacobianRows { segments, added: !self.keep.stored, staging: Tensor::NONE },
            heads: group.parts.iter().map(|part| heads.range(network.table.head_range(part.task))).collect(),
            words: vec![Tensor::NONE; group.parts.len()],
            dinput: self.trained_table().map_or(Tensor::NONE, |table| table.dinput.rows(rows)),
        }
    }
}
