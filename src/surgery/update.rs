//! The commit of a round: every parameter moves once, in one pass over J that combines, clips and steps.

use rayon::prelude::*;

use super::blocks::Blocks;
use crate::model::Parameters;
use crate::model::network::{Gradients, Network};
use crate::ops::adamw::{ColumnRule, Combine, Group, Rule, Step, combine_and_step};
use crate::ops::row_gradients::{RowGradient, Union, row_update};
use crate::ops::storage::Rows;

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
    /// (T) factor of each, by set of weights.
    Weights { sets: &'a [Vec<f64>], blocks: &'a Blocks },
    /// Column by column.
    Columns(ColumnRule<'a>),
}

impl Shared<'_> {
    /// (rows of J) weights in f32 of each set; none where columns go by a rule.
    fn weights(&self, gradients: &Gradients) -> Vec<Vec<f32>> {
        let Self::Weights { sets, .. } = self else { return Vec::new() };
        // The sum of all gradients is one row, and all weights are equal.
        let copies = if gradients.stored { gradients.batches } else { 1 };
        sets.iter().map(|set| set.iter().flat_map(|&w| std::iter::repeat_n(w as f32, copies)).collect()).collect()
    }

    fn combine<'a>(
        &'a self,
        weights: &'a [Vec<f32>],
        block: impl Fn(&Blocks) -> usize,
        rows: usize,
        first: usize,
    ) -> Combine<'a> {
        match *self {
            Self::Weights { blocks, .. } => Combine::Weights(&weights[blocks.set_of(block(blocks))][..rows]),
            Self::Columns(rule) => Combine::Columns { rule, first: first as u64 },
        }
    }
}

/// The rows of the embedding table that a round moves.
#[derive(Default)]
pub struct Touched {
    pub union: Union,
    slots: Vec<u32>,
}

/// Moves all parameters by one step.
pub fn commit(
    network: &Network,
    parameters: &mut Parameters,
    gradients: &Gradients,
    touched: &mut Touched,
    decision: &Decision,
    rates: &Rates,
) {
    let width = network.table.shared_len();
    let weights = decision.shared.weights(gradients);
    let count = gradients.rows_in_use(decision.tasks.len());
    for param in &network.table.shared {
        let rows = gradients.jacobian.rows(count, param.range());
        let group = group_of(&mut parameters.shared, param.range());
        let how = decision.shared.combine(&weights, |blocks| blocks.of_column(param.offset), count, param.offset);
        combine_and_step(group, &rows, how, &rates.step(rates.lr, param.decay));
    }
    for (&task, &factor) in decision.tasks.iter().zip(decision.heads) {
        for param in network.table.head_params(task) {
            let group = group_of(&mut parameters.heads, param.range());
            let gradient = &gradients.heads[param.range()];
            combine_and_step(
                group,
                &Rows::F32(vec![gradient]),
                Combine::Weights(&[factor as f32]),
                &rates.step(rates.head_lr, param.decay),
            );
        }
    }
    if let Some(table) = parameters.rows.as_mut().filter(|_| !gradients.rows.is_empty()) {
        let Touched { union, slots } = touched;
        table.touch(&union.rows, slots);
        let rows = &gradients.rows[..decision.tasks.len() * gradients.batches];
        let block = |blocks: &Blocks| blocks.table.expect("the table has a block");
        let how = decision.shared.combine(&weights, block, rows.len(), width);
        row_update(table.state(), slots, union, rows, how, &rates.step(rates.embedding_lr, true));
    }
}

/// Squared norm of the shared update that a rule makes, which no Gram matrix knows.
pub fn column_square(gradients: &Gradients, union: &Union, count: usize, rule: ColumnRule) -> f64 {
    const COLUMNS: usize = 4096;
    let width = gradients.jacobian.width();
    let all = gradients.jacobian.rows(count, 0..width);
    let square = |d: &[f32]| d.iter().map(|&d| f64::from(d) * f64::from(d)).sum::<f64>();
    let dense = |block: usize| {
        let range = block * COLUMNS..((block + 1) * COLUMNS).min(width);
        let mut d = vec![0.0; range.len()];
        all.each_f32(range.clone(), &mut Vec::new(), |rows, at, stretch| {
            let d = &mut d[stretch.start - range.start..stretch.end - range.start];
            let rows: Vec<(usize, &[f32])> = rows.iter().map(|row| &row[at..at + d.len()]).enumerate().collect();
            rule(&rows, stretch.start as u64, d);
        });
        square(&d)
    };
    let dim = gradients.rows.first().map_or(0, RowGradient::dim);
    let embedded = |index: usize| {
        let mut d = vec![0.0; dim];
        let rows = union.gathered(index, &gradients.rows[..count]);
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
