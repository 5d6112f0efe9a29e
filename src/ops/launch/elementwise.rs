//! kernels/activation.cu: elementwise passes.

use super::{Address, Launch};
use crate::ops::activation::Activation;
use crate::ops::philox::drop_threshold;

/// Element types that the passes exist for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    F32,
    Bf16,
}

impl Scalar {
    fn pick(self, [wide, narrow]: [&'static str; 2]) -> &'static str {
        if self == Self::F32 { wide } else { narrow }
    }
}

const THREADS: u32 = 256;
/// Blocks that fill the largest card; more would only queue.
const MOST: usize = 132 * 8;

fn blocks(items: usize, each: usize) -> usize {
    items.div_ceil(each * THREADS as usize).min(MOST)
}

/// pre (rows x width) += bias; out = f(pre), or `out` is null.
pub fn activation_forward(
    scalar: Scalar,
    out: Address,
    pre: Address,
    bias: Address,
    count: usize,
    width: usize,
    activation: Activation,
) -> Launch {
    Launch::line(scalar.pick(["activation_forward_f32", "activation_forward_bf16"]), blocks(count, 8), THREADS)
        .addresses([out, pre, bias])
        .long(count as u64)
        .int(width)
        .signed(activation as i32)
}

/// dout (count) *= f'(pre)
pub fn activation_backward(scalar: Scalar, dout: Address, pre: Address, count: usize, activation: Activation) -> Launch {
    Launch::line(scalar.pick(["activation_backward_f32", "activation_backward_bf16"]), blocks(count, 8), THREADS)
        .addresses([dout, pre])
        .long(count as u64)
        .signed(activation as i32)
}

/// x (rows x width) *= mask / (1 - probability), as [`crate::ops::dropout::dropout`]. keys (rows): (task, example) u32;
/// `round`: the address of one u64.
pub fn dropout(scalar: Scalar, [x, keys, round]: [Address; 3], rows: usize, width: usize, probability: f64, seed: u64) -> Launch {
    Launch::line(scalar.pick(["dropout_f32", "dropout_bf16"]), blocks(rows * width.div_ceil(4), 1), THREADS)
        .addresses([x, keys])
        .int(rows)
        .int(width)
        .word(drop_threshold(probability))
        .float((1.0 / (1.0 - probability)) as f32)
        .long(seed)
        .addresses([round])
}

/// out (count) bf16 = x f32
pub fn to_bf16(out: Address, x: Address, count: usize) -> Launch {
    Launch::line("convert_to_bf16", blocks(count, 8), THREADS).addresses([out, x]).long(count as u64)
}

/// out (count) f32 = x bf16
pub fn to_f32(out: Address, x: Address, count: usize) -> Launch {
    Launch::line("convert_to_f32", blocks(count, 8), THREADS).addresses([out, x]).long(count as u64)
}
