//! The backward pass: from gradients of the heads' input to gradients of every trained parameter.

use std::ops::Range;

use super::Transformer;
use super::activations::slot;
use super::forward::Pass;
use super::layout::{Piece, Place};
use crate::machine::tape::Tape;
use crate::machine::tensor::Tensor;
use crate::model::encoders::Values;
use crate::ops::activation::{Activation, ActivationBackward};
use crate::ops::attention::AttentionBackward;
use crate::ops::gather::{Copy, ScatterAddRows};
use crate::ops::jacobian_rows::JacobianRows;
use crate::ops::layer_norm::LayerNormBackward;
use crate::ops::linear::{LinearInputBackward, LinearWeightBackward};
use crate::ops::pooling::MeanPoolBackward;
use crate::ops::token_dropout::{DropoutByToken, TokenDropout, TokenKeys};
use crate::ops::token_embedding::TokenEmbeddingBackward;

/// A block, and how its pieces' gradients reach J.
struct Block<'b> {
    place: &'b Place,
    values: Values,
    jacobian: &'b JacobianRows,
    partials: Tensor,
}

impl Block<'_> {
    /// Gradients of a linear layer, and (unless `dx` is none) of its input; `rows` (by part) are those of dout and x.
    fn linear(&self, tape: &mut Tape, piece: &Piece, rows: &[Range<usize>], [dx, dout, x]: [Tensor; 3]) {
        let (jacobian, columns) = (self.jacobian.of_rows(rows), self.place.piece(piece));
        tape.push(LinearWeightBackward { dout, x, jacobian, columns, partials: self.partials });
        if !dx.is_none() {
            tape.push(self.input(piece, dx, dout));
        }
    }

    /// dx = dout W
    fn input(&self, piece: &Piece, dx: Tensor, dout: Tensor) -> LinearInputBackward {
        let weight = piece.matrix(self.values, dout.columns, dx.columns);
        LinearInputBackward::new(dx, dout, weight)
    }

    /// Gradients of a normalization of x, and of its input.
    fn norm(&self, tape: &mut Tape, piece: &Piece, rows: &[Range<usize>], [dx, dout, x, stats]: [Tensor; 4]) {
        let (jacobian, columns, gain) = (self.jacobian.of_rows(rows), self.place.piece(piece), piece.of(self.values).0);
        tape.push(LayerNormBackward { dx, dout, x, stats, gain, jacobian, columns, partials: self.partials });
    }
}

impl Transformer {
    /// From `dheads` (head rows x hidden), which is used up, to J; `dwords` (n x hidden) receives the gradient of the word
    /// rows of the group's tokens, unless the embeddings are frozen.
    pub(super) fn backward_encoder<'a>(
        &self,
        tape: &mut Tape<'a>,
        dheads: Tensor,
        dwords: Tensor,
        pass: &Pass<'a>,
        jacobian: &JacobianRows,
    ) {
        self.pool_backward(tape, dheads, pass, jacobian);
        let dx = pass.at.d.rows(0..pass.group.queries.len());
        tape.push(MeanPoolBackward { dx, dout: dheads, bounds: &pass.group.pool_bounds });
        for layer in (self.spec.first_trained()..self.spec.layers).rev() {
            if self.spec.recompute && layer + 1 < self.spec.layers {
                self.forward_layer(tape, layer, pass);
            }
            self.layer_backward(tape, layer, pass, jacobian);
        }
        if !self.spec.embeddings_frozen() {
            self.embed_backward(tape, dwords, pass, jacobian);
        }
    }

    fn block<'b>(&self, place: &'b Place, pass: &Pass, jacobian: &'b JacobianRows) -> Block<'b> {
        Block { place, values: place.of(&pass.weights), jacobian, partials: pass.at.partials }
    }

    fn pool_backward<'a>(&self, tape: &mut Tape<'a>, dheads: Tensor, pass: &Pass<'a>, jacobian: &JacobianRows) {
        let Some(place) = &self.layout.pooler_place else { return };
        let block = self.block(place, pass, jacobian);
        let pooled = &pass.group.part_pooled;
        let through = joined(pooled);
        for rows in &through {
            let (dout, pre) = (dheads.rows(rows.clone()), pass.at.pooler_pre.rows(rows.clone()));
            tape.push(ActivationBackward { dout, pre, activation: Activation::Tanh });
        }
        let rows = 0..dheads.rows;
        let (x, dx) = (pass.at.pooled.rows(rows.clone()), pass.at.pooler_pre.rows(rows));
        block.linear(tape, &self.layout.pooler, pooled, [dx, dheads, x]);
        for rows in through {
            tape.push(Copy { out: dheads.rows(rows.clone()), x: dx.rows(rows.clone()) });
        }
    }

    /// In: the scratch's `d` (rows x hidden) of the layer's output. Out: `d` (n x hidden) of its input, if anything below is
    /// trained.
    fn layer_backward<'a>(&self, tape: &mut Tape<'a>, layer: usize, pass: &Pass<'a>, jacobian: &JacobianRows) {
        let group = pass.group;
        let x = self.input(layer, pass);
        let all = layer + 1 < self.spec.layers || group.reads_all();
        // The rows computed, their keys, and the parts' shares of them.
        let (xq, keys, parts) = if all {
            (x, pass.token_keys(), &group.part_tokens)
        } else {
            (pass.at.last_input.rows(0..group.queries.len()), TokenKeys::Packed(&pass.group.query_keys), &group.part_queries)
        };
        let (h, f, r) = (self.hidden, self.spec.intermediate, xq.rows);
        let (rows, tokens) = (0..r, 0..x.rows);
        let saved = &pass.at.saved[slot(&self.spec, layer)];
        let place = &self.layout.layers[layer];
        let (block, pieces) = (self.block(place, pass, jacobian), &self.layout.layer);
        let [d, da, dq] = [pass.at.d, pass.at.da, pass.at.dq].map(|own| own.rows(rows.clone()));
        let (dkv, dff) = (pass.at.dkv.rows(tokens.clone()), pass.at.dff);
        let of = |own: Tensor| own.rows(rows.clone());
        let dropout = |site: usize| self.dropout_at(site, place.frozen, keys, pass.random);

        block.norm(tape, &pieces.output_norm, parts, [da, d, of(saved.sum), of(saved.stats)]);
        let dropped = masked(tape, [d, da], dropout(2 + 2 * layer));
        let dpre = dff.as_rows(r, f);
        block.linear(tape, &pieces.output, parts, [Tensor::NONE, dropped, of(saved.act)]);
        let gelu = LinearInputBackward {
            pre: of(saved.pre),
            activation: Activation::Gelu,
            ..block.input(&pieces.output, dpre, dropped)
        };
        tape.push(gelu);
        block.linear(tape, &pieces.intermediate, parts, [Tensor::NONE, dpre, of(saved.attention_out)]);
        tape.push(LinearInputBackward { residual: da, ..block.input(&pieces.intermediate, d, dpre) });

        block.norm(tape, &pieces.attention_norm, parts, [da, d, of(saved.attention_sum), of(saved.attention_stats)]);
        let dropped = masked(tape, [d, da], dropout(1 + 2 * layer));
        let dcontext = dff.as_rows(r, h);
        block.linear(tape, &pieces.attention_output, parts, [dcontext, dropped, of(saved.context)]);
        tape.push(AttentionBackward {
            dq,
            dkv,
            dout: dcontext,
            out: of(saved.context),
            log_sums: of(saved.log_sums),
            q: of(saved.q),
            kv: saved.kv.rows(tokens.clone()),
            shape: self.sequences(layer, pass, r, keys),
        });

        let wanted = !(layer == 0 && self.spec.embeddings_frozen() || layer > 0 && layer == self.spec.first_trained());
        block.linear(tape, &pieces.query, parts, [Tensor::NONE, dq, xq]);
        block.linear(tape, &pieces.key_value, &group.part_tokens, [Tensor::NONE, dkv, x]);
        if !wanted {
            return;
        }
        let (dx, through) = (pass.at.d.rows(tokens), dff.as_rows(r, h));
        tape.push(LinearInputBackward { residual: da, ..block.input(&pieces.query, through, dq) });
        let residual = if all { through } else { Tensor::NONE };
        tape.push(LinearInputBackward { residual, ..block.input(&pieces.key_value, dx, dkv) });
        if !all {
            tape.push(ScatterAddRows { out: dx, x: through, index: &group.queries });
        }
    }

    fn embed_backward<'a>(&self, tape: &mut Tape<'a>, dwords: Tensor, pass: &Pass<'a>, jacobian: &JacobianRows) {
        let tokens = 0..pass.group.tokens.len();
        let place = &self.layout.embeddings;
        let block = self.block(place, pass, jacobian);
        let d = pass.at.d.rows(tokens.clone());
        if let Some(dropout) = self.dropout_at(0, false, pass.token_keys(), pass.random) {
            tape.push(DropoutByToken { x: d, dropout });
        }
        let (sum, stats) = (pass.at.embedding_sum.rows(tokens.clone()), pass.at.embedding_stats.rows(tokens));
        let parts = &pass.group.part_tokens;
        block.norm(tape, &self.layout.embedding.norm, parts, [dwords, d, sum, stats]);
        let piece = &self.layout.embedding.rows;
        let (jacobian, columns) = (jacobian.of_rows(parts), place.piece(piece));
        let (tokens, positions, partials) = (pass.tokens(), piece.weight(), pass.at.partials);
        let bounds = &pass.group.bounds;
        tape.push(TokenEmbeddingBackward { dsum: dwords, tokens, bounds, jacobian, columns, positions, partials });
    }
}

/// The gradient behind a dropout: `d` becomes `da` masked, or without dropout `da` stands for it.
fn masked<'a>(tape: &mut Tape<'a>, [d, da]: [Tensor; 2], dropout: Option<TokenDropout<'a>>) -> Tensor {
    let Some(dropout) = dropout else { return da };
    tape.push(Copy { out: d, x: da });
    tape.push(DropoutByToken { x: d, dropout });
    d
}

/// Ranges in order, those that follow each other as one, empty ones left out.
fn joined(ranges: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges.iter().filter(|range| !range.is_empty()) {
        match joined.last_mut().filter(|last| last.end == range.start) {
            Some(last) => last.end = range.end,
            None => joined.push(range.clone()),
        }
    }
    joined
}
