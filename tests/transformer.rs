//! The transformer as a whole: what it is packed with, what is computed twice and what is frozen change no gradient.

use std::sync::Arc;

use taskloom::machine::host::HostMemory;
use taskloom::machine::memory::Memory;
use taskloom::model::network::{Batch, Gradients, Keep, Limits, Network, Part, Randomness, Scratch, Targets};
use taskloom::model::spec::{HeadKind, HeadSpec, ModelSpec};
use taskloom::model::transformer::{Pooling, TokenLimits, Transformer, TransformerSpec};
use taskloom::model::{Parameters, Start};
use taskloom::ops::dropout::RowKey;
use taskloom::ops::philox::{Keyed, Stream};
use taskloom::ops::storage::Storage;
use taskloom::ops::token_dropout::TokenKey;
use taskloom::schedule::fuse::groups;

const VOCABULARY: usize = 50;
const HIDDEN: usize = 32;
const RANDOM: Randomness = Randomness { seed: 3, round: 5 };
/// Classification, regression, masked language model.
const HEADS: [(HeadKind, usize); 3] = [(HeadKind::Classification, 3), (HeadKind::Regression, 1), (HeadKind::Mlm, VOCABULARY)];
/// Sequence lengths by task and micro-batch.
const LENGTHS: [&[&[usize]]; 3] = [&[&[5, 1, 20], &[7]], &[&[70, 2]], &[&[9, 12], &[3, 30, 4]]];

#[derive(Clone, Copy)]
struct Shape {
    pooling: Pooling,
    dropout: f64,
    recompute: bool,
    frozen: usize,
}

const PLAIN: Shape = Shape { pooling: Pooling::Cls, dropout: 0.0, recompute: false, frozen: 0 };

fn network(shape: Shape) -> Network {
    let spec = TransformerSpec {
        vocabulary: VOCABULARY,
        cls: 0,
        sep: 1,
        mask: Some(2),
        layers: 3,
        heads: 2,
        intermediate: 48,
        positions: 80,
        types: 2,
        norm_eps: 1e-12,
        init: 0.2,
        attention_dropout: shape.dropout,
        pooling: shape.pooling,
        recompute: shape.recompute,
        frozen: shape.frozen,
        dense_steps: false,
    };
    let encoder = Arc::new(Transformer::new(spec, HIDDEN, shape.dropout));
    let head = |(task, &(kind, outputs)): (usize, &(HeadKind, usize))| HeadSpec {
        task: format!("t{task}"),
        kind,
        outputs,
        class_weights: None,
        temperature: 1.0,
    };
    Network::new(ModelSpec { encoder, heads: HEADS.iter().enumerate().map(head).collect() })
}

/// The round's sequences in groups of at most `limit` tasks; `only` one example of one task if given.
fn batch(limit: usize) -> Batch {
    let mut batch = Batch::default();
    batch.bags.clear();
    let counts: Vec<usize> = LENGTHS.iter().map(|micro| micro.len()).collect();
    for group in groups(&counts, limit) {
        let first_part = batch.parts.len();
        for slot in group {
            let before: usize = LENGTHS[slot.task][..slot.turn].iter().map(|lengths| lengths.len()).sum();
            let start = batch.keys.len();
            let mut targets = Vec::new();
            for (number, &len) in LENGTHS[slot.task][slot.turn].iter().enumerate() {
                push(&mut batch, slot.task, before + number, len, &mut targets);
            }
            let (kind, outputs) = HEADS[slot.task];
            let targets = match kind {
                HeadKind::Regression => Targets::Values(targets.iter().map(|&t| t as f32 / 50.0).collect()),
                HeadKind::Mlm => Targets::Class(targets),
                _ => Targets::Class(targets.iter().map(|&t| t % outputs as u32).collect()),
            };
            let rows = start..batch.keys.len();
            batch.parts.push(Part {
                task: slot.task,
                present: slot.task,
                batch: 0,
                rows,
                targets,
                scale: 0.3,
                first: slot.turn == 0,
            });
        }
        batch.groups.push(first_part..batch.parts.len());
    }
    batch
}

fn push(batch: &mut Batch, task: usize, example: usize, len: usize, targets: &mut Vec<u32>) {
    let random = Keyed::new(1, Stream::Synthetic, 0, task as u32, example as u32);
    if HEADS[task].0 != HeadKind::Mlm {
        targets.push(random.word(0) % VOCABULARY as u32);
    }
    batch.keys.push(RowKey { task: task as u32, example: example as u32 });
    for position in 0..len as u32 {
        if HEADS[task].0 == HeadKind::Mlm && position % 3 == 1 {
            batch.tokens.masked.push(batch.bags.rows.len() as u32);
            targets.push(random.word(2 * position + 1) % VOCABULARY as u32);
        }
        batch.bags.rows.push(random.word(2 * position + 2) % VOCABULARY as u32);
        batch.bags.finish_example(1.0);
        batch.tokens.positions.push(position);
        batch.tokens.types.push(u32::from(position > 4));
        batch.tokens.keys.push(TokenKey { task: task as u32, example: example as u32, position });
    }
    batch.tokens.finish_example(batch.bags.rows.len());
}

struct Round {
    logits: Vec<Vec<f32>>,
    losses: [f64; 3],
    jacobian: Vec<Vec<f32>>,
    words: Vec<Vec<f32>>,
    heads: Vec<f32>,
}

fn limits(batch: &Batch, trained: bool) -> Limits {
    let n = batch.bags.rows.len();
    Limits {
        group_rows: n,
        round_rows: n,
        group_logits: n * VOCABULARY,
        logits_at_once: None,
        bag_rows: if trained { vec![n.max(VOCABULARY); 3] } else { Vec::new() },
        tokens: TokenLimits {
            group_tokens: n,
            group_queries: n,
            head_rows: n,
            masked: n,
            words_at_once: n,
            round_tokens: n,
            ..TokenLimits::default()
        },
        present: 3,
        ..Limits::default()
    }
}

fn run(shape: Shape, batch: &Batch, stored: bool) -> Round {
    run_kept(shape, batch, Keep { stored, batches: 1, storage: Storage::F32 })
}

fn run_kept(shape: Shape, batch: &Batch, keep: Keep) -> Round {
    let network = network(shape);
    let start = Start { seed: 7, equal_heads: false, second_moment: false, row_moment: false, row_capacity: VOCABULARY };
    let mut memory = Memory::unlimited();
    let parameters = Parameters::new(&mut memory, &network, &start).unwrap();
    let limits = limits(batch, shape.frozen == 0);
    let rows = if keep.stored { 3 * keep.batches } else { 1 };
    let mut gradients = Gradients::new(&mut memory, &network, keep, &limits).unwrap();
    let mut scratch = Scratch::new(&mut memory, &*network.spec.encoder, &limits).unwrap();
    if keep.storage == Storage::Bf16 {
        scratch = scratch.staged(&mut memory, network.spec.encoder.largest_piece()).unwrap();
    }
    // What an earlier round left must not show.
    if keep.storage == Storage::F32 {
        let mut lent = HostMemory::new();
        let old = gradients.jacobian.lend_mut(&mut lent, 0..rows);
        old.into_iter().for_each(|row| lent.write(row).fill(7.0_f32));
    }
    let (mut logits, mut losses) = (Vec::new(), [0.0; 3]);
    for group in &batch.groups {
        let parts = &batch.parts[group.clone()];
        network.forward(parameters.weights(), batch, parts, &mut scratch, Some(RANDOM));
        let mut from = 0;
        for part in parts {
            let len = part.targets.rows(HEADS[part.task].1) * HEADS[part.task].1;
            logits.push(scratch.logits()[from..from + len].to_vec());
            from += len;
        }
        for (part, loss) in parts.iter().zip(network.losses(parts, &mut scratch)) {
            losses[part.task] += loss;
        }
        network.backward(parameters.weights(), batch, parts, &mut scratch, gradients.of_group(&network, batch, parts), RANDOM);
    }
    let mut words = Vec::new();
    if shape.frozen == 0 {
        network.row_gradients(batch, &mut gradients, 3);
        for gradient in &gradients.rows {
            let mut dense = vec![0.0; VOCABULARY * HIDDEN];
            for (values, &row) in gradient.used().chunks(HIDDEN).zip(&gradient.index.rows) {
                dense[row as usize * HIDDEN..][..HIDDEN].copy_from_slice(values);
            }
            words.push(dense);
        }
    }
    let jacobian = (0..rows).map(|row| gradients.jacobian.row(row)).collect();
    Round { logits, losses, jacobian, words, heads: gradients.heads.to_vec() }
}

fn same(what: &str, a: &Round, b: &Round) {
    assert_eq!(a.losses, b.losses, "{what}");
    assert!(a.jacobian == b.jacobian, "{what}: J");
    assert!(a.words == b.words, "{what}: word rows");
    assert!(a.heads == b.heads, "{what}: heads");
}

#[test]
fn any_fusion_gives_the_same_bytes() {
    for pooling in [Pooling::Cls, Pooling::Mean, Pooling::Pooler] {
        for stored in [true, false] {
            let shape = Shape { pooling, dropout: 0.2, ..PLAIN };
            let alone = run(shape, &batch(1), stored);
            for limit in [2, 0] {
                let fused = run(shape, &batch(limit), stored);
                if stored {
                    same("fused", &alone, &fused);
                } else {
                    // Added to one row in another order.
                    assert_eq!(alone.losses, fused.losses);
                    let pairs = alone.jacobian[0].iter().zip(&fused.jacobian[0]);
                    assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-4 * b.abs().max(1.0)));
                }
            }
            assert!(alone.jacobian.iter().flatten().all(|x| x.is_finite() && *x != 7.0));
        }
    }
}

/// Of a round of two batches the rows add up to those of one batch: every micro-batch after a task's first is the second one's.
#[test]
fn two_batches_are_the_parts_of_one() {
    for limit in [1, 0] {
        let mut halved = batch(limit);
        for part in &mut halved.parts {
            part.batch = usize::from(!part.first);
            part.first = true;
        }
        let keep = Keep { stored: true, batches: 2, storage: Storage::F32 };
        let (one, two) = (run(PLAIN, &batch(limit), true), run_kept(PLAIN, &halved, keep));
        let close = |whole: &[f32], parts: [&[f32]; 2], what: &str| {
            let largest = whole.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let gap =
                whole.iter().zip(parts[0].iter().zip(parts[1])).fold(0.0f32, |most, (w, (a, b))| most.max((w - (a + b)).abs()));
            // Sums of up to 100 f32 terms in another order.
            assert!(gap <= 1e-5 * largest, "{what}: {gap} of {largest}");
        };
        // Task 1 has a single micro-batch.
        for task in [0, 2] {
            close(&one.jacobian[task], [&two.jacobian[2 * task], &two.jacobian[2 * task + 1]], &format!("J of {task}"));
            close(&one.words[task], [&two.words[2 * task], &two.words[2 * task + 1]], &format!("words of {task}"));
        }
        let table = network(PLAIN).table;
        for task in [0, 2] {
            let range = table.head_range(task);
            close(&one.heads[range.clone()], [&two.heads[range.clone()], &vec![0.0; range.len()]], &format!("head {task}"));
        }
    }
}

/// Rows kept in bf16 are the f32 rows rounded, after each of a task's micro-batches; fusion changes no bit.
#[test]
fn rounded_rows_are_the_rows_rounded() {
    let shape = Shape { dropout: 0.2, ..PLAIN };
    let keep = Keep { stored: true, batches: 1, storage: Storage::Bf16 };
    let (wide, rounded) = (run(shape, &batch(1), true), run_kept(shape, &batch(1), keep));
    for limit in [2, 0] {
        same("rounded and fused", &rounded, &run_kept(shape, &batch(limit), keep));
    }
    for (task, (wide, rounded)) in wide.jacobian.iter().zip(&rounded.jacobian).enumerate() {
        let once = LENGTHS[task].len() == 1;
        let largest = wide.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (wide, rounded) in wide.iter().zip(rounded) {
            // Half a unit in the last of 8 bits; with a second micro-batch that of a sum which may have cancelled since.
            let bound = if once { wide.abs() / 256.0 } else { largest / 128.0 };
            assert!((wide - rounded).abs() <= bound, "task {task}: {wide} {rounded}");
        }
    }
    assert!(wide.losses == rounded.losses && wide.words == rounded.words && wide.heads == rounded.heads);
}

#[test]
fn recomputing_gives_the_same_bytes() {
    for pooling in [Pooling::Cls, Pooling::Mean] {
        let shape = Shape { pooling, dropout: 0.2, ..PLAIN };
        let kept = run(shape, &batch(0), true);
        same("recomputed", &kept, &run(Shape { recompute: true, ..shape }, &batch(0), true));
    }
}

#[test]
fn a_packed_batch_is_its_sequences_one_by_one() {
    let packed = run(PLAIN, &batch(0), true);
    let all = batch(0);
    for (part, logits) in all.parts.iter().zip(&packed.logits) {
        let outputs = HEADS[part.task].1;
        let mut from = 0;
        for row in part.rows.clone() {
            let key = all.keys[row];
            let tokens = all.tokens.tokens(&(row..row + 1));
            let (mut one, mut targets) = (Batch { groups: std::iter::once(0..1).collect(), ..Batch::default() }, Vec::new());
            one.bags.clear();
            push(&mut one, key.task as usize, key.example as usize, tokens.len(), &mut targets);
            let targets = match HEADS[part.task].0 {
                HeadKind::Regression => Targets::Values(vec![0.0]),
                HeadKind::Mlm => Targets::Class(targets),
                _ => Targets::Class(vec![0]),
            };
            let len = targets.rows(outputs) * outputs;
            let part = Part { task: part.task, present: 0, batch: 0, rows: 0..1, targets, scale: 1.0, first: true };
            one.parts.push(part);
            let alone = &run_forward(&one)[..len];
            for (a, b) in alone.iter().zip(&logits[from..from + len]) {
                assert!((a - b).abs() < 1e-5 * b.abs().max(1.0), "task {}: {a} alone, {b} packed", key.task);
            }
            from += len;
        }
    }
}

fn run_forward(batch: &Batch) -> Vec<f32> {
    let network = network(PLAIN);
    let start = Start { seed: 7, equal_heads: false, second_moment: false, row_moment: false, row_capacity: VOCABULARY };
    let mut memory = Memory::unlimited();
    let parameters = Parameters::new(&mut memory, &network, &start).unwrap();
    let mut scratch = Scratch::new(&mut memory, &*network.spec.encoder, &limits(batch, true)).unwrap();
    network.forward(parameters.weights(), batch, &batch.parts, &mut scratch, None);
    scratch.logits().to_vec()
}

#[test]
fn a_frozen_prefix_changes_nothing_above_it() {
    for pooling in [Pooling::Cls, Pooling::Pooler] {
        let whole = run(Shape { pooling, ..PLAIN }, &batch(0), true);
        let table = network(Shape { pooling, ..PLAIN }).table;
        for frozen in 1..=3 {
            let shape = Shape { pooling, frozen, ..PLAIN };
            let part = run(shape, &batch(0), true);
            let kept = network(shape).table;
            assert_eq!(whole.losses, part.losses);
            assert!(whole.heads == part.heads);
            assert_eq!(kept.shared.len() + kept.frozen.len(), table.shared.len());
            for param in &kept.shared {
                let same = table.shared.iter().find(|other| other.name == param.name).unwrap();
                for task in 0..3 {
                    let (ours, theirs) = (&part.jacobian[task][param.range()], &whole.jacobian[task][same.range()]);
                    assert!(ours == theirs, "frozen {frozen}: {}", param.name);
                }
            }
        }
    }
}

/// The tied decoder and its head, by central differences of the f32 loss: f32 losses of size 10 give slopes to about
/// eps * 10 / h + h^2, here 3e-3 with room.
#[test]
fn the_language_models_gradients_match_differences() {
    let network = network(PLAIN);
    let all = batch(0);
    let start = Start { seed: 7, equal_heads: false, second_moment: false, row_moment: false, row_capacity: VOCABULARY };
    let mut memory = Memory::unlimited();
    let mut parameters = Parameters::new(&mut memory, &network, &start).unwrap();
    let mut scratch = Scratch::new(&mut memory, &*network.spec.encoder, &limits(&all, true)).unwrap();
    let round = run(PLAIN, &all, true);
    let mut loss = |parameters: &Parameters| -> f64 {
        let mut total = 0.0;
        for group in &all.groups {
            let parts = &all.parts[group.clone()];
            network.forward(parameters.weights(), &all, parts, &mut scratch, None);
            let losses = network.losses(parts, &mut scratch);
            total += parts.iter().zip(losses).filter(|(part, _)| part.task == 2).map(|(_, loss)| 0.3 * loss).sum::<f64>();
        }
        total
    };
    const H: f32 = 1.0 / 128.0;
    let mut check = |what: &str, index: usize, gradient: f32, pick: &dyn Fn(&mut Parameters) -> &mut [f32]| {
        pick(&mut parameters)[index] += H;
        let up = loss(&parameters);
        pick(&mut parameters)[index] -= 2.0 * H;
        let down = loss(&parameters);
        pick(&mut parameters)[index] += H;
        let slope = (up - down) / (2.0 * f64::from(H));
        assert!((slope - f64::from(gradient)).abs() < 3e-3 * slope.abs().max(1.0), "{what} {index}: {slope}, {gradient}");
    };
    for index in [0, 33, 700, VOCABULARY * HIDDEN - 1] {
        check("word", index, round.words[2][index], &|p: &mut Parameters| p.rows.as_mut().unwrap().stored_mut()[0]);
    }
    for param in network.table.head_params(2) {
        for index in [param.offset, param.range().end - 1] {
            check(&param.name, index, round.heads[index], &|p: &mut Parameters| &mut p.heads.values);
        }
    }
}
