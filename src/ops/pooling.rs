//! Mean over stretches of packed rows: a sequence's first token (a stretch of one), a masked token, or all its tokens.

use rayon::prelude::*;

use crate::choices::choices;
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::Tensor;

choices! {
    /// What a head over a whole sequence sees.
    pub enum Pooling {
        /// The first token.
        Cls = "cls",
        /// The mean of all tokens.
        Mean = "mean",
        /// BERT's pooler: tanh of a linear layer over the first token.
        Pooler = "pooler",
    }
}

/// out (m x width): row i is the mean of the rows bounds[i]..bounds[i + 1] of x; `bounds` is (m + 1), no stretch is empty.
pub fn mean_pool_forward(out: &mut [f32], x: &[f32], bounds: &[u32], width: usize) {
    out.par_chunks_mut(width).zip(bounds.par_windows(2)).for_each(|(out, ends)| {
        let [start, end] = [ends[0] as usize, ends[1] as usize];
        out.copy_from_slice(&x[start * width..][..width]);
        for row in x[(start + 1) * width..end * width].chunks_exact(width) {
            out.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        let share = 1.0 / (end - start) as f32;
        out.iter_mut().for_each(|sum| *sum *= share);
    });
}

/// dx: every row of stretch i gets dout's row i over the stretch's length; rows behind the last are zero.
pub fn mean_pool_backward(dx: &mut [f32], dout: &[f32], bounds: &[u32], width: usize) {
    let mut rest = dx;
    for (ends, dout) in bounds.windows(2).zip(dout.chunks_exact(width)) {
        let count = (ends[1] - ends[0]) as usize;
        let (own, tail) = rest.split_at_mut(count * width);
        let share = 1.0 / count as f32;
        for row in own.chunks_exact_mut(width) {
            row.iter_mut().zip(dout).for_each(|(dx, d)| *dx = d * share);
        }
        rest = tail;
    }
    rest.fill(0.0);
}

/// As [`mean_pool_forward`].
pub struct MeanPoolForward<'a> {
    pub out: Tensor,
    pub x: Tensor,
    pub bounds: &'a [u32],
}

impl Op for MeanPoolForward<'_> {
    fn name(&self) -> &'static str {
        "mean_pool_forward"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.x], [self.out])
    }

    fn host(&self, memory: &HostMemory) {
        mean_pool_forward(memory.write(self.out), memory.read(self.x), self.bounds, self.x.columns);
    }

    fn tables(&self) -> Vec<Bytes> {
        vec![bytes_of(self.bounds)]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        vec![by_means("mean_pool_forward", self.out).addresses([self.out.at, self.x.at, tables[0]]).int(self.out.columns).into()]
    }
}

/// As [`mean_pool_backward`].
pub struct MeanPoolBackward<'a> {
    pub dx: Tensor,
    pub dout: Tensor,
    pub bounds: &'a [u32],
}

impl Op for MeanPoolBackward<'_> {
    fn name(&self) -> &'static str {
        "mean_pool_backward"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.dout], [self.dx])
    }

    fn host(&self, memory: &HostMemory) {
        mean_pool_backward(memory.write(self.dx), memory.read(self.dout), self.bounds, self.dout.columns);
    }

    /// Bounds, and behind them the end of all rows.
    fn tables(&self) -> Vec<Bytes> {
        vec![bytes_of(&[self.bounds, &[self.dx.rows as u32]].concat())]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let Tensor { rows, columns, .. } = self.dout;
        let launch = by_means("mean_pool_backward", Tensor { rows: rows + 1, ..self.dout });
        vec![launch.addresses([self.dx.at, self.dout.at, tables[0]]).int(rows).int(columns).into()]
    }
}

/// A block for 256 columns of a mean.
fn by_means(kernel: &'static str, means: Tensor) -> Launch {
    Launch::new(kernel, [means.rows, means.columns.div_ceil(256), 1], 256).vectors(means.columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_averaged_and_share_their_gradient() {
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut out = [0.0; 4];
        mean_pool_forward(&mut out, &x, &[0, 1, 3], 2);
        assert_eq!(out, [1.0, 2.0, 4.0, 5.0]);
        let mut dx = [9.0; 6];
        mean_pool_backward(&mut dx, &[1.0, 2.0, 4.0, 6.0], &[0, 1, 3], 2);
        assert_eq!(dx, [1.0, 2.0, 2.0, 3.0, 2.0, 3.0]);
    }
}

#[cfg(test)]
mod cases {
    use super::*;
    use crate::machine::tensor::DType;
    use crate::ops::testing::{On, Place, coarse_noise, on_devices};

    fn stretches_of_one_and_of_many(on: On) {
        let bounds = [0, 1, 2, 43, 52];
        for width in [8, 264] {
            on.compare(|place: &mut Place| {
                let (x, dout) =
                    (place.narrow(&coarse_noise(52 * width, 0), width), place.narrow(&coarse_noise(4 * width, 1), width));
                let (out, dx) = (place.room(4, width, DType::Bf16), place.room(52, width, DType::Bf16));
                place.run(&MeanPoolForward { out, x, bounds: &bounds });
                place.run(&MeanPoolBackward { dx, dout, bounds: &bounds });
                vec![place.found("means", out), place.found("dx", dx)]
            });
        }
    }

    on_devices! { stretches_of_one_and_of_many }
}
