//! Layer normalization over the columns of packed rows (Ba, Kiros & Hinton 2016), with what BERT adds before it: bias,
//! dropout and the residual.

#[cfg(test)]
mod cases;
mod host;

use std::ops::Range;

use super::jacobian_rows::{JacobianRows, Slot, most_partials};
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

/// One pass over rows in three kernels: a warp a row for up to 768 and up to 1,024 columns, and a block of four warps a row.
struct ByRows {
    kernels: [&'static str; 3],
    /// Blocks of each that a multiprocessor has registers for: they go on to further rows.
    resident: [usize; 3],
    /// Arrays of a float a column in shared memory.
    arrays: usize,
}

/// Most columns of a normalization on a device.
pub const MOST_COLUMNS: usize = 4096;

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
const BACKWARD: ByRows = ByRows {
    kernels: ["layer_norm_backward_768", "layer_norm_backward_1024", "layer_norm_backward_4096"],
    resident: [3, 2, 5],
    arrays: 1,
};

impl ByRows {
    fn launch(&self, card: &Card, x: Tensor) -> Launch {
        let (kernel, rows, threads) = match x.columns {
            0..=768 => (0, 8, 256),
            769..=1024 => (1, 8, 256),
            1025..=MOST_COLUMNS => (2, 1, 128),
            more => unreachable!("a device normalizes {MOST_COLUMNS} columns at most, not {more}"),
        };
        let blocks = x.rows.div_ceil(rows).min(card.multiprocessors * self.resident[kernel]);
        Launch::line(self.kernels[kernel], blocks, threads).vectors(x.columns).shared(4 * self.arrays * x.columns)
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

/// As [`layer_norm_backward`].
pub struct LayerNormBackward {
    pub dx: Tensor,
    pub dout: Tensor,
    pub x: Tensor,
    pub stats: Tensor,
    pub gain: Tensor,
}

impl Op for LayerNormBackward {
    fn name(&self) -> &'static str {
        "layer_norm_backward"
    }

    fn operands(&self) -> Operands {
        Operands::new([self.dout, self.x, self.stats, self.gain], [self.dx])
    }

    fn host(&self, memory: &HostMemory) {
        let [dout, x, stats, gain] = [self.dout, self.x, self.stats, self.gain].map(|known| memory.read(known));
        layer_norm_backward(memory.write(self.dx), dout, x, stats, gain);
    }

    fn device(&self, card: &Card, _: &[Address]) -> Vec<Command> {
        let launch = BACKWARD
            .launch(card, self.x)
            .addresses([self.dx.at, self.dout.at, self.x.at, self.stats.at, self.gain.at])
            .int(self.x.rows)
            .int(self.x.columns);
        vec![launch.into()]
    }
}

/// Gain and shift gradients of every segment, into its row of J.
pub struct LayerNormWeightBackward {
    pub dout: Tensor,
    pub x: Tensor,
    pub stats: Tensor,
    pub jacobian: JacobianRows,
    /// Columns of J: the gain's, then the shift's.
    pub columns: Range<usize>,
    /// f32 that a device's kernels pass on, [`norm_partials`] of them; none on the host.
    pub partials: Tensor,
}

/// Room for partial sums of gains and shifts of `width` columns each.
pub fn norm_partials(rows: usize, segments: usize, width: usize) -> usize {
    most_partials(rows, segments) * 2 * width
}

impl Op for LayerNormWeightBackward {
    fn name(&self) -> &'static str {
        "layer_norm_weight_backward"
    }

    fn operands(&self) -> Operands {
        let mut operands = Operands::new([self.dout, self.x, self.stats], [self.partials]);
        operands.writes.extend(self.jacobian.tensors(&self.columns));
        operands
    }

    fn host(&self, memory: &HostMemory) {
        let [dout, x, stats] = [self.dout, self.x, self.stats].map(|known| memory.read(known));
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
        let (chunks, sums) = self.jacobian.partial_sums(self.columns.start);
        std::iter::once(bytes_of(&chunks)).chain(sums.tables()).collect()
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let &[chunks, bounds, offsets, add] = tables else { unreachable!("four tables") };
        let (width, (_, sums)) = (self.x.columns, self.jacobian.partial_sums(self.columns.start));
        let partials = Launch::new("layer_norm_partials", [sums.count(), width.div_ceil(256), 1], 256)
            .vectors(width)
            .addresses([self.partials.at, self.dout.at, self.x.at, self.stats.at, chunks])
            .int(width);
        let sums = sums.launch(&self.jacobian, self.partials, [bounds, offsets, add], 2 * width);
        vec![partials.into(), sums.into()]
    }
}
