//! Attention on the host: blocks of queries against blocks of keys, the softmax's peak and sum carried from block to block.

use multiversion::multiversion;
use rayon::prelude::*;

use super::{AttentionDropout, Sequences};
use crate::ops::activation::exp;
use crate::ops::gemm::{View, Write, matmul_single};
use crate::ops::philox::{Keyed, Stream, drop_threshold};
use crate::ops::simd::{LANES, add_scaled, dot, reduce};

/// Query and key rows of one block.
const QUERIES: usize = 64;
const KEYS: usize = 128;

/// Rows of one sequence. `q` is (queries x H), `kv` (keys x 2H) with keys in its first H columns and values in the others.
struct Sequence<'a> {
    q: &'a [f32],
    kv: &'a [f32],
    queries: usize,
    keys: usize,
    /// Packed number of the first query row.
    first: usize,
}

/// out (queries x H) = softmax(q k^T / sqrt(dim)) v for each head; log_sums (queries x heads) of the scaled products.
pub fn attention_forward(out: &mut [f32], log_sums: &mut [f32], q: &[f32], kv: &[f32], shape: Sequences) {
    let width = shape.heads * shape.dim;
    let mut jobs = Vec::with_capacity(shape.keys.len());
    let (mut outs, mut sums) = (out, log_sums);
    for index in 0..shape.keys.len() - 1 {
        let sequence = Sequence::new(&shape, index, q, kv);
        let (out, rest) = outs.split_at_mut(sequence.queries * width);
        let (sum, tail) = sums.split_at_mut(sequence.queries * shape.heads);
        (outs, sums) = (rest, tail);
        jobs.push((sequence, out, sum));
    }
    jobs.into_par_iter().with_max_len(1).for_each_init(Tile::default, |tile, (sequence, out, sums)| {
        for head in 0..shape.heads {
            for start in (0..sequence.queries).step_by(QUERIES) {
                sequence.forward_block(tile, out, sums, head, start, &shape);
            }
        }
    });
}

/// Gradients of [`attention_forward`]: dq as q, dkv as kv.
#[allow(clippy::too_many_arguments, reason = "outputs, inputs, then the shape, as every op")]
pub fn attention_backward(
    dq: &mut [f32],
    dkv: &mut [f32],
    dout: &[f32],
    out: &[f32],
    log_sums: &[f32],
    q: &[f32],
    kv: &[f32],
    shape: Sequences,
) {
    let width = shape.heads * shape.dim;
    let mut jobs = Vec::with_capacity(shape.keys.len());
    let (mut dqs, mut dkvs) = (dq, dkv);
    for index in 0..shape.keys.len() - 1 {
        let sequence = Sequence::new(&shape, index, q, kv);
        let (dq, rest) = dqs.split_at_mut(sequence.queries * width);
        let (dkv, tail) = dkvs.split_at_mut(sequence.keys * 2 * width);
        (dqs, dkvs) = (rest, tail);
        let rows = sequence.first..sequence.first + sequence.queries;
        let known = Known {
            dout: &dout[rows.start * width..rows.end * width],
            out: &out[rows.start * width..rows.end * width],
            log_sums: &log_sums[rows.start * shape.heads..rows.end * shape.heads],
        };
        jobs.push((sequence, known, dq, dkv));
    }
    jobs.into_par_iter().with_max_len(1).for_each_init(Tile::default, |tile, (sequence, known, dq, dkv)| {
        dkv.fill(0.0);
        for head in 0..shape.heads {
            for start in (0..sequence.queries).step_by(QUERIES) {
                sequence.backward_block(tile, dq, dkv, &known, head, start, &shape);
            }
        }
    });
}

/// What the forward pass left of one sequence, and the gradient that comes in.
struct Known<'a> {
    dout: &'a [f32],
    out: &'a [f32],
    log_sums: &'a [f32],
}

/// Room for one block's products, reused from block to block.
#[derive(Default)]
struct Tile {
    /// (queries x keys)
    scores: Vec<f32>,
    slopes: Vec<f32>,
    /// (rows x dim)
    sums: Vec<f32>,
    parts: Vec<f32>,
    /// (queries)
    peaks: Vec<f32>,
    totals: Vec<f32>,
}

impl<'a> Sequence<'a> {
    fn new(shape: &Sequences, index: usize, q: &'a [f32], kv: &'a [f32]) -> Self {
        let width = shape.heads * shape.dim;
        let (queries, keys) = (&shape.queries[index..index + 2], &shape.keys[index..index + 2]);
        let (first, last) = (queries[0] as usize, queries[1] as usize);
        Self {
            q: &q[first * width..last * width],
            kv: &kv[keys[0] as usize * 2 * width..keys[1] as usize * 2 * width],
            queries: last - first,
            keys: (keys[1] - keys[0]) as usize,
            first,
        }
    }

    fn query_block(&self, start: usize, count: usize, head: usize, shape: &Sequences) -> View<'a> {
        let width = shape.heads * shape.dim;
        View::strided(&self.q[start * width + head * shape.dim..], count, shape.dim, width)
    }

    fn key_block(&self, start: usize, count: usize, head: usize, shape: &Sequences) -> View<'a> {
        let width = shape.heads * shape.dim;
        View::strided(&self.kv[start * 2 * width + head * shape.dim..], count, shape.dim, 2 * width)
    }

    fn value_block(&self, start: usize, count: usize, head: usize, shape: &Sequences) -> View<'a> {
        let width = shape.heads * shape.dim;
        View::strided(&self.kv[start * 2 * width + width + head * shape.dim..], count, shape.dim, 2 * width)
    }

    /// Queries `start..` of one head against all keys: a running peak, total and weighted sum of values per query.
    fn forward_block(&self, tile: &mut Tile, out: &mut [f32], sums: &mut [f32], head: usize, start: usize, shape: &Sequences) {
        let (dim, count) = (shape.dim, QUERIES.min(self.queries - start));
        tile.sums.clear();
        tile.sums.resize(count * dim, 0.0);
        tile.peaks.clear();
        tile.peaks.resize(count, f32::NEG_INFINITY);
        tile.totals.clear();
        tile.totals.resize(count, 0.0);
        for key in (0..self.keys).step_by(KEYS) {
            let keys = KEYS.min(self.keys - key);
            tile.scores.resize(count * keys, 0.0);
            let scores = &mut tile.scores[..count * keys];
            let (q, k) = (self.query_block(start, count, head, shape), self.key_block(key, keys, head, shape));
            matmul_single(scores, q, k.transposed(), Write::Replace);
            let rows = (&mut tile.peaks[..], &mut tile.totals[..], &mut tile.sums[..]);
            softmax_block(scores, rows, keys, dim, scale_of(dim));
            if let Some(dropout) = &shape.dropout {
                self.drop(scores, keys, [start, key], head, dropout);
            }
            matmul_single(&mut tile.sums, View::new(scores, count, keys), self.value_block(key, keys, head, shape), Write::Add);
        }
        for row in 0..count {
            let total = 1.0 / tile.totals[row];
            let out = &mut out[(start + row) * shape.heads * dim + head * dim..][..dim];
            out.iter_mut().zip(&tile.sums[row * dim..]).for_each(|(out, sum)| *out = sum * total);
            sums[(start + row) * shape.heads + head] = tile.peaks[row] + tile.totals[row].ln();
        }
    }

    /// With P the weights and M the dropout mask over 1 - p: dV = (P M)^T dO, dS = P (M dO V^T - dO . O), dQ = dS K / sqrt(dim),
    /// dK = dS^T Q / sqrt(dim).
    #[allow(clippy::too_many_arguments, reason = "one block of three outputs")]
    fn backward_block(
        &self,
        tile: &mut Tile,
        dq: &mut [f32],
        dkv: &mut [f32],
        known: &Known,
        head: usize,
        start: usize,
        shape: &Sequences,
    ) {
        let (dim, count) = (shape.dim, QUERIES.min(self.queries - start));
        let width = shape.heads * dim;
        let column = head * dim;
        let (dout, out): (&[f32], &[f32]) = (known.dout, known.out);
        tile.totals.clear();
        tile.peaks.clear();
        for row in 0..count {
            let at = (start + row) * width + column;
            tile.totals.push(inner(&dout[at..at + dim], &out[at..at + dim]));
            tile.peaks.push(known.log_sums[(start + row) * shape.heads + head]);
        }
        let q = self.query_block(start, count, head, shape);
        let dout = View::strided(&dout[start * width + column..], count, dim, width);
        tile.sums.clear();
        tile.sums.resize(count * dim, 0.0);
        for key in (0..self.keys).step_by(KEYS) {
            let keys = KEYS.min(self.keys - key);
            tile.scores.resize(count * keys, 0.0);
            tile.slopes.resize(count * keys, 0.0);
            tile.parts.resize(keys * dim, 0.0);
            let (scores, slopes) = (&mut tile.scores[..count * keys], &mut tile.slopes[..count * keys]);
            let parts = &mut tile.parts[..keys * dim];
            let (k, v) = (self.key_block(key, keys, head, shape), self.value_block(key, keys, head, shape));
            matmul_single(scores, q, k.transposed(), Write::Replace);
            weights_block(scores, &tile.peaks, keys, scale_of(dim));
            matmul_single(slopes, dout, v.transposed(), Write::Replace);
            match &shape.dropout {
                None => {
                    matmul_single(parts, View::new(scores, count, keys).transposed(), dout, Write::Replace);
                }
                Some(dropout) => {
                    self.drop(slopes, keys, [start, key], head, dropout);
                    let mut dropped = scores.to_vec();
                    self.drop(&mut dropped, keys, [start, key], head, dropout);
                    matmul_single(parts, View::new(&dropped, count, keys).transposed(), dout, Write::Replace);
                }
            }
            add_rows(&mut dkv[key * 2 * width + width + column..], parts, dim, 2 * width);
            slopes_block(slopes, scores, &tile.totals, keys, scale_of(dim));
            let slopes = View::new(slopes, count, keys);
            matmul_single(&mut tile.sums, slopes, k, Write::Add);
            matmul_single(parts, slopes.transposed(), q, Write::Replace);
            add_rows(&mut dkv[key * 2 * width + column..], parts, dim, 2 * width);
        }
        for row in 0..count {
            dq[(start + row) * width + column..][..dim].copy_from_slice(&tile.sums[row * dim..(row + 1) * dim]);
        }
    }

    /// Masks a block of weights (or of their slopes); `at` is its first query and key in the sequence.
    fn drop(&self, block: &mut [f32], keys: usize, at: [usize; 2], head: usize, dropout: &AttentionDropout) {
        if dropout.probability == 0.0 {
            return;
        }
        let threshold = drop_threshold(dropout.probability);
        let scale = (1.0 / (1.0 - dropout.probability)) as f32;
        let blocks = self.keys.div_ceil(4);
        for (row, weights) in block.chunks_exact_mut(keys).enumerate() {
            let token = dropout.queries.packed()[self.first + at[0] + row];
            let random = Keyed::new(dropout.seed, Stream::AttentionDropout, dropout.round, token.task, token.example);
            let random = random.at_site(dropout.layer << 8 | head as u32);
            let first = token.position as usize * blocks + at[1] / 4;
            for (index, weights) in weights.chunks_mut(4).enumerate() {
                for (weight, word) in weights.iter_mut().zip(random.block((first + index) as u32)) {
                    *weight = if word < threshold { 0.0 } else { *weight * scale };
                }
            }
        }
    }
}

fn scale_of(dim: usize) -> f32 {
    1.0 / (dim as f32).sqrt()
}

/// Products become weights exp(product * scale - peak), the peak being that of all keys so far; what was summed under an older
/// peak is brought down to the new one.
#[multiversion(targets("x86_64+avx2+fma"))]
fn softmax_block(scores: &mut [f32], rows: (&mut [f32], &mut [f32], &mut [f32]), keys: usize, dim: usize, scale: f32) {
    let (peaks, totals, sums) = rows;
    for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
        let peak = peak_of(scores) * scale;
        let peak = peak.max(peaks[row]);
        let correction = exp(peaks[row] - peak);
        let total = weigh(scores, scale, peak);
        if peaks[row] != f32::NEG_INFINITY && correction != 1.0 {
            sums[row * dim..(row + 1) * dim].iter_mut().for_each(|sum| *sum *= correction);
        }
        let before = if peaks[row] == f32::NEG_INFINITY { 0.0 } else { totals[row] * correction };
        totals[row] = before + total;
        peaks[row] = peak;
    }
}

/// Weights of a block from the log-sums of its rows.
#[multiversion(targets("x86_64+avx2+fma"))]
fn weights_block(scores: &mut [f32], log_sums: &[f32], keys: usize, scale: f32) {
    for (scores, &log_sum) in scores.chunks_exact_mut(keys).zip(log_sums) {
        scores.iter_mut().for_each(|x| *x = exp(x.mul_add(scale, -log_sum)));
    }
}

/// slopes = weights * (slopes - mean) * scale, `means` (rows) being each row's weighted mean slope.
#[multiversion(targets("x86_64+avx2+fma"))]
fn slopes_block(slopes: &mut [f32], weights: &[f32], means: &[f32], keys: usize, scale: f32) {
    for ((slopes, weights), &mean) in slopes.chunks_exact_mut(keys).zip(weights.chunks_exact(keys)).zip(means) {
        slopes.iter_mut().zip(weights).for_each(|(slope, weight)| *slope = weight * (*slope - mean) * scale);
    }
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn inner(a: &[f32], b: &[f32]) -> f32 {
    dot(a, b)
}

/// Adds dense rows (n x dim) to the first columns of rows `stride` apart.
#[multiversion(targets("x86_64+avx2+fma"))]
fn add_rows(out: &mut [f32], rows: &[f32], dim: usize, stride: usize) {
    for (index, row) in rows.chunks_exact(dim).enumerate() {
        add_scaled(&mut out[index * stride..][..dim], 1.0, row);
    }
}

#[inline(always)]
fn peak_of(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let tail = chunks.remainder().iter().fold(f32::NEG_INFINITY, |peak, &x| peak.max(x));
    for chunk in chunks {
        (0..LANES).for_each(|lane| lanes[lane] = lanes[lane].max(chunk[lane]));
    }
    lanes.iter().fold(tail, |peak, &x| peak.max(x))
}

/// Each x becomes exp(x * scale - peak); their sum.
#[inline(always)]
fn weigh(values: &mut [f32], scale: f32, peak: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut chunks = values.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for lane in 0..LANES {
            chunk[lane] = exp(chunk[lane].mul_add(scale, -peak));
            lanes[lane] += chunk[lane];
        }
    }
    for (lane, x) in chunks.into_remainder().iter_mut().enumerate() {
        *x = exp(x.mul_add(scale, -peak));
        lanes[lane] += *x;
    }
    reduce(&lanes) as f32
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
