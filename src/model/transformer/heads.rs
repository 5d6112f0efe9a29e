//! The transformer under the tasks' heads: one fused group, forward and backward.

use std::ops::Range;

use super::Transformer;
use super::forward::Pass;
use super::group::Group;
use super::mlm::Decoder;
use super::scratch::Scratch;
use crate::machine::host::HostMemory;
use crate::machine::tape::Tape;
use crate::machine::tensor::Tensor;
use crate::model::encoders::dense::Activations;
use crate::model::gradients::GroupGradients;
use crate::model::network::{Batch, Network, Part, Randomness, Weights};
use crate::model::spec::HeadKind;
use crate::ops::dropout::{Dropout, RowKey};
use crate::ops::gemm::Write;
use crate::ops::heads::{Head, HeadsBackward, HeadsForward};
use crate::ops::token_dropout::TokenKey;

/// What a pass needs of a group beside the batch.
pub struct Packed {
    group: Group,
    query_keys: Vec<TokenKey>,
}

/// A part of a group whose head is to be computed.
struct HeadRows<'a> {
    part: &'a Part,
    number: usize,
    /// Of the head rows, of all logits, and of the masked tokens.
    rows: Range<usize>,
    logits: Range<usize>,
    masked: Range<usize>,
}

impl Transformer {
    pub fn pack(&self, network: &Network, batch: &Batch, parts: &[Part]) -> Packed {
        let group = Group::new(&batch.tokens, parts, &network.spec.heads, self.spec.pooling);
        let query_keys = group.query_keys(&batch.tokens.keys);
        Packed { group, query_keys }
    }

    /// A pass over a group, whose activations are `at`.
    pub fn pass<'a>(
        &self,
        memory: &mut HostMemory<'a>,
        weights: Weights<'a>,
        batch: &'a Batch,
        packed: &'a Packed,
        at: Scratch<Tensor>,
        random: Option<Randomness>,
    ) -> Pass<'a> {
        Pass {
            shared: memory.lend(weights.shared),
            frozen: memory.lend(weights.frozen),
            table: weights.rows.expect("the transformer has a word table"),
            batch,
            group: &packed.group,
            query_keys: &packed.query_keys,
            random,
            at,
        }
    }

    fn head_rows<'p>(&self, network: &Network, pass: &Pass, parts: &'p [Part]) -> Vec<HeadRows<'p>> {
        let (mut logits, mut masked) = (0, 0);
        let own = |(number, (part, rows)): (usize, (&'p Part, &Range<usize>))| {
            let start = logits;
            logits += rows.len() * network.spec.heads[part.task].outputs;
            let first = masked;
            masked += if is_mlm(network, part) { rows.len() } else { 0 };
            HeadRows { part, number, rows: rows.clone(), logits: start..logits, masked: first..masked }
        };
        parts.iter().zip(&pass.group.part_heads).enumerate().map(own).collect()
    }

    /// Encoder and heads. `words` is the word table where an `mlm` head reads it.
    pub fn forward<'a>(
        &self,
        tape: &mut Tape<'a>,
        network: &Network,
        pass: &Pass<'a>,
        parts: &[Part],
        [heads, words]: [Tensor; 2],
        at: &Activations,
    ) {
        let hidden = at.hidden.rows(0..pass.group.head_rows());
        self.forward_encoder(tape, hidden, pass);
        for own in self.head_rows(network, pass, parts) {
            let (hidden, logits) = (hidden.rows(own.rows.clone()), at.logits.range(own.logits.clone()));
            let values = heads.range(network.table.head_range(own.part.task));
            if is_mlm(network, own.part) {
                self.mlm_forward(tape, logits, hidden, &Decoder { values, words, rows: own.masked }, &pass.at.mlm);
                continue;
            }
            self.head_dropout(tape, hidden, own.part, pass);
            let heads = vec![head(network, own.part, heads, Tensor::NONE)];
            tape.push(HeadsForward { logits, hidden, heads });
        }
    }

    /// Backward pass of a group after [`Transformer::forward`] and the losses.
    #[allow(clippy::too_many_arguments, reason = "what forward takes, and where the gradients go")]
    pub fn backward<'a>(
        &self,
        tape: &mut Tape<'a>,
        network: &Network,
        memory: &mut HostMemory<'a>,
        pass: &Pass<'a>,
        parts: &[Part],
        [heads, words]: [Tensor; 2],
        at: &Activations,
        gradients: GroupGradients<'a>,
    ) {
        let rows = 0..pass.group.head_rows();
        let (hidden, dhidden) = (at.hidden.rows(rows.clone()), at.dhidden.rows(rows));
        let GroupGradients { jacobian, heads: head_gradients, words: word_gradients, dinput } = gradients;
        let mut word_gradients = word_gradients.into_iter();
        let head_gradients: Vec<Tensor> = head_gradients.into_iter().map(|own| memory.lend_mut(own)).collect();
        for own in self.head_rows(network, pass, parts) {
            let (part, rows) = (own.part, own.rows.clone());
            let (hidden, dhidden) = (hidden.rows(rows.clone()), dhidden.rows(rows));
            let (dlogits, gradient) = (at.dlogits.range(own.logits.clone()), head_gradients[own.number]);
            let row = word_gradients.next().flatten();
            if is_mlm(network, part) {
                // A second batch has word rows of its own, and adds to the one gradient of the head.
                let write = if part.first && part.batch == 0 { Write::Replace } else { Write::Add };
                let dwords = row.map_or(Tensor::NONE, |row| {
                    let whole = row.whole(self.spec.vocabulary);
                    if part.first && part.batch > 0 {
                        whole.fill(0.0);
                    }
                    memory.lend_mut(whole)
                });
                let values = heads.range(network.table.head_range(part.task));
                let decoder = Decoder { values, words, rows: own.masked };
                self.mlm_backward(tape, [dhidden, dlogits, hidden], [gradient, dwords], &decoder, write, &pass.at.mlm);
                continue;
            }
            let heads = vec![head(network, part, heads, gradient)];
            tape.push(HeadsBackward { dhidden, dlogits, hidden, heads });
            self.head_dropout(tape, dhidden, part, pass);
        }
        let jacobian = jacobian.lend(memory, parts, &pass.group.part_tokens, at.staging);
        let dwords = memory.lend_mut(dinput).as_rows(pass.group.len(), self.hidden);
        self.backward_encoder(tape, dhidden, dwords, pass, &jacobian);
    }

    /// Dropout of what a head over whole sequences sees.
    fn head_dropout<'a>(&self, tape: &mut Tape<'a>, x: Tensor, part: &Part, pass: &Pass<'a>) {
        let Some(random) = pass.random.filter(|_| self.dropout > 0.0) else { return };
        let keys: &[RowKey] = &pass.batch.keys[part.rows.clone()];
        tape.push(Dropout { x, keys, probability: self.dropout, random });
    }
}

fn is_mlm(network: &Network, part: &Part) -> bool {
    network.spec.heads[part.task].kind == HeadKind::Mlm
}

fn head(network: &Network, part: &Part, values: Tensor, gradient: Tensor) -> Head {
    let (weight, bias) = network.table.head(part.task);
    Head {
        rows: 0..part.rows.len(),
        outputs: network.spec.heads[part.task].outputs,
        weight: values.range(weight.range()),
        bias: values.range(bias.range()),
        gradient,
        first: part.first && part.batch == 0,
    }
}
