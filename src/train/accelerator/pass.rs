//! A round's fused groups on the device: their inputs and tables laid out, and their tapes in the order of two lanes.

use std::ops::Range;
use std::time::Instant;

use super::Accelerator;
use super::data::{DataOnDevice, Draw};
use super::inference::{Features, GroupOf, Inputs};
use super::lane::Lane;
use super::prepared::Prepared;
use super::program::Program;
use super::rows::Touched;
use super::timers::RoundTimers;
use super::upload::Upload;
use crate::machine::driver::{Address, DeviceError, StreamId};
use crate::machine::launch::Command;
use crate::machine::tape::{Bytes, Tape};
use crate::machine::tensor::Tensor;
use crate::model::Parameters;
use crate::model::encoders::{self, Gradients};
use crate::model::network::{Keep, Network, Part, Randomness};
use crate::model::spec::HeadKind;
use crate::model::transformer::TokenGroup;
use crate::ops::buckets;
use crate::ops::embedding_bag::EmbeddingRowsInit;
use crate::ops::gemm::Write;
use crate::ops::jacobian_rows::{JacobianRows, Segment};
use crate::ops::row_gradients::{RowGradientsBackward, Sources};
use crate::ops::storage::bf16;
use crate::schedule::Nanos;
use crate::surgery::gram::products;
use crate::train::backend::Work;
use crate::train::quanta::planned_lanes;

/// A round's batch in pinned memory, with everything that is computed from it up to the products of gradients.
pub(super) struct Layout {
    /// Which of the buffers holds it.
    buffer: usize,
    /// Rows of the table that had slots before it.
    known: usize,
    /// What its masks are drawn with.
    random: Randomness,
    /// What the first group's forward pass waits for.
    before: Vec<Command>,
    groups: Vec<Group>,
    /// What waits for all groups.
    after: Vec<Command>,
    upload: Upload,
}

/// A round's batch, on the device.
pub(super) struct Packed {
    layout: Layout,
    /// If the round is timed.
    pub timers: Option<RoundTimers>,
}

impl Packed {
    pub fn upload(&mut self) -> &mut Upload {
        &mut self.layout.upload
    }

    /// Rows of the table that had slots before it.
    pub fn known(&self) -> usize {
        self.layout.known
    }

    /// Where a table lies that came with the batch.
    pub fn find(&self, table: &Bytes) -> Option<Address> {
        self.layout.upload.find(table)
    }
}

/// A fused group as it was packed, and the lane that computes it.
struct Laid<'a> {
    parts: &'a [Part],
    tokens: Option<&'a TokenGroup>,
    /// Of the whole batch.
    features: &'a [bf16],
    /// The batch's examples, where they are fetched.
    draw: Option<&'a Draw>,
    lane: &'a Lane,
}

/// A fused group, on the device.
struct Group {
    lane: usize,
    commands: Vec<Command>,
    /// A task of it has had an earlier micro-batch, or batch.
    adds: bool,
}

impl Accelerator {
    /// Lays the round's batch into pinned memory, unless that was done before: losses, and with `backward` private gradients and
    /// their products.
    pub(super) fn pack(&mut self, work: &mut Work, backward: bool) -> Result<Packed, DeviceError> {
        self.times = None;
        let prepared = self.prepared.take();
        let mut prepared = prepared.unwrap_or_else(|| Prepared::of(&work.network.spec, work.batch, self.keep.batches));
        let layout = match prepared.layout.take_if(|layout| layout.random == work.random) {
            Some(layout) => layout,
            None => {
                Self::undo_layout(&mut prepared, work.parameters);
                if backward {
                    // Rows of this batch come before those of the next.
                    self.forget_layouts(work.parameters);
                }
                self.lay_out(&mut prepared, self.buffer, work, backward)?
            }
        };
        (self.touched, self.buffer) = (prepared.touched, layout.buffer);
        self.gave_slots = self.found().is_some();
        let lanes: Vec<usize> = layout.groups.iter().map(|group| group.lane).collect();
        let timers = if backward { self.timers.of_round(&mut *self.driver, &lanes, self.buffer)? } else { None };
        Ok(Packed { layout, timers })
    }

    /// Takes the batch of the next round as soon as it is there and lays it out beside that of this one, which is being computed.
    pub(super) fn lay_out_next(&mut self, work: &mut Work) -> Result<(), DeviceError> {
        let Some(mut next) = self.coming.take().and_then(|coming| coming.recv().ok()) else { return Ok(()) };
        if !next.present.is_empty() {
            let mut own = work.of_round(next.round, &next.batch, &next.present);
            next.prepared.layout = Some(self.lay_out(&mut next.prepared, 1 - self.buffer, &mut own, true)?);
        }
        self.next = Some(next);
        Ok(())
    }

    /// Forgets where a batch was laid out. Slots that it asked for are given back: nothing may hang on what was foreseen.
    pub(super) fn undo_layout(prepared: &mut Prepared, parameters: &mut Parameters) {
        if let (Some(layout), Some(host)) = (prepared.layout.take(), &mut parameters.rows) {
            host.untouch(layout.known);
            prepared.touched.slots.clear();
        }
    }

    fn lay_out(
        &mut self,
        prepared: &mut Prepared,
        buffer: usize,
        work: &mut Work,
        backward: bool,
    ) -> Result<Layout, DeviceError> {
        let clock = Instant::now();
        let Prepared { touched, tokens, features, .. } = prepared;
        let draw = self.data.as_ref().map(|data| data.draw(work.batch, self.keep.batches));
        let mut upload = self.batches[buffer].upload();
        let mut before = Vec::new();
        let known = work.parameters.rows.as_ref().map_or(0, |host| host.touched().len());
        if let (Some(data), Some(draw)) = (&self.data, &draw) {
            let mut tape = Tape::default();
            data.begin(&mut tape, draw, work.random);
            before = tape.commands(&self.card, |table| upload.push(&table));
        } else if let (Some(table), Some(host)) = (self.trained_table(), &mut work.parameters.rows) {
            host.touch_elsewhere(&touched.union.rows, &mut touched.slots);
            let mut tape = Tape::default();
            let rows = &host.touched()[known..];
            tape.push(EmbeddingRowsInit {
                values: table.state.values,
                rows,
                first_slot: known,
                room: touched.room,
                init: table.init,
            });
            before = tape.commands(&self.card, |table| upload.push(&table));
        }
        upload.close();
        let mut groups = Vec::with_capacity(work.batch.groups.len());
        let rows = |range: &Range<usize>| work.batch.input_rows(&work.batch.parts[range.clone()]).len() as Nanos;
        let lanes = planned_lanes(&work.batch.groups.iter().map(rows).collect::<Vec<_>>(), self.lanes.len());
        let inputs = work.batch.groups.iter().zip(tokens);
        for ((range, tokens), lane) in inputs.zip(lanes) {
            let parts = &work.batch.parts[range.clone()];
            let own = Laid { parts, tokens: tokens.as_ref(), features, draw: draw.as_ref(), lane: &self.lanes[lane] };
            let commands = self.group(&mut upload, work, own, backward.then_some(&*touched));
            groups.push(Group { lane, commands, adds: parts.iter().any(|part| !part.first || part.batch > 0) });
            upload.close();
        }
        let after = if backward { self.after_groups(&mut upload, work, touched) } else { Vec::new() };
        upload.close();
        self.batches[buffer].fill(&mut *self.driver, &mut upload)?;
        self.graphs.counts.packing += clock.elapsed();
        Ok(Layout { buffer, known, random: work.random, before, groups, after, upload })
    }

    /// Gradients of the embedding table, and products of all gradients.
    fn after_groups(&self, upload: &mut Upload, work: &Work, touched: &Touched) -> Vec<Command> {
        let mut tape = Tape::default();
        if let (Some(table), Some(lists)) = (self.trained_table(), self.found()) {
            let (out, dout) = (vec![table.found_gradients(lists, 1).tasks[0]], table.dinput);
            tape.push(RowGradientsBackward { sources: Sources::Found(lists), out, dout });
        } else if let Some(table) = self.trained_table() {
            let (indexes, scales) = (&touched.indexes, &work.batch.bags.scales);
            let sources = Sources::Packed { indexes, scales, room: touched.room };
            tape.push(RowGradientsBackward { sources, out: table.gradients(indexes), dout: table.dinput });
            // For the update.
            upload.table(buckets::table(&touched.slots, touched.room, 0));
        }
        let gradients = self.gradients(touched, 0, work.tasks.len());
        products(&mut tape, work.network, work.blocks, work.tasks, &gradients, self.results.products(work.tasks.len()));
        tape.commands(&self.card, |table| self.resident.place(&table).unwrap_or_else(|| upload.table(table)))
    }

    /// A group's tape, as the encoder emits it; inputs that were packed, and tables, are laid out. With the rows of the table that the
    /// batch touches, gradients as well.
    fn group(&self, upload: &mut Upload, work: &Work, own: Laid, touched: Option<&Touched>) -> Vec<Command> {
        let Laid { parts, tokens, features, draw, lane } = own;
        let &Work { network, batch, random, .. } = work;
        let mut tape = Tape::default();
        let features = match (&self.data, draw) {
            (Some(data), Some(draw)) => {
                Features::Fetched(data.features(&mut tape, draw, parts, lane, network.spec.encoder.inputs()))
            }
            _ => Features::Packed(features),
        };
        let fetched = self.data.as_ref().and_then(DataOnDevice::fetched);
        let inputs = Inputs { tokens, features, fetched };
        let group = GroupOf { network, parameters: work.parameters, batch, parts, inputs };
        let own = group.tensors(upload, lane, self.readable());
        network.emit_forward(&mut tape, &own, Some(random));
        let gradients = touched.map(|touched| self.gradients_of_group(network, &own, touched));
        let losses = [self.results.losses(batch.present()), lane.row_losses];
        network.emit_losses(&mut tape, &own, losses, gradients.as_ref());
        if let Some(gradients) = gradients {
            network.emit_backward(&mut tape, &own, gradients, random);
        }
        tape.commands(&self.card, |table| upload.table(table))
    }

    /// Adds all groups. One that adds to an earlier micro-batch's gradients follows it.
    pub(super) fn add_pass(&self, program: &mut Program, packed: &Packed) {
        let Packed { layout: Layout { buffer, before, groups, after, upload, .. }, timers } = packed;
        let (streams, timers) = (&self.streams, timers.as_ref());
        let [first, second] = streams.lanes;
        let mut sections = upload.sections.iter();
        let mut send = |program: &mut Program, lane: StreamId| {
            program.push(self.batches[*buffer].send(streams.copies, sections.next().expect("a section for each stage")));
            program.order(streams.copies, streams.arrived, lane);
        };
        program.time(timers.map(|timers| timers.begin), first);
        program.order(first, streams.fork, streams.copies);
        send(program, first);
        program.run(first, before);
        let both = self.lanes.len() > 1 && groups.len() > 1;
        if both {
            program.order(first, streams.done[0], second);
        }
        for (number, group) in groups.iter().enumerate() {
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
        program.run(first, after);
    }

    fn gradients_of_group(&self, network: &Network, group: &encoders::Group, touched: &Touched) -> Gradients {
        let segment = |(part, rows)| {
            let part: &Part = part;
            let Keep { stored, batches, .. } = self.keep;
            let write = if part.first && (stored || part.present == 0) { Write::Replace } else { Write::Add };
            Segment { rows, row: self.row_of_j(if stored { part.present * batches + part.batch } else { 0 }), write }
        };
        let segments = group.parts.iter().zip(group.batch.input_segments(group.parts)).map(segment).collect();
        let heads = self.head_gradients;
        let table = self.trained_table().map(|table| table.gradients(&touched.indexes));
        let words = |part: &Part| match (&table, network.spec.heads[part.task].kind) {
            (Some(rows), HeadKind::Mlm) => rows[part.present * self.keep.batches + part.batch],
            _ => Tensor::NONE,
        };
        let rows = group.batch.group_rows(group.parts);
        let room = self.trained_table().map_or(usize::MAX, |table| table.dinput.rows);
        assert!(rows.end <= room, "a batch of {} rows, the plan foresaw {room}", rows.end);
        Gradients {
            jacobian: JacobianRows { segments, added: !self.keep.stored, staging: Tensor::NONE },
            heads: group.parts.iter().map(|part| heads.range(network.table.head_range(part.task))).collect(),
            words: group.parts.iter().map(words).collect(),
            dinput: self.trained_table().map_or(Tensor::NONE, |table| table.dinput.rows(rows)),
        }
    }
}
