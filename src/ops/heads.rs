//! Every task's output layer over the packed rows: logits = h W_t^T + b_t for the rows of segment t.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use multiversion::multiversion;
use rayon::prelude::*;

use super::simd::{add_scaled, dot};
use crate::choices::choices;
use crate::machine::driver::{Address, Card, MOST_BLOCKS};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::Tensor;

choices! {
    /// What a head predicts, and which loss that has.
    pub enum HeadKind {
        Classification = "classification",
        Regression = "regression",
        Multilabel = "multilabel",
        /// Masked language modelling: the words at masked places, out of the whole vocabulary.
        Mlm = "mlm",
        /// Whose vector a text's is closest to: of each pair of texts the second is told from those of the other pairs.
        Similarity = "similarity",
    }
}

impl HeadKind {
    /// Rows that the encoder makes of one example: one a text where texts are compared, else one for all it reads.
    pub fn rows(self) -> usize {
        if self == Self::Similarity { 2 } else { 1 }
    }

    /// The head is a linear layer over such a row.
    pub fn is_linear(self) -> bool {
        !matches!(self, Self::Mlm | Self::Similarity)
    }
}

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

/// One task's rows and head, as `HeadSegment` of kernels/heads.cu.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct HeadSegment {
    /// Packed rows, from `start` to `end`.
    start: u32,
    end: u32,
    outputs: u32,
    padding: u32,
    /// Where weights (outputs x width), bias (outputs) and logits (rows x outputs) begin.
    weight: u64,
    bias: u64,
    logits: u64,
}

/// The heads' segments, one after another; places of parameters are counted from the first head's.
fn segment_table(heads: &[Head]) -> Bytes {
    let (base, mut logits) = (values_base(heads), 0);
    let segment = |head: &Head| {
        let place = |tensor: Tensor| (tensor.at - base) / 4;
        let (start, end) = (head.rows.start as u32, head.rows.end as u32);
        let (weight, bias) = (place(head.weight), place(head.bias));
        let segment = HeadSegment { start, end, outputs: head.outputs as u32, padding: 0, weight, bias, logits };
        logits += (head.rows.len() * head.outputs) as u64;
        segment
    };
    bytes_of(&heads.iter().map(segment).collect::<Vec<_>>())
}

fn values_base(heads: &[Head]) -> Address {
    heads.iter().map(|head| head.weight.at).min().unwrap_or(0)
}

/// Where gradients lie as the values do from [`values_base`] on.
fn gradients_base(heads: &[Head]) -> Address {
    let base = heads.iter().map(|head| head.gradient.at).min().unwrap_or(0);
    let apart = |head: &Head| head.gradient.at - base == head.weight.at - values_base(heads);
    assert!(heads.iter().all(apart), "gradients of heads lie as their values do");
    base
}

const THREADS: u32 = 256;

/// A kernel that takes a warp for a row.
fn by_rows(kernel: &'static str, rows: usize) -> Launch {
    Launch::line(kernel, rows.div_ceil(THREADS as usize / 32), THREADS)
}

/// Most outputs of a head on a device.
pub fn most_outputs(width: usize) -> usize {
    MOST_BLOCKS[0] as usize / width.div_ceil(32).max(1)
}

/// As [`heads_forward`].
pub struct HeadsForward {
    /// Segment after segment.
    pub logits: Tensor,
    /// (n x width)
    pub hidden: Tensor,
    pub heads: Vec<Head>,
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

    fn tables(&self) -> Vec<Bytes> {
        vec![segment_table(&self.heads)]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let Tensor { rows, columns: width, .. } = self.hidden;
        let launch = by_rows("heads_forward", rows)
            .addresses([self.logits.at, self.hidden.at, values_base(&self.heads), tables[0]])
            .int(self.heads.len())
            .int(rows)
            .int(width);
        vec![launch.into()]
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

    fn tables(&self) -> Vec<Bytes> {
        let add: Vec<u32> = self.heads.iter().map(|head| u32::from(!head.first)).collect();
        vec![segment_table(&self.heads), bytes_of(&add)]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let &[segments, add] = tables else { unreachable!("two tables") };
        let (heads, Tensor { rows, columns: width, .. }) = (&self.heads, self.hidden);
        let outputs = heads.iter().map(|head| head.outputs).max().unwrap_or(0);
        let weight = Launch::new("heads_weight", [outputs * width.div_ceil(32), heads.len(), 1], THREADS)
            .addresses([gradients_base(heads), self.dlogits.at, self.hidden.at, segments, add])
            .int(width);
        let input = by_rows("heads_input", rows)
            .addresses([self.dhidden.at, self.dlogits.at, values_base(heads), segments])
            .int(heads.len())
            .int(rows)
            .int(width);
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

#[cfg(test)]
mod cases {
    use super::*;
    use crate::machine::tensor::DType;
    use crate::ops::testing::{On, Place, coarse_noise, noise, on_devices};

    /// (rows, outputs) of each task.
    const TASKS: [(usize, usize); 3] = [(5, 3), (9, 1), (4, 40)];

    /// Heads end to end, the second of which begins its gradient anew.
    fn heads_of(width: usize, values: Tensor, gradients: Tensor) -> Vec<Head> {
        let (mut row, mut value) = (0, 0);
        let head = |(task, (rows, outputs)): (usize, (usize, usize))| {
            let (weight, bias) = (value..value + outputs * width, value + outputs * width..value + outputs * (width + 1));
            let own = Head {
                rows: row..row + rows,
                outputs,
                weight: values.range(weight.clone()),
                bias: values.range(bias.clone()),
                gradient: if gradients.is_none() { gradients } else { gradients.range(weight.start..bias.end) },
                first: task == 1,
            };
            (row, value) = (row + rows, bias.end);
            own
        };
        TASKS.into_iter().enumerate().map(head).collect()
    }

    fn forward_and_backward(on: On, width: usize) {
        let rows: usize = TASKS.iter().map(|(rows, _)| rows).sum();
        let count: usize = TASKS.iter().map(|(rows, outputs)| rows * outputs).sum();
        let values: usize = TASKS.iter().map(|(_, outputs)| outputs * (width + 1)).sum();
        on.compare(|place: &mut Place| {
            let hidden = place.narrow(&coarse_noise(rows * width, 0), width);
            let (parameters, gradients) = (place.f32(&noise(values, 1), values), place.f32(&noise(values, 3), values));
            let (logits, dlogits) = (place.room(1, count, DType::F32), place.f32(&noise(count, 2), count));
            let dhidden = place.room(rows, width, DType::Bf16);
            place.run(&HeadsForward { logits, hidden, heads: heads_of(width, parameters, Tensor::NONE) });
            place.run(&HeadsBackward { dhidden, dlogits, hidden, heads: heads_of(width, parameters, gradients) });
            vec![place.found("logits", logits), place.found("dhidden", dhidden), place.found("head gradients", gradients)]
        });
    }

    fn heads_forward_and_backward(on: On) {
        forward_and_backward(on, 41);
    }

    fn heads_of_768_columns(on: On) {
        forward_and_backward(on, 768);
    }

    #[test]
    fn a_head_of_very_many_outputs_has_a_grid_that_a_card_takes() {
        assert!(most_outputs(768) * 768usize.div_ceil(32) <= MOST_BLOCKS[0] as usize);
        assert!(most_outputs(768) > 70_000);
    }

    on_devices! { heads_forward_and_backward, heads_of_768_columns }
}
