//! Linear layer y = x W^T + b on packed rows: one product for all rows forward and for the input gradient, one product per
//! segment for the weight gradient, straight into the segment's row of J.

use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

use super::activation::{Activation, activation_backward, bias_activation_forward};
use super::gemm::{View, Write, matmul, matmul_rows, matmul_single};
use super::jacobian_rows::{JacobianRows, Segment, Slot};
use crate::machine::driver::{Address, Card, MOST_BLOCKS};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::{DType, Tensor};

/// out (n x outputs) = x (n x inputs) W^T, W (outputs x inputs); the bias is added by the activation that follows.
pub fn linear_forward(out: &mut [f32], x: &[f32], weight: &[f32], inputs: usize, outputs: usize) {
    let rows = out.len() / outputs;
    matmul_rows(out, View::new(x, rows, inputs), View::new(weight, outputs, inputs).transposed());
}

/// dx (n x inputs) = dout (n x outputs) W.
pub fn linear_input_backward(dx: &mut [f32], dout: &[f32], weight: &[f32], inputs: usize, outputs: usize) {
    let rows = dx.len() / inputs;
    matmul_rows(dx, View::new(dout, rows, outputs), View::new(weight, outputs, inputs));
}

/// Where the gradient of one segment's rows goes.
pub struct WeightGradient<'a> {
    /// Packed rows of the segment.
    pub rows: Range<usize>,
    /// (outputs x inputs)
    pub weight: &'a mut [f32],
    /// (outputs)
    pub bias: &'a mut [f32],
    pub write: Write,
}

/// For each segment s: dW_s (+)= dout_s^T x_s, db_s (+)= column sums of dout_s. Each segment's product is its own, so what
/// it is packed with cannot change it.
pub fn linear_weight_backward(segments: &mut [WeightGradient], dout: &[f32], x: &[f32], inputs: usize, outputs: usize) {
    let parallel_inside = segments.len() < rayon::current_num_threads();
    let run = |segment: &mut WeightGradient| {
        let count = segment.rows.len();
        let dout = &dout[segment.rows.start * outputs..segment.rows.end * outputs];
        let x = &x[segment.rows.start * inputs..segment.rows.end * inputs];
        let product = if parallel_inside { matmul } else { matmul_single };
        product(segment.weight, View::new(dout, count, outputs).transposed(), View::new(x, count, inputs), segment.write);
        if segment.write == Write::Replace {
            segment.bias.fill(0.0);
        }
        add_rows(segment.bias, dout);
    };
    if parallel_inside {
        segments.iter_mut().for_each(run);
    } else {
        segments.par_iter_mut().with_max_len(1).for_each(run);
    }
}

/// sums (outputs) += every row of dout.
#[multiversion(targets("x86_64+avx2+fma"))]
fn add_rows(sums: &mut [f32], dout: &[f32]) {
    for row in dout.chunks_exact(sums.len()) {
        for (sum, d) in sums.iter_mut().zip(row) {
            *sum += d;
        }
    }
}

/// out = f(x W^T + bias) + residual in its first columns: an identity shortcut is zero-padded where the layer is wider than its
/// input (option A of He et al., CVPR 2016).
pub struct LinearForward {
    /// (n x outputs)
    pub out: Tensor,
    /// (n x outputs) the activation's argument; none without an activation.
    pub pre: Tensor,
    /// (n x inputs)
    pub x: Tensor,
    /// (outputs x inputs)
    pub weight: Tensor,
    /// (outputs) f32, or none.
    pub bias: Tensor,
    pub activation: Activation,
    /// (n x at most outputs), or none.
    pub residual: Tensor,
}

impl Op for LinearForward {
    fn name(&self) -> &'static str {
        "linear_forward"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.x, self.weight, self.bias, self.residual], [self.out, self.pre])
    }

    fn host(&self, memory: &HostMemory) {
        let (inputs, outputs) = (self.x.columns, self.out.columns);
        let (x, weight, bias) = (memory.read(self.x), memory.read(self.weight), memory.read(self.bias));
        let out = memory.write(self.out);
        if self.pre.is_none() {
            linear_forward(out, x, weight, inputs, outputs);
            if !self.bias.is_none() {
                bias_activation_forward(&mut [], out, bias, Activation::None);
            }
        } else {
            let pre = memory.write(self.pre);
            linear_forward(pre, x, weight, inputs, outputs);
            bias_activation_forward(out, pre, bias, self.activation);
        }
        add_columns(out, outputs, memory.read(self.residual), self.residual.columns);
    }

    fn device(&self, _: &Card, _: &[Address]) -> Vec<Command> {
        let (m, n, k) = (self.out.rows, self.out.columns, self.x.columns);
        let launch = product(["gemm_forward", "gemm_forward_small"], m, n, 1)
            .addresses([self.out.at, self.pre.at, self.x.at, self.weight.at, self.bias.at, self.residual.at])
            .int(self.residual.columns)
            .int(m)
            .int(n)
            .int(k)
            .signed(self.activation as i32);
        vec![launch.into()]
    }
}

/// out (n x width) += x (n x columns) in its first columns, or the first columns of x where those are more.
fn add_columns(out: &mut [f32], width: usize, x: &[f32], columns: usize) {
    for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(columns.max(1))) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out += x);
    }
}

/// out = (dout W + the first columns of a residual) f'(pre).
pub struct LinearInputBackward {
    /// (n x inputs); on a device f32 or bf16.
    pub out: Tensor,
    /// (n x outputs)
    pub dout: Tensor,
    /// (outputs x inputs)
    pub weight: Tensor,
    /// (n x at least inputs), or none.
    pub residual: Tensor,
    /// (n x inputs), or none.
    pub pre: Tensor,
    pub activation: Activation,
}

impl LinearInputBackward {
    /// out = dout W
    pub fn new(out: Tensor, dout: Tensor, weight: Tensor) -> Self {
        Self { out, dout, weight, residual: Tensor::NONE, pre: Tensor::NONE, activation: Activation::None }
    }
}

impl Op for LinearInputBackward {
    fn name(&self) -> &'static str {
        "linear_input_backward"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.dout, self.weight, self.residual, self.pre], [self.out])
    }

    fn host(&self, memory: &HostMemory) {
        let (inputs, outputs) = (self.out.columns, self.dout.columns);
        let out = memory.write(self.out);
        linear_input_backward(out, memory.read(self.dout), memory.read(self.weight), inputs, outputs);
        add_columns(out, inputs, memory.read(self.residual), self.residual.columns);
        if !self.pre.is_none() {
            activation_backward(out, memory.read(self.pre), inputs, self.activation);
        }
    }

    fn device(&self, _: &Card, _: &[Address]) -> Vec<Command> {
        let (m, n, k) = (self.out.rows, self.out.columns, self.dout.columns);
        let [narrow, wide] = if self.out.dtype == DType::Bf16 { [self.out.at, 0] } else { [0, self.out.at] };
        let launch = product(["gemm_input", "gemm_input_small"], m, n, 1)
            .addresses([narrow, wide, self.dout.at, self.weight.at, self.pre.at, self.residual.at])
            .int(self.residual.columns)
            .int(m)
            .int(n)
            .int(k)
            .signed(self.activation as i32);
        vec![launch.into()]
    }
}

/// Weight and bias gradients of every segment, into its row of J.
pub struct LinearWeightBackward {
    /// (n x outputs)
    pub dout: Tensor,
    /// (n x inputs)
    pub x: Tensor,
    pub jacobian: JacobianRows,
    /// Columns of J: the weight's, then the bias's.
    pub columns: Range<usize>,
}

impl Op for LinearWeightBackward {
    fn name(&self) -> &'static str {
        "linear_weight_backward"
    }

    fn operands(&self) -> Operands {
        let mut operands = Operands::new([self.dout, self.x], []);
        operands.writes = self.jacobian.tensors(&self.columns);
        operands
    }

    fn host(&self, memory: &HostMemory) {
        let (inputs, outputs) = (self.x.columns, self.dout.columns);
        let (dout, x) = (memory.read(self.dout), memory.read(self.x));
        self.jacobian.each(memory, self.columns.clone(), |slots| {
            let mut segments = Vec::with_capacity(slots.len());
            for Slot { rows, values, write } in slots {
                let (weight, bias) = values.split_at_mut(inputs * outputs);
                segments.push(WeightGradient { rows, weight, bias, write });
            }
            linear_weight_backward(&mut segments, dout, x, inputs, outputs);
        });
    }

    /// By segment: first packed row, the one behind the last, whether its gradient is added, and where in J its weights and its
    /// biases begin.
    fn tables(&self) -> Vec<Bytes> {
        let (segments, base) = (self.jacobian.merged(), self.jacobian.base());
        let rows = |of: fn(&Segment) -> usize| bytes_of(&segments.iter().map(|own| of(own) as u32).collect::<Vec<u32>>());
        let offsets = |first: usize| {
            let offset = |own: &Segment| (own.row.at - base) / own.row.dtype.bytes() as u64 + first as u64;
            bytes_of(&segments.iter().map(offset).collect::<Vec<u64>>())
        };
        let biases = self.columns.start + self.x.columns * self.dout.columns;
        vec![
            rows(|own| own.rows.start),
            rows(|own| own.rows.end),
            rows(|own| usize::from(own.write == Write::Add)),
            offsets(self.columns.start),
            offsets(biases),
        ]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let &[starts, ends, add, weights, biases] = tables else { unreachable!("five tables") };
        let (inputs, outputs, base) = (self.x.columns, self.dout.columns, self.jacobian.base());
        let count = self.jacobian.merged().len();
        let weight = product(["gemm_weight", "gemm_weight_small"], outputs, inputs, count)
            .addresses([base, self.dout.at, self.x.at, starts, ends, weights, add])
            .int(outputs)
            .int(inputs);
        let bias = Launch::new("bias_gradients_bf16", [outputs.div_ceil(32), count, 1], 1024)
            .addresses([base, self.dout.at, starts, ends, biases, add])
            .int(outputs);
        vec![weight.into(), bias.into()]
    }
}

/// A block's tile of a product, and its threads.
struct Tile {
    rows: usize,
    columns: usize,
    threads: u32,
}

const LARGE: Tile = Tile { rows: 128, columns: 256, threads: 256 };
const SMALL: Tile = Tile { rows: 64, columns: 64, threads: 128 };

/// Large tiles from this many blocks on: half of the multiprocessors of the largest card in use.
const ENOUGH: usize = 64;

/// Most rows of a product on a device: small tiles, which are lower, are for few blocks only.
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

/// A product (m x n) for each segment, by the kernel for large tiles or the one for small tiles.
fn product([large, small]: [&'static str; 2], m: usize, n: usize, segments: usize) -> Launch {
    let fills = LARGE.grid(m, n).iter().product::<usize>() * segments >= ENOUGH;
    let (name, tile) = if fills { (large, LARGE) } else { (small, SMALL) };
    let [x, y, _] = tile.grid(m, n);
    Launch::new(name, [x, y, segments], tile.threads).shared(tile.shared())
}

/// Gradients of a layer whose weight is a table of words and whose bias is its own: weight (or none) and bias, for all rows.
pub struct DecoderBackward {
    /// (words x inputs), or none.
    pub weight: Tensor,
    /// (words)
    pub bias: Tensor,
    /// (n x words)
    pub dout: Tensor,
    /// (n x inputs)
    pub x: Tensor,
    pub write: Write,
}

impl Op for DecoderBackward {
    fn name(&self) -> &'static str {
        "decoder_backward"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.dout, self.x], [self.weight, self.bias])
    }

    fn host(&self, memory: &HostMemory) {
        let (weight, bias) = (memory.write(self.weight), memory.write(self.bias));
        // Without a weight there is a product of no columns.
        let (x, inputs) = if weight.is_empty() { (&[][..], 0) } else { (memory.read(self.x), self.x.columns) };
        let segment = WeightGradient { rows: 0..self.dout.rows, weight, bias, write: self.write };
        linear_weight_backward(&mut [segment], memory.read(self.dout), x, inputs, self.dout.columns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three rows, two segments:   x = | 1 2 |  dout = | 1 |   segment 0: rows 0, 1;  segment 1: row 2
    ///                                 | 3 4 |         | 2 |
    ///                                 | 5 6 |         | 3 |
    #[test]
    fn weight_gradients_stay_in_their_segment() {
        let (x, dout) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 3.0]);
        let (mut w0, mut b0, mut w1, mut b1) = ([0.0; 2], [0.0; 1], [1.0; 2], [1.0; 1]);
        let mut segments = [
            WeightGradient { rows: 0..2, weight: &mut w0, bias: &mut b0, write: Write::Replace },
            WeightGradient { rows: 2..3, weight: &mut w1, bias: &mut b1, write: Write::Add },
        ];
        linear_weight_backward(&mut segments, &dout, &x, 2, 1);
        assert_eq!((w0, b0), ([7.0, 10.0], [3.0]));
        assert_eq!((w1, b1), ([16.0, 19.0], [4.0]));
    }

    #[test]
    fn input_gradient_is_dout_times_w() {
        let mut dx = [0.0; 16];
        linear_input_backward(&mut dx, &[1.0, 2.0], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 8, 1);
        assert_eq!(dx[..8], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(dx[15], 16.0);
    }
    #[test]
    fn the_tallest_product_has_a_grid_that_a_card_takes() {
        assert_eq!(product(["large", "small"], MOST_ROWS, 16, 1).grid, [1, MOST_BLOCKS[1], 1]);
    }

    #[test]
    fn few_blocks_take_small_tiles() {
        assert_eq!(product(["large", "small"], 8192, 768, 1).kernel, "large");
        let small = product(["large", "small"], 65, 130, 2);
        assert_eq!((small.kernel, small.grid, small.shared), ("small", [3, 2, 2], 32_768));
    }
}

#[cfg(test)]
mod cases {
    use super::*;
    use crate::ops::testing::{Found, On, Place, coarse_noise, noise, on_devices};

    /// The same launch with large tiles, whatever the size; biases have no tiles.
    fn large(mut launch: Launch, [m, n]: [usize; 2]) -> Launch {
        let Some(name) = ["gemm_forward", "gemm_input", "gemm_weight"].into_iter().find(|name| launch.kernel.starts_with(name))
        else {
            return launch;
        };
        let [x, y, _] = LARGE.grid(m, n);
        launch.kernel = name;
        launch.grid = [x as u32, y as u32, launch.grid[2]];
        launch.threads = LARGE.threads;
        launch.shared(LARGE.shared())
    }

    /// Against the host, with large tiles where the output is (m x n).
    fn compare(on: On, tiles: Option<[usize; 2]>, case: impl Fn(&mut Place) -> Vec<Found>) {
        match tiles {
            None => on.compare(case),
            Some(size) => on.compare_changed(&move |launch| large(launch, size), case),
        }
    }

    struct Case {
        m: usize,
        n: usize,
        k: usize,
        activation: Activation,
        /// Columns of the residual, 0 for none.
        residual: usize,
        large: bool,
    }

    impl Case {
        fn tiles(&self) -> Option<[usize; 2]> {
            self.large.then_some([self.m, self.n])
        }

        fn residual(&self, place: &mut Place, id: u32) -> Tensor {
            let values = coarse_noise(self.m * self.residual, id);
            if values.is_empty() { Tensor::NONE } else { place.narrow(&values, self.residual) }
        }
    }

    fn forward(on: On, case: &Case) {
        let &Case { m, n, k, activation, .. } = case;
        compare(on, case.tiles(), |place| {
            let op = LinearForward {
                out: place.room(m, n, DType::Bf16),
                pre: if activation == Activation::None { Tensor::NONE } else { place.room(m, n, DType::Bf16) },
                x: place.narrow(&coarse_noise(m * k, 0), k),
                weight: place.narrow(&coarse_noise(n * k, 1), k),
                bias: place.f32(&noise(n, 2), n),
                activation,
                residual: case.residual(place, 3),
            };
            place.run(&op);
            let written = [("out", op.out), ("pre", op.pre)].into_iter().filter(|(_, tensor)| !tensor.is_none());
            written.map(|(what, tensor)| place.found(what, tensor)).collect()
        });
    }

    fn forward_small_ragged(on: On) {
        forward(on, &Case { m: 65, n: 70, k: 40, activation: Activation::Gelu, residual: 30, large: false });
    }

    fn forward_small_padded(on: On) {
        // The residual is wider than the output.
        forward(on, &Case { m: 3, n: 7, k: 13, activation: Activation::Tanh, residual: 13, large: false });
    }

    fn forward_small_many_steps(on: On) {
        forward(on, &Case { m: 16, n: 24, k: 200, activation: Activation::None, residual: 24, large: false });
    }

    fn forward_large_ragged(on: On) {
        forward(on, &Case { m: 130, n: 40, k: 72, activation: Activation::Relu, residual: 0, large: true });
    }

    fn input(on: On, case: &Case) {
        let &Case { m, n, k, activation, .. } = case;
        compare(on, case.tiles(), |place| {
            let (dout, weight) = (place.narrow(&coarse_noise(m * k, 4), k), place.narrow(&coarse_noise(k * n, 5), n));
            let (pre, residual) = (place.narrow(&coarse_noise(m * n, 6), n), case.residual(place, 7));
            let pre = if activation == Activation::None { Tensor::NONE } else { pre };
            let outs = [("dx", place.room(m, n, DType::Bf16)), ("dx in f32", place.padded_room(m, n))];
            for (_, out) in outs {
                place.run(&LinearInputBackward { out, dout, weight, residual, pre, activation });
            }
            outs.map(|(what, out)| place.found(what, out)).into()
        });
    }

    fn input_small_ragged(on: On) {
        input(on, &Case { m: 66, n: 72, k: 48, activation: Activation::Gelu, residual: 20, large: false });
    }

    fn input_small_padded(on: On) {
        input(on, &Case { m: 5, n: 9, k: 33, activation: Activation::None, residual: 0, large: false });
    }

    fn input_large_ragged(on: On) {
        input(on, &Case { m: 20, n: 264, k: 40, activation: Activation::Gelu, residual: 0, large: true });
    }

    /// Three segments, one empty and one that adds; their rows of J begin at odd places.
    fn weight(on: On, outputs: usize, inputs: usize, large: bool) {
        let (rows, width) = (90, outputs * (inputs + 1));
        let stride = width + 1;
        let (dout, x, before) = (coarse_noise(rows * outputs, 8), coarse_noise(rows * inputs, 9), noise(3 * stride, 10));
        compare(on, large.then_some([outputs, inputs]), |place| {
            let all = place.f32(&before, stride);
            let segment = |(row, (rows, write)): (usize, (Range<usize>, Write))| {
                let row = Tensor { columns: width, ..all.rows(row..row + 1) };
                Segment { rows, row, write }
            };
            let segments = [(0..37, Write::Replace), (37..37, Write::Replace), (37..90, Write::Add)];
            let segments = segments.into_iter().enumerate().map(segment).collect();
            let jacobian = JacobianRows { segments, added: false, staging: Tensor::NONE };
            let (dout, x) = (place.narrow(&dout, outputs), place.narrow(&x, inputs));
            place.run(&LinearWeightBackward { dout, x, jacobian, columns: 0..width });
            vec![place.found("weight gradients", all)]
        });
    }

    fn weight_small(on: On) {
        weight(on, 72, 40, false);
    }

    fn weight_small_padded(on: On) {
        weight(on, 5, 67, false);
    }

    fn weight_large(on: On) {
        weight(on, 136, 16, true);
    }

    /// All segments add to one row.
    fn weight_of_one_row(on: On) {
        let (rows, outputs, inputs) = (30, 6, 10);
        let width = outputs * (inputs + 1);
        on.compare(|place: &mut Place| {
            let row = place.f32(&noise(width, 11), width);
            let segments = [(0..12, Write::Replace), (12..30, Write::Add)];
            let segments = segments.into_iter().map(|(rows, write)| Segment { rows, row, write }).collect();
            let jacobian = JacobianRows { segments, added: true, staging: Tensor::NONE };
            let (dout, x) = (coarse_noise(rows * outputs, 8), coarse_noise(rows * inputs, 9));
            let (dout, x) = (place.narrow(&dout, outputs), place.narrow(&x, inputs));
            place.run(&LinearWeightBackward { dout, x, jacobian, columns: 0..width });
            vec![place.found("weight gradients", row)]
        });
    }

    on_devices! {
        forward_small_ragged,
        forward_small_padded,
        forward_small_many_steps,
        forward_large_ragged,
        input_small_ragged,
        input_small_padded,
        input_large_ragged,
        weight_small,
        weight_small_padded,
        weight_large,
        weight_of_one_row,
    }
}
