//! Batches whose logits are computed without training. They are given to the device one after the other and collected in the same
//! order, so that the host lays one out, or trains, while the device computes the one before.

use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use super::inference::{Features, GroupOf, Inputs};
use super::lane::Lane;
use super::prepared::narrow;
use super::program::{Graphs, Program, Step};
use super::transfer::Pieces;
use super::upload::StagingBuffer;
use super::{Readable, input_bytes};
use crate::machine::driver::{DeviceError, Driver, EventId, StagingId, StreamId};
use crate::machine::launch::Command;
use crate::machine::tape::Tape;
use crate::machine::tensor::{Tensor, pitch};
use crate::model::Model;
use crate::model::encoders;
use crate::model::network::{Batch, Limits, Network, Part};
use crate::model::spec::HeadKind;
use crate::ops::gather::Copy;

/// Logits of at most so many bytes are copied to pinned memory of their own; of more, such as those over a whole vocabulary, one batch
/// at a time is computed, and read piece by piece.
const MOST_PINNED: usize = 16 << 20;

/// Forward passes in a stream.
pub(super) struct Forward {
    stream: StreamId,
    slots: [Slot; 2],
    /// Batches so far.
    submitted: usize,
    collected: usize,
    graphs: Graphs,
    /// Those of the batch that was collected last.
    logits: Vec<f32>,
    /// Whether batches are timed from here on.
    timed: bool,
    spans: Vec<(Instant, Duration)>,
    /// When the last batch that was timed ended.
    ended: Option<Instant>,
}

/// A batch on its way.
struct Slot {
    examples: StagingBuffer,
    logits: Option<StagingId>,
    done: EventId,
    timers: [EventId; 2],
    shapes: Vec<Shape>,
    given: Instant,
    timed: bool,
}

/// Where batches are computed.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub lane: &'a Lane,
    pub pieces: &'a Pieces,
    pub from: Readable,
}

impl Forward {
    /// For batches within `limits`, in lanes like `lane`.
    pub fn new(
        device: &mut dyn Driver,
        stream: StreamId,
        lane: &Lane,
        network: &Network,
        limits: &Limits,
    ) -> Result<Self, DeviceError> {
        let bytes = 4 * lane.at.logits.columns;
        let mut slot = |name: &str| {
            Ok(Slot {
                examples: StagingBuffer::new(device, name, input_bytes(network, 1, &limits.of_group()))?,
                logits: (bytes <= MOST_PINNED).then(|| device.staging(bytes.max(4))).transpose()?,
                done: device.event()?,
                timers: [device.timer()?, device.timer()?],
                shapes: Vec::new(),
                given: Instant::now(),
                timed: false,
            })
        };
        let slots = [slot("evaluation: a batch's examples")?, slot("evaluation: the next batch's examples")?];
        let (graphs, logits, spans) = (Graphs::default(), Vec::new(), Vec::new());
        Ok(Self { stream, slots, submitted: 0, collected: 0, graphs, logits, timed: false, spans, ended: None })
    }

    /// Batches are computed in this stream from here on.
    pub fn compute_in(&mut self, stream: StreamId) {
        self.stream = stream;
    }

    /// Batches that may be under way while the host goes on.
    pub fn most_under_way(&self) -> usize {
        usize::from(self.slots[0].logits.is_some())
    }

    /// Times the batches that are submitted from here on, or no more.
    pub fn time(&mut self, wanted: bool) {
        self.timed = wanted;
    }

    /// When the batches that were timed and collected began, and how long each took; each once.
    pub fn spans(&mut self) -> Vec<(Instant, Duration)> {
        std::mem::take(&mut self.spans)
    }

    /// Gives a batch to the device; at most one more than [`Forward::most_under_way`] are there then.
    pub fn submit(&mut self, driver: &mut dyn Driver, at: Place, model: &Model, batch: &Batch) -> Result<(), DeviceError> {
        let (number, stream) = (self.submitted % 2, self.stream);
        assert!(self.submitted - self.collected <= self.most_under_way(), "batches are collected before there are more");
        let slot = &mut self.slots[number];
        let (commands, inputs) = lay_out(driver, &slot.examples, at.lane, at.from, model, batch, |tape, group| {
            model.network.emit_forward(tape, group, None);
        })?;
        slot.shapes = batch.parts.iter().map(|part| Shape::of(&model.network, part)).collect();
        (slot.given, slot.timed) = (Instant::now(), self.timed);
        let timer = |side: usize| self.timed.then_some(slot.timers[side]);
        let mut program = Program::default();
        program.time(timer(0), stream);
        program.push(slot.examples.send(stream, &inputs));
        program.run(stream, &commands);
        if let Some(to) = slot.logits {
            program.push(Step::CopyOut { stream, to, from: at.lane.at.logits.at, bytes: 4 * slot.pitched() });
        }
        program.time(timer(1), stream);
        self.graphs.execute(driver, stream, program)?;
        driver.record(slot.done, stream)?;
        self.submitted += 1;
        Ok(())
    }

    /// out (tokens x hidden) = what a transformer's frozen prefix makes of a batch; waits for it. No other batch is under way.
    pub fn prefix(
        &mut self,
        driver: &mut dyn Driver,
        at: Place,
        model: &Model,
        batch: &Batch,
        out: Tensor,
    ) -> Result<(), DeviceError> {
        assert!(self.submitted == self.collected, "batches are collected before others are computed");
        let (examples, stream) = (&self.slots[0].examples, self.stream);
        let (commands, inputs) = lay_out(driver, examples, at.lane, at.from, model, batch, |tape, group| {
            let Some(transformer) = model.network.spec.encoder.transformer() else { return };
            let pass = transformer.pass(group, None);
            transformer.compute_prefix(tape, &pass);
            tape.push(Copy { out, x: pass.at.prefix(&transformer.spec).rows(0..out.rows) });
        })?;
        let mut program = Program::default();
        program.push(examples.send(stream, &inputs));
        program.run(stream, &commands);
        self.graphs.execute(driver, stream, program)?;
        driver.synchronize(stream)
    }

    /// Logits of the oldest batch that was submitted and not collected, part after part; waits for it.
    pub fn collect(&mut self, driver: &mut dyn Driver, at: Place) -> Result<&[f32], DeviceError> {
        assert!(self.collected < self.submitted, "a batch was submitted");
        let slot = &self.slots[self.collected % 2];
        while !driver.event_done(slot.done)? {
            thread::yield_now();
        }
        self.logits.resize(slot.pitched(), 0.0);
        let out: &mut [u8] = bytemuck::cast_slice_mut(&mut self.logits);
        match slot.logits {
            Some(staging) => out.copy_from_slice(&driver.staging_bytes(staging)?[..out.len()]),
            None => at.pieces.download(driver, at.lane.at.logits.at, out)?,
        }
        close_gaps(&mut self.logits, &slot.shapes);
        if slot.timed {
            // One that was given while another was under way began at its end.
            let time = driver.elapsed(slot.timers[0], slot.timers[1])?;
            let began = self.ended.map_or(slot.given, |ended| ended.max(slot.given));
            self.ended = Some(began + time);
            self.spans.push((began, time));
        }
        self.collected += 1;
        Ok(&self.logits)
    }
}

impl Slot {
    /// Numbers of all logits with what pads their rows.
    fn pitched(&self) -> usize {
        self.shapes.iter().map(|shape| shape.rows * shape.pitch).sum()
    }
}

/// Lays a batch into pinned memory: what `emit` has to be computed of it in `lane`, and the bytes that are sent before.
pub(super) fn lay_out(
    driver: &mut dyn Driver,
    examples: &StagingBuffer,
    lane: &Lane,
    from: Readable,
    model: &Model,
    batch: &Batch,
    emit: impl for<'a> FnOnce(&mut Tape<'a>, &encoders::Group<'a>),
) -> Result<(Vec<Command>, Range<usize>), DeviceError> {
    let mut upload = examples.upload();
    let (network, parameters, parts) = (&model.network, &model.parameters, &batch.parts[..]);
    let (tokens, features) = (network.tokens(batch, parts), narrow(&batch.features, network.spec.encoder.inputs()));
    let inputs = Inputs { tokens: tokens.as_ref(), features: Features::Packed(&features), fetched: None };
    let group = GroupOf { network, parameters, batch, parts, inputs };
    let own = group.tensors(&mut upload, lane, from);
    let mut tape = Tape::default();
    emit(&mut tape, &own);
    let commands = tape.commands(&driver.card(), |table| upload.table(table));
    drop(tape);
    upload.close();
    examples.fill(driver, &mut upload)?;
    Ok((commands, upload.sections.swap_remove(0)))
}

/// Logits of a part on the device.
struct Shape {
    rows: usize,
    columns: usize,
    /// From one row to the next.
    pitch: usize,
}

impl Shape {
    fn of(network: &Network, part: &Part) -> Self {
        let head = &network.spec.heads[part.task];
        match head.kind {
            HeadKind::Mlm => Self { rows: part.targets.rows(head.outputs), columns: head.outputs, pitch: pitch(head.outputs) },
            _ => Self { rows: part.rows.len(), columns: head.outputs, pitch: head.outputs },
        }
    }
}

/// All rows end to end.
fn close_gaps(logits: &mut Vec<f32>, shapes: &[Shape]) {
    let (mut from, mut to) = (0, 0);
    for &Shape { rows, columns, pitch } in shapes {
        for _ in 0..rows {
            logits.copy_within(from..from + columns, to);
            (from, to) = (from + pitch, to + columns);
        }
    }
    logits.truncate(to);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pads_rows_is_left_out() {
        let mut logits = vec![1.0, 2.0, 3.0, 4.0, 5.0, 9.0, 6.0, 7.0, 9.0];
        let shape = |rows, columns, pitch| Shape { rows, columns, pitch };
        close_gaps(&mut logits, &[shape(1, 3, 3), shape(2, 2, 3), shape(0, 5, 8)]);
        assert_eq!(logits, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    }
}
