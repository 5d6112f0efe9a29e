//! What a device needs of a batch that hangs on the batch alone, so that it can be made before the batch's round begins, and
//! laid out while the round before is computed.

use rayon::prelude::*;

use super::pass::Layout;
use super::rows::Touched;
use crate::machine::tensor::pitch;
use crate::model::network::Batch;
use crate::model::spec::ModelSpec;
use crate::model::transformer::TokenGroup;
use crate::ops::storage::{bf16, round};

/// Rows that one thread rounds at a time have so many elements.
const PIECE: usize = 1 << 15;

/// A batch as the accelerator lays it out.
#[derive(Default)]
pub struct Prepared {
    /// (rows x inputs) rows [`pitch`] apart; empty for an encoder without features.
    pub features: Vec<bf16>,
    /// By fused group, its tokens, for an encoder that has any.
    pub tokens: Vec<Option<TokenGroup>>,
    /// Rows of a table that is trained.
    pub touched: Touched,
    /// Where it lies in pinned memory, if it does.
    pub(super) layout: Option<Layout>,
}

impl Prepared {
    /// Of a batch of which a round makes `batches` independent ones.
    pub fn of(spec: &ModelSpec, batch: &Batch, batches: usize) -> Self {
        let encoder = &*spec.encoder;
        // Without n-grams or tokens a device finds them.
        let trained = encoder.table().is_some_and(|table| table.trained) && !batch.bags.is_empty();
        Self {
            features: narrow(&batch.features, encoder.inputs()),
            tokens: batch.groups.iter().map(|group| encoder.tokens(batch, &batch.parts[group.clone()], &spec.heads)).collect(),
            touched: if trained { Touched::of(spec, batch, batches) } else { Touched::default() },
            layout: None,
        }
    }
}

/// Rows of `columns` in bf16, [`pitch`] apart.
pub fn narrow(values: &[f32], columns: usize) -> Vec<bf16> {
    let columns = columns.max(1);
    let mut narrow = vec![bf16::ZERO; values.len() / columns * pitch(columns)];
    let rows = PIECE.div_ceil(columns);
    narrow.par_chunks_mut(rows * pitch(columns)).zip(values.par_chunks(rows * columns)).for_each(|(to, from)| {
        to.chunks_exact_mut(pitch(columns))
            .zip(from.chunks_exact(columns))
            .for_each(|(to, from)| round(&mut to[..columns], from));
    });
    narrow
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_rounded_and_padded() {
        let rounded = narrow(&[1.0, -2.0, 0.3, 3.0, 4.0, 5.0], 3);
        let zeros = [bf16::ZERO; 5];
        assert_eq!([&rounded[..3], &rounded[8..11]], [[1.0, -2.0, 0.3], [3.0, 4.0, 5.0]].map(|row| row.map(bf16::from_f32)));
        assert_eq!([&rounded[3..8], &rounded[11..]], [&zeros; 2]);
    }
}
