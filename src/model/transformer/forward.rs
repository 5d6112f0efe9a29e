//! The forward pass: embeddings, layers, pooling.

use super::Transformer;
use super::activations::{Activations, Saved, slot};
use super::group::TokenGroup;
use super::layout::Piece;
use crate::machine::tape::Tape;
use crate::machine::tensor::Tensor;
use crate::model::encoders::{Table, Values, Weights};
use crate::model::network::{Batch, Randomness};
use crate::ops::activation::Activation;
use crate::ops::attention::{AttentionDropout, AttentionForward, Sequences};
use crate::ops::gather::{Copy, GatherRows};
use crate::ops::layer_norm::{LayerNormForward, NormTensors, ResidualNormForward};
use crate::ops::linear::LinearForward;
use crate::ops::pooling::MeanPoolForward;
use crate::ops::row_index::TokensAt;
use crate::ops::token_dropout::{DropoutByToken, TokenDropout, TokenKeys};
use crate::ops::token_embedding::{TokenEmbeddingForward, TokenSource, Tokens};

/// What every step of a pass over one group needs.
pub struct Pass<'a> {
    pub weights: Weights,
    pub table: Table<'a>,
    /// (rows x hidden) what a device keeps of the frozen prefix, or none.
    pub states: Tensor,
    pub batch: &'a Batch,
    pub group: &'a TokenGroup,
    /// The group's tokens, where a device fetched them.
    pub fetched: Option<TokensAt>,
    /// None outside training.
    pub random: Option<Randomness>,
    pub at: &'a Activations,
}

impl<'a> Pass<'a> {
    pub fn token_keys(&self) -> TokenKeys<'a> {
        match self.fetched {
            Some(own) => TokenKeys::Fetched(own.keys),
            None => TokenKeys::Packed(&self.batch.tokens.keys[self.group.tokens.clone()]),
        }
    }

    pub fn tokens(&self) -> TokenSource<'a> {
        if let Some(own) = self.fetched {
            return TokenSource::Fetched(own);
        }
        let (tokens, range) = (&self.batch.tokens, self.group.tokens.clone());
        let ids = &self.batch.bags.rows[range.clone()];
        let own = Tokens { ids, positions: &tokens.positions[range.clone()], types: &tokens.types[range] };
        TokenSource::Packed(own, self.table.slots)
    }
}

/// y = f(x W^T + b), whose weight and bias lie in a block as `piece` says.
fn linear(tape: &mut Tape, [out, pre, x]: [Tensor; 3], (piece, block): (&Piece, Values), activation: Activation) {
    let (weight, bias) = (piece.matrix(block, out.columns, x.columns), piece.of(block).1);
    tape.push(LinearForward { out, pre, x, weight, bias, activation, residual: Tensor::NONE });
}

/// As [`linear`], whose bias is added by what follows, which is given it.
fn product(tape: &mut Tape, out: Tensor, x: Tensor, (piece, block): (&Piece, Values)) -> Tensor {
    let (weight, none) = (piece.matrix(block, out.columns, x.columns), Tensor::NONE);
    tape.push(LinearForward { out, pre: none, x, weight, bias: none, activation: Activation::None, residual: none });
    piece.of(block).1
}

impl Transformer {
    /// out (head rows x hidden): what the heads see.
    pub(super) fn forward_encoder<'a>(&self, tape: &mut Tape<'a>, out: Tensor, pass: &Pass<'a>) {
        self.forward_prefix(tape, pass);
        for layer in self.spec.first_trained()..self.spec.layers {
            self.forward_layer(tape, layer, pass);
        }
        self.pool(tape, out, pass);
    }

    pub(super) fn embed<'a>(&self, tape: &mut Tape<'a>, pass: &Pass<'a>) {
        let tokens = 0..pass.group.tokens.len();
        let block = self.layout.embeddings.of(&pass.weights);
        let (positions, types) = self.layout.embedding.rows.of(block);
        let sum = pass.at.embedding_sum.rows(tokens.clone());
        let Table { values, init, .. } = pass.table;
        tape.push(TokenEmbeddingForward { sum, tokens: pass.tokens(), values, init, positions, types });
        let norm = self.norm(self.layout.embedding.norm.of(block));
        let (out, stats) = (pass.at.embedded.rows(tokens.clone()), pass.at.embedding_stats.rows(tokens));
        tape.push(LayerNormForward { out, stats, x: sum, norm });
        if let Some(dropout) = self.dropout_at(0, self.spec.embeddings_frozen(), pass.token_keys(), pass.random) {
            tape.push(DropoutByToken { x: out, dropout });
        }
    }

    /// (n x hidden) the input of layer `index`.
    pub(super) fn input(&self, index: usize, pass: &Pass) -> Tensor {
        let whole = match index {
            0 => pass.at.embedded,
            _ if self.spec.recompute => pass.at.inputs[index - 1],
            _ => pass.at.saved[slot(&self.spec, index - 1)].out,
        };
        whole.rows(0..pass.group.tokens.len())
    }

    /// Layer `index` from the layer below it.
    pub(super) fn forward_layer<'a>(&self, tape: &mut Tape<'a>, index: usize, pass: &Pass<'a>) {
        let x = self.input(index, pass);
        let saved = &pass.at.saved[slot(&self.spec, index)];
        if index + 1 < self.spec.layers {
            self.layer(tape, index, pass, saved, [x, x], pass.token_keys());
            if self.spec.recompute {
                let tokens = 0..pass.group.tokens.len();
                tape.push(Copy { out: pass.at.inputs[index].rows(tokens.clone()), x: saved.out.rows(tokens) });
            }
        } else if pass.group.reads_all() {
            self.layer(tape, index, pass, saved, [x, x], pass.token_keys());
        } else {
            let read = pass.at.last_input.rows(0..pass.group.queries.len());
            tape.push(GatherRows { out: read, x, index: &pass.group.queries });
            self.layer(tape, index, pass, saved, [read, x], TokenKeys::Packed(&pass.group.query_keys));
        }
    }

    /// One layer: `xq` are the rows of x that are computed, with the keys `keys`.
    fn layer<'a>(
        &self,
        tape: &mut Tape<'a>,
        index: usize,
        pass: &Pass<'a>,
        saved: &Saved,
        [xq, x]: [Tensor; 2],
        keys: TokenKeys<'a>,
    ) {
        let rows = 0..xq.rows;
        let place = &self.layout.layers[index];
        let block = place.of(&pass.weights);
        let pieces = &self.layout.layer;
        let none = Tensor::NONE;

        let (q, kv) = (saved.q.rows(rows.clone()), saved.kv.rows(0..x.rows));
        linear(tape, [q, none, xq], (&pieces.query, block), Activation::None);
        linear(tape, [kv, none, x], (&pieces.key_value, block), Activation::None);
        let context = saved.context.rows(rows.clone());
        let (log_sums, shape) = (saved.log_sums.rows(rows.clone()), self.sequences(index, pass, xq.rows, keys));
        tape.push(AttentionForward { out: context, log_sums, q, kv, shape });

        let sum = saved.attention_sum.rows(rows.clone());
        let bias = product(tape, sum, context, (&pieces.attention_output, block));
        let middle = saved.attention_out.rows(rows.clone());
        tape.push(ResidualNormForward {
            out: middle,
            stats: saved.attention_stats.rows(rows.clone()),
            sum,
            bias,
            residual: xq,
            dropout: self.dropout_at(1 + 2 * index, place.frozen, keys, pass.random),
            norm: self.norm(pieces.attention_norm.of(block)),
        });

        let (act, pre) = (saved.act.rows(rows.clone()), saved.pre.rows(rows.clone()));
        linear(tape, [act, pre, middle], (&pieces.intermediate, block), Activation::Gelu);
        let sum = saved.sum.rows(rows.clone());
        let bias = product(tape, sum, act, (&pieces.output, block));
        tape.push(ResidualNormForward {
            out: saved.out.rows(rows.clone()),
            stats: saved.stats.rows(rows),
            sum,
            bias,
            residual: middle,
            dropout: self.dropout_at(2 + 2 * index, place.frozen, keys, pass.random),
            norm: self.norm(pieces.output_norm.of(block)),
        });
    }

    /// Means of the last layer's rows; whole sequences go through the pooler if there is one.
    fn pool<'a>(&self, tape: &mut Tape<'a>, out: Tensor, pass: &Pass<'a>) {
        let rows = 0..pass.group.head_rows();
        let x = pass.at.saved[slot(&self.spec, self.spec.layers - 1)].out.rows(0..pass.group.queries.len());
        let bounds = &pass.group.pool_bounds;
        let Some(place) = &self.layout.pooler_place else { return tape.push(MeanPoolForward { out, x, bounds }) };
        let (pooled, pre) = (pass.at.pooled.rows(rows.clone()), pass.at.pooler_pre.rows(rows));
        tape.push(MeanPoolForward { out: pooled, x, bounds });
        linear(tape, [out, pre, pooled], (&self.layout.pooler, place.of(&pass.weights)), Activation::Tanh);
        for (all, through) in pass.group.part_heads.iter().zip(&pass.group.part_pooled) {
            if through.is_empty() {
                tape.push(Copy { out: out.rows(all.clone()), x: pooled.rows(all.clone()) });
            }
        }
    }

    pub(super) fn sequences<'a>(&self, layer: usize, pass: &Pass<'a>, rows: usize, keys: TokenKeys<'a>) -> Sequences<'a> {
        let group = pass.group;
        let dropout = pass.random.filter(|_| self.spec.attention_dropout > 0.0 && !self.layout.layers[layer].frozen);
        Sequences {
            queries: if rows == group.tokens.len() { &group.bounds } else { &group.query_bounds },
            keys: &group.bounds,
            heads: self.spec.heads,
            dim: self.hidden / self.spec.heads,
            dropout: dropout.map(|random| AttentionDropout {
                queries: keys,
                probability: self.spec.attention_dropout,
                seed: random.seed,
                round: random.round,
                layer: layer as u32,
            }),
        }
    }

    /// Dropout of trained blocks while training; a frozen block is always run as in evaluation.
    pub(super) fn dropout_at<'a>(
        &self,
        site: usize,
        frozen: bool,
        tokens: TokenKeys<'a>,
        random: Option<Randomness>,
    ) -> Option<TokenDropout<'a>> {
        let random = random.filter(|_| self.dropout > 0.0 && !frozen)?;
        let (seed, round) = (random.seed, random.round);
        Some(TokenDropout { tokens, probability: self.dropout, seed, round, site: site as u32 })
    }

    pub(super) fn norm(&self, (gain, shift): (Tensor, Tensor)) -> NormTensors {
        NormTensors { gain, shift, eps: self.spec.norm_eps as f32 }
    }
}
