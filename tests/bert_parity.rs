//! The transformer held against Hugging Face's BertModel in f64 (fixture and its script: tests/fixtures/bert_parity.*): logits,
//! every parameter's gradient, and ten AdamW steps.

use std::sync::Arc;

use serde_json::Value;
use taskloom::machine::memory::Memory;
use taskloom::model::network::{Batch, Gradients, Keep, Limits, Network, Part, Randomness, Scratch, Targets};
use taskloom::model::spec::{HeadKind, HeadSpec, ModelSpec, Param};
use taskloom::model::transformer::{Pooling, TokenLimits, Transformer, TransformerSpec};
use taskloom::model::{Parameters, Start};
use taskloom::ops::adamw::Rule;
use taskloom::ops::dropout::RowKey;
use taskloom::ops::storage::Storage;
use taskloom::ops::token_dropout::TokenKey;
use taskloom::random;
use taskloom::surgery::balance;
use taskloom::surgery::methods::Sum;
use taskloom::surgery::update::Rates;
use taskloom::train::round::Trainer;
use taskloom::train::round_options::{RoundOptions, Solvers};

const OUTPUTS: [usize; 2] = [3, 1];
const WORDS: &str = "embeddings.word_embeddings.weight";

/// As `uniform` of the fixture's script.
fn uniform(name: &str, index: usize) -> f64 {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    2.0 * random::uniform(random::mix(seed.wrapping_add((index as u64).wrapping_mul(random::GOLDEN)))) - 1.0
}

fn fill(name: &str, matrix: bool, values: &mut [f32]) {
    let scale = if matrix { 0.1 } else { 0.2 };
    let shift = if name.ends_with("LayerNorm.weight") { 1.0 } else { 0.0 };
    values.iter_mut().enumerate().for_each(|(index, value)| *value = (shift + scale * uniform(name, index)) as f32);
}

fn number(case: &Value, key: &str) -> usize {
    case[key].as_u64().unwrap() as usize
}

fn network(case: &Value, recompute: bool) -> Network {
    let pooling = match case["pooling"].as_str().unwrap() {
        "pooler" => Pooling::Pooler,
        "mean" => Pooling::Mean,
        _ => Pooling::Cls,
    };
    let spec = TransformerSpec {
        vocabulary: number(case, "vocabulary"),
        cls: 0,
        sep: 1,
        mask: None,
        layers: number(case, "layers"),
        heads: number(case, "heads"),
        intermediate: number(case, "intermediate"),
        positions: 512,
        types: 2,
        norm_eps: 1e-12,
        init: 0.02,
        attention_dropout: 0.0,
        pooling,
        recompute,
        frozen: 0,
        dense_steps: true,
    };
    let encoder = Arc::new(Transformer::new(spec, number(case, "hidden"), 0.0));
    let kinds = [HeadKind::Classification, HeadKind::Regression];
    let head = |task: usize| HeadSpec {
        task: format!("t{task}"),
        kind: kinds[task],
        outputs: OUTPUTS[task],
        class_weights: None,
        temperature: 1.0,
    };
    Network::new(ModelSpec { encoder, heads: (0..2).map(head).collect() })
}

fn start(case: &Value) -> Start {
    let row_capacity = number(case, "vocabulary");
    Start { seed: 0, equal_heads: false, second_moment: true, row_moment: false, row_capacity }
}

fn fill_all(network: &Network, parameters: &mut Parameters) {
    let each = |params: &[Param], values: &mut [f32]| {
        params.iter().for_each(|param| fill(&param.name, param.shape.len() > 1, &mut values[param.range()]));
    };
    each(&network.table.shared, &mut parameters.shared.values);
    each(&network.table.heads, &mut parameters.heads.values);
    fill(WORDS, true, parameters.rows.as_mut().unwrap().stored_mut()[0]);
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

/// Both tasks as one group.
fn batch(case: &Value) -> Batch {
    let mut batch = Batch { groups: std::iter::once(0..2).collect(), ..Batch::default() };
    batch.bags.clear();
    for task in 0..2 {
        let first = batch.keys.len();
        for (example, ids) in case["ids"][task].as_array().unwrap().iter().enumerate() {
            let kinds = numbers(&case["types"][task][example]);
            for (position, (id, kind)) in numbers(ids).into_iter().zip(kinds).enumerate() {
                batch.bags.rows.push(id as u32);
                batch.bags.finish_example(1.0);
                batch.tokens.positions.push(position as u32);
                batch.tokens.types.push(kind as u32);
                batch.tokens.keys.push(TokenKey { task: task as u32, example: example as u32, position: position as u32 });
            }
            batch.tokens.finish_example(batch.bags.rows.len());
            batch.keys.push(RowKey { task: task as u32, example: example as u32 });
        }
        let values = numbers(&case["targets"][task]);
        let targets = match task {
            0 => Targets::Class(values.iter().map(|&class| class as u32).collect()),
            _ => Targets::Values(values.iter().map(|&value| value as f32).collect()),
        };
        let scale = 1.0 / values.len() as f32;
        batch.parts.push(Part { task, present: task, batch: 0, rows: first..batch.keys.len(), targets, scale, first: true });
    }
    batch
}

fn limits(batch: &Batch) -> Limits {
    let (rows, tokens) = (batch.keys.len(), batch.bags.rows.len());
    Limits {
        group_rows: rows,
        round_rows: rows,
        group_logits: 4 * rows,
        logits_at_once: None,
        bag_rows: vec![tokens; 2],
        tokens: TokenLimits {
            group_tokens: tokens,
            group_queries: tokens,
            head_rows: rows,
            round_tokens: tokens,
            ..TokenLimits::default()
        },
        present: 2,
        ..Limits::default()
    }
}

/// Norm of a gradient and its products with the eight probes, against the fixture's. A product with a probe of length n and
/// entries of variance 1/3 is off by about |error| / sqrt 3, so products bound the error as a whole.
fn compare(name: &str, ours: &[f32], case: &Value) {
    compare_elements(name, ours, &case["elements"]);
    let all = &case["gradients"];
    let known = numbers(&all[name]);
    let norm = ours.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    // A key's bias moves all products of a query alike: its gradient is zero but for rounding of what its weight's is made of.
    let scale = if name.ends_with("key.bias") { numbers(&all[name.replace("bias", "weight")])[0] } else { known[0] };
    let tolerance = 1e-5 * scale;
    assert!((norm - known[0]).abs() < tolerance, "{name}: norm {norm}, {} in PyTorch", known[0]);
    let key = name.split_once(' ').unwrap().1;
    for (probe, known) in known[1..].iter().enumerate() {
        let of = format!("probe {probe} {key}");
        let product: f64 = ours.iter().enumerate().map(|(i, &g)| f64::from(g) * uniform(&of, i)).sum();
        assert!((product - known).abs() < tolerance, "{name}, probe {probe}: {product}, {known} in PyTorch");
    }
}

/// 32 elements spread over a gradient, each to 1e-5 of its largest.
fn compare_elements(name: &str, ours: &[f32], all: &Value) {
    let known = numbers(&all[name]);
    // As in [`compare`], what a key's bias should be zero against.
    let largest = if name.ends_with("key.bias") { numbers(&all[name.replace("bias", "weight")])[0] } else { known[0] };
    let key = format!("elements {}", name.split_once(' ').expect("task and parameter").1);
    for (number, theirs) in known[1..].iter().enumerate() {
        let index = ((uniform(&key, number) + 1.0) / 2.0 * ours.len() as f64) as usize;
        let gap = (f64::from(ours[index]) - theirs).abs();
        assert!(gap < 1e-5 * largest, "{name}[{index}]: {}, {theirs} in PyTorch", ours[index]);
    }
}

fn gradients_match(case: &Value, recompute: bool) {
    let network = network(case, recompute);
    let batch = batch(case);
    let limits = limits(&batch);
    let mut memory = Memory::unlimited();
    let mut parameters = Parameters::new(&mut memory, &network, &start(case)).unwrap();
    fill_all(&network, &mut parameters);
    let keep = Keep { stored: true, batches: 1, storage: Storage::F32 };
    let mut gradients = Gradients::new(&mut memory, &network, keep, &limits).unwrap();
    let mut scratch = Scratch::new(&mut memory, &*network.spec.encoder, &limits).unwrap();
    let random = Randomness { seed: 0, round: 0 };
    network.forward(parameters.weights(), &batch, &batch.parts, &mut scratch, Some(random));
    let name = case["name"].as_str().unwrap();
    for (ours, theirs) in scratch.logits().iter().zip(numbers(&case["logits"])) {
        assert!((f64::from(*ours) - theirs).abs() < 1e-5 * theirs.abs().max(1.0), "{name}: logit {ours}, {theirs} in PyTorch");
    }
    network.losses(&batch.parts, &mut scratch);
    let own = gradients.of_group(&network, &batch, &batch.parts);
    network.backward(parameters.weights(), &batch, &batch.parts, &mut scratch, own, random);
    network.row_gradients(&batch, &mut gradients, 2);
    let mut compared = 0;
    for task in 0..2 {
        for param in &network.table.shared {
            let key = format!("{task} {}", param.name);
            compare(&key, &gradients.jacobian.row(task)[param.range()], case);
        }
        for param in network.table.head_params(task) {
            let key = format!("{task} {}", param.name);
            compare(&key, &gradients.heads[param.range()], case);
        }
        let (key, hidden) = (format!("{task} {WORDS}"), number(case, "hidden"));
        let mut words = vec![0.0; number(case, "vocabulary") * hidden];
        let own = &gradients.rows[task];
        for (values, &row) in own.used().chunks(hidden).zip(&own.index.rows) {
            words[row as usize * hidden..][..hidden].copy_from_slice(values);
        }
        compare(&key, &words, case);
        compared += network.table.shared.len() + 3;
    }
    assert_eq!(
        compared,
        case["gradients"].as_object().unwrap().len(),
        "{name}: every gradient of the fixture is held against ours"
    );
}

fn steps_match(case: &Value) {
    let batch = batch(case);
    let balancer = balance::registry::build("equal", &serde_json::Map::new(), 2).unwrap();
    let settlers = Solvers { balancer, methods: vec![Box::new(Sum)] };
    let memory = &mut Memory::unlimited();
    let mut trainer =
        Trainer::new(memory, network(case, false), &start(case), settlers, RoundOptions::plain(0), &limits(&batch)).unwrap();
    fill_all(&trainer.model.network, &mut trainer.model.parameters);
    for (step, expected) in case["losses"].as_array().unwrap().iter().enumerate() {
        let (beta1, beta2) = (0.9f64, 0.999f64);
        let power = step as i32 + 1;
        let rule = Rule::AdamW {
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            eps: 1e-8,
            correction1: (1.0 - beta1.powi(power)) as f32,
            correction2: (1.0 - beta2.powi(power)) as f32,
        };
        let lr = case["lr"].as_f64().unwrap();
        let rates = Rates { rule, lr, head_lr: lr, embedding_lr: lr, weight_decay: 0.01 };
        let committed = trainer.run_round(&batch, &[0, 1], step as u64, &rates).unwrap().unwrap();
        for (ours, theirs) in committed.losses.iter().zip(numbers(expected)) {
            let gap = (ours - theirs).abs();
            assert!(gap < 1e-4 * theirs.abs().max(1.0), "{}, step {step}: loss {ours}, {theirs} in PyTorch", case["name"]);
        }
    }
}

fn cases() -> Vec<Value> {
    serde_json::from_str(include_str!("fixtures/bert_parity.json")).unwrap()
}

#[test]
fn logits_and_gradients_match_transformers() {
    for case in cases() {
        gradients_match(&case, false);
    }
}

#[test]
fn recomputed_activations_give_the_same() {
    gradients_match(&cases()[0], true);
}

#[test]
fn ten_steps_match_pytorch() {
    for case in cases() {
        steps_match(&case);
    }
}
