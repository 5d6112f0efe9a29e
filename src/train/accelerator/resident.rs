//! Tables of launches that are the same in every round.

use super::gram_cut;
use super::program::{Graphs, Program};
use super::upload::{Places, StagingBuffer};
use crate::machine::driver::{Address, DeviceError, Driver, StreamId};
use crate::machine::tape::{Bytes, Op};
use crate::machine::tensor::Tensor;
use crate::model::network::Network;
use crate::ops::adamw::Rule;
use crate::ops::chunks::Chunks;
use crate::ops::column_rule::How;
use crate::ops::update::ParameterState;
use crate::surgery::blocks::Blocks;
use crate::surgery::update::{Rates, shared_update};

/// Tables that lie on the device for good.
pub(super) struct Resident(Places);

impl Resident {
    /// Where a table lies, if it is one of these.
    pub fn place(&self, table: &Bytes) -> Option<Address> {
        self.0.get(table).copied()
    }

    /// How the columns of J are cut for the kernels.
    pub fn new(device: &mut dyn Driver, stream: StreamId, network: &Network, blocks: &Blocks) -> Result<Self, DeviceError> {
        let width = network.table.shared_len() as u64;
        let none = Tensor::NONE;
        let state = ParameterState { values: none, first: none, second: none, copy: none };
        let rates = Rates { rule: Rule::Sgd { momentum: 0.0 }, lr: 0.0, head_lr: 0.0, embedding_lr: 0.0, weight_decay: 0.0 };
        let update = shared_update(network, blocks, state, Vec::new(), How::Weights(none), none, &rates);
        let mut tables = update.tables()[..4].to_vec();
        tables.extend(gram_cut(blocks).chunks.tables());
        tables.extend(Chunks::of_range(0..width, Chunks::gram_length(width)).tables());
        let constants = StagingBuffer::new(device, "chunks", tables.iter().map(|table| table.len() + 16).sum())?;
        let mut upload = constants.upload();
        let places = tables.into_iter().map(|table| (table.clone(), upload.table(table))).collect();
        upload.close();
        constants.fill(device, &mut upload)?;
        let mut program = Program::default();
        program.push(constants.send(stream, &upload.sections[0]));
        Graphs::default().execute(device, stream, program)?;
        device.synchronize(stream)?;
        Ok(Self(places))
    }
}
