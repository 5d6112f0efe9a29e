//! Layer normalization over the columns of packed rows (Ba, Kiros & Hinton 2016), with what BERT adds before it: bias,
//! dropout and the residual.

#[cfg(test)]
mod cases;
mod host;

use std::ops::Range;

use super::jacobian_rows::{JacobianRows, PartialSums, Slot, most_partials_of};
use super::token_dropout::TokenDropout;
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::Tensor;
use host::{
    Norm, NormGradient, Residual, layer_norm_backward, layer_norm_forward, layer_norm_weight_backward, residual_norm_forward,
};

/// Gain and shift as tensors, and what is added to the variance.
#[derive(Clone, Copy, Debug)]
pub struct NormTensors {
    pub gain: Tensor,
    pub shift: Tensor,
    pub eps: f32,
}

impl NormTensors {
    fn read<'m>(&self, memory: &'m HostMemory) -> Norm<'m> {
        Norm { gain: memory.read(self.gain), shift: memory.read(self.shift), eps: self.eps }
    }
}

/// Most columns of a normalization on a device.
pub const MOST_COLUMNS: usize = 4096;

/// Which of three kernels takes rows of so many columns: a warp a row for up to 768 and up to 1,024, or a block of four warps a row.
fn kernel_of(columns: usize) -> usize {
    match columns {
        0..=768 => 0,
        769..=1024 => 1,
        1025..=MOST_COLUMNS => 2,
        more => unreachable!("a device normalizes {MOST_COLUMNS} columns at most, not {more}"),
    }
}

/// Threads of a block, by kernel.
const THREADS: [u32; 3] = [256, 256, 128];

/// A forward pass over rows.
struct ByRows {
    kernels: [&'static str; 3],
    /// Blocks of each that a multiprocessor has registers for: they go on to further rows.
    resident: [usize; 3],
    /// Arrays of a float a column in shared memory.
    arrays: usize,
}

const FORWARD: ByRows = ByRows {
    kernels: ["layer_norm_forward_768", "layer_norm_forward_1024", "layer_norm_forward_4096"],
    resident: [4, 3, 7],
    arrays: 2,
};
const RESIDUAL_FORWARD: ByRows = ByRows {
    kernels: ["residual_norm_forward_768", "residual_norm_forward_1024", "residual_norm_forward_4096"],
    resident: [3, 2, 4],
    arrays: 3,
};

impl ByRows {
    fn launch(&self, card: &Card, x: Tensor) -> Launch {
        let kernel = kernel_of(x.columns);
        let blocks = x.rows.div_ceil([8, 8, 1][kernel]).min(card.multiprocessors * self.resident[kernel]);
        Launch::line(self.kernels[kernel], blocks, THREADS[kernel]).vectors(x.columns).shared(4 * self.arrays * x.columns)
    }
}

/// As [`layer_norm_forward`].
pub struct LayerNormForward {
    pub out: Tensor,
    pub stats: Tensor,
    pub x: Tensor,
    pub norm: NormTensors,
}

impl Op for LayerNormForward {
    fn name(&self) -> &'static str {
        "layer_norm_forward"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.x, self.norm.gain, self.norm.shift], [self.out, self.stats])
    }

    fn host(&self, memory: &HostMemory) {
        layer_norm_forward(memory.write(self.out), memory.write(self.stats), memory.read(self.x), self.norm.read(memory));
    }

    fn device(&self, card: &Card, _: &[Address]) -> Vec<Command> {
        let NormTensors { gain, shift, eps } = self.norm;
        let launch = FORWARD
            .launch(card, self.x)
            .addresses([self.out.at, self.stats.at, self.x.at, gain.at, shift.at])
            .float(eps)
            .int(self.x.rows)
            .int(self.x.columns);
        vec![launch.into()]
    }
}

/// As [`residual_norm_forward`].
pub struct ResidualNormForward<'a> {
    pub out: Tensor,
    pub stats: Tensor,
    pub sum: Tensor,
    pub bias: Tensor,
    pub residual: Tensor,
    pub dropout: Option<TokenDropout<'a>>,
    pub norm: NormTensors,
}

impl Op for ResidualNormForward<'_> {
    fn name(&self) -> &'static str {
        "residual_norm_forward"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.bias, self.residual, self.norm.gain, self.norm.shift], [self.out, self.stats, self.sum])
    }

    fn host(&self, memory: &HostMemory) {
        let [out, stats, sum] = [self.out, self.stats, self.sum].map(|own| memory.write(own));
        let before = Residual { bias: memory.read(self.bias), residual: memory.read(self.residual), dropout: self.dropout };
        residual_norm_forward(out, stats, sum, before, self.norm.read(memory));
    }

    fn tables(&self) -> Vec<Bytes> {
        self.dropout.map_or_else(Vec::new, |dropout| dropout.tables())
    }

    fn device(&self, card: &Card, tables: &[Address]) -> Vec<Command> {
        let NormTensors { gain, shift, eps } = self.norm;
        let launch = RESIDUAL_FORWARD
            .launch(card, self.sum)
            .addresses([self.out.at, self.stats.at, self.sum.at, self.bias.at, self.residual.at, gain.at, shift.at])
            .float(eps)
            .int(self.sum.rows)
            .int(self.sum.columns);
        let launch = match (self.dropout, tables) {
            (Some(dropout), &[keys, round]) => dropout.arguments(launch, [keys, round]),
            _ => launch.addresses([0]).word(0).float(1.0).long(0).addresses([0]),
        };
        vec![launch.into()]
    }
}

/// As [`layer_norm_backward`], and gain and shift gradients of every segment, into its row of J.
pub struct LayerNormBackward {
    pub dx: Tensor,
    pub dout: Tensor,
    pub x: Tensor,
    pub stats: Tensor,
    pub gain: Tensor,
    /// Of segments end to end, which have all rows.
    pub jacobian: JacobianRows,
    /// Columns of J: the gain's, then the shift's.
    pub columns: Range<usize>,
    /// f32 that a device's kernels pass on, [`norm_partials`] of them; none on the host.
    pub partials: Tensor,
}

/// Rows of a block of the backward pass, four a warp: enough blocks for a large card, and few partial rows.
const BLOCK_ROWS: usize = 32;

/// Room for partial sums of gains and shifts of `width` columns each.
pub fn norm_partials(rows: usize, segments: usize, width: usize) -> usize {
    most_partials_of(BLOCK_ROWS, rows, segments) * 2 * width
}

impl LayerNormBackward {
    fn partial_sums(&self) -> (Vec<[u32; 2]>, PartialSums) {
        let (chunks, sums) = self.jacobian.partial_sums_of(BLOCK_ROWS, self.x.rows, self.columns.start);
        let own = chunks.iter().filter(|[first, last]| first < last);
        let end = own.fold(0, |end, &[first, last]| if first == end { last } else { u32::MAX });
        assert_eq!(end as usize, self.x.rows, "every row is in one chunk");
        (chunks, sums)
    }
}

impl Op for LayerNormBackward {
    fn name(&self) -> &'static str {
        "layer_norm_backward"
    }

    fn operands(&self) -> Operands {
        let mut operands = Operands::new([self.dout, self.x, self.stats, self.gain], [self.dx, self.partials]);
        operands.writes.extend(self.jacobian.tensors(&self.columns));
        operands
    }

    fn host(&self, memory: &HostMemory) {
        let [dout, x, stats, gain] = [self.dout, self.x, self.stats, self.gain].map(|known| memory.read(known));
        layer_norm_backward(memory.write(self.dx), dout, x, stats, gain);
        self.jacobian.each(memory, self.columns.clone(), |slots| {
            let mut segments = Vec::with_capacity(slots.len());
            for Slot { rows, values, write } in slots {
                let (gain, shift) = values.split_at_mut(self.columns.len() / 2);
                segments.push(NormGradient { rows, gain, shift, write });
            }
            layer_norm_weight_backward(&mut segments, dout, x, stats);
        });
    }

    fn tables(&self) -> Vec<Bytes> {
        let (chunks, sums) = self.partial_sums();
        std::iter::once(bytes_of(&chunks)).chain(sums.tables()).collect()
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let &[chunks, bounds, offsets, add] = tables else { unreachable!("four tables") };
        let (width, (parts, sums)) = (self.x.columns, self.partial_sums());
        let kernel = kernel_of(width);
        // Arrays of a float a column in shared memory: the gain, and sums of each of eight warps that have rows of their own.
        let (name, arrays) =
            [("layer_norm_backward_768", 9), ("layer_norm_backward_1024", 9), ("layer_norm_backward_4096", 1)][kernel];
        let rows = Launch::line(name, parts.len(), THREADS[kernel])
            .vectors(width)
            .shared(4 * arrays * width)
            .addresses([self.dx.at, self.partials.at, self.dout.at, self.x.at, self.stats.at, self.gain.at, chunks])
            .int(width);
        let sums = sums.launch(&self.jacobian, self.partials, [bounds, offsets, add], 2 * width);
        vec![rows.into(), sums.into()]
    }
}
