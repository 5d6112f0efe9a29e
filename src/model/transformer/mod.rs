//! BERT's encoder over packed sequences: post-LayerNorm, learned positions, segment embeddings, erf GELU.
//!
//! All tokens of a fused group go through each layer as one matrix, without padding. The last layer computes only the rows
//! that somebody reads (a sequence's first token under `cls` and `pooler`, masked tokens, or all under `mean`).

mod activations;
mod backward;
mod encoder;
mod forward;
mod group;
mod layout;
mod mlm;
mod prefix;
pub mod spec;

pub use crate::ops::pooling::Pooling;
pub use activations::{Activations, TokenLimits};
pub use group::{TokenBatch, TokenGroup, padding};
pub use layout::Place;
pub use mlm::mlm_params;
pub use prefix::{MappedStates, Prefix};
pub use spec::TransformerSpec;

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
    pub fn new(spec: TransformerSpec, hidden: usize, dropout: f64) -> Self {
        let layout = Layout::new(&spec, hidden);
        Self { spec, hidden, dropout, layout }
    }
}
