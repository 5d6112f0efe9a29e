//! The commit of a round: every parameter moves once, in one pass over J that combines, clips and steps.

use rayon::prelude::*;

use crate::model::Parameters;
use crate::model::network::{Gradients, Network};
use crate::ops::adamw::{ColumnRule, Combine, Group, Rule, Step, combine_and_step};
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
    pub shared: Shared<'a>,
    /// (T) factor of each task's head gradient.
    pub heads: &'a [f64],
}

/// How the tasks' shared gradients become one.
#[derive(Clone, Copy)]
pub enum Shared<'a> {
    /// (T) factor of each.
    Weights(&'a [f64]),
    /// Column by column.
    Columns(ColumnRule<'a>),
}

impl Shared<'_> {
    /// Weights in f32; none where columns go by a rule.
    fn weights(&self) -> Vec<f32> {
        match self {
            Self::Weights(weights) => weights.iter().map(|&w| w as f32).collect(),
            Self::Columns(_) => Vec::new(),
        }
    }

    fn combine<'a>(&'a self, weights: &'a [f32], first: usize) -> Combine<'a> {
        match *self {
            Self::Weights(_) => Combine::Weights(weights),
            Self::Columns(rule) => Combine::Columns { rule, first: first as u64 },
        }
    }
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
    let weights = decision.shared.weights();
    // Without private gradients the sum lies in row 0, and all weights are equal.
    let count = if gradients.stored { decision.tasks.len() } else { 1 };
    let dense_weights = &weights[..count.min(weights.len())];
    for param in &network.table.shared {
        let rows: Vec<&[f32]> = (0..count).map(|row| &gradients.dense_row(row, width)[param.range()]).collect();
        let group = group_of(&mut parameters.shared, param.range());
        let how = decision.shared.combine(dense_weights, param.offset);
        combine_and_step(group, &rows, how, &rates.step(rates.lr, param.decay));
    }
    for (&task, &factor) in decision.tasks.iter().zip(decision.heads) {
        for param in network.table.head_params(task) {
            let group = group_of(&mut parameters.heads, param.range());
            let gradient = &gradients.heads[param.range()];
            combine_and_step(group, &[gradient], Combine::Weights(&[factor as f32]), &rates.step(rates.head_lr, param.decay));
        }
    }
    if let Some(table) = parameters.rows.as_mut().filter(|_| !gradients.rows.is_empty()) {
        table.touch(&union.rows, slots);
        let rows = &gradients.rows[..decision.tasks.len()];
        row_update(
            table.state(),
            slots,
            union,
            rows,
            decision.shared.combine(&weights, width),
            &rates.step(rates.embedding_lr, true),
        );
    }
}

/// Squared norm of the shared update that a rule makes, which no Gram matrix knows.
pub fn column_square(network: &Network, gradients: &Gradients, union: &Union, count: usize, rule: ColumnRule) -> f64 {
    const COLUMNS: usize = 4096;
    let width = network.table.shared_len();
    let square = |d: &[f32]| d.iter().map(|&d| f64::from(d) * f64::from(d)).sum::<f64>();
    let dense = |block: usize| {
        let range = block * COLUMNS..((block + 1) * COLUMNS).min(width);
        let rows: Vec<&[f32]> = (0..count).map(|row| &gradients.dense_row(row, width)[range.clone()]).collect();
        let mut d = vec![0.0; range.len()];
        rule(&rows, range.start as u64, &mut d);
        square(&d)
    };
    let dim = network.spec.encoder.inputs();
    let zeros = vec![0.0f32; dim];
    let embedded = |index: usize| {
        let mut d = vec![0.0; dim];
        let rows = union.gathered(index, &gradients.rows[..count], &zeros);
        rule(&rows, width as u64 + u64::from(union.rows[index]) * dim as u64, &mut d);
        square(&d)
    };
    // Collected before they are added: the order of additions must not depend on threads.
    let mut squares: Vec<f64> = (0..width.div_ceil(COLUMNS)).into_par_iter().map(dense).collect();
    squares.extend((0..union.rows.len()).into_par_iter().with_min_len(64).map(embedded).collect::<Vec<f64>>());
    squares.iter().sum()
}

fn group_of(params: &mut crate::model::params::DenseParams, range: std::ops::Range<usize>) -> Group<'_> {
    let second = if params.second.is_empty() { &mut [][..] } else { &mut params.second[range.clone()] };
    Group { values: &mut params.values[range.clone()], first: &mut params.first[range], second }
}
