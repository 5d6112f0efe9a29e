//! Surgery and clipping of a round: from products of gradients to one factor per task for encoder and heads.

use super::round::Engine;
use super::rules::{Clip, ClipScope, Scale};
use crate::surgery::buffers::Passes;
use crate::surgery::gram::{RoundGram, round_gram};
use crate::surgery::methods::{ColumnBlock, Columnwise, Inputs, RowPass, Solution, Status, columns};
use crate::surgery::update::column_square;

/// What is known of a round's gradients.
pub(super) struct Known<'a> {
    pub gram: RoundGram,
    /// (T) squared norms of the heads' gradients.
    pub heads: Vec<f64>,
    /// Run-wide indices.
    pub tasks: &'a [usize],
    /// (T)
    pub losses: &'a [f64],
    /// (T) balancing of each task's gradient, where it is still to be applied.
    pub balanced: Vec<f64>,
    /// (rows of J) the part of its task's observed targets that each row comes from.
    pub shares: &'a [f64],
    pub round: u64,
}

/// What surgery and clipping came to.
pub(super) struct Decided {
    /// (T) by set: one for the encoder, or one for each block.
    pub weights: Vec<Vec<f64>>,
    /// (T) balancing of each task's gradient, where it was still to be applied.
    pub balanced: Vec<f64>,
    /// (T) balancing and clipping of each task's shared gradient.
    pub factors: Vec<f64>,
    /// (T) factor of each head's gradient.
    pub heads: Vec<f64>,
    pub norm: f64,
    pub clip: f64,
    pub status: Status,
}

/// A solved round, before the update is clipped.
pub(super) struct Solved {
    decided: Decided,
    /// Of the heads' part of the update.
    head_square: f64,
    /// Of the shared part; none where a rule makes it column by column, which no Gram matrix knows.
    shared_square: Option<f64>,
}

impl Solved {
    /// (T) factors under which a rule for columns makes the update.
    pub fn factors(&self) -> &[f64] {
        &self.decided.factors
    }

    /// Whether the norm of the update is still to be found out.
    pub fn wants_square(&self) -> bool {
        self.shared_square.is_none()
    }
}

impl Engine {
    /// Solves the round's surgery on the gradients that lie here.
    pub(super) fn decide(&mut self, known: Known) -> Decided {
        let (count, round) = (known.tasks.len(), known.round);
        let solved = self.solve_round(known);
        let square = self.method().columnwise().map(|rule| {
            let rule = scaled_rule(rule, solved.factors(), round, self.rules.seed);
            column_square(&self.gradients, &self.touched.union, count, &rule)
        });
        self.clip(solved, square)
    }

    /// From products of gradients to weights. A method with row state moves its buffers here.
    pub(super) fn solve_round(&mut self, known: Known) -> Solved {
        let Known { mut gram, heads, tasks, losses, balanced, shares, round } = known;
        let count = tasks.len();
        let Clip { norm: limit, scope } = self.rules.clip;
        gram.scale(&balanced);
        let mut factors = balanced.clone();
        if limit > 0.0 && scope == ClipScope::Task {
            let total = gram.total();
            let square = |index: usize| total[index * count + index] + factors[index].powi(2) * heads[index];
            let clips: Vec<f64> = (0..count).map(|index| clip_factor(limit, square(index))).collect();
            gram.scale(&clips);
            factors.iter_mut().zip(clips).for_each(|(factor, clip)| *factor *= clip);
        }
        let mut head_factors = factors.clone();
        let inputs =
            Inputs { gram: &[], cross_gram: &[], losses, row_sums: &[], tasks, round, seed: self.rules.seed, orders: None };
        let sums = self.move_buffers(&inputs, &mut gram, &mut factors, shares);
        let (mut weights, status) = self.solve(&inputs, &gram, &sums);
        let rescale = match (self.rules.scale, self.averages) {
            (Scale::Sum, true) => count as f64,
            (Scale::Mean, false) => 1.0 / count as f64,
            _ => 1.0,
        };
        weights.iter_mut().flatten().for_each(|weight| *weight *= rescale);
        if self.rules.weighted_heads {
            head_factors.iter_mut().zip(&weights[0]).for_each(|(factor, weight)| *factor *= weight);
        }
        let head_square: f64 = head_factors.iter().zip(&heads).map(|(f, square)| f * f * square).sum();
        let shared_square = if self.method().needs().elementwise {
            factors.iter_mut().for_each(|factor| *factor *= rescale);
            None
        } else {
            Some(gram.update_square(&self.blocks, &weights))
        };
        let decided = Decided { weights, balanced, factors, heads: head_factors, norm: 0.0, clip: 1.0, status };
        Solved { decided, head_square, shared_square }
    }

    /// Clips the update; `square` is that of the shared part, where [`Solved::wants_square`].
    pub(super) fn clip(&self, solved: Solved, square: Option<f64>) -> Decided {
        let Solved { mut decided, head_square, shared_square } = solved;
        let square = shared_square.or(square).expect("a rule's update has been measured") + head_square;
        decided.norm = square.sqrt();
        let Clip { norm: limit, scope } = self.rules.clip;
        if limit > 0.0 && scope == ClipScope::Update {
            decided.clip = clip_factor(limit, square);
            decided.factors.iter_mut().chain(&mut decided.heads).for_each(|factor| *factor *= decided.clip);
        }
        decided
    }

    /// Runs the passes of a method with row state, if this is one; returns each set's sums. Where the buffers take the
    /// gradients' place, so do their products, and what scaled the gradients is in them.
    fn move_buffers(&mut self, inputs: &Inputs, gram: &mut RoundGram, factors: &mut [f64], shares: &[f64]) -> Vec<Vec<f64>> {
        let Some(buffers) = &mut self.buffers else { return Vec::new() };
        let grams = gram.settled(&self.blocks);
        let pass = |(method, [gram, _]): (&mut Box<dyn crate::surgery::methods::Method>, &[Vec<f64>; 2])| {
            method.row_pass(&Inputs { gram, ..*inputs })
        };
        let passes: Vec<RowPass> = self.methods.iter_mut().zip(&grams).filter_map(pass).collect();
        let sums = buffers.apply(&Passes { passes: &passes, factors, tasks: inputs.tasks }, &self.blocks, &mut self.gradients);
        if !passes.iter().any(RowPass::updates_from_buffers) {
            return sums;
        }
        factors.fill(1.0);
        *gram = round_gram(&self.gradients, &self.touched.union, &self.blocks, inputs.tasks.len(), shares);
        gram.settled(&self.blocks).into_iter().map(|[gram, _]| gram).collect()
    }

    /// Weights of every set, and the first fallback among them.
    fn solve(&mut self, inputs: &Inputs, gram: &RoundGram, sums: &[Vec<f64>]) -> (Vec<Vec<f64>>, Status) {
        let (mut all, mut settled) = (Vec::new(), Status::Ok);
        for (set, (method, [gram, cross_gram])) in self.methods.iter_mut().zip(&gram.settled(&self.blocks)).enumerate() {
            let row_sums = sums.get(set).map_or(&[][..], Vec::as_slice);
            let Solution { weights, status } = method.solve(&Inputs { gram, cross_gram, row_sums, ..*inputs });
            all.push(weights);
            settled = match (settled, status) {
                (Status::Ok, Status::Fallback(why)) if self.blocks.apart => {
                    Status::Fallback(format!("{}: {why}", self.blocks.names[set]))
                }
                (Status::Ok, status) => status,
                (first, _) => first,
            };
        }
        (all, settled)
    }
}

/// A method's rule on gradients scaled by the (T) tasks' factors, as [`crate::ops::adamw::ColumnRule`] wants it.
#[allow(clippy::type_complexity, reason = "the very form of ColumnRule, which as an alias of a reference cannot be returned")]
pub(super) fn scaled_rule<'a>(
    rule: &'a dyn Columnwise,
    factors: &'a [f64],
    round: u64,
    seed: u64,
) -> impl Fn(&[(usize, &[f32])], u64, &mut [f32]) + Sync + 'a {
    move |rows, first, out| {
        let rows: Vec<(f64, &[f32])> = rows.iter().map(|&(task, row)| (factors[task], row)).collect();
        columns::combine(rule, &ColumnBlock { rows: &rows, count: factors.len(), first, round, seed }, out);
    }
}

/// Factor that brings a vector with this squared norm inside the limit.
fn clip_factor(limit: f64, square: f64) -> f64 {
    let norm = square.sqrt();
    if norm > limit { limit / norm } else { 1.0 }
}
