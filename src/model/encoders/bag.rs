//! `bag`: one layer over the sum of embedding rows of a text's n-grams.

use anyhow::Result;

use super::activations::{Activations, Allocator};
use super::dense::{Dense, input};
use super::{Encoder, Gradients, Group, Input, Table};
use crate::machine::tape::Tape;
use crate::model::network::{Limits, Network, Randomness};
use crate::model::spec::{Param, TableSpec};
use crate::ops::embedding_bag::EmbeddingBagForward;

pub struct Bag {
    /// Rows of the table: vocabulary first, then hash buckets.
    pub rows: usize,
    pub dim: usize,
    /// Standard deviation of the initial rows.
    pub init: f64,
    pub word_dropout: f64,
    /// How a text becomes rows.
    pub vocabulary: Option<usize>,
    pub buckets: usize,
    pub ngrams: usize,
    pub dense: Dense,
}

impl Encoder for Bag {
    fn hidden(&self) -> usize {
        self.dense.hidden
    }

    fn reads(&self) -> Input<'_> {
        Input::Bags(self)
    }

    fn params(&self) -> [Vec<Param>; 2] {
        self.dense.params(self.dim)
    }

    fn table(&self) -> Option<TableSpec> {
        Some(TableSpec { rows: self.rows, dim: self.dim, init: self.init, trained: true, dense_steps: false })
    }

    fn activations(&self, room: &mut dyn Allocator, limits: &Limits) -> Result<Activations> {
        let shortcut = if self.dense.residual { limits.group_rows } else { 0 };
        Ok(Activations {
            input: room.activation("encoder input", limits.group_rows, self.dim)?,
            shortcut: room.activation("gradient of the shortcut", shortcut, self.dense.hidden)?,
            ..self.dense.activations(room, limits)?
        })
    }

    fn forward<'a>(&self, tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, random: Option<Randomness>) {
        let Table { slots, values, init } = group.table.expect("the encoder has a table");
        let (bags, examples) = (&group.batch.bags, group.rows.clone());
        tape.push(EmbeddingBagForward { out: input(group), bags, examples, slots, values, init });
        self.dense.forward(tape, network, group, random);
    }

    fn backward<'a>(&self, tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, to: Gradients, random: Randomness) {
        self.dense.backward(tape, network, group, to, random);
    }
}
