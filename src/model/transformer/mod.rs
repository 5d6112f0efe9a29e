//! BERT's encoder over packed sequences: post-LayerNorm, learned positions, segment embeddings, erf GELU.
//!
//! All tokens of a fused group go through each layer as one matrix, without padding. The last layer computes only the rows
//! that somebody reads (a sequence's first token under `cls` and `pooler`, masked tokens, or all under `mean`).

mod activations;
mod backward;
mod forward;
mod group;
mod heads;
mod layout;
mod mlm;
mod prefix;
pub mod spec;

use crate::model::spec::EncoderSpec;

pub use activations::{Activations, TokenLimits};
pub use group::{TokenBatch, TokenGroup};
pub use layout::{Place, params};
pub use mlm::mlm_params;
pub use prefix::PrefixStates;
pub use spec::{Pooling, TransformerSpec};

use layout::Layout;

/// The encoder's shape and where its parameters lie.
#[derive(Clone, Debug)]
pub struct Transformer {
    pub spec: TransformerSpec,
    pub hidden: usize,
    pub dropout: f64,
    layout: Layout,
}

impl Transformer {
    pub fn new(spec: &TransformerSpec, encoder: &EncoderSpec) -> Self {
        let layout = Layout::new(spec, encoder.hidden);
        Self { spec: spec.clone(), hidden: encoder.hidden, dropout: encoder.dropout, layout }
    }

    /// Most columns of J that the backward pass writes at once.
    pub fn largest_piece(&self) -> usize {
        self.layout.largest_piece()
    }
}
