//! Linear layer y = x W^T + b on packed rows: one product for all rows forward and for the input gradient, one product per
//! segment for the weight gradient, straight into the segment's row of J.

#[cfg(test)]
mod cases;
mod decoder;
mod host;
mod products;

use std::ops::Range;

use super::activation::{Activation, activation_backward, bias_activation_forward};
use super::gather::add;
use super::gemm::Write;
use super::jacobian_rows::{JacobianRows, PartialSums, Segment, Slot, most_partials};
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch, Work};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::{DType, Tensor};
pub use decoder::DecoderBackward;
use host::{WeightGradient, linear_forward, linear_input_backward, linear_weight_backward};
pub use products::MOST_ROWS;
use products::{HopperTile, aligned, portable};

/// out = f(x W^T + bias) + residual in its first columns: an identity shortcut is zero-padded where the layer is wider than its
/// input (option A of He et al., CVPR 2016).
#[derive(Clone, Copy)]
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

    fn work(&self) -> Work {
        Work { bytes: self.operands().bytes(), operations: operations(self.out, self.x.columns) }
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

    fn device(&self, card: &Card, _: &[Address]) -> Vec<Command> {
        let operands = [self.out, self.pre, self.x, self.weight, self.residual];
        let wide = self.out.dtype == DType::F32 && self.activation != Activation::None;
        let launch = match HopperTile::of(card, [self.out.rows, self.out.columns], 1) {
            Some(tile) if !wide && aligned(operands) && same_pitch(self.out, self.pre) => self.on_hopper(tile),
            _ => self.portable(),
        };
        vec![launch.into()]
    }
}

impl LinearForward {
    fn portable(&self) -> Launch {
        let (m, n, k) = (self.out.rows, self.out.columns, self.x.columns);
        let [narrow, wide] = by_dtype(self.out);
        portable(["gemm_forward", "gemm_forward_small"], m, n, 1)
            .addresses([narrow, wide, self.pre.at, self.x.at, self.weight.at, self.bias.at, self.residual.at])
            .int(self.residual.columns)
            .int(m)
            .int(n)
            .int(k)
            .signed(self.activation as i32)
    }

    fn on_hopper(&self, tile: HopperTile) -> Launch {
        let Self { out, pre, x, weight, bias, activation, residual } = *self;
        let [narrow, wide] = by_dtype(out);
        tile.launch(HopperTile::forward)
            .maps([(x, 128), (weight, tile.columns())])
            .addresses([narrow, wide, pre.at, bias.at, residual.at])
            .int(residual.columns.min(out.columns))
            .int(residual.ld)
            .int(out.rows)
            .int(out.columns)
            .int(out.ld)
            .int(x.columns)
            .signed(activation as i32)
    }
}

/// Of a product (rows x columns) of so many terms each.
fn operations(out: Tensor, terms: usize) -> u64 {
    2 * (out.rows * out.columns * terms) as u64
}

/// The kernels that keep or read an activation's argument take it to lie as the output does.
fn same_pitch(out: Tensor, pre: Tensor) -> bool {
    pre.is_none() || pre.ld == out.ld
}

/// Where a kernel stores in bf16, and where in f32.
fn by_dtype(out: Tensor) -> [Address; 2] {
    if out.dtype == DType::Bf16 { [out.at, 0] } else { [0, out.at] }
}

/// out (n x width) += x (n x columns) in its first columns, or the first columns of x where those are more.
fn add_columns(out: &mut [f32], width: usize, x: &[f32], columns: usize) {
    if columns == width {
        return add(out, x);
    }
    for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(columns.max(1))) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out += x);
    }
}

/// out = (dout W + the first columns of a residual) f'(pre).
#[derive(Clone, Copy)]
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

    fn work(&self) -> Work {
        Work { bytes: self.operands().bytes(), operations: operations(self.out, self.dout.columns) }
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

    fn device(&self, card: &Card, _: &[Address]) -> Vec<Command> {
        let operands = [self.out, self.dout, self.weight, self.residual, self.pre];
        let wide = self.out.dtype == DType::F32 && !self.pre.is_none();
        let launch = match HopperTile::of(card, [self.out.rows, self.out.columns], 1) {
            Some(tile) if !wide && aligned(operands) && same_pitch(self.out, self.pre) => self.on_hopper(tile),
            _ => self.portable(),
        };
        vec![launch.into()]
    }
}

impl LinearInputBackward {
    fn portable(&self) -> Launch {
        let (m, n, k) = (self.out.rows, self.out.columns, self.dout.columns);
        let [narrow, wide] = by_dtype(self.out);
        portable(["gemm_input", "gemm_input_small"], m, n, 1)
            .addresses([narrow, wide, self.dout.at, self.weight.at, self.pre.at, self.residual.at])
            .int(self.residual.columns)
            .int(m)
            .int(n)
            .int(k)
            .signed(self.activation as i32)
    }

    fn on_hopper(&self, tile: HopperTile) -> Launch {
        let Self { out, dout, weight, residual, pre, activation } = *self;
        let [narrow, wide] = by_dtype(out);
        tile.launch(HopperTile::input)
            .maps([(dout, 128), (weight, tile.inner())])
            .addresses([narrow, wide, pre.at, residual.at])
            .int(residual.columns.min(out.columns))
            .int(residual.ld)
            .int(out.rows)
            .int(out.columns)
            .int(out.ld)
            .int(dout.columns)
            .signed(activation as i32)
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
    /// f32 that a device's kernels pass on, [`bias_partials`] of them; none on the host, and for few rows.
    pub partials: Tensor,
}

/// Room for partial sums of biases.
pub fn bias_partials(rows: usize, segments: usize, outputs: usize) -> usize {
    most_partials(rows, segments) * outputs
}

impl Op for LinearWeightBackward {
    fn name(&self) -> &'static str {
        "linear_weight_backward"
    }

    fn operands(&self) -> Operands {
        let mut operands = Operands::new([self.dout, self.x], [self.partials]);
        operands.writes.extend(self.jacobian.tensors(&self.columns));
        operands
    }

    fn work(&self) -> Work {
        Work { bytes: self.operands().bytes(), operations: operations(self.x, self.dout.columns) }
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
    /// biases begin; with partial sums their chunks, bounds, places and whether they are added.
    fn tables(&self) -> Vec<Bytes> {
        let segments = self.jacobian.merged();
        let rows = |of: fn(&Segment) -> usize| bytes_of(&segments.iter().map(|own| of(own) as u32).collect::<Vec<u32>>());
        let offsets = |first: usize| {
            let offset = |own: &Segment| self.jacobian.offset(own, first);
            bytes_of(&segments.iter().map(offset).collect::<Vec<u64>>())
        };
        let mut tables = vec![
            rows(|own| own.rows.start),
            rows(|own| own.rows.end),
            rows(|own| usize::from(own.write == Write::Add)),
            offsets(self.columns.start),
            offsets(self.biases()),
        ];
        if !self.partials.is_none() {
            let (chunks, sums) = self.partial_sums();
            tables.push(bytes_of(&chunks));
            tables.extend(sums.tables());
        }
        tables
    }

    fn device(&self, card: &Card, tables: &[Address]) -> Vec<Command> {
        let (inputs, outputs, count) = (self.x.columns, self.dout.columns, self.jacobian.merged().len());
        match HopperTile::of(card, [outputs, inputs], count) {
            // No copy engine takes a matrix of no rows.
            Some(tile) if self.dout.rows > 0 && aligned([self.dout, self.x]) => vec![self.on_hopper(tile, tables).into()],
            _ => std::iter::once(self.portable(tables)).chain(self.bias_launches(tables)).map(Command::from).collect(),
        }
    }
}

impl LinearWeightBackward {
    /// The column of J where the biases begin.
    fn biases(&self) -> usize {
        self.columns.start + self.x.columns * self.dout.columns
    }

    fn partial_sums(&self) -> (Vec<[u32; 2]>, PartialSums) {
        self.jacobian.partial_sums(self.dout.rows, self.biases())
    }

    fn bias_launches(&self, tables: &[Address]) -> Vec<Launch> {
        let outputs = self.dout.columns;
        let &[starts, ends, add, _, biases, ref partial @ ..] = tables else { unreachable!("five tables, or nine") };
        let &[chunks, bounds, offsets, added] = partial else {
            let grid = [outputs.div_ceil(32), self.jacobian.merged().len(), 1];
            let launch = Launch::new("bias_gradients", grid, 1024)
                .addresses([self.jacobian.base(), self.dout.at, starts, ends, biases, add])
                .int(outputs)
                .int(self.jacobian.narrow());
            return vec![launch];
        };
        let (rows, sums) = self.partial_sums();
        let partials = Launch::new("bias_partials", [rows.len(), outputs.div_ceil(256), 1], 256)
            .vectors(outputs)
            .addresses([self.partials.at, self.dout.at, chunks])
            .int(outputs);
        vec![partials, sums.launch(&self.jacobian, self.partials, [bounds, offsets, added], outputs)]
    }
}

impl LinearWeightBackward {
    fn portable(&self, tables: &[Address]) -> Launch {
        let &[starts, ends, add, weights, ..] = tables else { unreachable!("five tables at least") };
        let (inputs, outputs) = (self.x.columns, self.dout.columns);
        portable(["gemm_weight", "gemm_weight_small"], outputs, inputs, self.jacobian.merged().len())
            .addresses([self.jacobian.base(), self.dout.at, self.x.at, starts, ends, weights, add])
            .int(outputs)
            .int(inputs)
            .int(self.jacobian.narrow())
    }

    /// Biases as well.
    fn on_hopper(&self, tile: HopperTile, tables: &[Address]) -> Launch {
        let &[starts, ends, add, weights, biases, ..] = tables else { unreachable!("five tables at least") };
        tile.launch(HopperTile::weight)
            .maps([(self.dout, 64), (self.x, tile.inner())])
            .addresses([self.jacobian.base(), starts, ends, weights, biases, add])
            .int(self.jacobian.merged().len())
            .int(self.dout.columns)
            .int(self.x.columns)
            .int(self.jacobian.narrow())
    }
}
