//! Logits without training: of the device that trains, or of one that holds nothing but parameters and the activations of a batch.

use anyhow::Result;

use super::lane::Lane;
use super::parameters::ParametersOnDevice;
use super::prepared::narrow;
use super::program::{Graphs, Program};
use super::transfer::Pieces;
use super::upload::{StagingBuffer, Upload};
use super::{Readable, input_bytes};
use crate::machine::driver::{Card, DeviceError, Driver, Priority, StreamId};
use crate::machine::tape::Tape;
use crate::machine::tensor::{DType, Tensor, pitch};
use crate::model::encoders::{self, Table};
use crate::model::network::{Batch, Limits, Network, Part, TokenRoom, group_rows};
use crate::model::spec::HeadKind;
use crate::model::transformer::TokenGroup;
use crate::model::{Model, Parameters};
use crate::ops::row_index::RowLists;
use crate::ops::storage::bf16;

/// A model's parameters on a device, and room for the activations of one batch.
pub struct Inference {
    driver: Box<dyn Driver>,
    card: Card,
    stream: StreamId,
    graphs: Graphs,
    from: Readable,
    lane: Lane,
    batches: StagingBuffer,
    pieces: Pieces,
    /// Those of the last batch.
    logits: Vec<f32>,
}

impl Inference {
    /// Allocates everything for batches within `limits`, and copies the parameters.
    pub fn new(mut driver: Box<dyn Driver>, model: &Model, limits: &Limits) -> Result<Self> {
        let (device, Model { network, parameters }) = (&mut *driver, model);
        let stream = device.stream(Priority::Low)?;
        let own = ParametersOnDevice::without_moments(device, network)?;
        let table = match &parameters.rows {
            Some(host) => {
                let (rows, dim) = (host.touched().len(), host.dim());
                let at = device.allocate("embeddings: parameters", (4 * rows * dim).max(1))?;
                Tensor::dense(at, rows, dim, DType::F32)
            }
            None => Tensor::NONE,
        };
        let from = Readable { weights: own.weights, table };
        let lane = Lane::new(device, 0, network, limits)?;
        let batches = StagingBuffer::new(device, "a batch's examples", input_bytes(network, 1, limits))?;
        let frozen = from.weights.frozen.wide;
        let arrays = [from.weights.shared.wide, from.weights.heads, frozen, table].map(|own| own.rows * own.columns);
        let pieces = Pieces::new(device, stream, &arrays)?;
        pieces.load(device, &own, &from, parameters)?;
        if let Some(narrow) = own.narrow_frozen() {
            pieces.upload(device, frozen.at, bytemuck::cast_slice(&parameters.frozen))?;
            let mut program = Program::default();
            program.launch(stream, narrow);
            Graphs::default().execute(device, stream, program)?;
        }
        device.synchronize(stream)?;
        let (card, graphs, logits) = (driver.card(), Graphs::default(), Vec::new());
        Ok(Self { driver, card, stream, graphs, from, lane, batches, pieces, logits })
    }

    /// As [`super::Accelerator::predict`].
    pub fn predict(&mut self, model: &Model, batch: &Batch) -> Result<&[f32], DeviceError> {
        let Self { driver, card, stream, graphs, from, lane, batches, pieces, logits } = self;
        let forward = Forward { card, stream: *stream, batches, lane, pieces, from: *from };
        forward.logits(&mut **driver, graphs, model, batch, logits)?;
        Ok(logits)
    }

    /// What a batch may have, where the encoder reads tokens.
    pub fn token_room(&self) -> Option<TokenRoom> {
        self.lane.at.token_room()
    }
}

/// Where a batch is computed without training.
pub(super) struct Forward<'a> {
    pub card: &'a Card,
    pub stream: StreamId,
    pub batches: &'a StagingBuffer,
    pub lane: &'a Lane,
    pub pieces: &'a Pieces,
    pub from: Readable,
}

impl Forward<'_> {
    /// Logits of a batch, part after part; waits for them.
    pub fn logits(
        &self,
        driver: &mut dyn Driver,
        graphs: &mut Graphs,
        model: &Model,
        batch: &Batch,
        logits: &mut Vec<f32>,
    ) -> Result<(), DeviceError> {
        let mut upload = self.batches.upload();
        let (network, parameters, parts) = (&model.network, &model.parameters, &batch.parts[..]);
        let (tokens, features) = (network.tokens(batch, parts), narrow(&batch.features, network.spec.encoder.inputs()));
        let inputs = Inputs { tokens: tokens.as_ref(), features: Features::Packed(&features), fetched: None };
        let group = GroupOf { network, parameters, batch, parts, inputs };
        let own = group.tensors(&mut upload, self.lane, self.from);
        let mut tape = Tape::default();
        network.emit_forward(&mut tape, &own, None);
        let commands = tape.commands(self.card, |table| upload.table(table));
        drop(tape);
        upload.close();
        self.batches.fill(driver, &mut upload)?;
        let mut program = Program::default();
        program.push(self.batches.send(self.stream, &upload.sections[0]));
        program.run(self.stream, &commands);
        graphs.execute(driver, self.stream, program)?;
        let shapes: Vec<Shape> = parts.iter().map(|part| Shape::of(network, part)).collect();
        logits.resize(shapes.iter().map(|shape| shape.rows * shape.pitch).sum(), 0.0);
        self.pieces.download(driver, self.lane.at.logits.at, bytemuck::cast_slice_mut(logits))?;
        close_gaps(logits, &shapes);
        Ok(())
    }
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

/// A fused group, on the host.
pub(super) struct GroupOf<'a> {
    pub network: &'a Network,
    pub parameters: &'a Parameters,
    pub batch: &'a Batch,
    pub parts: &'a [Part],
    pub inputs: Inputs<'a>,
}

/// What a group's encoder reads.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub tokens: Option<&'a TokenGroup>,
    pub features: Features<'a>,
    /// N-grams that the device fetched.
    pub fetched: Option<&'a RowLists>,
}

/// Where features come from.
#[derive(Clone, Copy)]
pub(super) enum Features<'a> {
    /// Of the whole batch, as [`narrow`] makes them.
    Packed(&'a [bf16]),
    /// (rows x features) of the group.
    Fetched(Tensor),
}

impl<'a> GroupOf<'a> {
    /// The group as its encoder sees it; its features are laid out.
    pub fn tensors(self, upload: &mut Upload, lane: &'a Lane, from: Readable) -> encoders::Group<'a> {
        let Self { network, parameters, batch, parts, inputs: Inputs { tokens, features, fetched } } = self;
        let (rows, inputs) = (group_rows(parts), network.spec.encoder.inputs());
        let host = parameters.rows.as_ref().map(|host| host.view());
        let table = host.map(|host| Table { slots: host.slots, values: from.table, init: host.init });
        let features = match features {
            Features::Fetched(own) => own,
            Features::Packed([]) => Tensor::NONE,
            Features::Packed(all) => {
                let own = &all[rows.start * pitch(inputs)..rows.end * pitch(inputs)];
                Tensor::padded(upload.push(own), rows.len(), inputs, DType::Bf16)
            }
        };
        encoders::Group { parts, batch, rows, tokens, features, fetched, table, weights: from.weights, at: &lane.at }
    }
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
