//! The whole network, forward and backward, against central differences of an independent f64 version of it; and any fusion
//! of tasks into groups against any other, to the bit.

use std::sync::Arc;

use proptest::prelude::*;
use taskloom::machine::memory::Memory;
use taskloom::model::encoders::Encoder;
use taskloom::model::encoders::bag::Bag;
use taskloom::model::encoders::linear::Linear;
use taskloom::model::network::{Batch, Gradients, Keep, Limits, Network, Part, Randomness, Scratch, Targets};
use taskloom::model::spec::{HeadKind, HeadSpec, ModelSpec};
use taskloom::model::{Parameters, Start};
use taskloom::ops::activation::Activation;
use taskloom::ops::dropout::{RowKey, dropout};
use taskloom::ops::philox::{Keyed, Stream};
use taskloom::ops::storage::Storage;
use taskloom::schedule::fuse::groups;

const SEED: u64 = 11;
const ROUND: u32 = 5;
const TABLE_ROWS: usize = 24;

/// One network, and what its tasks bring to a round.
#[derive(Clone, Debug)]
struct Case {
    bag: bool,
    inputs: usize,
    hidden: usize,
    activation: Activation,
    residual: bool,
    dropout: f64,
    smoothing: f64,
    heads: Vec<(HeadKind, usize)>,
    /// Examples of each micro-batch of each task.
    micro_batches: Vec<Vec<usize>>,
    draw: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let activation = prop_oneof![Just(Activation::None), Just(Activation::Relu), Just(Activation::Gelu), Just(Activation::Tanh)];
    let kind =
        prop::sample::select(vec![HeadKind::Classification, HeadKind::Regression, HeadKind::Multilabel, HeadKind::Similarity]);
    let task = (kind, 2usize..4, prop::collection::vec(1usize..5, 1..4));
    let shape = (any::<bool>(), 8usize..12, 0usize..8, activation, any::<bool>());
    let noise = (prop_oneof![Just(0.0), Just(0.3)], prop_oneof![Just(0.0), Just(0.1)], any::<u64>());
    (shape, noise, prop::collection::vec(task, 1..5)).prop_map(|(shape, noise, tasks)| {
        let (bag, inputs, wider, activation, residual) = shape;
        let (dropout, smoothing, draw) = noise;
        let outputs = |kind, drawn| if kind == HeadKind::Similarity { inputs + wider } else { drawn };
        Case {
            bag,
            inputs,
            hidden: inputs + wider,
            activation,
            residual,
            dropout,
            smoothing,
            heads: tasks.iter().map(|(kind, drawn, _)| (*kind, outputs(*kind, *drawn))).collect(),
            micro_batches: tasks.into_iter().map(|(_, _, rows)| rows).collect(),
            draw,
        }
    })
}

impl Case {
    fn network(&self) -> Network {
        let Self { inputs, hidden, activation, residual, dropout, .. } = *self;
        let layer = Linear { columns: inputs, hidden, activation, residual, dropout };
        let encoder: Arc<dyn Encoder> = if self.bag {
            let rows = TABLE_ROWS;
            Arc::new(Bag { rows, init: 0.0, word_dropout: 0.0, vocabulary: None, buckets: rows, ngrams: 1, layer })
        } else {
            Arc::new(layer)
        };
        let head = |(task, &(kind, outputs)): (usize, &(HeadKind, usize))| HeadSpec {
            task: format!("t{task}"),
            kind,
            outputs,
            class_weights: None,
            temperature: 1.0,
        };
        let heads = self.heads.iter().enumerate().map(head).collect();
        let mut network = Network::new(ModelSpec { encoder, heads });
        network.label_smoothing = self.smoothing;
        network
    }

    /// Everything drawn from its own number, so that packing cannot change it.
    fn random(&self, kind: u32, task: usize, example: usize) -> Keyed {
        Keyed::new(self.draw, Stream::Synthetic, kind, task as u32, example as u32)
    }

    /// The round's rows, fused into groups of at most `limit` tasks.
    fn batch(&self, limit: usize) -> Batch {
        let mut batch = Batch::default();
        batch.bags.clear();
        let counts: Vec<usize> = self.micro_batches.iter().map(Vec::len).collect();
        for group in groups(&counts, limit) {
            let first_part = batch.parts.len();
            for slot in group {
                let sizes = &self.micro_batches[slot.task];
                let first_example: usize = sizes[..slot.turn].iter().sum();
                let start = batch.keys.len();
                let each = self.heads[slot.task].0.rows();
                for row in first_example * each..(first_example + sizes[slot.turn]) * each {
                    self.push_row(&mut batch, slot.task, row);
                }
                batch.parts.push(Part {
                    task: slot.task,
                    present: slot.task,
                    rows: start..batch.keys.len(),
                    targets: self.targets(slot.task, first_example..first_example + sizes[slot.turn]),
                    scale: 0.5 / sizes.iter().sum::<usize>() as f32,
                    batch: 0,
                    first: slot.turn == 0,
                });
            }
            batch.groups.push(first_part..batch.parts.len());
        }
        batch
    }

    fn push_row(&self, batch: &mut Batch, task: usize, example: usize) {
        batch.keys.push(RowKey { task: task as u32, example: example as u32 });
        let random = self.random(0, task, example);
        if self.bag {
            let rows = (0..TABLE_ROWS as u32).filter(|&row| random.uniform(row) < 0.25);
            batch.bags.rows.extend(rows);
            batch.bags.finish_example(0.7);
        } else {
            batch.features.extend((0..self.inputs as u32).map(|i| random.normal(i) as f32));
        }
    }

    fn targets(&self, task: usize, examples: std::ops::Range<usize>) -> Targets {
        let (kind, outputs) = self.heads[task];
        if kind == HeadKind::Similarity {
            return Targets::Pairs(examples.len());
        }
        if kind == HeadKind::Classification {
            return Targets::Class(examples.map(|example| self.random(1, task, example).word(0) % outputs as u32).collect());
        }
        let value = |example, output: u32| {
            let random = self.random(1, task, example);
            match (random.uniform(2 * output) < 0.2, kind) {
                (true, _) => f32::NAN,
                (_, HeadKind::Multilabel) => (random.word(2 * output + 1) % 2) as f32,
                _ => random.normal(2 * output + 1) as f32,
            }
        };
        Targets::Values(
            examples.flat_map(|example| (0..outputs as u32).map(move |o| (example, o))).map(|(e, o)| value(e, o)).collect(),
        )
    }
}

/// Losses and gradients of one round.
struct Round {
    losses: Vec<f64>,
    /// By task: dense row of J, table rows with their gradients.
    jacobian: Vec<Vec<f32>>,
    rows: Vec<Vec<(u32, Vec<f32>)>>,
    heads: Vec<f32>,
}

fn parameters(case: &Case, network: &Network) -> Parameters {
    let start = Start { seed: case.draw, equal_heads: false, second_moment: false, row_moment: false, row_capacity: TABLE_ROWS };
    let mut parameters = Parameters::new(&mut Memory::unlimited(), network, &start).expect("memory for a tiny network");
    if let Some(table) = &mut parameters.rows {
        let mut slots = Vec::new();
        table.touch(&(0..TABLE_ROWS as u32).collect::<Vec<_>>(), &mut slots);
        for (row, values) in table.stored_mut()[0].chunks_exact_mut(case.inputs).enumerate() {
            let random = case.random(2, 0, row);
            values.iter_mut().enumerate().for_each(|(i, value)| *value = random.normal(i as u32) as f32);
        }
    }
    // Biases start at zero, which would hide mistakes in them.
    let shift = |values: &mut [f32], kind| {
        let random = case.random(kind, 0, 0);
        values.iter_mut().enumerate().for_each(|(i, value)| *value += 0.1 * random.normal(i as u32) as f32);
    };
    shift(&mut parameters.shared.values, 3);
    shift(&mut parameters.heads.values, 4);
    parameters
}

fn round(network: &Network, parameters: &Parameters, batch: &Batch) -> Round {
    let tasks = network.spec.heads.len();
    let count = batch.keys.len();
    let bag = network.spec.encoder.table().is_some();
    let limits = Limits {
        group_rows: count,
        round_rows: count,
        group_logits: network.spec.heads.iter().map(|head| head.outputs).max().unwrap_or(0) * count,
        pairs: count,
        present: tasks,
        bag_rows: if bag { vec![TABLE_ROWS; tasks] } else { Vec::new() },
        ..Limits::default()
    };
    let mut memory = Memory::unlimited();
    let mut gradients = Gradients::new(&mut memory, network, Keep { stored: true, batches: 1, storage: Storage::F32 }, &limits)
        .expect("memory for tiny gradients");
    let mut scratch = Scratch::new(&mut memory, &*network.spec.encoder, &limits).expect("memory for tiny activations");
    let random = Randomness { seed: SEED, round: ROUND };
    let mut losses = vec![0.0; tasks];
    for group in &batch.groups {
        let parts = &batch.parts[group.clone()];
        network.forward(parameters.weights(), batch, parts, &mut scratch, Some(random));
        for (part, loss) in parts.iter().zip(network.losses(parts, &mut scratch)) {
            losses[part.task] += loss;
        }
        let own = gradients.of_group(network, batch, parts);
        network.backward(parameters.weights(), batch, parts, &mut scratch, own, random);
    }
    network.row_gradients(batch, &mut gradients, tasks);
    let sparse = |gradient: &taskloom::ops::row_gradients::RowGradient| {
        gradient
            .index
            .rows
            .iter()
            .zip(gradient.used().chunks(gradient.dim()))
            .map(|(&row, values)| (row, values.to_vec()))
            .collect()
    };
    Round {
        losses,
        jacobian: (0..tasks).map(|task| gradients.jacobian.row(task)).collect(),
        rows: gradients.rows.iter().map(sparse).collect(),
        heads: gradients.heads.to_vec(),
    }
}

/// The same network written down once more, in f64 and one row at a time: shared, heads and table end to end in `weights`.
struct Reference<'a> {
    case: &'a Case,
    network: &'a Network,
    batch: &'a Batch,
}

impl Reference<'_> {
    /// Scaled loss of one task: what row `task` of J is the gradient of.
    fn loss(&self, weights: &[f64], task: usize) -> f64 {
        let table = &self.network.table;
        let (shared, rest) = weights.split_at(table.shared_len());
        let (heads, embeddings) = rest.split_at(table.heads_len());
        let parts = || self.batch.parts.iter().filter(|part| part.task == task);
        if self.case.heads[task].0 == HeadKind::Similarity {
            let hidden = |part: &Part| part.rows.clone().map(|row| self.hidden(shared, embeddings, row)).collect();
            return parts().map(|part| f64::from(part.scale) * pair_loss(hidden(part))).sum();
        }
        let (weight, bias) = table.head(task);
        let (head, bias) = (&heads[weight.range()], &heads[bias.range()]);
        let mut loss = 0.0;
        for part in parts() {
            for (number, row) in part.rows.clone().enumerate() {
                let hidden = self.hidden(shared, embeddings, row);
                let logits: Vec<f64> =
                    head.chunks_exact(self.case.hidden).zip(bias).map(|(w, b)| b + product(w, &hidden)).collect();
                loss += f64::from(part.scale) * self.row_loss(task, &part.targets, number, &logits);
            }
        }
        loss
    }

    fn input(&self, embeddings: &[f64], row: usize) -> Vec<f64> {
        let inputs = self.case.inputs;
        if !self.case.bag {
            return self.batch.features[row * inputs..][..inputs].iter().map(|&x| f64::from(x)).collect();
        }
        let scale = f64::from(self.batch.bags.scales[row]);
        let rows = self.batch.bags.example(row);
        (0..inputs).map(|i| scale * rows.iter().map(|&r| embeddings[r as usize * inputs + i]).sum::<f64>()).collect()
    }

    fn hidden(&self, shared: &[f64], embeddings: &[f64], row: usize) -> Vec<f64> {
        let Case { inputs, hidden, .. } = *self.case;
        let input = self.input(embeddings, row);
        let mut mask = vec![1.0f32; hidden];
        dropout(&mut mask, hidden, &self.batch.keys[row..=row], self.case.dropout, SEED, ROUND);
        let (weight, bias) = shared.split_at(hidden * inputs);
        let unit = |unit: usize| {
            let pre = bias[unit] + product(&weight[unit * inputs..][..inputs], &input);
            let shortcut = if self.case.residual && unit < inputs { input[unit] } else { 0.0 };
            f64::from(mask[unit]) * (activate(self.case.activation, pre) + shortcut)
        };
        (0..hidden).map(unit).collect()
    }

    /// Whether no pre-activation is so near ReLU's corner that moving one weight could carry it across: no slope is defined there.
    fn clear_of_corners(&self, weights: &[f64]) -> bool {
        let Case { inputs, hidden, activation, .. } = *self.case;
        let (shared, rest) = weights.split_at(self.network.table.shared_len());
        let (weight, bias) = shared.split_at(hidden * inputs);
        let pre_activations = |row| {
            let input = self.input(&rest[self.network.table.heads_len()..], row);
            (0..hidden).map(|unit| bias[unit] + product(&weight[unit * inputs..][..inputs], &input)).collect::<Vec<_>>()
        };
        activation != Activation::Relu || (0..self.batch.keys.len()).flat_map(pre_activations).all(|pre| pre.abs() > 1e-3)
    }

    fn row_loss(&self, task: usize, targets: &Targets, row: usize, logits: &[f64]) -> f64 {
        let outputs = logits.len();
        match targets {
            Targets::Class(classes) => {
                let log_sum = logits.iter().map(|x| x.exp()).sum::<f64>().ln();
                let even = self.case.smoothing / outputs as f64;
                let own = 1.0 - self.case.smoothing;
                logits.iter().map(|x| even * (log_sum - x)).sum::<f64>() + own * (log_sum - logits[classes[row] as usize])
            }
            Targets::Values(values) => {
                let observed = logits.iter().zip(&values[row * outputs..][..outputs]).filter(|(_, y)| !y.is_nan());
                let multilabel = self.case.heads[task].0 == HeadKind::Multilabel;
                let loss = |x: f64, y: f64| if multilabel { x.exp().ln_1p() - x * y } else { (x - y).powi(2) };
                observed.map(|(&x, &y)| loss(x, f64::from(y))).sum()
            }
            Targets::Pairs(_) => unreachable!("pairs have no loss row by row"),
        }
    }
}

/// Sum of the losses of pairs of rows, at temperature 1; a row of zeros has cosine 0 with all.
fn pair_loss(rows: Vec<Vec<f64>>) -> f64 {
    let norms: Vec<f64> = rows.iter().map(|row| product(row, row).sqrt().max(f64::MIN_POSITIVE)).collect();
    let cosine = |i: usize, j: usize| product(&rows[i], &rows[j]) / (norms[i] * norms[j]);
    let pairs = rows.len() / 2;
    let loss = |i: usize| (0..pairs).map(|j| cosine(2 * i, 2 * j + 1).exp()).sum::<f64>().ln() - cosine(2 * i, 2 * i + 1);
    (0..pairs).map(loss).sum()
}

fn product(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
        Activation::Tanh => x.tanh(),
        // Phi by Simpson's rule over 0..x in 64 steps: far below the tolerance.
        Activation::Gelu => {
            let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let step = x / 64.0;
            let term = |i: u32| density(f64::from(i) * step) * if i % 2 == 1 { 4.0 } else { 2.0 };
            x * (0.5 + step / 3.0 * (density(0.0) + density(x) + (1..64).map(term).sum::<f64>()))
        }
    }
}

/// The network's gradients of task `task` in the layout of [`Reference`].
fn gradient(network: &Network, round: &Round, task: usize, inputs: usize) -> Vec<f32> {
    let mut all = round.jacobian[task].clone();
    all.resize(network.table.shared_len() + network.table.heads_len(), 0.0);
    let own = network.table.head_range(task);
    all[network.table.shared_len()..][own.clone()].copy_from_slice(&round.heads[own]);
    if let Some(rows) = round.rows.get(task) {
        let start = all.len();
        all.resize(start + TABLE_ROWS * inputs, 0.0);
        for (row, values) in rows {
            all[start + *row as usize * inputs..][..inputs].copy_from_slice(values);
        }
    }
    all
}

fn flat_parameters(parameters: &Parameters) -> Vec<f64> {
    let table = parameters.rows.as_ref().map_or(&[][..], |table| table.stored()[0]);
    parameters.shared.values.iter().chain(parameters.heads.values.iter()).chain(table).map(|&x| f64::from(x)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gradients_are_the_slopes_of_the_losses(case in cases()) {
        let network = case.network();
        let parameters = parameters(&case, &network);
        let batch = case.batch(0);
        let round = round(&network, &parameters, &batch);
        let reference = Reference { case: &case, network: &network, batch: &batch };
        let mut weights = flat_parameters(&parameters);
        prop_assume!(reference.clear_of_corners(&weights));
        for task in 0..case.heads.len() {
            let scale = batch.parts.iter().find(|part| part.task == task).map_or(0.0, |part| f64::from(part.scale));
            let expected = reference.loss(&weights, task);
            let loss = scale * round.losses[task];
            // Two layers of sums over up to 19 f32 terms, in logits of size up to 10.
            prop_assert!((loss - expected).abs() <= 1e-5 * (1.0 + expected.abs()), "loss {loss} against {expected}");
            let ours = gradient(&network, &round, task, case.inputs);
            let largest = ours.iter().fold(1e-3f64, |most, &g| most.max(f64::from(g).abs()));
            // f32: about 3 chained sums of up to 19 terms on the way there and back, each term with 2^-24, and the vectorized
            // exp of relative error 2e-7: 120 * 2^-24 + 1e-6 < 1e-5 of the largest gradient. Central differences in f64 with
            // h = 1e-5 add h^2 * f''' + 1e-16 / h, below 1e-8.
            let allowed = 1e-5 * largest;
            for index in 0..weights.len() {
                let here = weights[index];
                let mut at = |moved: f64| {
                    weights[index] = moved;
                    reference.loss(&weights, task)
                };
                let slope = (at(here + 1e-5) - at(here - 1e-5)) / 2e-5;
                at(here);
                let error = (slope - f64::from(ours[index])).abs();
                prop_assert!(error <= allowed, "task {task}, weight {index}: {} against {slope}, allowed {allowed:e}", ours[index]);
            }
        }
    }

    #[test]
    fn fusion_does_not_change_a_bit(case in cases()) {
        let network = case.network();
        let parameters = parameters(&case, &network);
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let whole = round(&network, &parameters, &case.batch(0));
        for limit in 1..=case.heads.len() {
            let cut = round(&network, &parameters, &case.batch(limit));
            for task in 0..case.heads.len() {
                prop_assert_eq!(whole.losses[task].to_bits(), cut.losses[task].to_bits());
                prop_assert_eq!(bits(&whole.jacobian[task]), bits(&cut.jacobian[task]), "task {}, groups of {}", task, limit);
            }
            prop_assert_eq!(bits(&whole.heads), bits(&cut.heads));
            let sparse = |round: &Round| -> Vec<Vec<(u32, Vec<u32>)>> {
                round.rows.iter().map(|rows| rows.iter().map(|(row, values)| (*row, bits(values))).collect()).collect()
            };
            prop_assert_eq!(sparse(&whole), sparse(&cut));
        }
    }
}
