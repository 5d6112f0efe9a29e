//! The head of masked language modelling, as BERT's: a layer with GELU and normalization, then the word table as decoder
//! (tied) with a bias of its own.

use std::ops::Range;

use anyhow::Result;

use super::Transformer;
use crate::device::memory::{Buffer, Memory};
use crate::model::spec::{Init, Param};
use crate::ops::activation::{Activation, activation_backward, bias_activation_forward};
use crate::ops::embedding_bag::Table;
use crate::ops::gemm::Write;
use crate::ops::layer_norm::{Norm, NormGradient, layer_norm_backward, layer_norm_forward, layer_norm_weight_backward};
use crate::ops::linear::{WeightGradient, linear_forward, linear_input_backward, linear_weight_backward};
use crate::ops::row_gradients::RowGradient;

/// Activations of all masked tokens of a group (m).
pub(super) struct MlmScratch {
    /// (m x hidden) before and after GELU, after normalization; (m x 2) its statistics.
    pre: Buffer,
    act: Buffer,
    out: Buffer,
    stats: Buffer,
    /// (m x hidden) gradients.
    d: Buffer,
    da: Buffer,
}

impl MlmScratch {
    pub fn new(memory: &mut Memory, hidden: usize, masked: usize) -> Result<Self> {
        let mut buffer = |what: &str, width: usize| memory.buffer(&format!("scratch: masked tokens' {what}"), masked * width);
        Ok(Self {
            pre: buffer("layer", hidden)?,
            act: buffer("layer activated", hidden)?,
            out: buffer("layer normalized", hidden)?,
            stats: buffer("statistics", 2)?,
            d: buffer("gradient", hidden)?,
            da: buffer("gradient of the layer", hidden)?,
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

/// The head's values or gradients, cut into its parts.
struct Parts<'a> {
    weight: &'a [f32],
    bias: &'a [f32],
    gain: &'a [f32],
    shift: &'a [f32],
    decoder: &'a [f32],
}

impl<'a> Parts<'a> {
    fn of(values: &'a [f32], h: usize) -> Self {
        let (weight, rest) = values.split_at(h * h);
        let (bias, rest) = rest.split_at(h);
        let (gain, rest) = rest.split_at(h);
        let (shift, decoder) = rest.split_at(h);
        Self { weight, bias, gain, shift, decoder }
    }
}

impl Transformer {
    /// logits (m x vocabulary) of masked tokens whose last layer is `hidden` (m x h); `rows` are theirs in the scratch.
    pub(super) fn mlm_forward(
        &self,
        logits: &mut [f32],
        hidden: &[f32],
        head: &[f32],
        table: Table,
        rows: Range<usize>,
        s: &mut MlmScratch,
    ) {
        let h = self.hidden;
        let parts = Parts::of(head, h);
        let range = rows.start * h..rows.end * h;
        let (pre, act, out) = (&mut s.pre[range.clone()], &mut s.act[range.clone()], &mut s.out[range]);
        linear_forward(pre, hidden, parts.weight, h, h);
        bias_activation_forward(act, pre, parts.bias, Activation::Gelu);
        let norm = Norm { gain: parts.gain, shift: parts.shift, eps: self.spec.norm_eps as f32 };
        layer_norm_forward(out, &mut s.stats[2 * rows.start..2 * rows.end], act, norm);
        linear_forward(logits, out, self.words(table), h, self.spec.vocabulary);
        bias_activation_forward(&mut [], logits, parts.decoder, Activation::None);
    }

    /// Gradients of [`Transformer::mlm_forward`]: `gradient` is the head's; `words` (none where the table is frozen) gains the
    /// decoder's share for every row of the table.
    #[allow(clippy::too_many_arguments, reason = "outputs, inputs, then where they lie")]
    pub(super) fn mlm_backward(
        &self,
        dhidden: &mut [f32],
        gradient: &mut [f32],
        words: Option<&mut RowGradient>,
        dlogits: &[f32],
        hidden: &[f32],
        head: &[f32],
        table: Table,
        rows: Range<usize>,
        write: Write,
        s: &mut MlmScratch,
    ) {
        let (h, v, m) = (self.hidden, self.spec.vocabulary, rows.len());
        let parts = Parts::of(head, h);
        let range = rows.start * h..rows.end * h;
        let (d, da) = (&mut s.d[range.clone()], &mut s.da[range.clone()]);
        let (layer, rest) = gradient.split_at_mut(h * h + h);
        let (norm, decoder) = rest.split_at_mut(2 * h);
        let out = &s.out[range.clone()];
        match words {
            Some(words) => {
                let weight = words.whole(v);
                linear_weight_backward(&mut [WeightGradient { rows: 0..m, weight, bias: decoder, write }], dlogits, out, h, v);
            }
            None => linear_weight_backward(
                &mut [WeightGradient { rows: 0..m, weight: &mut [], bias: decoder, write }],
                dlogits,
                &[],
                0,
                v,
            ),
        }
        linear_input_backward(d, dlogits, self.words(table), h, v);
        let (gain, shift) = norm.split_at_mut(h);
        let (act, stats) = (&s.act[range.clone()], &s.stats[2 * rows.start..2 * rows.end]);
        layer_norm_weight_backward(&mut [NormGradient { rows: 0..m, gain, shift, write }], d, act, stats);
        layer_norm_backward(da, d, act, stats, parts.gain);
        activation_backward(da, &s.pre[range], h, Activation::Gelu);
        let (weight, bias) = layer.split_at_mut(h * h);
        linear_weight_backward(&mut [WeightGradient { rows: 0..m, weight, bias, write }], da, hidden, h, h);
        linear_input_backward(dhidden, da, parts.weight, h, h);
    }

    /// The word table in row order; with an `mlm` head all of it is kept.
    fn words<'a>(&self, table: Table<'a>) -> &'a [f32] {
        let len = self.spec.vocabulary * self.hidden;
        assert!(table.values.len() >= len && table.slots[0] == 0, "a tied decoder reads the whole table in row order");
        &table.values[..len]
    }
}
