//! Logits without training: of the device that trains, or of one that holds nothing but parameters and the activations of a batch.

use anyhow::Result;

use super::Readable;
use super::forward::{Forward, Place};
use super::lane::Lane;
use super::parameters::ParametersOnDevice;
use super::program::{Graphs, Program};
use super::transfer::Pieces;
use super::upload::Upload;
use crate::machine::driver::{DeviceError, Driver, Priority, StreamId};
use crate::machine::tensor::{DType, Tensor, pitch};
use crate::model::encoders::{self, Fetched, Table};
use crate::model::network::{Batch, Limits, Network, Part, TokenRoom, group_rows};
use crate::model::transformer::TokenGroup;
use crate::model::{Model, Parameters};
use crate::ops::storage::bf16;

/// A model's parameters on a device, and room for the activations of one batch.
pub struct Inference {
    driver: Box<dyn Driver>,
    from: Readable,
    lane: Lane,
    forward: Forward,
    pieces: Pieces,
}

impl Inference {
    /// Allocates everything for batches within `limits`, and copies the parameters.
    pub fn new(mut driver: Box<dyn Driver>, model: &Model, limits: &Limits) -> Result<Self> {
        let stream = driver.stream(Priority::Normal)?;
        let (from, pieces) = copy_parameters(&mut *driver, stream, model)?;
        let lane = Lane::new(&mut *driver, stream, 0, &model.network, limits)?;
        let forward = Forward::new(&mut *driver, stream, &lane, &model.network, limits)?;
        Ok(Self { driver, from, lane, forward, pieces })
    }

    /// As [`super::Accelerator::submit`].
    pub fn submit(&mut self, model: &Model, batch: &Batch) -> Result<(), DeviceError> {
        let Self { driver, from, lane, forward, pieces } = self;
        forward.submit(&mut **driver, Place { lane, pieces, from: *from }, model, batch)
    }

    /// As [`super::Accelerator::collect`].
    pub fn collect(&mut self) -> Result<&[f32], DeviceError> {
        let Self { driver, from, lane, forward, pieces } = self;
        forward.collect(&mut **driver, Place { lane, pieces, from: *from })
    }

    /// (rows x hidden) what the heads saw in the batch that was collected last, of so many rows.
    pub fn hidden(&mut self, rows: usize) -> Result<Vec<f32>, DeviceError> {
        let hidden = self.lane.at.hidden;
        let mut narrow = vec![bf16::ZERO; rows * hidden.ld];
        self.pieces.download(&mut *self.driver, hidden.at, bytemuck::cast_slice_mut(&mut narrow))?;
        let own = narrow.chunks_exact(hidden.ld).flat_map(|row| &row[..hidden.columns]);
        Ok(own.map(|value| value.to_f32()).collect())
    }

    /// Batches that may be under way while the host goes on.
    pub fn most_under_way(&self) -> usize {
        self.forward.most_under_way()
    }

    /// What a batch may have, where the encoder reads tokens.
    pub fn token_room(&self) -> Option<TokenRoom> {
        self.lane.at.token_room()
    }
}

/// Copies a model's parameters to a device that does not train; waits until they are there.
pub(super) fn copy_parameters(device: &mut dyn Driver, stream: StreamId, model: &Model) -> Result<(Readable, Pieces)> {
    let Model { network, parameters } = model;
    let own = ParametersOnDevice::without_moments(device, network)?;
    let table = match &parameters.rows {
        Some(host) => {
            let (rows, dim) = (host.touched().len(), host.dim());
            let at = device.allocate("embeddings: parameters", (4 * rows * dim).max(1))?;
            Tensor::dense(at, rows, dim, DType::F32)
        }
        None => Tensor::NONE,
    };
    let from = Readable { weights: own.weights, table, states: Tensor::NONE };
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
    Ok((from, pieces))
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
    /// What the device fetched.
    pub fetched: Option<Fetched<'a>>,
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
        let Readable { weights, states, .. } = from;
        encoders::Group { parts, batch, rows, tokens, features, fetched, table, states, weights, at: &lane.at }
    }
}
