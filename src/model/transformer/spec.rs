//! What a transformer encoder is made of.

use crate::ops::pooling::Pooling;

/// Shape and behaviour of the encoder; its width and dropout are the [`super::Transformer`]'s.
#[derive(Clone, Debug, PartialEq)]
pub struct TransformerSpec {
    /// Rows of the word table.
    pub vocabulary: usize,
    /// Ids of the tokens before a text and after each.
    pub cls: u32,
    pub sep: u32,
    /// What stands at a masked place; needed by `mlm` heads.
    pub mask: Option<u32>,
    pub layers: usize,
    pub heads: usize,
    /// Width of the feed-forward part.
    pub intermediate: usize,
    /// Longest sequence.
    pub positions: usize,
    /// Segments: 2 for BERT.
    pub types: usize,
    pub norm_eps: f64,
    /// Standard deviation of initial matrices.
    pub init: f64,
    pub attention_dropout: f64,
    pub pooling: Pooling,
    /// Only each layer's input is kept; the rest is computed again in the backward pass.
    pub recompute: bool,
    /// Blocks of the frozen prefix: 0 none, 1 the embeddings, 1 + k also the first k layers.
    pub frozen: usize,
    /// Every word row takes part in every step, not only those a round touched.
    pub dense_steps: bool,
}

impl TransformerSpec {
    pub fn embeddings_frozen(&self) -> bool {
        self.frozen > 0
    }

    /// The first layer that is trained.
    pub fn first_trained(&self) -> usize {
        self.frozen.saturating_sub(1)
    }
}

#[cfg(test)]
impl TransformerSpec {
    pub fn small() -> Self {
        Self {
            vocabulary: 100,
            cls: 1,
            sep: 2,
            mask: None,
            layers: 2,
            heads: 2,
            intermediate: 12,
            positions: 16,
            types: 2,
            norm_eps: 1e-12,
            init: 0.02,
            attention_dropout: 0.0,
            pooling: Pooling::Cls,
            recompute: false,
            frozen: 0,
            dense_steps: false,
        }
    }
}
