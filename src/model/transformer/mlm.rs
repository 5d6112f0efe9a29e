//! The head of masked language modelling, as BERT's: a layer with GELU and normalization, then the word table as decoder
//! (tied) with a bias of its own.
//!
//! Logits over the vocabulary are many. The host keeps those of a whole group; a device computes some rows of them, their losses
//! and what follows from these up to the decoder's input, and then the next rows in the same memory.

use std::ops::Range;

use anyhow::Result;

use super::Transformer;
use crate::machine::tape::Tape;
use crate::machine::tensor::{Tensor, pitch};
use crate::model::encoders::activations::Allocator;
use crate::model::spec::{Init, Param};
use crate::ops::activation::{Activation, ActivationBackward};
use crate::ops::gemm::Write;
use crate::ops::jacobian_rows::{JacobianRows, Segment};
use crate::ops::layer_norm::{LayerNormBackward, LayerNormForward};
use crate::ops::linear::{DecoderBackward, LinearForward, LinearInputBackward, LinearWeightBackward};
use crate::ops::vocabulary_loss::VocabularyLoss;

/// Activations of all masked tokens of a group (m).
#[derive(Clone, Debug)]
pub struct MlmActivations {
    /// (m x hidden) before and after GELU, after normalization; (m x 2) f32 its statistics.
    pub pre: Tensor,
    pub act: Tensor,
    pub out: Tensor,
    pub stats: Tensor,
    /// (m x hidden) gradients.
    pub d: Tensor,
    pub da: Tensor,
    /// (rows x vocabulary) logits of some rows at a time, then their gradients; none where all are kept.
    pub logits: Tensor,
}

impl MlmActivations {
    /// For `masked` tokens, of whose logits some are computed at once where not all are kept.
    pub fn new(room: &mut dyn Allocator, [hidden, vocabulary]: [usize; 2], [masked, at_once]: [usize; 2]) -> Result<Self> {
        let rows = if room.keeps_words() { 0 } else { at_once };
        Ok(Self {
            pre: room.activation("masked tokens' layer", masked, hidden)?,
            act: room.activation("masked tokens' layer activated", masked, hidden)?,
            out: room.activation("masked tokens' layer normalized", masked, hidden)?,
            stats: room.numbers("masked tokens' statistics", masked, 2)?,
            d: room.activation("masked tokens' gradient", masked, hidden)?,
            da: room.activation("masked tokens' gradient of the layer", masked, hidden)?,
            logits: room.activation("masked tokens' logits, some at a time", rows, vocabulary)?,
        })
    }
}

/// The head's parameters: layer, normalization, decoder bias.
pub fn mlm_params(params: &mut Vec<Param>, block: &str, hidden: usize, vocabulary: usize, init: f64) {
    let shapes = [
        ("transform.weight", vec![hidden, hidden], Init::Normal(init)),
        ("transform.bias", vec![hidden], Init::Zero),
        ("LayerNorm.weight", vec![hidden], Init::One),
        ("LayerNorm.bias", vec![hidden], Init::Zero),
        ("decoder.bias", vec![vocabulary], Init::Zero),
    ];
    for (name, shape, init) in shapes {
        let offset = params.last().map_or(0, |param| param.range().end);
        let decay = shape.len() > 1;
        params.push(Param { name: format!("{block}.{name}"), shape, block: block.into(), offset, init, decay });
    }
}

/// One task's head over some masked tokens.
pub(super) struct Decoder {
    /// The head's values, a row.
    pub values: Tensor,
    /// (hidden x hidden) its layer, and (vocabulary x hidden) the word table in row order, for products; with an `mlm` head all of
    /// the table is kept.
    pub layer: Tensor,
    pub words: Tensor,
    /// Of the masked tokens of the group.
    pub rows: Range<usize>,
}

/// Where a head's gradients go.
pub(super) struct MlmGradients {
    /// As the head's values.
    pub head: Tensor,
    /// (vocabulary x hidden); none where the table is frozen.
    pub words: Tensor,
    /// Of the words, and of the head.
    pub write: [Write; 2],
}

impl Decoder {
    /// Layer (weight and bias), normalization (gain and shift) and decoder bias of the head's values or gradients.
    fn cut(&self, whole: Tensor, h: usize) -> [Tensor; 3] {
        let (layer, norm) = (h * h + h, 2 * h);
        [whole.range(0..layer), whole.range(layer..layer + norm), whole.range(layer + norm..whole.columns)]
    }

    /// logits = x times the word table, and a bias.
    fn product(&self, h: usize, logits: Tensor, x: Tensor) -> LinearForward {
        let ([.., bias], none) = (self.cut(self.values, h), Tensor::NONE);
        let (weight, activation) = (self.words, Activation::None);
        LinearForward { out: logits, pre: none, x, weight, bias, activation, residual: none }
    }
}

impl Transformer {
    /// The decoder's input of masked tokens whose last layer is `hidden` (m x h).
    pub(super) fn mlm_layer(&self, tape: &mut Tape, hidden: Tensor, head: &Decoder, s: &MlmActivations) {
        let (h, rows) = (self.hidden, &head.rows);
        let [pre, act, out] = [s.pre, s.act, s.out].map(|own| own.rows(rows.clone()));
        let [layer, norm, _] = head.cut(head.values, h);
        let (weight, bias, residual) = (head.layer, layer.range(h * h..h * h + h), Tensor::NONE);
        tape.push(LinearForward { out: act, pre, x: hidden, weight, bias, activation: Activation::Gelu, residual });
        let norm = self.norm((norm.range(0..h), norm.range(h..2 * h)));
        tape.push(LayerNormForward { out, stats: s.stats.rows(rows.clone()), x: act, norm });
    }

    /// logits (m x vocabulary) after [`Transformer::mlm_layer`].
    pub(super) fn mlm_logits(&self, tape: &mut Tape, logits: Tensor, head: &Decoder, s: &MlmActivations) {
        tape.push(head.product(self.hidden, logits, s.out.rows(head.rows.clone())));
    }

    /// Losses of all rows, against `targets` and in (m) `row_losses`, after [`Transformer::mlm_layer`], some rows at a time; with
    /// `to` the decoder's gradients, and that of its input.
    pub(super) fn mlm_losses<'a>(
        &self,
        tape: &mut Tape<'a>,
        (targets, scale): (&'a [u32], f32),
        row_losses: Tensor,
        to: Option<&MlmGradients>,
        head: &Decoder,
        s: &MlmActivations,
    ) {
        let (first, backward) = (head.rows.start, to.is_some());
        // Gradients are written even where there is no row.
        for start in (0..targets.len().max(1)).step_by(s.logits.rows.max(1)) {
            let rows = start..(start + s.logits.rows).min(targets.len());
            let of = |own: Tensor| own.rows(first + rows.start..first + rows.end);
            let (x, d, logits) = (of(s.out), of(s.d), s.logits.rows(0..rows.len()));
            tape.push(head.product(self.hidden, logits, x));
            let (targets, row_losses) = (&targets[rows.clone()], row_losses.range(rows.clone()));
            tape.push(VocabularyLoss { logits, row_losses, targets, scale, backward });
            if let Some(to) = to {
                let write = if start == 0 { to.write } else { [Write::Add; 2] };
                self.decoder_backward(tape, [d, logits, x], &MlmGradients { write, ..*to }, head);
            }
        }
    }

    /// The decoder's gradients, and `d` of its input `x`.
    fn decoder_backward(&self, tape: &mut Tape, [d, dlogits, x]: [Tensor; 3], to: &MlmGradients, head: &Decoder) {
        let [.., bias] = head.cut(to.head, self.hidden);
        tape.push(DecoderBackward { weight: to.words, bias, dout: dlogits, x, write: to.write });
        tape.push(LinearInputBackward::new(d, dlogits, head.words));
    }

    /// Gradients of [`Transformer::mlm_logits`]; the words' gain the decoder's share for every row of the table.
    pub(super) fn mlm_logits_backward(
        &self,
        tape: &mut Tape,
        dlogits: Tensor,
        to: &MlmGradients,
        head: &Decoder,
        s: &MlmActivations,
    ) {
        let [d, x] = [s.d, s.out].map(|own| own.rows(head.rows.clone()));
        self.decoder_backward(tape, [d, dlogits, x], to, head);
    }

    /// Gradients of [`Transformer::mlm_layer`], from that of the decoder's input.
    pub(super) fn mlm_layer_backward(
        &self,
        tape: &mut Tape,
        [dhidden, hidden, partials]: [Tensor; 3],
        to: &MlmGradients,
        head: &Decoder,
        s: &MlmActivations,
    ) {
        let (h, rows, [_, write]) = (self.hidden, &head.rows, to.write);
        let of = |own: Tensor| own.rows(rows.clone());
        let [d, da, act, stats] = [s.d, s.da, s.act, s.stats].map(of);
        let ([dlayer, dnorm, _], [_, norm, _]) = (head.cut(to.head, h), head.cut(head.values, h));
        let into = |row: Tensor| JacobianRows {
            segments: vec![Segment { rows: 0..rows.len(), row, write }],
            added: false,
            staging: Tensor::NONE,
        };
        let (jacobian, columns, gain) = (into(dnorm), 0..2 * h, norm.range(0..h));
        tape.push(LayerNormBackward { dx: da, dout: d, x: act, stats, gain, jacobian, columns, partials });
        tape.push(ActivationBackward { dout: da, pre: of(s.pre), activation: Activation::Gelu });
        let columns = 0..h * h + h;
        tape.push(LinearWeightBackward { dout: da, x: hidden, jacobian: into(dlayer), columns, partials });
        tape.push(LinearInputBackward::new(dhidden, da, head.layer));
    }
}

/// (rows x vocabulary) logits from the first of a row of all on, whose rows lie [`pitch`] apart unless all logits of training are
/// kept.
pub(super) fn logits_of(all: Tensor, rows: usize, vocabulary: usize, kept: bool) -> Tensor {
    if kept { all.as_rows(rows, vocabulary) } else { Tensor { columns: vocabulary, ..all.as_rows(rows, pitch(vocabulary)) } }
}
