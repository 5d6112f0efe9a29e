//! The head of masked language modelling, as BERT's: a layer with GELU and normalization, then the word table as decoder
//! (tied) with a bias of its own.

use std::ops::Range;

use anyhow::Result;

use super::Transformer;
use crate::machine::tape::Tape;
use crate::machine::tensor::Tensor;
use crate::model::encoders::activations::Allocator;
use crate::model::spec::{Init, Param};
use crate::ops::activation::{Activation, ActivationBackward};
use crate::ops::gemm::Write;
use crate::ops::jacobian_rows::{JacobianRows, Segment};
use crate::ops::layer_norm::{LayerNormBackward, LayerNormForward};
use crate::ops::linear::{DecoderBackward, LinearForward, LinearInputBackward, LinearWeightBackward};

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
}

impl MlmActivations {
    pub fn new(room: &mut dyn Allocator, hidden: usize, masked: usize) -> Result<Self> {
        Ok(Self {
            pre: room.activation("masked tokens' layer", masked, hidden)?,
            act: room.activation("masked tokens' layer activated", masked, hidden)?,
            out: room.activation("masked tokens' layer normalized", masked, hidden)?,
            stats: room.numbers("masked tokens' statistics", masked, 2)?,
            d: room.activation("masked tokens' gradient", masked, hidden)?,
            da: room.activation("masked tokens' gradient of the layer", masked, hidden)?,
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
    /// The word table in row order, a row; with an `mlm` head all of it is kept.
    pub words: Tensor,
    /// Of the masked tokens of the group.
    pub rows: Range<usize>,
}

impl Decoder {
    /// Layer (weight and bias), normalization (gain and shift) and decoder bias of the head's values or gradients.
    fn cut(&self, whole: Tensor, h: usize) -> [Tensor; 3] {
        let (layer, norm) = (h * h + h, 2 * h);
        [whole.range(0..layer), whole.range(layer..layer + norm), whole.range(layer + norm..whole.columns)]
    }
}

impl Transformer {
    /// logits (m x vocabulary) of masked tokens whose last layer is `hidden` (m x h).
    pub(super) fn mlm_forward(&self, tape: &mut Tape, logits: Tensor, hidden: Tensor, head: &Decoder, s: &MlmActivations) {
        let (h, v) = (self.hidden, self.spec.vocabulary);
        let (residual, rows) = (Tensor::NONE, &head.rows);
        let [pre, act, out] = [s.pre, s.act, s.out].map(|own| own.rows(rows.clone()));
        let [layer, norm, decoder] = head.cut(head.values, h);
        let (weight, bias) = (layer.range(0..h * h).as_rows(h, h), layer.range(h * h..h * h + h));
        tape.push(LinearForward { out: act, pre, x: hidden, weight, bias, activation: Activation::Gelu, residual });
        let norm = self.norm((norm.range(0..h), norm.range(h..2 * h)));
        tape.push(LayerNormForward { out, stats: s.stats.rows(rows.clone()), x: act, norm });
        let (logits, weight, pre) = (logits.as_rows(rows.len(), v), head.words.as_rows(v, h), Tensor::NONE);
        tape.push(LinearForward { out: logits, pre, x: out, weight, bias: decoder, activation: Activation::None, residual });
    }

    /// Gradients of [`Transformer::mlm_forward`]: `gradient` is the head's; `dwords` (none where the table is frozen) gains the
    /// decoder's share for every row of the table.
    pub(super) fn mlm_backward(
        &self,
        tape: &mut Tape,
        [dhidden, dlogits, hidden]: [Tensor; 3],
        [gradient, dwords]: [Tensor; 2],
        head: &Decoder,
        write: Write,
        s: &MlmActivations,
    ) {
        let (h, v, rows) = (self.hidden, self.spec.vocabulary, &head.rows);
        let of = |own: Tensor| own.rows(rows.clone());
        let [d, da, out, act, stats] = [s.d, s.da, s.out, s.act, s.stats].map(of);
        let dlogits = dlogits.as_rows(rows.len(), v);
        let ([dlayer, dnorm, ddecoder], [layer, norm, _]) = (head.cut(gradient, h), head.cut(head.values, h));
        let into = |row: Tensor| JacobianRows {
            segments: vec![Segment { rows: 0..rows.len(), row, write }],
            added: false,
            staging: Tensor::NONE,
        };
        tape.push(DecoderBackward { weight: dwords, bias: ddecoder, dout: dlogits, x: out, write });
        tape.push(LinearInputBackward::new(d, dlogits, head.words.as_rows(v, h)));
        let (jacobian, columns, partials) = (into(dnorm), 0..2 * h, Tensor::NONE);
        let gain = norm.range(0..h);
        tape.push(LayerNormBackward { dx: da, dout: d, x: act, stats, gain, jacobian, columns, partials });
        tape.push(ActivationBackward { dout: da, pre: of(s.pre), activation: Activation::Gelu });
        let columns = 0..h * h + h;
        tape.push(LinearWeightBackward { dout: da, x: hidden, jacobian: into(dlayer), columns, partials });
        tape.push(LinearInputBackward::new(dhidden, da, layer.range(0..h * h).as_rows(h, h)));
    }
}
