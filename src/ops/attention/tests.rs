use super::*;
use crate::ops::token_dropout::{TokenKey, TokenKeys};

const HEADS: usize = 2;
const DIM: usize = 8;
const WIDTH: usize = HEADS * DIM;

fn noise(len: usize, id: u32) -> Vec<f32> {
    let random = Keyed::new(4, Stream::Init, 0, 0, id);
    (0..len as u32).map(|i| random.normal(i) as f32).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// The plain formula in f64. `mask` (heads x queries x keys) is dropout's, already over 1 - p.
fn reference(q: &[f64], kv: &[f64], mask: &[f64]) -> Vec<f64> {
    let (queries, keys) = (q.len() / WIDTH, kv.len() / (2 * WIDTH));
    let mut out = vec![0.0; queries * WIDTH];
    for head in 0..HEADS {
        for i in 0..queries {
            let product = |j: usize| -> f64 {
                let pairs = (0..DIM).map(|d| q[i * WIDTH + head * DIM + d] * kv[j * 2 * WIDTH + head * DIM + d]);
                pairs.sum::<f64>() / (DIM as f64).sqrt()
            };
            let weights: Vec<f64> = (0..keys).map(|j| product(j).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (j, weight) in weights.iter().enumerate() {
                let weight = weight / total * mask.get((head * queries + i) * keys + j).copied().unwrap_or(1.0);
                for d in 0..DIM {
                    out[i * WIDTH + head * DIM + d] += weight * kv[j * 2 * WIDTH + WIDTH + head * DIM + d];
                }
            }
        }
    }
    out
}

fn close(what: &str, ours: &[f32], exact: &[f64], tolerance: f64) {
    assert_eq!(ours.len(), exact.len());
    for (i, (a, b)) in ours.iter().zip(exact).enumerate() {
        assert!((f64::from(*a) - b).abs() < tolerance * b.abs().max(1.0), "{what} {i}: {a} against {b}");
    }
}

/// Lengths with one, one odd, one beyond a block of queries and one beyond two blocks of keys.
const BOUNDS: [u32; 5] = [0, 1, 8, 80, 350];

fn shape<'a>(bounds: &'a [u32], dropout: Option<AttentionDropout<'a>>) -> Sequences<'a> {
    Sequences { queries: bounds, keys: bounds, heads: HEADS, dim: DIM, dropout }
}

#[test]
fn blocks_agree_with_the_formula_in_f64() {
    let rows = 350;
    let (q, kv) = (noise(rows * WIDTH, 0), noise(rows * 2 * WIDTH, 1));
    let (mut out, mut sums) = (vec![0.0; rows * WIDTH], vec![0.0; rows * HEADS]);
    attention_forward(&mut out, &mut sums, &q, &kv, shape(&BOUNDS, None));
    for ends in BOUNDS.windows(2) {
        let (start, end) = (ends[0] as usize, ends[1] as usize);
        let exact = reference(&wide(&q[start * WIDTH..end * WIDTH]), &wide(&kv[start * 2 * WIDTH..end * 2 * WIDTH]), &[]);
        // Weighted means of unit normals; up to 270 f32 terms.
        close("out", &out[start * WIDTH..end * WIDTH], &exact, 2e-6);
    }
}

/// The mask a sequence gets, by sending ones through.
fn mask(dropout: &AttentionDropout, queries: usize, keys: usize) -> Vec<f64> {
    let (q, kv) = (vec![0.0; queries * WIDTH], vec![0.0; keys * 2 * WIDTH]);
    let sequence = Sequence { q: &q, kv: &kv, queries, keys, first: 0 };
    let mut all = Vec::new();
    for head in 0..HEADS {
        let mut ones = vec![1.0; queries * keys];
        sequence.drop(&mut ones, keys, [0, 0], head, dropout);
        all.extend(wide(&ones));
    }
    all
}

#[test]
fn gradients_match_differences_in_f64() {
    for (queries, keys, probability) in [(1, 1, 0.0), (5, 5, 0.0), (2, 7, 0.0), (6, 6, 0.4)] {
        let (q, kv, probe) = (noise(queries * WIDTH, 0), noise(keys * 2 * WIDTH, 1), noise(queries * WIDTH, 2));
        let tokens: Vec<TokenKey> = (0..queries as u32).map(|position| TokenKey { task: 1, example: 3, position }).collect();
        let dropout = AttentionDropout { queries: TokenKeys::Packed(&tokens), probability, seed: 5, round: 6, layer: 1 };
        let mask = mask(&dropout, queries, keys);
        let (query_ends, key_ends) = ([0, queries as u32], [0, keys as u32]);
        let shape = Sequences { queries: &query_ends, keys: &key_ends, heads: HEADS, dim: DIM, dropout: Some(dropout) };
        let (mut out, mut sums) = (vec![0.0; queries * WIDTH], vec![0.0; queries * HEADS]);
        attention_forward(&mut out, &mut sums, &q, &kv, shape);
        close("out", &out, &reference(&wide(&q), &wide(&kv), &mask), 2e-6);
        let (mut dq, mut dkv) = (vec![9.0; q.len()], vec![9.0; kv.len()]);
        attention_backward(&mut dq, &mut dkv, &probe, &out, &sums, &q, &kv, shape);
        let objective = |q: &[f64], kv: &[f64]| -> f64 {
            reference(q, kv, &mask).iter().zip(&probe).map(|(out, &p)| out * f64::from(p)).sum()
        };
        let (wq, wkv) = (wide(&q), wide(&kv));
        close("dq", &dq, &differences(&wq, |q| objective(q, &wkv)), 5e-6);
        close("dkv", &dkv, &differences(&wkv, |kv| objective(&wq, kv)), 5e-6);
    }
}

fn differences(at: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const H: f64 = 1e-5;
    let moved = |i: usize, by: f64| {
        let mut moved = at.to_vec();
        moved[i] += by;
        f(&moved)
    };
    (0..at.len()).map(|i| (moved(i, H) - moved(i, -H)) / (2.0 * H)).collect()
}

#[test]
fn blocked_gradients_match_differences_in_f64() {
    // Beyond one block of queries and of keys; a few elements stand for all.
    let keys = 150;
    let (q, kv, probe) = (noise(keys * WIDTH, 0), noise(keys * 2 * WIDTH, 1), noise(keys * WIDTH, 2));
    let ends = [0, keys as u32];
    let (mut out, mut sums) = (vec![0.0; q.len()], vec![0.0; keys * HEADS]);
    attention_forward(&mut out, &mut sums, &q, &kv, shape(&ends, None));
    let (mut dq, mut dkv) = (vec![0.0; q.len()], vec![0.0; kv.len()]);
    attention_backward(&mut dq, &mut dkv, &probe, &out, &sums, &q, &kv, shape(&ends, None));
    let objective =
        |q: &[f64], kv: &[f64]| -> f64 { reference(q, kv, &[]).iter().zip(&probe).map(|(out, &p)| out * f64::from(p)).sum() };
    let (wq, wkv) = (wide(&q), wide(&kv));
    for i in [0, 17, 1000, 2000, 2399] {
        let slope = |values: &[f64], f: &dyn Fn(&[f64]) -> f64| {
            let moved = |by: f64| {
                let mut moved = values.to_vec();
                moved[i] += by;
                f(&moved)
            };
            (moved(1e-5) - moved(-1e-5)) / 2e-5
        };
        close("dq", &dq[i..=i], &[slope(&wq, &|q| objective(q, &wkv))], 5e-6);
        close("dkv", &dkv[i..=i], &[slope(&wkv, &|kv| objective(&wq, kv))], 5e-6);
    }
}

#[test]
fn fewer_queries_are_rows_of_all() {
    let rows = 9;
    let (q, kv) = (noise(rows * WIDTH, 0), noise(rows * 2 * WIDTH, 1));
    let run = |q: &[f32], queries: &[u32]| {
        let count = q.len() / WIDTH;
        let (mut out, mut sums) = (vec![0.0; count * WIDTH], vec![0.0; count * HEADS]);
        let shape = Sequences { queries, keys: &[0, 4, 9], heads: HEADS, dim: DIM, dropout: None };
        attention_forward(&mut out, &mut sums, q, &kv, shape);
        out
    };
    let all = run(&q, &[0, 4, 9]);
    let firsts: Vec<f32> = [&q[..WIDTH], &q[4 * WIDTH..5 * WIDTH]].concat();
    let some = run(&firsts, &[0, 1, 2]);
    close("first", &some[..WIDTH], &wide(&all[..WIDTH]), 1e-6);
    close("second", &some[WIDTH..], &wide(&all[4 * WIDTH..5 * WIDTH]), 1e-6);
}
