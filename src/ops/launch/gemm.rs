//! kernels/gemm.cu: the three products of a linear layer. Rows of every bf16 matrix, and of `out_wide`, begin every
//! [`super::pitch`] elements.

use super::{Address, Launch};
use crate::device::driver::MOST_BLOCKS;
use crate::ops::activation::Activation;

/// A block's tile of the output, its threads, and the shared memory of its stages.
struct Tile {
    rows: usize,
    columns: usize,
    threads: u32,
}

const LARGE: Tile = Tile { rows: 128, columns: 256, threads: 256 };
const SMALL: Tile = Tile { rows: 64, columns: 64, threads: 128 };

/// Large tiles from this many blocks on: half of the multiprocessors of the largest card in use.
const ENOUGH: usize = 64;

/// Most rows of a product: small tiles, which are lower, are for few blocks only.
pub const MOST_ROWS: usize = LARGE.rows * MOST_BLOCKS[1] as usize;

impl Tile {
    fn grid(&self, m: usize, n: usize) -> [usize; 3] {
        [n.div_ceil(self.columns), m.div_ceil(self.rows), 1]
    }

    /// Four stages of 32 inner positions of two bf16 operands.
    fn shared(&self) -> usize {
        4 * 32 * 2 * (self.rows + self.columns)
    }
}

fn launch([large, small]: [&'static str; 2], m: usize, n: usize, segments: usize) -> Launch {
    let fills = LARGE.grid(m, n).iter().product::<usize>() * segments >= ENOUGH;
    let (name, tile) = if fills { (large, LARGE) } else { (small, SMALL) };
    let [x, y, _] = tile.grid(m, n);
    Launch::new(name, [x, y, segments], tile.threads).shared(tile.shared())
}

/// out (m x n) = f(x (m x k) W^T + bias) + residual, W (n x k); bf16, bias f32.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    pub out: Address,
    /// (m x n) bf16, the activation's argument; or null.
    pub pre: Address,
    pub x: Address,
    pub weight: Address,
    /// (n) f32 or null.
    pub bias: Address,
    /// (m x residual_columns) bf16, added to the first columns; or null.
    pub residual: Address,
    pub residual_columns: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub activation: Activation,
}

pub fn forward(a: Forward) -> Launch {
    launch(["gemm_forward", "gemm_forward_small"], a.m, a.n, 1)
        .addresses([a.out, a.pre, a.x, a.weight, a.bias, a.residual])
        .int(a.residual_columns)
        .int(a.m)
        .int(a.n)
        .int(a.k)
        .signed(a.activation as i32)
}

/// out and/or out_wide (m x n) = (dout (m x k) W + residual) f'(pre), W (k x n).
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// bf16 or null.
    pub out: Address,
    /// f32 or null.
    pub out_wide: Address,
    pub dout: Address,
    pub weight: Address,
    /// (m x n) bf16 or null.
    pub pre: Address,
    /// (m x residual_columns) bf16 or null.
    pub residual: Address,
    pub residual_columns: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub activation: Activation,
}

pub fn input(a: Input) -> Launch {
    launch(["gemm_input", "gemm_input_small"], a.m, a.n, 1)
        .addresses([a.out, a.out_wide, a.dout, a.weight, a.pre, a.residual])
        .int(a.residual_columns)
        .int(a.m)
        .int(a.n)
        .int(a.k)
        .signed(a.activation as i32)
}

/// Device arrays of one entry a segment: packed rows starts[s]..ends[s], where its gradient begins, and whether it is added.
#[derive(Clone, Copy, Debug)]
pub struct Segments {
    pub starts: Address,
    pub ends: Address,
    pub offsets: Address,
    pub add: Address,
    pub count: usize,
}

/// gradients[offsets[s]..] (outputs x inputs) f32 = or += dout_s^T x_s for every segment.
pub fn weight(gradients: Address, dout: Address, x: Address, segments: Segments, outputs: usize, inputs: usize) -> Launch {
    let Segments { starts, ends, offsets, add, count } = segments;
    launch(["gemm_weight", "gemm_weight_small"], outputs, inputs, count)
        .addresses([gradients, dout, x, starts, ends, offsets, add])
        .int(outputs)
        .int(inputs)
}

/// gradients[offsets[s]..] (width) f32 = or += column sums of dout_s (bf16), for every segment.
pub fn bias(gradients: Address, dout: Address, segments: Segments, width: usize) -> Launch {
    let Segments { starts, ends, offsets, add, count } = segments;
    Launch::new("bias_gradients_bf16", [width.div_ceil(32), count, 1], 1024)
        .addresses([gradients, dout, starts, ends, offsets, add])
        .int(width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tallest_product_has_a_grid_that_a_card_takes() {
        assert_eq!(launch(["large", "small"], MOST_ROWS, 16, 1).grid, [1, MOST_BLOCKS[1], 1]);
    }

    #[test]
    fn few_blocks_take_small_tiles() {
        assert_eq!(launch(["large", "small"], 8192, 768, 1).kernel, "large");
        let small = launch(["large", "small"], 65, 130, 2);
        assert_eq!((small.kernel, small.grid, small.shared), ("small", [3, 2, 2], 32_768));
    }
}
