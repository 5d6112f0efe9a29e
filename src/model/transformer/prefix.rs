//! What the frozen prefix makes of a text. It is a function of the text alone, so that it can be computed once and kept.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::Transformer;
use super::forward::Pass;
use super::group::Group;
use super::scratch::Scratch;
use crate::model::network::{Batch, Weights};
use crate::model::spec::HeadSpec;

/// The first trained layer's input for one text, (tokens x hidden) f32 somewhere in a file.
#[derive(Clone)]
pub struct PrefixStates {
    pub file: Arc<dyn AsRef<[u8]> + Send + Sync>,
    /// In bytes; starts at a multiple of 4.
    pub range: Range<usize>,
}

impl PrefixStates {
    pub fn values(&self) -> &[f32] {
        bytemuck::cast_slice(&(*self.file).as_ref()[self.range.clone()])
    }
}

impl fmt::Debug for PrefixStates {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_tuple("PrefixStates").field(&self.range).finish()
    }
}

impl Transformer {
    /// (tokens x hidden) the first trained layer's input for the batch's only group, computed as in evaluation.
    pub fn prefix<'a>(&self, heads: &[HeadSpec], weights: Weights, batch: &Batch, s: &'a mut Scratch) -> &'a [f32] {
        let group = Group::new(&batch.tokens, &batch.parts, heads, self.spec.pooling);
        self.compute_prefix(&Pass::new(weights, batch, &group, None), s);
        &s.prefix(&self.spec)[..group.len() * self.hidden]
    }

    /// Fills the first trained layer's input.
    pub(super) fn run_prefix(&self, pass: &Pass, s: &mut Scratch) {
        let known = &pass.batch.tokens.prefix;
        if known.is_empty() {
            return self.compute_prefix(pass, s);
        }
        let mut rest = &mut s.prefix(&self.spec)[..pass.group.len() * self.hidden];
        for states in &known[pass.group.examples.clone()] {
            let (own, tail) = rest.split_at_mut(states.range.len() / 4);
            own.copy_from_slice(states.values());
            rest = tail;
        }
        assert!(rest.is_empty(), "the states kept of these texts are those of fewer tokens");
    }

    fn compute_prefix(&self, pass: &Pass, s: &mut Scratch) {
        self.embed(pass, s);
        for layer in 0..self.spec.first_trained() {
            self.run_layer(layer, pass, s);
        }
    }
}
