//! What an encoder is, and what a fused group is to the code that emits its tapes, whatever the machine.

pub mod activations;
pub mod bag;
pub mod heads;
pub mod linear;

use std::ops::Range;

use anyhow::Result;

use crate::machine::tape::Tape;
use crate::machine::tensor::{DType, Tensor, pitch};
use crate::model::network::{Batch, Limits, Network, Part, Randomness};
use crate::model::spec::{HeadSpec, Param, TableSpec};
use crate::model::transformer::{TokenGroup, Transformer, TransformerSpec};
use crate::ops::embedding_bag::RowInit;
use crate::ops::jacobian_rows::JacobianRows;
use crate::ops::row_index::{RowLists, TokensAt};
use activations::{Activations, Allocator};

/// The shared trunk: its parameters, what it reads, and the operations from there to the logits and back.
pub trait Encoder: Send + Sync {
    /// Width of what the heads see.
    fn hidden(&self) -> usize;

    fn reads(&self) -> Input<'_>;

    /// Columns of its input: of the features, or of the embedding table.
    fn inputs(&self) -> usize {
        match (self.reads(), self.table()) {
            (Input::Features(columns), _) => columns,
            (_, table) => table.map_or(0, |table| table.dim),
        }
    }

    /// Dense parameters, each list end to end: those that are trained, and those that stay as they are.
    fn params(&self) -> [Vec<Param>; 2];

    fn table(&self) -> Option<TableSpec> {
        None
    }

    /// Most columns of J that the backward pass writes at once.
    fn largest_piece(&self) -> usize {
        self.params()[0].iter().map(Param::len).sum()
    }

    /// Room for the largest group.
    fn activations(&self, room: &mut dyn Allocator, limits: &Limits) -> Result<Activations>;

    /// Rows of its input in the largest round, and in what a device keeps their gradient.
    fn input_gradient(&self, limits: &Limits) -> (usize, DType) {
        (limits.round_rows, DType::F32)
    }

    /// Bytes that its operations read of a batch on a device, beside features and the table's rows: for each example, and for all.
    fn upload_bytes(&self, _: &Limits) -> [usize; 2] {
        [0; 2]
    }

    /// How the tokens of a group are read, where it reads tokens.
    fn tokens(&self, _: &Batch, _: &[Part], _: &[HeadSpec]) -> Option<TokenGroup> {
        None
    }

    /// Encoder and heads of a group; logits part after part. Dropout with `random`.
    fn forward<'a>(&self, tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, random: Option<Randomness>);

    /// After [`Encoder::forward`], losses over a whole vocabulary where the machine does not keep all their logits: into their rows
    /// of `row_losses`, and with `to` the gradients up to the decoder's input.
    fn word_losses<'a>(&self, _: &mut Tape<'a>, _: &Network, _: &Group<'a>, _row_losses: Tensor, _to: Option<&Gradients>) {}

    /// Gradients after [`Encoder::forward`] and the losses.
    fn backward<'a>(&self, tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, to: Gradients, random: Randomness);

    /// Why no device computes it, if none does.
    fn device_fault(&self) -> Option<String> {
        None
    }

    /// For what only a transformer has: recomputed activations, kept states of a frozen prefix, Hugging Face's files.
    fn transformer(&self) -> Option<&Transformer> {
        None
    }
}

/// What an encoder reads of an example.
pub enum Input<'a> {
    /// So many features.
    Features(usize),
    /// The embedding rows of its text's n-grams.
    Bags(&'a bag::Bag),
    /// The tokens of its text, each with its embedding row.
    Tokens(&'a TransformerSpec),
}

/// Parameters of one space, each a row of all values.
#[derive(Clone, Copy, Debug)]
pub struct Values {
    /// f32
    pub wide: Tensor,
    /// What products read of them: the same on the host; on a device in bf16, the rows of a matrix as kernels store them.
    pub narrow: Tensor,
}

impl Values {
    /// None of them.
    pub const NONE: Self = Self { wide: Tensor::NONE, narrow: Tensor::NONE };

    /// Some neighbours.
    pub fn range(self, range: Range<usize>) -> Self {
        Self { wide: self.wide.range(range.clone()), narrow: self.narrow.range(range) }
    }

    /// (rows x columns) the matrix that begins with element `start`, for products.
    pub fn matrix(&self, start: usize, rows: usize, columns: usize) -> Tensor {
        let Tensor { at, dtype, .. } = self.narrow;
        let ld = if dtype == DType::Bf16 { pitch(columns) } else { columns };
        let at = if self.narrow.is_none() { 0 } else { at + (start * dtype.bytes()) as u64 };
        Tensor { at, rows, columns, ld, dtype }
    }
}

/// Where the parameters lie.
#[derive(Clone, Copy, Debug)]
pub struct Weights {
    /// Shared ones, trained and frozen.
    pub shared: Values,
    pub frozen: Values,
    /// All heads' values, f32.
    pub heads: Tensor,
    /// (`mlm` heads x hidden, hidden) the layer of each, on a device in bf16; none on the host, which reads `heads`.
    pub mlm_layers: Tensor,
    /// The word table as a row, where an `mlm` head reads it whole; on a device in bf16.
    pub words: Tensor,
}

/// The embedding table, of which only touched rows lie in memory.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    /// (rows) where each lies, or that it does not.
    pub slots: &'a [u32],
    /// (slots x dim) f32
    pub values: Tensor,
    pub init: RowInit,
}

/// What a device fetched of a batch's examples.
#[derive(Clone, Copy)]
pub enum Fetched<'a> {
    /// Their n-grams.
    Bags(&'a RowLists),
    /// Their tokens, with what pads groups.
    Tokens(TokensAt),
}

/// A fused group: its rows, and where it is computed.
pub struct Group<'a> {
    pub parts: &'a [Part],
    pub batch: &'a Batch,
    /// Of the batch.
    pub rows: Range<usize>,
    /// Its tokens, for the `transformer`.
    pub tokens: Option<&'a TokenGroup>,
    /// (rows x inputs) for the `linear` encoder.
    pub features: Tensor,
    /// What a device fetched of the batch's examples, if it did.
    pub fetched: Option<Fetched<'a>>,
    pub table: Option<Table<'a>>,
    /// (rows x hidden) what a device keeps of a transformer's frozen prefix, or none.
    pub states: Tensor,
    pub weights: Weights,
    pub at: &'a Activations,
}

/// Where a group's gradients go.
pub struct Gradients {
    /// By part.
    pub jacobian: JacobianRows,
    /// (parts) gradient of each part's head.
    pub heads: Vec<Tensor>,
    /// (parts) gradient of the whole word table, for `mlm` heads; else none.
    pub words: Vec<Tensor>,
    /// (rows or tokens x inputs) of the encoder's input; none where nobody needs it.
    pub dinput: Tensor,
}
