//! `linear` and `bag`: one layer over dense features, or over the sum of embedding rows of a text's n-grams.

use super::activations::Activations;
use super::{Gradients, Group, Table, head};
use crate::machine::tape::Tape;
use crate::machine::tensor::Tensor;
use crate::model::network::{Network, Part};
use crate::ops::activation::{Activation, ActivationBackward};
use crate::ops::dropout::{Dropout, Randomness};
use crate::ops::embedding_bag::EmbeddingBagForward;
use crate::ops::gather::Copy;
use crate::ops::heads::{Head, HeadsBackward, HeadsForward};
use crate::ops::linear::{LinearForward, LinearInputBackward, LinearWeightBackward};

/// (hidden x inputs), and (hidden) f32
fn layer(network: &Network, group: &Group) -> (Tensor, Tensor) {
    let encoder = &network.spec.encoder;
    let [weight, bias] = [&network.table.shared[0], &network.table.shared[1]];
    let shared = &group.weights.shared;
    (shared.matrix(weight.offset, encoder.hidden, encoder.inputs()), shared.wide.range(bias.range()))
}

/// (rows x inputs)
fn input(group: &Group) -> Tensor {
    if group.at.input.is_none() { group.features } else { of(group, group.at.input) }
}

/// The rows of an activation that are in use.
fn of(group: &Group, whole: Tensor) -> Tensor {
    if whole.is_none() { whole } else { whole.rows(0..group.rows.len()) }
}

fn heads(network: &Network, group: &Group, gradients: Option<&Gradients>) -> Vec<Head> {
    let own = |(number, part): (usize, &Part)| {
        let rows = part.rows.start - group.rows.start..part.rows.end - group.rows.start;
        let gradient = gradients.map_or(Tensor::NONE, |gradients| gradients.heads[number]);
        head(network, part, rows, group.weights.heads, gradient)
    };
    group.parts.iter().enumerate().map(own).collect()
}

fn dropout<'a>(tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, x: Tensor, random: Option<Randomness>) {
    let probability = network.spec.encoder.dropout;
    if let Some(random) = random.filter(|_| probability > 0.0) {
        tape.push(Dropout { x, keys: &group.batch.keys[group.rows.clone()], probability, random });
    }
}

/// Encoder and heads; dropout with `random`.
pub fn forward<'a>(tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, random: Option<Randomness>) {
    let encoder = &network.spec.encoder;
    let (at, x) = (group.at, input(group));
    if let (Some(_), Some(Table { slots, values, init })) = (encoder.bag(), group.table) {
        let (bags, examples) = (&group.batch.bags, group.rows.clone());
        tape.push(EmbeddingBagForward { out: x, bags, examples, slots, values, init });
    }
    let (hidden, (weight, bias)) = (of(group, at.hidden), layer(network, group));
    tape.push(LinearForward {
        out: hidden,
        pre: of(group, at.pre),
        x,
        weight,
        bias,
        activation: encoder.activation,
        residual: if encoder.residual { x } else { Tensor::NONE },
    });
    dropout(tape, network, group, hidden, random);
    tape.push(HeadsForward { logits: at.logits, hidden, heads: heads(network, group, None) });
}

/// Gradients after [`forward`] and the losses.
pub fn backward<'a>(tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, gradients: Gradients, random: Randomness) {
    let encoder = &network.spec.encoder;
    let (&Activations { hidden, dhidden, dlogits, pre, shortcut, .. }, x) = (group.at, input(group));
    let [hidden, dhidden, pre, shortcut] = [hidden, dhidden, pre, shortcut].map(|own| of(group, own));
    let heads = heads(network, group, Some(&gradients));
    tape.push(HeadsBackward { dhidden, dlogits, hidden, heads });
    dropout(tape, network, group, dhidden, Some(random));
    if !shortcut.is_none() {
        // The shortcut passes dhidden on as it is here; the layer's branch changes it in place below.
        tape.push(Copy { out: shortcut, x: dhidden });
    }
    if encoder.activation != Activation::None {
        tape.push(ActivationBackward { dout: dhidden, pre, activation: encoder.activation });
    }
    let Gradients { jacobian, dinput, .. } = gradients;
    let (columns, partials) = (0..network.table.shared_len(), Tensor::NONE);
    tape.push(LinearWeightBackward { dout: dhidden, x, jacobian, columns, partials });
    if !dinput.is_none() {
        let (weight, _) = layer(network, group);
        tape.push(LinearInputBackward { residual: shortcut, ..LinearInputBackward::new(dinput, dhidden, weight) });
    }
}
