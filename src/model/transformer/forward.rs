//! The way up: embeddings, layers, pooling.

use super::Transformer;
use super::group::Group;
use super::scratch::{Saved, Scratch};
use crate::model::network::{Batch, Randomness, Weights};
use crate::ops::activation::{Activation, bias_activation_forward};
use crate::ops::attention::{AttentionDropout, Sequences, attention_forward};
use crate::ops::gather::gather_rows;
use crate::ops::layer_norm::{Norm, Residual, layer_norm_forward, residual_norm_forward};
use crate::ops::linear::linear_forward;
use crate::ops::pooling::mean_pool_forward;
use crate::ops::token_dropout::{TokenDropout, TokenKey};
use crate::ops::token_embedding::{Tokens, token_embedding_forward};

/// What every step of a pass over one group needs.
pub(super) struct Pass<'a> {
    pub weights: Weights<'a>,
    pub batch: &'a Batch,
    pub group: &'a Group,
    /// Keys of the queries.
    pub query_keys: Vec<TokenKey>,
    /// None outside training.
    pub random: Option<Randomness>,
}

impl<'a> Pass<'a> {
    pub fn new(weights: Weights<'a>, batch: &'a Batch, group: &'a Group, random: Option<Randomness>) -> Self {
        Self { weights, batch, group, query_keys: group.query_keys(&batch.tokens.keys), random }
    }

    pub fn token_keys(&self) -> &[TokenKey] {
        &self.batch.tokens.keys[self.group.tokens.clone()]
    }

    pub fn tokens(&self) -> Tokens<'_> {
        let (tokens, range) = (&self.batch.tokens, self.group.tokens.clone());
        Tokens {
            ids: &self.batch.bags.rows[range.clone()],
            positions: &tokens.positions[range.clone()],
            types: &tokens.types[range],
        }
    }
}

impl Transformer {
    /// out (head rows x hidden): what the heads see.
    pub(super) fn run(&self, out: &mut [f32], pass: &Pass, s: &mut Scratch) {
        self.run_prefix(pass, s);
        for layer in self.spec.first_trained()..self.spec.layers {
            self.run_layer(layer, pass, s);
        }
        self.pool(out, pass, s);
    }

    pub(super) fn embed(&self, pass: &Pass, s: &mut Scratch) {
        let (n, h) = (pass.group.len(), self.hidden);
        let block = self.layout.embeddings.of(pass.weights.shared, pass.weights.frozen);
        let (positions, types) = self.layout.embedding.rows.of(block);
        let table = pass.weights.rows.expect("the transformer has a word table");
        let sum = &mut s.embedding_sum[..n * h];
        token_embedding_forward(sum, pass.tokens(), table, positions, types);
        let (gain, shift) = self.layout.embedding.norm.of(block);
        let out = &mut s.embedded[..n * h];
        layer_norm_forward(out, &mut s.embedding_stats[..2 * n], sum, self.norm(gain, shift));
        if let Some(dropout) = self.dropout_at(0, self.spec.embeddings_frozen(), pass.token_keys(), pass.random) {
            dropout.apply_all(out, h);
        }
    }

    /// Layer `index` from the layer below it.
    pub(super) fn run_layer(&self, index: usize, pass: &Pass, s: &mut Scratch) {
        let (n, h) = (pass.group.len(), self.hidden);
        let slot = Scratch::slot(&self.spec, index);
        let (below, rest) = s.saved.split_at_mut(slot);
        let x = match index {
            0 => &s.embedded[..n * h],
            _ if self.spec.recompute => &s.inputs[index - 1][..n * h],
            _ => &below[slot - 1].out[..n * h],
        };
        let saved = &mut rest[0];
        if index + 1 < self.spec.layers {
            self.layer(index, pass, saved, x, x, pass.token_keys());
            if self.spec.recompute {
                s.inputs[index][..n * h].copy_from_slice(&saved.out[..n * h]);
            }
        } else if pass.group.reads_all() {
            self.layer(index, pass, saved, x, x, pass.token_keys());
        } else {
            let read = &mut s.last_input[..pass.group.queries.len() * h];
            gather_rows(read, x, &pass.group.queries, h);
            self.layer(index, pass, saved, read, x, &pass.query_keys);
        }
    }

    /// One layer: `xq` are the rows of x that are computed, with the keys `keys`.
    fn layer(&self, index: usize, pass: &Pass, saved: &mut Saved, xq: &[f32], x: &[f32], keys: &[TokenKey]) {
        let (h, f) = (self.hidden, self.spec.intermediate);
        let (n, r) = (x.len() / h, xq.len() / h);
        let place = &self.layout.layers[index];
        let block = place.of(pass.weights.shared, pass.weights.frozen);
        let pieces = &self.layout.layer;
        let none = Activation::None;

        let (weight, bias) = pieces.query.of(block);
        let q = &mut saved.q[..r * h];
        linear_forward(q, xq, weight, h, h);
        bias_activation_forward(&mut [], q, bias, none);
        let (weight, bias) = pieces.key_value.of(block);
        let kv = &mut saved.kv[..n * 2 * h];
        linear_forward(kv, x, weight, h, 2 * h);
        bias_activation_forward(&mut [], kv, bias, none);
        let context = &mut saved.context[..r * h];
        attention_forward(context, &mut saved.log_sums[..r * self.spec.heads], q, kv, self.sequences(index, pass, r, keys));

        let (weight, bias) = pieces.attention_output.of(block);
        let sum = &mut saved.attention_sum[..r * h];
        linear_forward(sum, context, weight, h, h);
        let (gain, shift) = pieces.attention_norm.of(block);
        let before = Residual { bias, residual: xq, dropout: self.dropout_at(1 + 2 * index, place.frozen, keys, pass.random) };
        let middle = &mut saved.attention_out[..r * h];
        residual_norm_forward(middle, &mut saved.attention_stats[..2 * r], sum, before, self.norm(gain, shift));

        let (weight, bias) = pieces.intermediate.of(block);
        let pre = &mut saved.pre[..r * f];
        linear_forward(pre, middle, weight, h, f);
        let act = &mut saved.act[..r * f];
        bias_activation_forward(act, pre, bias, Activation::Gelu);
        let (weight, bias) = pieces.output.of(block);
        let sum = &mut saved.sum[..r * h];
        linear_forward(sum, act, weight, f, h);
        let (gain, shift) = pieces.output_norm.of(block);
        let before =
            Residual { bias, residual: middle, dropout: self.dropout_at(2 + 2 * index, place.frozen, keys, pass.random) };
        residual_norm_forward(&mut saved.out[..r * h], &mut saved.stats[..2 * r], sum, before, self.norm(gain, shift));
    }

    /// Means of the last layer's rows; whole sequences go through the pooler if there is one.
    fn pool(&self, out: &mut [f32], pass: &Pass, s: &mut Scratch) {
        let (h, m) = (self.hidden, pass.group.head_rows());
        let last = &s.saved[Scratch::slot(&self.spec, self.spec.layers - 1)].out[..pass.group.queries.len() * h];
        let Some(place) = &self.layout.pooler_place else {
            return mean_pool_forward(&mut out[..m * h], last, &pass.group.pool_bounds, h);
        };
        let (pooled, pre) = (&mut s.pooled[..m * h], &mut s.pooler_pre[..m * h]);
        mean_pool_forward(pooled, last, &pass.group.pool_bounds, h);
        let (weight, bias) = self.layout.pooler.of(place.of(pass.weights.shared, pass.weights.frozen));
        linear_forward(pre, pooled, weight, h, h);
        bias_activation_forward(&mut out[..m * h], pre, bias, Activation::Tanh);
        for (all, through) in pass.group.part_heads.iter().zip(&pass.group.part_pooled) {
            if through.is_empty() {
                out[all.start * h..all.end * h].copy_from_slice(&pooled[all.start * h..all.end * h]);
            }
        }
    }

    pub(super) fn sequences<'a>(&self, layer: usize, pass: &'a Pass, rows: usize, keys: &'a [TokenKey]) -> Sequences<'a> {
        let group = pass.group;
        let dropout = pass.random.filter(|_| self.spec.attention_dropout > 0.0 && !self.layout.layers[layer].frozen);
        Sequences {
            queries: if rows == group.len() { &group.bounds } else { &group.query_bounds },
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
        tokens: &'a [TokenKey],
        random: Option<Randomness>,
    ) -> Option<TokenDropout<'a>> {
        let random = random.filter(|_| self.dropout > 0.0 && !frozen)?;
        let (seed, round) = (random.seed, random.round);
        Some(TokenDropout { tokens, probability: self.dropout, seed, round, site: site as u32 })
    }

    fn norm<'a>(&self, gain: &'a [f32], shift: &'a [f32]) -> Norm<'a> {
        Norm { gain, shift, eps: self.spec.norm_eps as f32 }
    }
}
