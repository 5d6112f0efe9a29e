//! When and on what a run is evaluated.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::COUNT;
use crate::choices::choices;
use crate::config::keys::Kind;
use crate::config::table::{FieldType, table};

table! {
    /// Evaluation on the dev split.
    pub struct Eval = EVAL {
        /// When the dev split is evaluated.
        every: Every = "epoch";
        /// Examples in one evaluation batch.
        batch: usize = 256 in 1..=1 << 20;
        /// 0: training waits until an evaluation is done. Otherwise a copy of the parameters is evaluated, so many batches
        /// after each round: its outcome (best, targets, patience) counts once the last one is done, always after the same
        /// round. What is left when the next evaluation is due, or when training ends, is done at once.
        batches_per_round: u64 = 0 in 0..=COUNT;
        /// Also evaluate the test split when training ends.
        test: bool = false;
        slices: BTreeMap<String, Slice> = {};
    }
}

table! {
    /// Parts of a split that are also reported on their own.
    pub struct Slice = SLICE {
        /// Column that decides whether a row belongs to the slice.
        column: String = required in Kind::Column;
        /// The value it must have.
        equals: String = required;
    }
}

table! {
    /// Which evaluation counts as the best one.
    pub struct Best = BEST {
        /// `mean(primary)`, `min(primary)` (the worst task), `mean(loss)`, `max(loss)`, `mean(METRIC)`, `min(METRIC)` (of mse,
        /// rmse and mae: `max`), `TASK.METRIC` or `TASK.loss`. Losses, mse, rmse and mae are best when small;
        /// [evaluation.md](evaluation.md) says how they go together with the others, and what becomes of a value that is
        /// undefined.
        metric: String = "mean(primary)";
        /// Evaluations without a better value before the run stops; 0 never stops early.
        patience: u32 = 0 in 0..=u32::MAX as i64;
        /// Keep the best parameters in `best/`; needs a dev split.
        keep: bool = true;
    }
}

/// `"epoch"`, `"end"`, or a number of rounds.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Every {
    Rounds(u64),
    Named(EveryNamed),
}

impl FieldType for Every {
    fn kind() -> Kind {
        Kind::Every
    }
}

choices! {
    pub enum EveryNamed { Epoch = "epoch", End = "end" }
}
