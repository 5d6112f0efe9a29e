//! kernels/activation.cu: elementwise passes over bf16 matrices.

use super::{Address, Launch, pitch};
use crate::ops::activation::Activation;
use crate::ops::philox::drop_threshold;

const THREADS: u32 = 256;
/// Blocks that fill the largest card; more would only queue.
const MOST: usize = 132 * 8;
/// Neighbouring values of a thread.
const VECTOR: usize = 8;

fn line(kernel: &'static str, items: usize) -> Launch {
    Launch::line(kernel, items.div_ceil(THREADS as usize).min(MOST), THREADS)
}

/// dout (rows x width) *= f'(pre)
pub fn activation_backward(dout: Address, pre: Address, rows: usize, width: usize, activation: Activation) -> Launch {
    let vectors = rows * pitch(width) / VECTOR;
    line("activation_backward_bf16", vectors).addresses([dout, pre]).long(vectors as u64).signed(activation as i32)
}

/// x (rows x width) *= mask / (1 - probability), as [`crate::ops::dropout::dropout`]. keys (rows): (task, example) u32;
/// `round`: the address of one u64.
pub fn dropout([x, keys, round]: [Address; 3], rows: usize, width: usize, probability: f64, seed: u64) -> Launch {
    line("dropout_bf16", rows * width.div_ceil(4))
        .addresses([x, keys])
        .int(rows)
        .int(width)
        .word(drop_threshold(probability))
        .float((1.0 / (1.0 - probability)) as f32)
        .long(seed)
        .addresses([round])
}

/// out (rows x columns) bf16 = x (rows x columns, dense) f32
pub fn to_bf16(out: Address, x: Address, rows: usize, columns: usize) -> Launch {
    line("convert_to_bf16", rows * pitch(columns) / VECTOR).addresses([out, x]).int(rows).int(columns)
}
