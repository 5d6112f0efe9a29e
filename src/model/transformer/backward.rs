//! The way down: gradients of the heads' input to gradients of every trained parameter.

use super::Transformer;
use super::forward::Pass;
use super::scratch::{Saved, Scratch};
use crate::model::jacobian::{JacobianRows, Slot};
use crate::ops::activation::{Activation, activation_backward};
use crate::ops::attention::attention_backward;
use crate::ops::gather::{add, scatter_add_rows};
use crate::ops::layer_norm::layer_norm_backward;
use crate::ops::linear::linear_input_backward;
use crate::ops::pooling::mean_pool_backward;
use crate::ops::token_dropout::{TokenDropout, TokenKey};
use crate::ops::token_embedding::{EmbeddingGradient, token_embedding_backward};

/// Buffers of the way down, each as long as its rows need.
struct Gradients<'a> {
    d: &'a mut [f32],
    da: &'a mut [f32],
    dq: &'a mut [f32],
    dkv: &'a mut [f32],
    dff: &'a mut [f32],
}

/// Rows of a layer: all tokens, and those computed.
struct Rows<'a> {
    x: &'a [f32],
    xq: &'a [f32],
    keys: &'a [TokenKey],
    /// The rows computed are not all.
    picked: Option<&'a [u32]>,
    parts: &'a [std::ops::Range<usize>],
}

impl Transformer {
    /// From `dheads` (head rows x hidden), which is used up, to J; `dwords` (n x hidden) receives the gradient of the word
    /// rows of the group's tokens, unless the embeddings are frozen.
    pub(super) fn run_back(
        &self,
        dheads: &mut [f32],
        dwords: &mut [f32],
        pass: &Pass,
        s: &mut Scratch,
        jacobian: &mut JacobianRows,
    ) {
        let (h, queries) = (self.hidden, pass.group.queries.len());
        self.pool_back(dheads, pass, s, jacobian);
        mean_pool_backward(&mut s.d[..queries * h], dheads, &pass.group.pool_bounds, h);
        for layer in (self.spec.first_trained()..self.spec.layers).rev() {
            if self.spec.recompute && layer + 1 < self.spec.layers {
                self.run_layer(layer, pass, s);
            }
            self.layer_back(layer, pass, s, jacobian);
        }
        if !self.spec.embeddings_frozen() {
            self.embed_back(dwords, pass, s, jacobian);
        }
    }

    fn pool_back(&self, dheads: &mut [f32], pass: &Pass, s: &mut Scratch, jacobian: &mut JacobianRows) {
        let Some(place) = &self.layout.pooler_place else { return };
        let (h, m) = (self.hidden, pass.group.head_rows());
        for rows in &pass.group.part_pooled {
            let range = rows.start * h..rows.end * h;
            activation_backward(&mut dheads[range.clone()], &s.pooler_pre[range], h, Activation::Tanh);
        }
        let piece = &self.layout.pooler;
        jacobian.linear(place.piece(piece), &pass.group.part_pooled, dheads, &s.pooled, h, h);
        let (weight, _) = piece.of(place.of(pass.weights.shared, pass.weights.frozen));
        let through = &mut s.pooler_pre[..m * h];
        linear_input_backward(through, &dheads[..m * h], weight, h, h);
        for rows in &pass.group.part_pooled {
            let range = rows.start * h..rows.end * h;
            dheads[range.clone()].copy_from_slice(&through[range]);
        }
    }

    fn layer_back(&self, layer: usize, pass: &Pass, s: &mut Scratch, jacobian: &mut JacobianRows) {
        let (n, h, group) = (pass.group.len(), self.hidden, pass.group);
        let slot = Scratch::slot(&self.spec, layer);
        let (below, rest) = s.saved.split_at_mut(slot);
        let x = match layer {
            0 => &s.embedded[..n * h],
            _ if self.spec.recompute => &s.inputs[layer - 1][..n * h],
            _ => &below[slot - 1].out[..n * h],
        };
        let all = layer + 1 < self.spec.layers || group.reads_all();
        let rows = if all {
            Rows { x, xq: x, keys: pass.token_keys(), picked: None, parts: &group.part_tokens }
        } else {
            let xq = &s.last_input[..group.queries.len() * h];
            Rows { x, xq, keys: &pass.query_keys, picked: Some(&group.queries), parts: &group.part_queries }
        };
        let gradients = Gradients { d: &mut s.d, da: &mut s.da, dq: &mut s.dq, dkv: &mut s.dkv, dff: &mut s.dff };
        self.one_layer_back(layer, pass, &rest[0], rows, gradients, jacobian);
    }

    /// In: `d` (rows x hidden) of the layer's output. Out: `d` (n x hidden) of its input, if anything below is trained.
    fn one_layer_back(
        &self,
        layer: usize,
        pass: &Pass,
        saved: &Saved,
        rows: Rows,
        gradients: Gradients,
        jacobian: &mut JacobianRows,
    ) {
        let (h, f) = (self.hidden, self.spec.intermediate);
        let (n, r) = (rows.x.len() / h, rows.xq.len() / h);
        let place = &self.layout.layers[layer];
        let (block, pieces) = (place.of(pass.weights.shared, pass.weights.frozen), &self.layout.layer);
        let Gradients { d: whole, da, dq, dkv, dff } = gradients;
        let (d, da, dq, dkv) = (&mut whole[..r * h], &mut da[..r * h], &mut dq[..r * h], &mut dkv[..n * 2 * h]);
        let dropout = |site: usize| self.dropout_at(site, place.frozen, rows.keys, pass.random);

        let piece = &pieces.output_norm;
        layer_norm_backward(da, d, &saved.sum[..r * h], &saved.stats[..2 * r], piece.of(block).0);
        jacobian.norm(place.piece(piece), rows.parts, d, &saved.sum, &saved.stats);
        let dropped = masked(d, da, dropout(2 + 2 * layer), h);
        let piece = &pieces.output;
        jacobian.linear(place.piece(piece), rows.parts, dropped, &saved.act, f, h);
        let dpre = &mut dff[..r * f];
        linear_input_backward(dpre, dropped, piece.of(block).0, f, h);
        activation_backward(dpre, &saved.pre[..r * f], f, Activation::Gelu);
        let piece = &pieces.intermediate;
        jacobian.linear(place.piece(piece), rows.parts, dpre, &saved.attention_out, h, f);
        linear_input_backward(d, dpre, piece.of(block).0, h, f);
        add(d, da);

        let piece = &pieces.attention_norm;
        layer_norm_backward(da, d, &saved.attention_sum[..r * h], &saved.attention_stats[..2 * r], piece.of(block).0);
        jacobian.norm(place.piece(piece), rows.parts, d, &saved.attention_sum, &saved.attention_stats);
        let dropped = masked(d, da, dropout(1 + 2 * layer), h);
        let piece = &pieces.attention_output;
        jacobian.linear(place.piece(piece), rows.parts, dropped, &saved.context, h, h);
        let dcontext = &mut dff[..r * h];
        linear_input_backward(dcontext, dropped, piece.of(block).0, h, h);
        let (context, log_sums) = (&saved.context[..r * h], &saved.log_sums[..r * self.spec.heads]);
        let shape = self.sequences(layer, pass, r, rows.keys);
        attention_backward(dq, dkv, dcontext, context, log_sums, &saved.q[..r * h], &saved.kv[..n * 2 * h], shape);

        let piece = &pieces.query;
        jacobian.linear(place.piece(piece), rows.parts, dq, rows.xq, h, h);
        let piece = &pieces.key_value;
        jacobian.linear(place.piece(piece), &pass.group.part_tokens, dkv, rows.x, h, 2 * h);
        if layer == 0 && self.spec.embeddings_frozen() || layer > 0 && layer == self.spec.first_trained() {
            return;
        }
        let dx = &mut whole[..n * h];
        linear_input_backward(dx, dkv, piece.of(block).0, h, 2 * h);
        let through = &mut dff[..r * h];
        linear_input_backward(through, dq, pieces.query.of(block).0, h, h);
        add(through, da);
        match rows.picked {
            None => add(dx, through),
            Some(picked) => scatter_add_rows(dx, through, picked, h),
        }
    }

    fn embed_back(&self, dwords: &mut [f32], pass: &Pass, s: &mut Scratch, jacobian: &mut JacobianRows) {
        let (n, h) = (pass.group.len(), self.hidden);
        let place = &self.layout.embeddings;
        let block = place.of(pass.weights.shared, pass.weights.frozen);
        let d = &mut s.d[..n * h];
        if let Some(dropout) = self.dropout_at(0, false, pass.token_keys(), pass.random) {
            dropout.apply_all(d, h);
        }
        let (piece, sum) = (&self.layout.embedding.norm, &s.embedding_sum[..n * h]);
        layer_norm_backward(dwords, d, sum, &s.embedding_stats[..2 * n], piece.of(block).0);
        jacobian.norm(place.piece(piece), &pass.group.part_tokens, d, sum, &s.embedding_stats);
        let piece = &self.layout.embedding.rows;
        jacobian.each(place.piece(piece), |slots| {
            let mut segments = Vec::with_capacity(slots.len());
            for Slot { part, values, write } in slots {
                let (positions, types) = piece.split(values);
                segments.push(EmbeddingGradient { tokens: pass.group.part_tokens[part].clone(), positions, types, write });
            }
            token_embedding_backward(&mut segments, dwords, pass.tokens(), h);
        });
    }
}

/// The gradient behind a dropout: `d` becomes `da` masked, or without dropout `da` stands for it.
fn masked<'a>(d: &'a mut [f32], da: &'a [f32], dropout: Option<TokenDropout>, width: usize) -> &'a [f32] {
    match dropout {
        None => da,
        Some(dropout) => {
            d.copy_from_slice(da);
            dropout.apply_all(d, width);
            d
        }
    }
}
