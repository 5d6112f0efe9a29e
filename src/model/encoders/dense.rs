//! `linear` and `bag`: one layer over dense features, or over the sum of embedding rows of a text's n-grams.

use std::ops::Range;

use crate::machine::tape::Tape;
use crate::machine::tensor::Tensor;
use crate::model::network::{Network, Part};
use crate::ops::activation::{Activation, ActivationBackward};
use crate::ops::dropout::{Dropout, Randomness, RowKey};
use crate::ops::embedding_bag::{Bags, EmbeddingBagForward, RowInit};
use crate::ops::gather::Copy;
use crate::ops::heads::{Head, HeadsBackward, HeadsForward};
use crate::ops::jacobian_rows::JacobianRows;
use crate::ops::linear::{LinearForward, LinearInputBackward, LinearWeightBackward};
use crate::ops::loss::{Losses, Part as LossPart};

/// Activations of one group, for the most rows it may have; those that this encoder does not use are none.
#[derive(Clone, Copy, Debug)]
pub struct Activations {
    /// (rows x inputs) for bags; features come with the batch.
    pub input: Tensor,
    /// (rows x hidden) the activation's argument.
    pub pre: Tensor,
    /// (rows x hidden) each
    pub hidden: Tensor,
    pub dhidden: Tensor,
    /// (rows x hidden) the gradient that a shortcut passes on, where somebody wants it.
    pub shortcut: Tensor,
    /// f32, part after part.
    pub logits: Tensor,
    pub dlogits: Tensor,
    /// Room for a piece of a row of J that is kept in bf16.
    pub staging: Tensor,
    /// (rows) f64 losses, for a device's kernels.
    pub row_losses: Tensor,
}

/// Where the parameters lie.
#[derive(Clone, Copy, Debug)]
pub struct Weights {
    /// (hidden x inputs)
    pub weight: Tensor,
    /// (hidden) f32
    pub bias: Tensor,
    /// All heads' values, f32.
    pub heads: Tensor,
}

/// The embedding table of the `bag` encoder, of which only touched rows lie in memory.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    /// (rows) where each lies, or that it does not.
    pub slots: &'a [u32],
    /// (slots x dim) f32
    pub values: Tensor,
    pub init: RowInit,
}

/// A fused group: its rows, and where it is computed.
pub struct Group<'a> {
    pub parts: &'a [Part],
    /// In the batch.
    pub rows: Range<usize>,
    /// (rows)
    pub keys: &'a [RowKey],
    /// (rows x inputs) for the `linear` encoder.
    pub features: Tensor,
    /// Of the whole batch, for the `bag` encoder.
    pub bags: &'a Bags,
    pub table: Option<Table<'a>>,
    pub weights: Weights,
    pub at: Activations,
}

/// Where a group's gradients go.
pub struct Gradients {
    /// By part.
    pub jacobian: JacobianRows,
    /// (parts) gradient of each part's head.
    pub heads: Vec<Tensor>,
    /// (rows x inputs) f32 of the encoder's input; none where nobody needs it.
    pub dinput: Tensor,
}

impl<'a> Group<'a> {
    /// (rows x inputs)
    fn input(&self) -> Tensor {
        if self.at.input.is_none() { self.features } else { self.of(self.at.input) }
    }

    /// The rows of an activation that are in use.
    fn of(&self, whole: Tensor) -> Tensor {
        if whole.is_none() { whole } else { whole.rows(0..self.rows.len()) }
    }

    fn heads(&self, network: &Network, gradients: Option<&Gradients>) -> Vec<Head> {
        let head = |(number, part): (usize, &Part)| {
            let (weight, bias) = network.table.head(part.task);
            Head {
                rows: part.rows.start - self.rows.start..part.rows.end - self.rows.start,
                outputs: network.spec.heads[part.task].outputs,
                weight: self.weights.heads.range(weight.range()),
                bias: self.weights.heads.range(bias.range()),
                gradient: gradients.map_or(Tensor::NONE, |gradients| gradients.heads[number]),
                first: part.first && part.batch == 0,
            }
        };
        self.parts.iter().enumerate().map(head).collect()
    }

    fn dropout(&self, tape: &mut Tape<'a>, network: &Network, x: Tensor, random: Option<Randomness>) {
        let probability = network.spec.encoder.dropout;
        if let Some(random) = random.filter(|_| probability > 0.0) {
            tape.push(Dropout { x, keys: self.keys, probability, random });
        }
    }
}

/// Encoder and heads; dropout with `random`.
pub fn forward<'a>(tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, random: Option<Randomness>) {
    let encoder = &network.spec.encoder;
    let (at, x) = (&group.at, group.input());
    if let (Some(_), Some(Table { slots, values, init })) = (encoder.bag(), group.table) {
        tape.push(EmbeddingBagForward { out: x, bags: group.bags, examples: group.rows.clone(), slots, values, init });
    }
    let hidden = group.of(at.hidden);
    tape.push(LinearForward {
        out: hidden,
        pre: group.of(at.pre),
        x,
        weight: group.weights.weight,
        bias: group.weights.bias,
        activation: encoder.activation,
        residual: if encoder.residual { x } else { Tensor::NONE },
    });
    group.dropout(tape, network, hidden, random);
    tape.push(HeadsForward { logits: at.logits, hidden, heads: group.heads(network, None) });
}

/// Losses after [`forward`], and the gradients of the logits; `sums` (present tasks) f64.
pub fn losses<'a>(tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, sums: Tensor) {
    let part = |part: &'a Part| {
        let first = part.first && part.batch == 0;
        LossPart { sum: part.present, first, ..network.loss_part(part) }
    };
    let Activations { dlogits, logits, row_losses, .. } = group.at;
    tape.push(Losses { sums, dlogits, logits, row_losses, parts: group.parts.iter().map(part).collect() });
}

/// Gradients after [`forward`] and [`losses`].
pub fn backward<'a>(tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, gradients: Gradients, random: Randomness) {
    let encoder = &network.spec.encoder;
    let (at, x) = (&group.at, group.input());
    let (hidden, dhidden) = (group.of(at.hidden), group.of(at.dhidden));
    let heads = group.heads(network, Some(&gradients));
    tape.push(HeadsBackward { dhidden, dlogits: at.dlogits, hidden, heads });
    group.dropout(tape, network, dhidden, Some(random));
    let shortcut = group.of(at.shortcut);
    if !shortcut.is_none() {
        // The shortcut passes dhidden on as it is here; the layer's branch changes it in place below.
        tape.push(Copy { out: shortcut, x: dhidden });
    }
    if encoder.activation != Activation::None {
        tape.push(ActivationBackward { dout: dhidden, pre: group.of(at.pre), activation: encoder.activation });
    }
    let Gradients { jacobian, dinput, .. } = gradients;
    tape.push(LinearWeightBackward { dout: dhidden, x, jacobian, columns: 0..network.table.shared_len() });
    if !dinput.is_none() {
        tape.push(LinearInputBackward { residual: shortcut, ..LinearInputBackward::new(dinput, dhidden, group.weights.weight) });
    }
}
