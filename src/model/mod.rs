//! The model: one list of every parameter, the shared encoders, the tasks' heads, and the network that runs a packed batch.

pub mod batch;
pub mod encoders;
pub mod gradients;
pub mod hf;
pub mod jacobian;
pub mod network;
pub mod params;
pub mod rows;
pub mod snapshot;
pub mod spec;
pub mod transformer;

use anyhow::Result;

use crate::machine::memory::{Buffer, Memory};
use network::{Batch, Network, Scratch, Weights};
use params::{DenseParams, fixed_params};
use rows::RowTable;
use spec::TableSpec;

/// A network and its parameters: all that evaluation, prediction and export need.
pub struct Model {
    pub network: Network,
    pub parameters: Parameters,
}

impl Model {
    pub fn new(memory: &mut Memory, network: Network, start: &Start) -> Result<Self> {
        let parameters = Parameters::new(memory, &network, start)?;
        Ok(Self { network, parameters })
    }

    /// Logits of a batch without training, part after part of its first group.
    pub fn predict<'s>(&self, batch: &Batch, scratch: &'s mut Scratch) -> &'s [f32] {
        self.network.forward(self.parameters.weights(), batch, &batch.parts, scratch, None);
        scratch.logits()
    }

    /// (tokens x hidden) what the frozen prefix makes of a batch; none where there is no transformer.
    pub fn prefix<'s>(&self, batch: &Batch, scratch: &'s mut Scratch) -> Option<&'s [f32]> {
        self.network.prefix(self.parameters.weights(), batch, scratch)
    }
}

/// Every value that training changes: shared dense parameters, heads, and the embedding table.
pub struct Parameters {
    pub shared: DenseParams,
    /// Shared parameters that do not change.
    pub frozen: Buffer,
    pub heads: DenseParams,
    pub rows: Option<RowTable>,
}

/// How a model starts and what its optimizer keeps.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    pub seed: u64,
    /// All heads of one shape start equal; otherwise each has its own draw.
    pub equal_heads: bool,
    /// The optimizer keeps a second moment.
    pub second_moment: bool,
    /// It is one number per embedding row instead of one per element.
    pub row_moment: bool,
    /// Most embedding rows that training can touch.
    pub row_capacity: usize,
}

impl Start {
    /// Numbers per embedding row of the table's second moment.
    pub fn second_dim(&self, table: &TableSpec) -> usize {
        match (self.second_moment && table.trained, self.row_moment) {
            (false, _) => 0,
            (true, true) => 1,
            (true, false) => table.dim,
        }
    }
}

impl Parameters {
    pub fn new(memory: &mut Memory, network: &Network, start: &Start) -> Result<Self> {
        let mut rows = network.spec.encoder.table().map(|table| RowTable::new(memory, table, start)).transpose()?;
        let whole = network.spec.reads_whole_table();
        rows.iter_mut().filter(|_| whole).for_each(RowTable::touch_all);
        Ok(Self {
            shared: DenseParams::new(memory, "encoder", &network.table.shared, start)?,
            frozen: fixed_params(memory, "frozen encoder", &network.table.frozen, start)?,
            heads: DenseParams::new(memory, "heads", &network.table.heads, start)?,
            rows,
        })
    }

    pub fn weights(&self) -> Weights<'_> {
        Weights {
            shared: &self.shared.values,
            frozen: &self.frozen,
            heads: &self.heads.values,
            rows: self.rows.as_ref().map(RowTable::view),
        }
    }
}
