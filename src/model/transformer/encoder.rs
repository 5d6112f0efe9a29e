//! `transformer`, an encoder among others: its passes over a fused group, under the tasks' heads.

use std::ops::Range;

use anyhow::Result;

use super::forward::Pass;
use super::layout::params;
use super::mlm::{Decoder, MlmGradients, logits_of};
use super::{Activations, TokenGroup, Transformer, TransformerSpec};
use crate::machine::tape::Tape;
use crate::machine::tensor::{DType, Tensor, pitch};
use crate::model::encoders::activations::{self as common, Allocator};
use crate::model::encoders::heads::HeadRows;
use crate::model::encoders::{Encoder, Fetched, Gradients, Group, Input, Weights};
use crate::model::network::{Batch, Limits, Network, Part, Randomness};
use crate::model::spec::{HeadKind, HeadSpec, Param, TableSpec};
use crate::ops::attention;
use crate::ops::dropout::Dropout;
use crate::ops::gemm::Write;
use crate::ops::layer_norm::MOST_COLUMNS;

impl Transformer {
    /// What every step of a pass over a group needs.
    pub fn pass<'a>(&self, group: &Group<'a>, random: Option<Randomness>) -> Pass<'a> {
        let own = group.tokens.expect("the transformer has tokens");
        let fetched = match group.fetched {
            Some(Fetched::Tokens(all)) => Some(all.range(own.tokens.clone())),
            _ => None,
        };
        Pass {
            weights: group.weights,
            table: group.table.expect("the transformer has a word table"),
            states: group.states,
            batch: group.batch,
            group: own,
            fetched,
            random,
            at: group.at.transformer.as_ref().expect("the transformer has activations of its own"),
        }
    }

    fn head_rows<'p>(&self, network: &Network, pass: &Pass, group: &Group<'p>) -> Vec<HeadRows<'p>> {
        // Training computes those over a vocabulary elsewhere, where they are not all kept.
        let logits_of_row = |part: &Part| match network.spec.heads[part.task].outputs {
            outputs if group.at.keeps_words || !is_mlm(network, part) => outputs,
            _ if pass.random.is_some() => 0,
            outputs => pitch(outputs),
        };
        HeadRows::of_group(network, group.parts, &pass.group.part_heads, logits_of_row)
    }

    /// The head of a part that predicts words, over these masked tokens.
    fn decoder(&self, network: &Network, weights: &Weights, part: &Part, rows: Range<usize>) -> Decoder {
        let (h, values) = (self.hidden, weights.heads.range(network.table.head_range(part.task)));
        let layer = if weights.mlm_layers.is_none() {
            values.range(0..h * h).as_rows(h, h)
        } else {
            let before = network.spec.heads[..part.task].iter().filter(|head| head.kind == HeadKind::Mlm).count();
            weights.mlm_layers.rows(before * h..(before + 1) * h)
        };
        Decoder { values, layer, words: weights.words.as_rows(self.spec.vocabulary, h), rows }
    }

    /// Dropout of what linear heads see.
    fn head_dropout<'a>(&self, tape: &mut Tape<'a>, network: &Network, x: Tensor, parts: &[Part], pass: &Pass<'a>) {
        let (Some(random), [first, ..]) = (pass.random.filter(|_| self.dropout > 0.0), parts) else { return };
        if network.spec.heads[first.task].kind.is_linear() {
            let keys = &pass.batch.keys[first.rows.start..first.rows.start + x.rows];
            tape.push(Dropout { x, keys, probability: self.dropout, random });
        }
    }
}

/// Bytes of what one part needs of a layer's operations beside its tokens: where its gradients go, and random numbers' keys.
const TABLES_OF_LAYER: usize = 2048;

/// Bytes of what one part needs of a position: which of its tokens stand there.
const TABLES_OF_POSITION: usize = 24;

/// Bytes of what operations read of one token: its word, its place, its key as token and as query, and at worst a sequence of its own in
/// lists that are up to twice as long.
const TABLES_OF_TOKEN: usize = 192;

impl Encoder for Transformer {
    fn hidden(&self) -> usize {
        self.hidden
    }

    fn reads(&self) -> Input<'_> {
        Input::Tokens(&self.spec)
    }

    fn params(&self) -> [Vec<Param>; 2] {
        params(&self.spec, self.hidden)
    }

    fn table(&self) -> Option<TableSpec> {
        let TransformerSpec { vocabulary: rows, init, dense_steps, .. } = self.spec;
        Some(TableSpec { rows, dim: self.hidden, init, trained: !self.spec.embeddings_frozen(), dense_steps })
    }

    fn largest_piece(&self) -> usize {
        self.layout.largest_piece()
    }

    fn activations(&self, room: &mut dyn Allocator, limits: &Limits) -> Result<common::Activations> {
        let own = Activations::new(room, &self.spec, self.hidden, limits)?;
        let common = common::Activations::new(room, self.hidden, limits.tokens.head_rows, limits)?;
        Ok(common::Activations { transformer: Some(own), ..common })
    }

    fn input_gradient(&self, limits: &Limits) -> (usize, DType) {
        (limits.tokens.round_tokens, DType::Bf16)
    }

    /// A row brings at worst a part of its own with all its tables.
    fn upload_bytes(&self, limits: &Limits) -> [usize; 2] {
        let tokens = limits.tokens.round_tokens.max(limits.tokens.group_tokens);
        let of_part = (self.spec.layers + 2) * TABLES_OF_LAYER + self.spec.positions * TABLES_OF_POSITION;
        [of_part, tokens * TABLES_OF_TOKEN]
    }

    fn tokens(&self, batch: &Batch, parts: &[Part], heads: &[HeadSpec]) -> Option<TokenGroup> {
        Some(TokenGroup::new(batch, parts, heads, self.spec.pooling))
    }

    fn forward<'a>(&self, tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, random: Option<Randomness>) {
        let (pass, at, weights) = (&self.pass(group, random), group.at, &group.weights);
        let hidden = at.hidden.rows(0..pass.group.head_rows());
        self.forward_encoder(tape, hidden, pass);
        for own in self.head_rows(network, pass, group) {
            let own_hidden = hidden.rows(own.rows.clone());
            if is_mlm(network, &own.parts[0]) {
                let logits = at.logits.range(own.logits.clone());
                let decoder = self.decoder(network, weights, &own.parts[0], own.masked);
                self.mlm_layer(tape, own_hidden, &decoder, &pass.at.mlm);
                if at.keeps_words || random.is_none() {
                    let logits = logits_of(logits, own_hidden.rows, self.spec.vocabulary, at.keeps_words);
                    self.mlm_logits(tape, logits, &decoder, &pass.at.mlm);
                }
                continue;
            }
            self.head_dropout(tape, network, own_hidden, own.parts, pass);
            own.forward(tape, network, &pass.group.part_heads, weights.heads, [at.logits, hidden]);
        }
    }

    fn word_losses<'a>(
        &self,
        tape: &mut Tape<'a>,
        network: &Network,
        group: &Group<'a>,
        row_losses: Tensor,
        to: Option<&Gradients>,
    ) {
        let pass = &self.pass(group, None);
        for own in self.head_rows(network, pass, group) {
            let part = &own.parts[0];
            if !is_mlm(network, part) {
                continue;
            }
            let words = &pass.group.words[own.masked.clone()];
            let decoder = self.decoder(network, &group.weights, part, own.masked);
            let to = to.map(|to| mlm_gradients(part, own.number, to));
            self.mlm_losses(tape, (words, part.scale), row_losses.range(own.rows), to.as_ref(), &decoder, &pass.at.mlm);
        }
    }

    fn backward<'a>(&self, tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, to: Gradients, random: Randomness) {
        let (pass, at, weights) = (&self.pass(group, Some(random)), group.at, &group.weights);
        let rows = 0..pass.group.head_rows();
        let (hidden, dhidden) = (at.hidden.rows(rows.clone()), at.dhidden.rows(rows));
        for own in self.head_rows(network, pass, group) {
            let part = &own.parts[0];
            let [own_hidden, own_dhidden] = [hidden, dhidden].map(|whole| whole.rows(own.rows.clone()));
            if is_mlm(network, part) {
                let (to, s) = (mlm_gradients(part, own.number, &to), &pass.at.mlm);
                let decoder = self.decoder(network, weights, part, own.masked);
                if at.keeps_words {
                    let dlogits = at.dlogits.range(own.logits.clone());
                    let dlogits = logits_of(dlogits, own_hidden.rows, self.spec.vocabulary, true);
                    self.mlm_logits_backward(tape, dlogits, &to, &decoder, s);
                }
                self.mlm_layer_backward(tape, [own_dhidden, own_hidden, pass.at.partials], &to, &decoder, s);
                continue;
            }
            let parameters = (weights.heads, &to.heads[..]);
            own.backward(tape, network, &pass.group.part_heads, parameters, [dhidden, at.dlogits, hidden]);
            self.head_dropout(tape, network, own_dhidden, own.parts, pass);
        }
        self.backward_encoder(tape, dhidden, to.dinput, pass, &to.jacobian);
    }

    fn device_fault(&self) -> Option<String> {
        let (hidden, intermediate, dim) = (self.hidden, self.spec.intermediate, self.hidden / self.spec.heads.max(1));
        let fault = if !attention::supported(dim) {
            format!("no attention heads of {dim} columns (encoder.hidden / encoder.heads)")
        } else if hidden > MOST_COLUMNS {
            format!("at most {MOST_COLUMNS} as a transformer's encoder.hidden, found {hidden}")
        } else if !intermediate.is_multiple_of(8) {
            format!("multiples of 8 as encoder.intermediate, found {intermediate}")
        } else {
            return None;
        };
        Some(format!("a device takes {fault}"))
    }

    fn transformer(&self) -> Option<&Transformer> {
        Some(self)
    }
}

/// Of a part that predicts words, by its number in the group. A second batch has word rows of its own, and adds to the one gradient
/// of the head.
fn mlm_gradients(part: &Part, number: usize, to: &Gradients) -> MlmGradients {
    let write = |replaces: bool| if replaces { Write::Replace } else { Write::Add };
    let write = [write(part.first), write(part.first && part.batch == 0)];
    MlmGradients { head: to.heads[number], words: to.words[number], write }
}

fn is_mlm(network: &Network, part: &Part) -> bool {
    network.spec.heads[part.task].kind == HeadKind::Mlm
}
