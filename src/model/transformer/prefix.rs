//! What the frozen prefix makes of a text. It is a function of the text alone, so that it can be computed once and kept.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::Transformer;
use super::forward::Pass;
use crate::machine::tape::Tape;
use crate::ops::gather::{GatherRows, Load};

/// The first trained layer's input for the texts of a batch, as far as it was computed before.
#[derive(Clone, Debug, Default)]
pub enum Prefix {
    #[default]
    Unknown,
    /// (examples)
    Mapped(Vec<MappedStates>),
    /// (packed tokens) rows of the states that a device keeps; the first for what pads a group.
    OnDevice(Vec<u32>),
}

/// That of one text, (tokens x hidden) f32 somewhere in a file.
#[derive(Clone)]
pub struct MappedStates {
    pub file: Arc<dyn AsRef<[u8]> + Send + Sync>,
    /// In bytes; starts at a multiple of 4.
    pub range: Range<usize>,
}

impl MappedStates {
    fn values(&self) -> &[f32] {
        bytemuck::cast_slice(&(*self.file).as_ref()[self.range.clone()])
    }
}

impl fmt::Debug for MappedStates {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_tuple("MappedStates").field(&self.range).finish()
    }
}

impl Transformer {
    /// Fills the first trained layer's input: with what is known of the texts, or by computing it.
    pub(super) fn forward_prefix<'a>(&self, tape: &mut Tape<'a>, pass: &Pass<'a>) {
        let out = self.input(self.spec.first_trained(), pass);
        match &pass.batch.tokens.prefix {
            Prefix::Mapped(known) => {
                let values = known[pass.group.examples.clone()].iter().map(MappedStates::values).collect();
                tape.push(Load { out, values });
            }
            Prefix::OnDevice(rows) if !pass.states.is_none() => {
                tape.push(GatherRows { out, x: pass.states, index: &rows[pass.group.tokens.clone()] });
            }
            // The host computes what only a device keeps.
            Prefix::OnDevice(_) | Prefix::Unknown => self.compute_prefix(tape, pass),
        }
    }

    /// As in evaluation, where `pass` has no randomness.
    pub fn compute_prefix<'a>(&self, tape: &mut Tape<'a>, pass: &Pass<'a>) {
        self.embed(tape, pass);
        for layer in 0..self.spec.first_trained() {
            self.forward_layer(tape, layer, pass);
        }
    }
}
