//! What the frozen prefix makes of a text. It is a function of the text alone, so that it can be computed once and kept.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::Transformer;
use super::forward::Pass;
use crate::machine::tape::Tape;
use crate::ops::gather::Load;

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
    /// Fills the first trained layer's input: with what is known of the texts, or by computing it.
    pub(super) fn forward_prefix<'a>(&self, tape: &mut Tape<'a>, pass: &Pass<'a>) {
        let known = &pass.batch.tokens.prefix;
        if known.is_empty() {
            return self.compute_prefix(tape, pass);
        }
        let values = known[pass.group.examples.clone()].iter().map(PrefixStates::values).collect();
        tape.push(Load { out: self.input(self.spec.first_trained(), pass), values });
    }

    /// As in evaluation, where `pass` has no randomness.
    pub fn compute_prefix<'a>(&self, tape: &mut Tape<'a>, pass: &Pass<'a>) {
        self.embed(tape, pass);
        for layer in 0..self.spec.first_trained() {
            self.forward_layer(tape, layer, pass);
        }
    }
}
