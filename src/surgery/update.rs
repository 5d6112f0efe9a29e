//! The commit of a round: every parameter moves once, in one pass over J that combines, clips and steps.

use crate::model::Parameters;
use crate::model::network::{Gradients, Network};
use crate::ops::adamw::{Group, Rule, Step, combine_and_step};
use crate::ops::row_gradients::{Union, row_update};

/// Step sizes of one round.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    pub rule: Rule,
    pub lr: f64,
    pub head_lr: f64,
    pub embedding_lr: f64,
    pub weight_decay: f64,
}

impl Rates {
    fn step(&self, lr: f64, decay: bool) -> Step {
        Step { rule: self.rule, lr: lr as f32, weight_decay: if decay { self.weight_decay as f32 } else { 0.0 } }
    }
}

/// What a round decided for its present tasks; clipping is already in the factors.
pub struct Decision<'a> {
    /// Run-wide indices of the present tasks.
    pub tasks: &'a [usize],
    /// (T) factor of each task's shared gradient.
    pub shared: &'a [f64],
    /// (T) factor of each task's head gradient.
    pub heads: &'a [f64],
}

/// Moves all parameters by one step. `slots` is room for the embedding slots of the union.
pub fn commit(
    network: &Network,
    parameters: &mut Parameters,
    gradients: &Gradients,
    union: &Union,
    slots: &mut Vec<u32>,
    decision: &Decision,
    rates: &Rates,
) {
    let width = network.table.shared_len();
    let weights: Vec<f32> = decision.shared.iter().map(|&w| w as f32).collect();
    // Without private gradients the sum lies in row 0, and all weights are equal.
    let count = if gradients.stored { weights.len() } else { 1 };
    for param in &network.table.shared {
        let rows: Vec<&[f32]> = (0..count).map(|row| &gradients.dense_row(row, width)[param.range()]).collect();
        let group = group_of(&mut parameters.shared, param.range());
        combine_and_step(group, &rows, &weights[..count], &rates.step(rates.lr, param.decay));
    }
    for (&task, &factor) in decision.tasks.iter().zip(decision.heads) {
        let (weight, bias) = network.table.head(task);
        for param in [weight, bias] {
            let group = group_of(&mut parameters.heads, param.range());
            let gradient = &gradients.heads[param.range()];
            combine_and_step(group, &[gradient], &[factor as f32], &rates.step(rates.head_lr, param.decay));
        }
    }
    if let Some(table) = &mut parameters.rows {
        table.touch(&union.rows, slots);
        let rows = &gradients.rows[..weights.len()];
        row_update(table.state(), slots, union, rows, &weights, &rates.step(rates.embedding_lr, true));
    }
}

fn group_of(params: &mut crate::model::params::DenseParams, range: std::ops::Range<usize>) -> Group<'_> {
    let second = if params.second.is_empty() { &mut [][..] } else { &mut params.second[range.clone()] };
    Group { values: &mut params.values[range.clone()], first: &mut params.first[range], second }
}
