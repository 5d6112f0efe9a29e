//! Attention on devices against the host.

use super::*;
use crate::machine::tensor::DType;
use crate::ops::testing::{On, Place, coarse_noise, on_devices};

struct Case<'c> {
    /// (queries, keys) of each sequence.
    lengths: &'c [(usize, usize)],
    heads: usize,
    dim: usize,
    probability: f64,
}

fn bounds(lengths: impl Iterator<Item = usize>) -> Vec<u32> {
    let ends = lengths.scan(0, |end, length| {
        *end += length as u32;
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

/// Both ops; the backward pass begins from what the forward pass of the same place left.
fn both(on: On, case: &Case) {
    let &Case { lengths, heads, dim, probability } = case;
    let width = heads * dim;
    let (queries, keys) = (bounds(lengths.iter().map(|&(q, _)| q)), bounds(lengths.iter().map(|&(_, k)| k)));
    let (rows, all) = (queries[lengths.len()] as usize, keys[lengths.len()] as usize);
    let token = |(sequence, &(queries, keys)): (usize, &(usize, usize))| {
        let key = move |row: usize| (row * keys / queries) as u32;
        (0..queries).map(move |row| TokenKey { task: 3, example: 70 + sequence as u32, position: key(row) })
    };
    let tokens: Vec<TokenKey> = lengths.iter().enumerate().flat_map(token).collect();
    let dropout =
        AttentionDropout { queries: TokenKeys::Packed(&tokens), probability, seed: 0x1234_5678_9abc, round: 9, layer: 2 };
    let shape = Sequences { queries: &queries, keys: &keys, heads, dim, dropout: Some(dropout) };
    let (q, kv, dout) = (coarse_noise(rows * width, 0), coarse_noise(all * 2 * width, 1), coarse_noise(rows * width, 2));
    let run = |place: &mut Place| {
        let (q, kv, dout) = (place.narrow(&q, width), place.narrow(&kv, 2 * width), place.narrow(&dout, width));
        let (out, log_sums) = (place.room(rows, width, DType::Bf16), place.room(rows, heads, DType::F32));
        let (dq, dkv) = (place.room(rows, width, DType::Bf16), place.room(all, 2 * width, DType::Bf16));
        place.run(&AttentionForward { out, log_sums, q, kv, shape });
        place.run(&AttentionBackward { dq, dkv, dout, out, log_sums, q, kv, shape });
        let results = [("out", out), ("log-sums", log_sums), ("dq", dq), ("dkv", dkv)];
        results.map(|(what, tensor)| place.found(what, tensor)).into()
    };
    on.compare(run);
    if on.card().hopper {
        // Few multiprocessors, so that blocks take many turns; and the kernels that every card has.
        on.compare_as(Card { multiprocessors: 2, ..on.card() }, &|launch| launch, run);
        on.compare_as(Card::PLAIN, &|launch| launch, run);
    }
}

const RAGGED: [(usize, usize); 8] = [(1, 1), (2, 2), (15, 15), (16, 16), (17, 17), (63, 63), (64, 64), (65, 65)];
/// Beyond one block of keys, or of queries.
const LONG: [(usize, usize); 2] = [(130, 130), (200, 200)];
/// Only some rows are read, of one sequence none.
const FEWER: [(usize, usize); 5] = [(1, 9), (3, 66), (0, 5), (1, 140), (70, 129)];

fn attention_of_ragged_sequences(on: On) {
    both(on, &Case { lengths: &RAGGED, heads: 3, dim: 64, probability: 0.0 });
}

fn attention_of_ragged_sequences_with_dropout(on: On) {
    both(on, &Case { lengths: &RAGGED, heads: 3, dim: 64, probability: 0.2 });
}

fn attention_of_ragged_sequences_with_narrow_heads(on: On) {
    both(on, &Case { lengths: &RAGGED, heads: 2, dim: 32, probability: 0.2 });
}

fn attention_of_long_sequences(on: On) {
    both(on, &Case { lengths: &LONG, heads: 1, dim: 64, probability: 0.0 });
}

fn attention_of_long_sequences_with_dropout(on: On) {
    both(on, &Case { lengths: &LONG, heads: 1, dim: 64, probability: 0.1 });
}

fn attention_of_long_sequences_with_narrow_heads(on: On) {
    both(on, &Case { lengths: &LONG, heads: 2, dim: 32, probability: 0.0 });
}

fn attention_of_fewer_queries(on: On) {
    both(on, &Case { lengths: &FEWER, heads: 3, dim: 32, probability: 0.0 });
}

fn attention_of_fewer_queries_with_dropout(on: On) {
    both(on, &Case { lengths: &FEWER, heads: 2, dim: 64, probability: 0.5 });
}

on_devices! {
    attention_of_ragged_sequences,
    attention_of_ragged_sequences_with_dropout,
    attention_of_ragged_sequences_with_narrow_heads,
    attention_of_long_sequences,
    attention_of_long_sequences_with_dropout,
    attention_of_long_sequences_with_narrow_heads,
    attention_of_fewer_queries,
    attention_of_fewer_queries_with_dropout,
}
