//! The transformer under the tasks' heads: one fused group, forward and backward.

use std::ops::Range;

use super::Transformer;
use super::forward::Pass;
use super::mlm::Decoder;
use crate::machine::tape::Tape;
use crate::machine::tensor::Tensor;
use crate::model::encoders::{Gradients, Group, head};
use crate::model::network::{Network, Part, Randomness};
use crate::model::spec::HeadKind;
use crate::ops::dropout::Dropout;
use crate::ops::gemm::Write;
use crate::ops::heads::{Head, HeadsBackward, HeadsForward};

/// Neighbouring parts whose heads are computed at once: one over masked tokens, or some over whole sequences.
struct HeadRows<'a> {
    parts: &'a [Part],
    /// Of the first part in the group.
    number: usize,
    /// Of the head rows, of all logits, and of the masked tokens.
    rows: Range<usize>,
    logits: Range<usize>,
    masked: Range<usize>,
}

impl HeadRows<'_> {
    /// `gradients` by part of the group, or none.
    fn heads(&self, network: &Network, part_heads: &[Range<usize>], values: Tensor, gradients: &[Tensor]) -> Vec<Head> {
        let own = |(part, number): (&Part, usize)| {
            let rows = &part_heads[number];
            let rows = rows.start - self.rows.start..rows.end - self.rows.start;
            head(network, part, rows, values, gradients.get(number).copied().unwrap_or(Tensor::NONE))
        };
        self.parts.iter().zip(self.number..).map(own).collect()
    }
}

impl Transformer {
    /// What every step of a pass over a group needs.
    pub fn pass<'a>(&self, group: &Group<'a>, random: Option<Randomness>) -> Pass<'a> {
        Pass {
            weights: group.weights,
            table: group.table.expect("the transformer has a word table"),
            batch: group.batch,
            group: group.tokens.expect("the transformer has tokens"),
            random,
            at: group.at.transformer.as_ref().expect("the transformer has activations of its own"),
        }
    }

    fn head_rows<'p>(&self, network: &Network, pass: &Pass, parts: &'p [Part]) -> Vec<HeadRows<'p>> {
        let (mut number, mut logits, mut masked) = (0, 0, 0);
        let own = |parts: &'p [Part]| {
            let starts = [logits, masked];
            let ranges = &pass.group.part_heads[number..number + parts.len()];
            for (part, rows) in parts.iter().zip(ranges) {
                logits += rows.len() * network.spec.heads[part.task].outputs;
                masked += if is_mlm(network, part) { rows.len() } else { 0 };
            }
            let rows = ranges[0].start..ranges[parts.len() - 1].end;
            let found = HeadRows { parts, number, rows, logits: starts[0]..logits, masked: starts[1]..masked };
            number += parts.len();
            found
        };
        parts.chunk_by(|a, b| !is_mlm(network, a) && !is_mlm(network, b)).map(own).collect()
    }

    /// Encoder and heads.
    pub fn forward<'a>(&self, tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, random: Option<Randomness>) {
        let (pass, at, weights) = (&self.pass(group, random), group.at, &group.weights);
        let hidden = at.hidden.rows(0..pass.group.head_rows());
        self.forward_encoder(tape, hidden, pass);
        for own in self.head_rows(network, pass, group.parts) {
            let (hidden, logits) = (hidden.rows(own.rows.clone()), at.logits.range(own.logits.clone()));
            if is_mlm(network, &own.parts[0]) {
                let values = weights.heads.range(network.table.head_range(own.parts[0].task));
                let decoder = Decoder { values, words: weights.words, rows: own.masked };
                self.mlm_forward(tape, logits, hidden, &decoder, &pass.at.mlm);
                continue;
            }
            self.head_dropout(tape, hidden, own.parts, pass);
            let heads = own.heads(network, &pass.group.part_heads, weights.heads, &[]);
            tape.push(HeadsForward { logits, hidden, heads });
        }
    }

    /// Backward pass of a group after [`Transformer::forward`] and the losses.
    pub fn backward<'a>(
        &self,
        tape: &mut Tape<'a>,
        network: &Network,
        group: &Group<'a>,
        gradients: Gradients,
        random: Randomness,
    ) {
        let (pass, at, weights) = (&self.pass(group, Some(random)), group.at, &group.weights);
        let rows = 0..pass.group.head_rows();
        let (hidden, dhidden) = (at.hidden.rows(rows.clone()), at.dhidden.rows(rows));
        for own in self.head_rows(network, pass, group.parts) {
            let part = &own.parts[0];
            let [hidden, dhidden] = [hidden, dhidden].map(|whole| whole.rows(own.rows.clone()));
            let dlogits = at.dlogits.range(own.logits.clone());
            if is_mlm(network, part) {
                // A second batch has word rows of its own, and adds to the one gradient of the head.
                let write = if part.first && part.batch == 0 { Write::Replace } else { Write::Add };
                let into = [gradients.heads[own.number], gradients.words[own.number]];
                let values = weights.heads.range(network.table.head_range(part.task));
                let decoder = Decoder { values, words: weights.words, rows: own.masked };
                self.mlm_backward(tape, [dhidden, dlogits, hidden], into, &decoder, write, &pass.at.mlm);
                continue;
            }
            let heads = own.heads(network, &pass.group.part_heads, weights.heads, &gradients.heads);
            tape.push(HeadsBackward { dhidden, dlogits, hidden, heads });
            self.head_dropout(tape, dhidden, own.parts, pass);
        }
        self.backward_encoder(tape, dhidden, gradients.dinput, pass, &gradients.jacobian);
    }

    /// Dropout of what heads over whole sequences see.
    fn head_dropout<'a>(&self, tape: &mut Tape<'a>, x: Tensor, parts: &[Part], pass: &Pass<'a>) {
        let (Some(random), [first, ..]) = (pass.random.filter(|_| self.dropout > 0.0), parts) else { return };
        let keys = &pass.batch.keys[first.rows.start..first.rows.start + x.rows];
        tape.push(Dropout { x, keys, probability: self.dropout, random });
    }
}

fn is_mlm(network: &Network, part: &Part) -> bool {
    network.spec.heads[part.task].kind == HeadKind::Mlm
}
