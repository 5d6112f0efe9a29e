//! `bag`: one layer over the sum of embedding rows of a text's n-grams.

use anyhow::Result;

use super::activations::{Activations, Allocator};
use super::linear::{Linear, input};
use super::{Encoder, Fetched, Gradients, Group, Input, Table};
use crate::machine::tape::Tape;
use crate::model::network::{Limits, Network, Randomness};
use crate::model::spec::{Param, TableSpec};
use crate::ops::embedding_bag::{EmbeddingBagForward, Entries};

pub struct Bag {
    /// Rows of the table: vocabulary first, then hash buckets.
    pub rows: usize,
    /// Standard deviation of the initial rows.
    pub init: f64,
    pub word_dropout: f64,
    /// How a text becomes rows.
    pub vocabulary: Option<usize>,
    pub buckets: usize,
    pub ngrams: usize,
    /// Over the sums of rows.
    pub layer: Linear,
}

impl Encoder for Bag {
    fn hidden(&self) -> usize {
        self.layer.hidden
    }

    fn reads(&self) -> Input<'_> {
        Input::Bags(self)
    }

    fn params(&self) -> [Vec<Param>; 2] {
        self.layer.params()
    }

    fn table(&self) -> Option<TableSpec> {
        Some(TableSpec { rows: self.rows, dim: self.layer.columns, init: self.init, trained: true, dense_steps: false })
    }

    fn activations(&self, room: &mut dyn Allocator, limits: &Limits) -> Result<Activations> {
        let shortcut = if self.layer.residual { limits.group_rows } else { 0 };
        Ok(Activations {
            input: room.activation("encoder input", limits.group_rows, self.layer.columns)?,
            shortcut: room.activation("gradient of the shortcut", shortcut, self.layer.hidden)?,
            ..self.layer.activations(room, limits)?
        })
    }

    fn forward<'a>(&self, tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, random: Option<Randomness>) {
        let Table { slots, values, init } = group.table.expect("the encoder has a table");
        let entries = match group.fetched {
            Some(Fetched::Bags(lists)) => Entries::Fetched(lists),
            _ => Entries::Packed { bags: &group.batch.bags, slots },
        };
        tape.push(EmbeddingBagForward { out: input(group), entries, examples: group.rows.clone(), values, init });
        self.layer.forward(tape, network, group, random);
    }

    fn backward<'a>(&self, tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, to: Gradients, random: Randomness) {
        self.layer.backward(tape, network, group, to, random);
    }
}
