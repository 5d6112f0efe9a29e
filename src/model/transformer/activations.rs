//! Activations of one fused group in the transformer.

use anyhow::Result;

use super::mlm::MlmActivations;
use super::{Pooling, TransformerSpec};
use crate::machine::tensor::Tensor;
use crate::model::encoders::activations::Allocator;
use crate::model::network::{Limits, TokenRoom};
use crate::ops::layer_norm::norm_partials;
use crate::ops::linear::bias_partials;
use crate::ops::token_embedding::type_partials;

/// Largest shapes of a transformer's run, known from the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenLimits {
    /// Tokens of the largest fused group or evaluation batch.
    pub group_tokens: usize,
    /// Of these, most that somebody reads after the last layer.
    pub group_queries: usize,
    /// Rows that heads see: sequences and masked tokens.
    pub head_rows: usize,
    /// Masked tokens of the largest group.
    pub masked: usize,
    /// Of these, those whose logits are computed at once where not all are kept.
    pub words_at_once: usize,
    /// Tokens of the largest round.
    pub round_tokens: usize,
    /// Tokens of whose texts a device keeps what the frozen prefix makes of them.
    pub kept: usize,
}

/// What the backward pass needs of one layer: n tokens, of which q are computed (all but in the last layer).
#[derive(Clone, Debug)]
pub struct Saved {
    /// (q x hidden)
    pub q: Tensor,
    /// (n x 2 hidden) keys, then values.
    pub kv: Tensor,
    /// (q x heads) f32
    pub log_sums: Tensor,
    /// (q x hidden) attention's output.
    pub context: Tensor,
    /// (q x hidden) input of the attention's normalization; (q x 2) f32 its statistics; (q x hidden) its output.
    pub attention_sum: Tensor,
    pub attention_stats: Tensor,
    pub attention_out: Tensor,
    /// (q x intermediate) before and after GELU.
    pub pre: Tensor,
    pub act: Tensor,
    /// (q x hidden) input of the output's normalization; (q x 2) f32 its statistics; (q x hidden) the layer's output.
    pub sum: Tensor,
    pub stats: Tensor,
    pub out: Tensor,
}

impl Saved {
    fn new(room: &mut dyn Allocator, name: &str, spec: &TransformerSpec, h: usize, [tokens, rows]: [usize; 2]) -> Result<Self> {
        let of = |what: &str| format!("{name} {what}");
        Ok(Self {
            q: room.activation(&of("queries"), rows, h)?,
            kv: room.activation(&of("keys and values"), tokens, 2 * h)?,
            log_sums: room.numbers(&of("attention sums"), rows, spec.heads)?,
            context: room.activation(&of("attention"), rows, h)?,
            attention_sum: room.activation(&of("attention output"), rows, h)?,
            attention_stats: room.numbers(&of("attention statistics"), rows, 2)?,
            attention_out: room.activation(&of("attention normalized"), rows, h)?,
            pre: room.activation(&of("feed-forward"), rows, spec.intermediate)?,
            act: room.activation(&of("feed-forward activated"), rows, spec.intermediate)?,
            sum: room.activation(&of("output"), rows, h)?,
            stats: room.numbers(&of("statistics"), rows, 2)?,
            out: room.activation(&of("normalized"), rows, h)?,
        })
    }
}

/// All activations of a group.
#[derive(Clone, Debug)]
pub struct Activations {
    /// (n x hidden) input of the embeddings' normalization; (n x 2) f32 its statistics; (n x hidden) the first layer's input.
    pub(super) embedding_sum: Tensor,
    pub(super) embedding_stats: Tensor,
    pub(super) embedded: Tensor,
    /// By layer; with `recompute` one for all but the last, and one for the last.
    pub(super) saved: Vec<Saved>,
    /// With `recompute`, (n x hidden) the input of each layer but the first.
    pub(super) inputs: Vec<Tensor>,
    /// (q x hidden) rows of the last layer's input that somebody reads.
    pub(super) last_input: Tensor,
    /// (head rows x hidden) before the pooler, where there is one.
    pub(super) pooled: Tensor,
    pub(super) pooler_pre: Tensor,
    /// Gradients in the backward pass: (n x hidden) twice, (n x hidden) of queries, (n x 2 hidden), (n x intermediate).
    pub(super) d: Tensor,
    pub(super) da: Tensor,
    pub(super) dq: Tensor,
    pub(super) dkv: Tensor,
    pub(super) dff: Tensor,
    /// Partial sums of gradients of normalizations and embeddings.
    pub(super) partials: Tensor,
    pub mlm: MlmActivations,
}

impl Activations {
    pub fn new(room: &mut dyn Allocator, spec: &TransformerSpec, hidden: usize, limits: &Limits) -> Result<Self> {
        let &Limits { ref tokens, present, .. } = limits;
        let (n, h) = (tokens.group_tokens, hidden);
        let last = tokens.group_queries;
        // Of the layers below the last, the largest backward pass; a single layer has none.
        let rows = if spec.layers > 1 { n } else { last };
        let mut saved = Vec::new();
        if spec.recompute {
            if spec.layers > 1 {
                saved.push(Saved::new(room, "one layer's", spec, h, [n, n])?);
            }
        } else {
            for layer in 0..spec.layers - 1 {
                saved.push(Saved::new(room, &format!("layer {layer}"), spec, h, [n, n])?);
            }
        }
        saved.push(Saved::new(room, "last layer's", spec, h, [n, last])?);
        let mut inputs = Vec::new();
        for layer in 1..if spec.recompute { spec.layers } else { 0 } {
            inputs.push(room.activation(&format!("input of layer {layer}"), n, h)?);
        }
        let pooled = if spec.pooling == Pooling::Pooler { tokens.head_rows } else { 0 };
        Ok(Self {
            mlm: MlmActivations::new(room, [h, spec.vocabulary], [tokens.masked, tokens.words_at_once])?,
            embedding_sum: room.activation("embeddings", n, h)?,
            embedding_stats: room.numbers("embedding statistics", n, 2)?,
            embedded: room.activation("embeddings normalized", n, h)?,
            saved,
            inputs,
            last_input: room.activation("rows of the last layer", last, h)?,
            pooled: room.activation("pooled", pooled, h)?,
            pooler_pre: room.activation("pooler", pooled, h)?,
            d: room.activation("gradient of a layer", n, h)?,
            da: room.activation("gradient of a part", n, h)?,
            dq: room.activation("gradient of queries", rows, h)?,
            dkv: room.activation("gradient of keys and values", n, 2 * h)?,
            partials: room.partials(
                "partial sums of gradients",
                norm_partials(n, present, h).max(type_partials(n, present, spec.types, h)).max(bias_partials(
                    n,
                    present,
                    spec.intermediate.max(2 * h),
                )),
            )?,
            dff: room.activation("gradient of the feed-forward", rows, spec.intermediate.max(h))?,
        })
    }

    /// Most tokens of a group, and of these most that are masked.
    pub fn room(&self) -> TokenRoom {
        TokenRoom { tokens: self.embedding_sum.rows, masked: self.mlm.pre.rows }
    }

    /// (n x hidden) the first trained layer's input.
    pub fn prefix(&self, spec: &TransformerSpec) -> Tensor {
        match spec.first_trained() {
            0 => self.embedded,
            layer if spec.recompute => self.inputs[layer - 1],
            layer => self.saved[slot(spec, layer - 1)].out,
        }
    }
}

/// Which of the saved activations serve a layer.
pub(super) fn slot(spec: &TransformerSpec, layer: usize) -> usize {
    if !spec.recompute { layer } else { usize::from(layer + 1 == spec.layers && spec.layers > 1) }
}
