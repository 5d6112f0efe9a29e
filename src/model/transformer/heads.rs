//! The transformer under the tasks' heads: one fused group, up and down.

use super::Transformer;
use super::forward::Pass;
use super::group::Group;
use crate::model::gradients::GroupGradients;
use crate::model::jacobian::JacobianRows;
use crate::model::network::{Batch, Network, Part, Randomness, Scratch, Weights};
use crate::model::spec::HeadKind;
use crate::ops::dropout::{RowKey, dropout};
use crate::ops::embedding_bag::Table;
use crate::ops::gemm::Write;
use crate::ops::heads::{Gradient, Segment, heads_backward, heads_forward};

impl Transformer {
    /// Encoder and heads; logits are left in `scratch`, part after part.
    pub fn forward(
        &self,
        network: &Network,
        weights: Weights,
        batch: &Batch,
        parts: &[Part],
        scratch: &mut Scratch,
        random: Option<Randomness>,
    ) {
        let group = Group::new(&batch.tokens, parts, &network.spec.heads, self.spec.pooling);
        let pass = Pass::new(weights, batch, &group, random);
        let own = scratch.transformer.as_mut().expect("a transformer's scratch");
        self.run(&mut scratch.hidden, &pass, own);
        let h = self.hidden;
        let mut logits = &mut scratch.logits[..];
        let mut masked = 0;
        for (part, rows) in parts.iter().zip(&group.part_heads) {
            let hidden = &mut scratch.hidden[rows.start * h..rows.end * h];
            if network.spec.heads[part.task].kind == HeadKind::Mlm {
                let (own, rest) = std::mem::take(&mut logits).split_at_mut(rows.len() * self.spec.vocabulary);
                let head = &weights.heads[network.table.head_range(part.task)];
                let mlm = &mut scratch.transformer.as_mut().expect("a transformer's scratch").mlm;
                self.mlm_forward(own, hidden, head, word_table(weights), masked..masked + rows.len(), mlm);
                masked += rows.len();
                logits = rest;
                continue;
            }
            self.head_dropout(hidden, network, part, batch, random);
            let segment = segment(network, weights.heads, part, rows.len());
            let (own, rest) = std::mem::take(&mut logits).split_at_mut(rows.len() * segment.outputs);
            heads_forward(own, hidden, h, &[segment]);
            logits = rest;
        }
    }

    /// Backward pass of a group after [`Transformer::forward`] and [`Network::losses`].
    #[allow(clippy::too_many_arguments, reason = "as Network::backward, which it stands in for")]
    pub fn backward(
        &self,
        network: &Network,
        weights: Weights,
        batch: &Batch,
        parts: &[Part],
        scratch: &mut Scratch,
        gradients: GroupGradients,
        random: Randomness,
    ) {
        let group = Group::new(&batch.tokens, parts, &network.spec.heads, self.spec.pooling);
        let h = self.hidden;
        let mut dlogits = &scratch.dlogits[..];
        let mut masked = 0;
        let GroupGradients { jacobian, heads, words, dinput } = gradients;
        for (((part, rows), values), mut words) in parts.iter().zip(&group.part_heads).zip(heads).zip(words) {
            if network.spec.heads[part.task].kind == HeadKind::Mlm {
                let range = rows.start * h..rows.end * h;
                let (own, rest) = dlogits.split_at(rows.len() * self.spec.vocabulary);
                let (dhidden, hidden) = (&mut scratch.dhidden[range.clone()], &scratch.hidden[range]);
                let head = &weights.heads[network.table.head_range(part.task)];
                // A second batch has word rows of its own, and adds to the one gradient of the head.
                let write = if part.first && part.batch == 0 { Write::Replace } else { Write::Add };
                if part.first && part.batch > 0 {
                    words.iter_mut().for_each(|words| words.whole(self.spec.vocabulary).fill(0.0));
                }
                let mlm = &mut scratch.transformer.as_mut().expect("a transformer's scratch").mlm;
                let place = masked..masked + rows.len();
                let table = word_table(weights);
                self.mlm_backward(dhidden, values, words, own, hidden, head, table, place, write, mlm);
                masked += rows.len();
                dlogits = rest;
                continue;
            }
            if part.first && part.batch == 0 {
                values.fill(0.0);
            }
            let (weight, bias) = values.split_at_mut(network.table.head(part.task).0.len());
            let segment = segment(network, weights.heads, part, rows.len());
            let range = rows.start * h..rows.end * h;
            let (own, rest) = dlogits.split_at(rows.len() * segment.outputs);
            let (dhidden, hidden) = (&mut scratch.dhidden[range.clone()], &scratch.hidden[range]);
            heads_backward(dhidden, &mut [Gradient { weight, bias }], own, hidden, h, &[segment]);
            self.head_dropout(dhidden, network, part, batch, Some(random));
            dlogits = rest;
        }
        let pass = Pass::new(weights, batch, &group, Some(random));
        let own = scratch.transformer.as_mut().expect("a transformer's scratch");
        let mut rows = JacobianRows { rows: jacobian, parts, staging: &mut scratch.staging };
        self.run_back(&mut scratch.dhidden[..group.head_rows() * h], dinput, &pass, own, &mut rows);
    }

    /// Dropout of what a head over whole sequences sees.
    fn head_dropout(&self, hidden: &mut [f32], network: &Network, part: &Part, batch: &Batch, random: Option<Randomness>) {
        let Some(random) = random else { return };
        if network.spec.heads[part.task].kind != HeadKind::Mlm {
            let keys: &[RowKey] = &batch.keys[part.rows.clone()];
            dropout(hidden, self.hidden, keys, self.dropout, random.seed, random.round);
        }
    }
}

fn word_table(weights: Weights<'_>) -> Table<'_> {
    weights.rows.expect("the transformer has a word table")
}

fn segment<'a>(network: &Network, values: &'a [f32], part: &Part, rows: usize) -> Segment<'a> {
    let (weight, bias) = network.table.head(part.task);
    let outputs = network.spec.heads[part.task].outputs;
    Segment { rows: 0..rows, outputs, weight: &values[weight.range()], bias: &values[bias.range()] }
}
