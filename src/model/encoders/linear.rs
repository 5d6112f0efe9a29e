//! `linear`: one layer over dense features.

use anyhow::Result;

use super::activations::{Activations, Allocator};
use super::dense::Dense;
use super::{Encoder, Gradients, Group, Input};
use crate::machine::tape::Tape;
use crate::model::network::{Limits, Network, Randomness};
use crate::model::spec::Param;

pub struct Linear {
    /// Features of an example.
    pub columns: usize,
    pub dense: Dense,
}

impl Encoder for Linear {
    fn hidden(&self) -> usize {
        self.dense.hidden
    }

    fn reads(&self) -> Input<'_> {
        Input::Features(self.columns)
    }

    fn params(&self) -> [Vec<Param>; 2] {
        self.dense.params(self.columns)
    }

    fn activations(&self, room: &mut dyn Allocator, limits: &Limits) -> Result<Activations> {
        self.dense.activations(room, limits)
    }

    fn forward<'a>(&self, tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, random: Option<Randomness>) {
        self.dense.forward(tape, network, group, random);
    }

    fn backward<'a>(&self, tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, to: Gradients, random: Randomness) {
        self.dense.backward(tape, network, group, to, random);
    }
}
