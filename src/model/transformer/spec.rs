//! What a transformer encoder is made of.

use serde::Serialize;

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

/// What a head over a whole sequence sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The first token.
    Cls,
    /// The mean of all tokens.
    Mean,
    /// BERT's pooler: tanh of a linear layer over the first token.
    Pooler,
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
