//! Every task's output layer over the packed rows: logits = h W_t^T + b_t for the rows of segment t.

use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

use super::launch::heads as kernel;
use super::simd::{add_scaled, dot};
use crate::device::driver::Address;
use crate::device::host::HostMemory;
use crate::device::launch::Command;
use crate::device::tape::{Op, Operands};
use crate::device::tensor::Tensor;

/// One task's head and the packed rows it reads. Its logits lie at `logits`, (rows x outputs).
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    pub rows: Range<usize>,
    pub outputs: usize,
    /// (outputs x width)
    pub weight: &'a [f32],
    /// (outputs)
    pub bias: &'a [f32],
}

/// Where one head's gradient goes.
pub struct Gradient<'a> {
    pub weight: &'a mut [f32],
    pub bias: &'a mut [f32],
}

const ROWS: usize = 32;

/// Logits of all segments, one after another.
pub fn heads_forward(logits: &mut [f32], hidden: &[f32], width: usize, segments: &[Segment]) {
    let mut jobs = Vec::with_capacity(segments.len());
    let mut rest = logits;
    for segment in segments {
        let (own, tail) = rest.split_at_mut(segment.rows.len() * segment.outputs);
        jobs.push((segment, own));
        rest = tail;
    }
    jobs.into_par_iter().for_each(|(segment, logits)| {
        let hidden = &hidden[segment.rows.start * width..segment.rows.end * width];
        let rows = logits.par_chunks_mut(ROWS * segment.outputs).zip(hidden.par_chunks(ROWS * width));
        rows.for_each(|(logits, hidden)| forward_rows(logits, hidden, width, segment));
    });
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn forward_rows(logits: &mut [f32], hidden: &[f32], width: usize, segment: &Segment) {
    for (logits, hidden) in logits.chunks_exact_mut(segment.outputs).zip(hidden.chunks_exact(width)) {
        for (class, logit) in logits.iter_mut().enumerate() {
            *logit = dot(hidden, &segment.weight[class * width..][..width]) + segment.bias[class];
        }
    }
}

/// dhidden (n x width) = dlogits W_t; each head's gradient gains its own part, rows in packed order.
pub fn heads_backward(
    dhidden: &mut [f32],
    gradients: &mut [Gradient],
    dlogits: &[f32],
    hidden: &[f32],
    width: usize,
    segments: &[Segment],
) {
    let mut jobs = Vec::with_capacity(segments.len());
    let (mut rest, mut offset, mut row) = (dhidden, 0, 0);
    for (segment, gradient) in segments.iter().zip(gradients) {
        assert_eq!(segment.rows.start, row, "segments cover the packed rows in order");
        let (own, tail) = rest.split_at_mut(segment.rows.len() * width);
        let dlogits = &dlogits[offset..offset + segment.rows.len() * segment.outputs];
        jobs.push((segment, gradient, own, dlogits));
        offset += dlogits.len();
        row = segment.rows.end;
        rest = tail;
    }
    jobs.into_par_iter().with_max_len(1).for_each(|(segment, gradient, dhidden, dlogits)| {
        let hidden = &hidden[segment.rows.start * width..segment.rows.end * width];
        backward_rows(dhidden, gradient, dlogits, hidden, width, segment);
    });
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn backward_rows(dhidden: &mut [f32], gradient: &mut Gradient, dlogits: &[f32], hidden: &[f32], width: usize, segment: &Segment) {
    let rows = dhidden.chunks_exact_mut(width).zip(hidden.chunks_exact(width));
    for ((dhidden, hidden), dlogits) in rows.zip(dlogits.chunks_exact(segment.outputs)) {
        dhidden.fill(0.0);
        for (class, &d) in dlogits.iter().enumerate() {
            add_scaled(dhidden, d, &segment.weight[class * width..][..width]);
            add_scaled(&mut gradient.weight[class * width..][..width], d, hidden);
            gradient.bias[class] += d;
        }
    }
}

/// A task's rows and its head.
#[derive(Clone, Debug)]
pub struct Head {
    /// Packed rows, counted from the group's first.
    pub rows: Range<usize>,
    pub outputs: usize,
    /// (outputs x width) and (outputs)
    pub weight: Tensor,
    pub bias: Tensor,
    /// (outputs x (width + 1)) where its gradient goes: the weight's, then the bias's; none where only the forward pass is wanted.
    pub gradient: Tensor,
    /// The gradient is zeroed before it is added to.
    pub first: bool,
}

/// The heads on a device.
#[derive(Clone, Copy, Debug)]
pub struct HeadsOnDevice {
    pub segments: kernel::Segments,
    /// Of the space of all heads' values, and of their gradients.
    pub values: Address,
    pub gradients: Address,
    /// (segments) u32: 1 where the gradient is added to.
    pub add: Address,
    /// Outputs of the widest head.
    pub outputs: usize,
}

/// As [`heads_forward`].
pub struct HeadsForward {
    /// Segment after segment.
    pub logits: Tensor,
    /// (n x width)
    pub hidden: Tensor,
    pub heads: Vec<Head>,
    pub device: Option<HeadsOnDevice>,
}

impl Op for HeadsForward {
    fn name(&self) -> &'static str {
        "heads_forward"
    }

    fn operands(&self) -> Operands {
        let mut operands = Operands::new([self.hidden], [self.logits]);
        operands.reads.extend(self.heads.iter().flat_map(|head| [head.weight, head.bias]));
        operands
    }

    fn host(&self, memory: &HostMemory) {
        let segments = segments(&self.heads, memory);
        heads_forward(memory.write(self.logits), memory.read(self.hidden), self.hidden.columns, &segments);
    }

    fn device(&self) -> Vec<Command> {
        let launch =
            |own: HeadsOnDevice| kernel::forward(self.logits.at, self.hidden.at, own.values, own.segments, self.hidden.columns);
        self.device.map(launch).map(Command::from).into_iter().collect()
    }
}

/// As [`heads_backward`]; a head's gradient starts from zero where it is the first.
pub struct HeadsBackward {
    /// (n x width)
    pub dhidden: Tensor,
    pub dlogits: Tensor,
    /// (n x width)
    pub hidden: Tensor,
    pub heads: Vec<Head>,
    pub device: Option<HeadsOnDevice>,
}

impl Op for HeadsBackward {
    fn name(&self) -> &'static str {
        "heads_backward"
    }

    fn operands(&self) -> Operands {
        let mut operands = Operands::new([self.dlogits, self.hidden], [self.dhidden]);
        operands.reads.extend(self.heads.iter().flat_map(|head| [head.weight, head.bias]));
        operands.writes.extend(self.heads.iter().map(|head| head.gradient));
        operands
    }

    fn host(&self, memory: &HostMemory) {
        let gradient = |head: &Head| {
            let own: &mut [f32] = memory.write(head.gradient);
            if head.first {
                own.fill(0.0);
            }
            let (weight, bias) = own.split_at_mut(head.outputs * self.hidden.columns);
            Gradient { weight, bias }
        };
        let mut gradients: Vec<Gradient> = self.heads.iter().map(gradient).collect();
        let segments = segments(&self.heads, memory);
        let (dlogits, hidden) = (memory.read(self.dlogits), memory.read(self.hidden));
        heads_backward(memory.write(self.dhidden), &mut gradients, dlogits, hidden, self.hidden.columns, &segments);
    }

    fn device(&self) -> Vec<Command> {
        let Some(own) = self.device else { return Vec::new() };
        let (dlogits, hidden, width) = (self.dlogits.at, self.hidden.at, self.hidden.columns);
        let weight = kernel::weight(own.gradients, dlogits, hidden, own.segments, own.add, width, own.outputs);
        let input = kernel::input(self.dhidden.at, dlogits, own.values, own.segments, width);
        vec![weight.into(), input.into()]
    }
}

fn segments<'m>(heads: &[Head], memory: &'m HostMemory) -> Vec<Segment<'m>> {
    let segment = |head: &Head| Segment {
        rows: head.rows.clone(),
        outputs: head.outputs,
        weight: memory.read(head.weight),
        bias: memory.read(head.bias),
    };
    heads.iter().map(segment).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_segment_sees_its_own_head() {
        let hidden = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let segments = [
            Segment { rows: 0..2, outputs: 1, weight: &[1.0, 1.0], bias: &[0.5] },
            Segment { rows: 2..3, outputs: 2, weight: &[1.0, 0.0, 0.0, 1.0], bias: &[0.0, 1.0] },
        ];
        let mut logits = [0.0; 4];
        heads_forward(&mut logits, &hidden, 2, &segments);
        assert_eq!(logits, [3.5, 7.5, 5.0, 7.0]);

        let mut dhidden = [9.0; 6];
        let (mut w0, mut b0, mut w1, mut b1) = ([0.0; 2], [0.0; 1], [0.0; 4], [0.0; 2]);
        let mut gradients = [Gradient { weight: &mut w0, bias: &mut b0 }, Gradient { weight: &mut w1, bias: &mut b1 }];
        heads_backward(&mut dhidden, &mut gradients, &[1.0, 2.0, 1.0, -1.0], &hidden, 2, &segments);
        assert_eq!(dhidden, [1.0, 1.0, 2.0, 2.0, 1.0, -1.0]);
        assert_eq!((w0, b0), ([7.0, 10.0], [3.0]));
        assert_eq!((w1, b1), ([5.0, 6.0, -5.0, -6.0], [1.0, -1.0]));
    }
}
