//! Activations of one fused group in the transformer.

use anyhow::Result;

use super::mlm::MlmScratch;
use super::spec::{Pooling, TransformerSpec};
use crate::machine::host::HostMemory;
use crate::machine::memory::{Buffer, Memory};
use crate::machine::tensor::Tensor;

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
    /// Tokens of the largest round.
    pub round_tokens: usize,
}

/// What the backward pass needs of one layer: n tokens, of which q are computed (all but in the last layer).
pub struct Saved<T = Buffer> {
    /// (q x hidden)
    pub q: T,
    /// (n x 2 hidden) keys, then values.
    pub kv: T,
    /// (q x heads)
    pub log_sums: T,
    /// (q x hidden) attention's output.
    pub context: T,
    /// (q x hidden) input of the attention's normalization; (q x 2) its statistics; (q x hidden) its output.
    pub attention_sum: T,
    pub attention_stats: T,
    pub attention_out: T,
    /// (q x intermediate) before and after GELU.
    pub pre: T,
    pub act: T,
    /// (q x hidden) input of the output's normalization; (q x 2) its statistics; (q x hidden) the layer's output.
    pub sum: T,
    pub stats: T,
    pub out: T,
}

impl Saved {
    fn new(memory: &mut Memory, name: &str, spec: &TransformerSpec, h: usize, tokens: usize, rows: usize) -> Result<Self> {
        let mut buffer = |what: &str, len: usize| memory.buffer(&format!("scratch: {name} {what}"), len);
        Ok(Self {
            q: buffer("queries", rows * h)?,
            kv: buffer("keys and values", tokens * 2 * h)?,
            log_sums: buffer("attention sums", rows * spec.heads)?,
            context: buffer("attention", rows * h)?,
            attention_sum: buffer("attention output", rows * h)?,
            attention_stats: buffer("attention statistics", rows * 2)?,
            attention_out: buffer("attention normalized", rows * h)?,
            pre: buffer("feed-forward", rows * spec.intermediate)?,
            act: buffer("feed-forward activated", rows * spec.intermediate)?,
            sum: buffer("output", rows * h)?,
            stats: buffer("statistics", rows * 2)?,
            out: buffer("normalized", rows * h)?,
        })
    }
}

/// All activations of a group.
pub struct Scratch<T = Buffer> {
    /// (n x hidden) input of the embeddings' normalization; (n x 2) its statistics; (n x hidden) the first layer's input.
    pub(super) embedding_sum: T,
    pub(super) embedding_stats: T,
    pub(super) embedded: T,
    /// By layer; with `recompute` one for all but the last, and one for the last.
    pub(super) saved: Vec<Saved<T>>,
    /// With `recompute`, (n x hidden) the input of each layer but the first.
    pub(super) inputs: Vec<T>,
    /// (q x hidden) rows of the last layer's input that somebody reads.
    pub(super) last_input: T,
    /// (head rows x hidden) before the pooler, where there is one.
    pub(super) pooled: T,
    pub(super) pooler_pre: T,
    /// Gradients in the backward pass: (n x hidden) twice, (n x hidden) of queries, (n x 2 hidden), (n x intermediate).
    pub(super) d: T,
    pub(super) da: T,
    pub(super) dq: T,
    pub(super) dkv: T,
    pub(super) dff: T,
    pub(super) mlm: MlmScratch<T>,
    masked: usize,
}

impl Scratch {
    pub fn new(memory: &mut Memory, spec: &TransformerSpec, hidden: usize, limits: &TokenLimits) -> Result<Self> {
        let (n, h) = (limits.group_tokens, hidden);
        let last = limits.group_queries;
        // Of the layers below the last, the largest backward pass; a single layer has none.
        let rows = if spec.layers > 1 { n } else { last };
        let mut saved = Vec::new();
        if spec.recompute {
            if spec.layers > 1 {
                saved.push(Saved::new(memory, "one layer's", spec, h, n, n)?);
            }
        } else {
            for layer in 0..spec.layers - 1 {
                saved.push(Saved::new(memory, &format!("layer {layer}"), spec, h, n, n)?);
            }
        }
        saved.push(Saved::new(memory, "last layer's", spec, h, n, last)?);
        let mut inputs = Vec::new();
        for layer in 1..if spec.recompute { spec.layers } else { 0 } {
            inputs.push(memory.buffer(&format!("scratch: input of layer {layer}"), n * h)?);
        }
        let pooled = if spec.pooling == Pooling::Pooler { limits.head_rows * h } else { 0 };
        Ok(Self {
            mlm: MlmScratch::new(memory, h, limits.masked)?,
            masked: limits.masked,
            embedding_sum: memory.buffer("scratch: embeddings", n * h)?,
            embedding_stats: memory.buffer("scratch: embedding statistics", n * 2)?,
            embedded: memory.buffer("scratch: embeddings normalized", n * h)?,
            saved,
            inputs,
            last_input: memory.buffer("scratch: rows of the last layer", last * h)?,
            pooled: memory.buffer("scratch: pooled", pooled)?,
            pooler_pre: memory.buffer("scratch: pooler", pooled)?,
            d: memory.buffer("scratch: gradient of a layer", n * h)?,
            da: memory.buffer("scratch: gradient of a part", n * h)?,
            dq: memory.buffer("scratch: gradient of queries", rows * h)?,
            dkv: memory.buffer("scratch: gradient of keys and values", n * 2 * h)?,
            dff: memory.buffer("scratch: gradient of the feed-forward", rows * spec.intermediate.max(h))?,
        })
    }

    pub fn token_room(&self, hidden: usize) -> usize {
        self.embedding_sum.len() / hidden
    }

    pub fn masked_room(&self) -> usize {
        self.masked
    }

    /// (n x hidden) the first trained layer's input.
    pub(in crate::model) fn prefix(&self, spec: &TransformerSpec) -> &Buffer {
        match spec.first_trained() {
            0 => &self.embedded,
            layer if spec.recompute => &self.inputs[layer - 1],
            layer => &self.saved[slot(spec, layer - 1)].out,
        }
    }

    /// As tapes see it: rows of the widths that the fields say.
    pub(in crate::model) fn lend<'a>(
        &'a mut self,
        memory: &mut HostMemory<'a>,
        spec: &TransformerSpec,
        hidden: usize,
    ) -> Scratch<Tensor> {
        let (h, f) = (hidden, spec.intermediate);
        let mut rows = |values: &'a mut Buffer, columns: usize| {
            let rows = values.len() / columns;
            memory.lend_mut(&mut values[..]).as_rows(rows, columns)
        };
        let mut saved = Vec::with_capacity(self.saved.len());
        for own in &mut self.saved {
            saved.push(Saved {
                q: rows(&mut own.q, h),
                kv: rows(&mut own.kv, 2 * h),
                log_sums: rows(&mut own.log_sums, spec.heads),
                context: rows(&mut own.context, h),
                attention_sum: rows(&mut own.attention_sum, h),
                attention_stats: rows(&mut own.attention_stats, 2),
                attention_out: rows(&mut own.attention_out, h),
                pre: rows(&mut own.pre, f),
                act: rows(&mut own.act, f),
                sum: rows(&mut own.sum, h),
                stats: rows(&mut own.stats, 2),
                out: rows(&mut own.out, h),
            });
        }
        Scratch {
            embedding_sum: rows(&mut self.embedding_sum, h),
            embedding_stats: rows(&mut self.embedding_stats, 2),
            embedded: rows(&mut self.embedded, h),
            saved,
            inputs: self.inputs.iter_mut().map(|input| rows(input, h)).collect(),
            last_input: rows(&mut self.last_input, h),
            pooled: rows(&mut self.pooled, h),
            pooler_pre: rows(&mut self.pooler_pre, h),
            d: rows(&mut self.d, h),
            da: rows(&mut self.da, h),
            dq: rows(&mut self.dq, h),
            dkv: rows(&mut self.dkv, 2 * h),
            dff: rows(&mut self.dff, f.max(h)),
            mlm: MlmScratch {
                pre: rows(&mut self.mlm.pre, h),
                act: rows(&mut self.mlm.act, h),
                out: rows(&mut self.mlm.out, h),
                stats: rows(&mut self.mlm.stats, 2),
                d: rows(&mut self.mlm.d, h),
                da: rows(&mut self.mlm.da, h),
            },
            masked: self.masked,
        }
    }
}

/// Which of the saved activations serve a layer.
pub(super) fn slot(spec: &TransformerSpec, layer: usize) -> usize {
    if !spec.recompute { layer } else { usize::from(layer + 1 == spec.layers && spec.layers > 1) }
}
