//! The commit of a round: every parameter moves once, in one pass over J that combines, clips and steps.

use super::blocks::Blocks;
use super::gram::GradientsAt;
use crate::machine::tape::Tape;
use crate::machine::tensor::Tensor;
use crate::model::network::Network;
use crate::model::spec::Param;
use crate::ops::adamw;
use crate::ops::column_rule::How;
use crate::ops::row_update::{RowUpdate, TableState};
use crate::ops::update::{Columns, ParameterState, Update};

/// Step sizes of one round.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    pub rule: adamw::Rule,
    pub lr: f64,
    pub head_lr: f64,
    pub embedding_lr: f64,
    pub weight_decay: f64,
}

impl Rates {
    fn step(&self, lr: f64) -> adamw::Step {
        adamw::Step { rule: self.rule, lr: lr as f32, weight_decay: self.weight_decay as f32 }
    }
}

/// Parameters and moments.
pub struct ParametersAt<'a> {
    pub shared: ParameterState,
    pub heads: ParameterState,
    /// The embedding table, and where the rows of the gradients' union lie in it.
    pub table: Option<(TableState, &'a [u32])>,
}

/// What a round decided for its present tasks; clipping is already in the weights.
pub struct DecisionAt<'a> {
    /// Run-wide indices of the present tasks.
    pub tasks: &'a [usize],
    /// Weights are (sets x rows of J) f32; those of the embedding table are its set's.
    pub shared: How<'a>,
    /// (T) f32 factor of each task's head gradient.
    pub heads: Tensor,
    /// (1) u32: nothing moves unless it is 0; none where it always does.
    pub halted: Tensor,
}

fn columns(param: &Param, set: usize) -> Columns {
    Columns { range: param.range(), set, decay: param.decay }
}

/// The step of the shared dense parameters.
pub fn shared_update<'a>(
    network: &Network,
    blocks: &Blocks,
    state: ParameterState,
    jacobian: Vec<Tensor>,
    how: How<'a>,
    halted: Tensor,
    rates: &Rates,
) -> Update<'a> {
    let own = |param: &Param| columns(param, blocks.set_of(blocks.of_column(param.offset)));
    let columns = network.table.shared.iter().map(own).collect();
    Update { state, jacobian, columns, how, step: rates.step(rates.lr), halted }
}

/// Moves all parameters by one step.
pub fn update<'a>(
    tape: &mut Tape<'a>,
    network: &Network,
    blocks: &Blocks,
    parameters: ParametersAt<'a>,
    gradients: &GradientsAt<'a>,
    decision: &DecisionAt<'a>,
    rates: &Rates,
) {
    let halted = decision.halted;
    let (state, jacobian, how) = (parameters.shared, gradients.jacobian.clone(), decision.shared.clone());
    tape.push(shared_update(network, blocks, state, jacobian, how, halted, rates));
    let own = |(index, &task)| network.table.head_params(task).iter().map(move |param| columns(param, index));
    tape.push(Update {
        state: parameters.heads,
        jacobian: vec![gradients.heads],
        columns: decision.tasks.iter().enumerate().flat_map(own).collect(),
        how: How::Weights(decision.heads),
        step: rates.step(rates.head_lr),
        halted,
    });
    let (Some((state, slots)), Some(rows), Some(table)) = (parameters.table, &gradients.rows, blocks.table) else { return };
    let how = match &decision.shared {
        How::Weights(sets) => How::Weights(sets.rows(blocks.set_of(table)..blocks.set_of(table) + 1)),
        How::Columns(rule) => How::Columns(rule.clone()),
    };
    let (gradients, first_column) = (rows.clone(), network.table.shared_len() as u64);
    tape.push(RowUpdate { state, slots, gradients, how, first_column, step: rates.step(rates.embedding_lr), halted });
}
