//! Whole training steps held against PyTorch (fixture and its script: tests/fixtures/torch_parity.*).

use std::sync::Arc;

use serde_json::Value;
use taskloom::machine::memory::Memory;
use taskloom::model::Start;
use taskloom::model::encoders::linear::Linear;
use taskloom::model::network::{Batch, Limits, Network, Part, Targets};
use taskloom::model::spec::{HeadKind, HeadSpec, ModelSpec, Param};
use taskloom::ops::activation::Activation;
use taskloom::ops::adamw::Rule;
use taskloom::ops::dropout::RowKey;
use taskloom::surgery::methods::{Method, Order, PcGrad, Sum};
use taskloom::surgery::update::Rates;
use taskloom::train::round::Trainer;
use taskloom::train::round_options::{RoundOptions, Solvers};

const ROWS: usize = 5;
const OUTPUTS: [usize; 3] = [3, 1, 2];

/// The numbers of a nested list, in order; null is NaN.
fn flat(value: &Value) -> Vec<f32> {
    match value {
        Value::Array(items) => items.iter().flat_map(flat).collect(),
        Value::Null => vec![f32::NAN],
        number => vec![number.as_f64().unwrap() as f32],
    }
}

fn trainer(case: &Value) -> Trainer {
    let kinds = [HeadKind::Classification, HeadKind::Regression, HeadKind::Multilabel];
    let head = |task: usize| HeadSpec {
        task: format!("t{task}"),
        kind: kinds[task],
        outputs: OUTPUTS[task],
        class_weights: None,
        temperature: 1.0,
    };
    let encoder = Linear {
        columns: 6,
        hidden: 8,
        activation: Activation::Gelu,
        residual: case["residual"].as_bool().unwrap(),
        dropout: 0.0,
    };
    let mut network = Network::new(ModelSpec { encoder: Arc::new(encoder), heads: (0..3).map(head).collect() });
    network.label_smoothing = 0.1;
    let method: Box<dyn Method> =
        if case["method"] == "pcgrad" { Box::new(PcGrad { order: Order::Fixed }) } else { Box::new(Sum) };
    let balancer = taskloom::surgery::balance::registry::build("equal", &serde_json::Map::new(), 3).unwrap();
    let settlers = Solvers { balancer, methods: vec![method] };
    let start = Start { seed: 0, equal_heads: false, second_moment: true, row_moment: false, row_capacity: 0 };
    let rows = 3 * ROWS;
    let limits = Limits { group_rows: rows, round_rows: rows, group_logits: 6 * ROWS, present: 3, ..Limits::default() };
    let mut trainer = Trainer::new(&mut Memory::unlimited(), network, &start, settlers, RoundOptions::plain(0), &limits).unwrap();
    let table = trainer.model.network.table.clone();
    let fill = |params: &[Param], values: &mut [f32], from: Vec<f32>| {
        assert_eq!(params.last().unwrap().range().end, from.len());
        values.copy_from_slice(&from);
    };
    fill(&table.shared, &mut trainer.model.parameters.shared.values, flat(&case["start"]["shared"]));
    fill(&table.heads, &mut trainer.model.parameters.heads.values, flat(&case["start"]["heads"]));
    trainer
}

fn batch(case: &Value) -> Batch {
    let mut batch = Batch { groups: std::iter::once(0..3).collect(), features: flat(&case["x"]), ..Batch::default() };
    for task in 0..3 {
        let values = flat(&case["y"][task]);
        let targets = match task {
            0 => Targets::Class(values.iter().map(|&class| class as u32).collect()),
            _ => Targets::Values(values),
        };
        batch.keys.extend((0..ROWS as u32).map(|example| RowKey { task: task as u32, example }));
        let scale = 1.0 / targets.observed() as f32;
        batch.parts.push(Part {
            task,
            present: task,
            rows: task * ROWS..(task + 1) * ROWS,
            targets,
            scale,
            batch: 0,
            first: true,
        });
    }
    batch
}

/// f32 against f64 over sums of at most 48 terms and five steps; Adam's normalized step turns a gradient's relative error
/// into the same share of lr = 0.02.
const TOLERANCE: f64 = 1e-5;

fn close(what: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len());
    for (index, (a, b)) in ours.iter().zip(theirs).enumerate() {
        let gap = f64::from((a - b).abs());
        assert!(gap <= TOLERANCE * f64::from(b.abs()).max(1.0), "{what}[{index}]: {a} here, {b} in PyTorch");
    }
}

#[test]
fn five_steps_match_pytorch() {
    let cases: Value = serde_json::from_str(include_str!("fixtures/torch_parity.json")).unwrap();
    for case in cases.as_array().unwrap() {
        let name = format!("{} residual {}", case["method"], case["residual"]);
        let (mut trainer, batch) = (trainer(case), batch(case));
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
            let rates = Rates { rule, lr: 0.02, head_lr: 0.02, embedding_lr: 0.02, weight_decay: 0.01 };
            let committed = trainer.run_round(&batch, &[0, 1, 2], step as u64, &rates).unwrap().unwrap();
            let losses: Vec<f32> = committed.losses.iter().map(|&loss| loss as f32).collect();
            close(&format!("{name} losses of step {step}"), &losses, &flat(expected));
        }
        close(&format!("{name} encoder"), &trainer.model.parameters.shared.values, &flat(&case["end"]["shared"]));
        close(&format!("{name} heads"), &trainer.model.parameters.heads.values, &flat(&case["end"]["heads"]));
    }
}
