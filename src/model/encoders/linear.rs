//! `linear`: one layer over dense features, with the heads above it.

use std::ops::Range;

use anyhow::Result;

use super::activations::{Activations, Allocator};
use super::heads::HeadRows;
use super::{Encoder, Gradients, Group, Input};
use crate::machine::tape::Tape;
use crate::machine::tensor::Tensor;
use crate::model::network::{Limits, Network, Part};
use crate::model::spec::{Init, Param, push_linear};
use crate::ops::activation::{Activation, ActivationBackward};
use crate::ops::dropout::{Dropout, Randomness};
use crate::ops::gather::Copy;
use crate::ops::linear::{LinearForward, LinearInputBackward, LinearWeightBackward};

pub struct Linear {
    /// Columns of its input.
    pub columns: usize,
    pub hidden: usize,
    pub activation: Activation,
    /// Adds the layer's input to the first columns of its output.
    pub residual: bool,
    pub dropout: f64,
}

/// (rows x inputs)
pub fn input(group: &Group) -> Tensor {
    if group.at.input.is_none() { group.features } else { of(group, group.at.input) }
}

/// The rows of an activation that are in use.
fn of(group: &Group, whole: Tensor) -> Tensor {
    if whole.is_none() { whole } else { whole.rows(0..group.rows.len()) }
}

/// By part, its rows counted from the group's first; and what heads are computed at once.
fn heads<'a>(network: &Network, group: &Group<'a>) -> (Vec<Range<usize>>, Vec<HeadRows<'a>>) {
    let own = |part: &Part| part.rows.start - group.rows.start..part.rows.end - group.rows.start;
    let rows: Vec<Range<usize>> = group.parts.iter().map(own).collect();
    let found = HeadRows::of_group(network, group.parts, &rows, |part| network.spec.heads[part.task].outputs);
    (rows, found)
}

impl Linear {
    /// (hidden x inputs), and (hidden) f32
    fn weights(&self, network: &Network, group: &Group) -> (Tensor, Tensor) {
        let [weight, bias] = [&network.table.shared[0], &network.table.shared[1]];
        let shared = &group.weights.shared;
        (shared.matrix(weight.offset, self.hidden, self.columns), shared.wide.range(bias.range()))
    }

    fn dropout<'a>(&self, tape: &mut Tape<'a>, group: &Group<'a>, x: Tensor, random: Option<Randomness>) {
        if let Some(random) = random.filter(|_| self.dropout > 0.0) {
            tape.push(Dropout { x, keys: &group.batch.keys[group.rows.clone()], probability: self.dropout, random });
        }
    }
}

impl Encoder for Linear {
    fn hidden(&self) -> usize {
        self.hidden
    }

    fn reads(&self) -> Input<'_> {
        Input::Features(self.columns)
    }

    fn params(&self) -> [Vec<Param>; 2] {
        let (mut params, name, bound) = (Vec::new(), "encoder.dense", 1.0 / (self.columns as f64).sqrt());
        push_linear(&mut params, name, name, [self.hidden, self.columns], Init::Uniform(bound));
        [params, Vec::new()]
    }

    fn activations(&self, room: &mut dyn Allocator, limits: &Limits) -> Result<Activations> {
        let pre = if self.activation == Activation::None { 0 } else { limits.group_rows };
        let pre = room.activation("pre-activations", pre, self.hidden)?;
        Ok(Activations { pre, ..Activations::new(room, self.hidden, limits.group_rows, limits)? })
    }

    fn forward<'a>(&self, tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, random: Option<Randomness>) {
        let (at, x) = (group.at, input(group));
        let (hidden, (weight, bias)) = (of(group, at.hidden), self.weights(network, group));
        tape.push(LinearForward {
            out: hidden,
            pre: of(group, at.pre),
            x,
            weight,
            bias,
            activation: self.activation,
            residual: if self.residual { x } else { Tensor::NONE },
        });
        self.dropout(tape, group, hidden, random);
        let (rows, heads) = heads(network, group);
        heads.iter().for_each(|own| own.forward(tape, network, &rows, group.weights.heads, [at.logits, hidden]));
    }

    fn backward<'a>(&self, tape: &mut Tape<'a>, network: &Network, group: &Group<'a>, to: Gradients, random: Randomness) {
        let (&Activations { hidden, dhidden, dlogits, pre, shortcut, .. }, x) = (group.at, input(group));
        let [hidden, dhidden, pre, shortcut] = [hidden, dhidden, pre, shortcut].map(|own| of(group, own));
        let (rows, heads) = heads(network, group);
        let parameters = (group.weights.heads, &to.heads[..]);
        heads.iter().for_each(|own| own.backward(tape, network, &rows, parameters, [dhidden, dlogits, hidden]));
        self.dropout(tape, group, dhidden, Some(random));
        if !shortcut.is_none() {
            // The shortcut passes dhidden on as it is here; the layer's branch changes it in place below.
            tape.push(Copy { out: shortcut, x: dhidden });
        }
        if self.activation != Activation::None {
            tape.push(ActivationBackward { dout: dhidden, pre, activation: self.activation });
        }
        let Gradients { jacobian, dinput, .. } = to;
        let (columns, partials) = (0..network.table.shared_len(), Tensor::NONE);
        tape.push(LinearWeightBackward { dout: dhidden, x, jacobian, columns, partials });
        if !dinput.is_none() {
            let (weight, _) = self.weights(network, group);
            tape.push(LinearInputBackward { residual: shortcut, ..LinearInputBackward::new(dinput, dhidden, weight) });
        }
    }
}
