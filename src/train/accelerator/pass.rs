//! A round's fused groups on the device: their inputs laid out, and their passes in the order of two lanes.

use std::ops::Range;

use super::Accelerator;
use super::lane::Lane;
use super::program::{Program, Step};
use super::rows::{RowIndex, RowsOnDevice};
use super::upload::Upload;
use crate::device::driver::{Address, DeviceError, StreamId};
use crate::device::launch::Command;
use crate::device::tape::Tape;
use crate::device::tensor::{DType, Tensor};
use crate::model::encoders::dense;
use crate::model::network::{Batch, Network, Part, Targets};
use crate::model::spec::HeadKind;
use crate::ops::embedding_bag;
use crate::ops::gemm::Write;
use crate::ops::heads::HeadsOnDevice;
use crate::ops::jacobian_rows::{JacobianRows, Segment};
use crate::ops::launch::gemm as matmul;
use crate::ops::launch::heads::{self, HeadSegment, Loss, LossSegment};
use crate::ops::launch::{pitch, rows};
use crate::ops::loss::LossesOnDevice;
use crate::ops::storage::bf16;
use crate::train::backend::Work;

/// A round's batch, on the device.
pub(super) struct Packed {
    groups: Vec<Group>,
    /// One u64.
    pub round: Address,
    pub rows: Option<RowsOnDevice>,
    /// (present tasks x 2) u64: where their heads begin and end.
    pub bounds: Address,
    /// (blocks + 3) u32: bounds of each block's partial products, then 0 and the number of them all.
    pub starts: Address,
    upload: Upload,
}

/// A fused group, on the device.
struct Group {
    /// Its parts of the batch.
    parts: Range<usize>,
    /// First of its rows in the round.
    base: usize,
    rows: usize,
    /// (rows x inputs) bf16, rows [`pitch`] apart; null where bags make it.
    features: Address,
    /// (rows) task and example, u32 each
    keys: Address,
    heads: heads::Segments,
    losses: heads::Segments,
    targets: Address,
    /// (parts) u32: 1 where an earlier micro-batch of the task has been.
    add: Address,
    /// One of them is.
    adds: bool,
    weights: matmul::Segments,
    biases: matmul::Segments,
    /// Outputs of the widest head.
    outputs: usize,
}

impl Accelerator {
    /// Lays the round's batch into pinned memory.
    pub(super) fn pack(&mut self, work: &mut Work) -> Result<Packed, DeviceError> {
        let &mut Work { network, ref mut parameters, batch, tasks, round, .. } = work;
        let mut upload = self.batches.upload();
        let round = upload.push(&[round]);
        let heads = tasks.iter().map(|&task| network.table.head_range(task));
        let bounds = upload.push(&heads.flat_map(|range| [range.start as u64, range.end as u64]).collect::<Vec<_>>());
        let index = self.table.as_ref().map(|_| RowIndex::new(batch, tasks.len()));
        let mut rows = match (&self.table, &mut parameters.rows, &index) {
            (Some(table), Some(host), Some(index)) => Some(RowsOnDevice::forward(table, host, &mut upload, batch, index)),
            _ => None,
        };
        upload.close();
        let mut groups = Vec::with_capacity(batch.groups.len());
        for range in &batch.groups {
            groups.push(self.group(&mut upload, network, batch, range.clone()));
            upload.close();
        }
        let mut starts = self.cut.starts.clone();
        if let (Some(rows), Some(index)) = (&mut rows, &index) {
            rows.backward(&mut upload, index);
            // The table's block is the last.
            starts[self.cut.blocks] += rows::gram_partials(rows.union.count) as u32;
        }
        starts.extend([0, starts[self.cut.blocks]]);
        let starts = upload.push(&starts);
        upload.close();
        self.batches.fill(&mut *self.driver, &upload)?;
        Ok(Packed { groups, round, rows, bounds, starts, upload })
    }

    fn group(&self, upload: &mut Upload, network: &Network, batch: &Batch, range: Range<usize>) -> Group {
        let parts = &batch.parts[range.clone()];
        let base = parts.first().map_or(0, |part| part.rows.start);
        let end = parts.last().map_or(0, |part| part.rows.end);
        let inputs = network.spec.encoder.inputs();
        let features = if self.table.is_some() { &[][..] } else { &batch.features[base * inputs..end * inputs] };
        let features = narrow_rows(features, inputs);
        let keys: Vec<[u32; 2]> = batch.keys[base..end].iter().map(|key| [key.task, key.example]).collect();
        let tables = Tables::new(network, parts, base, self.stride);
        let count = parts.len();
        let segments = |at| heads::Segments { at, count, rows: end - base };
        let [starts, ends, add] = [&tables.starts, &tables.ends, &tables.add].map(|table| upload.push(table));
        let weights = matmul::Segments { starts, ends, offsets: upload.push(&tables.weight_offsets), add, count };
        Group {
            parts: range,
            base,
            rows: end - base,
            features: upload.push(&features),
            keys: upload.push(&keys),
            heads: segments(upload.push(&tables.heads)),
            losses: segments(upload.push(&tables.losses)),
            targets: upload.push(&tables.targets),
            add,
            adds: tables.add.contains(&1),
            weights,
            biases: matmul::Segments { offsets: upload.push(&tables.bias_offsets), ..weights },
            outputs: parts.iter().map(|part| network.spec.heads[part.task].outputs).max().unwrap_or(0),
        }
    }

    /// Adds all groups: losses, and with `backward` private gradients. Groups take the lanes in turn; one that adds to an
    /// earlier micro-batch's gradients follows it.
    pub(super) fn add_pass(&self, program: &mut Program, work: &Work, packed: &Packed, backward: bool) {
        let streams = &self.streams;
        let [first, second] = streams.lanes;
        let mut sections = packed.upload.sections.iter();
        let mut send = |program: &mut Program, lane: StreamId| {
            program.push(self.batches.send(streams.copies, sections.next().expect("a section for each stage")));
            program.order(streams.copies, streams.arrived, lane);
        };
        program.order(first, streams.fork, streams.copies);
        send(program, first);
        if let Some(rows) = &packed.rows {
            let ([fresh, slots], bags) = (rows.fresh, rows.bags);
            let launch = rows::embedding_rows_init(bags.values, fresh, slots, rows.fresh_count, bags.dim, bags.init);
            program.launch(first, launch);
        }
        let both = self.lanes.len() > 1 && packed.groups.len() > 1;
        if both {
            program.order(first, streams.done[0], second);
        }
        for (number, group) in packed.groups.iter().enumerate() {
            let lane = if both { number % 2 } else { 0 };
            let stream = streams.lanes[lane];
            send(program, stream);
            if both && group.adds {
                program.order(streams.lanes[1 - lane], streams.done[1 - lane], stream);
            }
            self.add_group(program, work, packed, group, lane, backward);
        }
        send(program, first);
        if both {
            program.order(second, streams.done[1], first);
        }
        if let (true, Some(rows), Some(table)) = (backward, &packed.rows, &self.table) {
            let lists = [rows.sources, rows.starts];
            let launch = rows::backward(table.gradients, table.dinput, rows.bags.scales, lists, rows.count, table.dim);
            program.launch(first, launch);
        }
    }

    /// Adds a group's pass, as the encoder emits it.
    fn add_group(&self, program: &mut Program, work: &Work, packed: &Packed, group: &Group, lane: usize, backward: bool) {
        let (network, stream) = (work.network, self.streams.lanes[lane]);
        let own = self.tensors(work, packed, group, &self.lanes[lane]);
        let mut tape = Tape::default();
        dense::forward(&mut tape, network, &own, Some(work.random));
        dense::losses(&mut tape, network, &own, Tensor::NONE);
        if backward {
            dense::backward(&mut tape, network, &own, self.gradients_of(network, &own), work.random);
        }
        for command in tape.commands() {
            match command {
                Command::Launch(launch) => program.launch(stream, launch),
                Command::Copy { to, from, bytes } => program.push(Step::Copy { stream, to, from, bytes }),
            }
        }
    }

    /// A group as its encoder sees it.
    fn tensors<'a>(&self, work: &Work<'a>, packed: &Packed, group: &Group, lane: &Lane) -> dense::Group<'a> {
        let (network, batch) = (work.network, work.batch);
        let parts = &batch.parts[group.parts.clone()];
        let rows = group.base..group.base + group.rows;
        let inputs = network.spec.encoder.inputs();
        let values = self.shared.state.values;
        let [_, bias] = [&network.table.shared[0], &network.table.shared[1]];
        let bags = packed.rows.as_ref().map(|rows| rows.bags);
        let bf16 = |at, rows, columns| Tensor { at, rows, columns, ld: pitch(columns), dtype: DType::Bf16 };
        let f32 = |at, count| Tensor::dense(at, 1, count, DType::F32);
        let bias = f32(values, self.shared.len).range(bias.range());
        let weight = bf16(self.weight.at, self.weight.rows, self.weight.columns);
        dense::Group {
            parts,
            keys: &batch.keys[rows.clone()],
            features: if bags.is_some() { Tensor::NONE } else { bf16(group.features, group.rows, inputs) },
            bags: &batch.bags,
            table: bags.map(|bags| embedding_bag::Table { dim: bags.dim, slots: &[], values: &[], init: bags.init }),
            weights: dense::Weights { weight, bias, heads: f32(self.heads.state.values, self.heads.len) },
            at: lane.at,
            device: Some(dense::GroupOnDevice {
                keys: [group.keys, packed.round],
                bags,
                heads: HeadsOnDevice {
                    segments: group.heads,
                    values: self.heads.state.values,
                    gradients: self.head_gradients,
                    add: group.add,
                    outputs: group.outputs,
                },
                losses: LossesOnDevice {
                    segments: group.losses,
                    targets: group.targets,
                    row_losses: lane.row_losses,
                    sums: self.results.at,
                    add: group.add,
                    smoothing: network.label_smoothing,
                },
                jacobian: (self.jacobian, group.weights, group.biases),
            }),
            rows,
        }
    }

    fn gradients_of(&self, network: &Network, group: &dense::Group) -> dense::Gradients {
        let segment = |part: &Part| {
            let at = self.jacobian + 4 * (part.present * self.stride) as Address;
            let write = if part.first { Write::Replace } else { Write::Add };
            let rows = part.rows.start - group.rows.start..part.rows.end - group.rows.start;
            Segment { rows, row: Tensor::dense(at, 1, self.shared.len, DType::F32), write }
        };
        let heads = Tensor::dense(self.head_gradients, 1, self.heads.len, DType::F32);
        let segments = group.parts.iter().map(segment).collect();
        let dinput = self.table.as_ref().map_or(Tensor::NONE, |table| {
            let at = table.dinput + 4 * (group.rows.start * pitch(table.dim)) as Address;
            Tensor { at, rows: group.rows.len(), columns: table.dim, ld: pitch(table.dim), dtype: DType::F32 }
        });
        dense::Gradients {
            jacobian: JacobianRows { segments, added: false, staging: Tensor::NONE },
            heads: group.parts.iter().map(|part| heads.range(network.table.head_range(part.task))).collect(),
            dinput,
        }
    }
}

/// Rows of `columns` in bf16, [`pitch`] apart.
fn narrow_rows(values: &[f32], columns: usize) -> Vec<bf16> {
    let mut narrow = Vec::with_capacity(values.len() / columns.max(1) * pitch(columns));
    for row in values.chunks_exact(columns.max(1)) {
        narrow.extend(row.iter().map(|&x| bf16::from_f32(x)));
        narrow.resize(pitch(narrow.len()), bf16::ZERO);
    }
    narrow
}

/// One entry a part.
#[derive(Default)]
struct Tables {
    heads: Vec<HeadSegment>,
    losses: Vec<LossSegment>,
    targets: Vec<u32>,
    starts: Vec<u32>,
    ends: Vec<u32>,
    add: Vec<u32>,
    weight_offsets: Vec<u64>,
    bias_offsets: Vec<u64>,
}

impl Tables {
    /// Rows count from `base`, the first of the group.
    fn new(network: &Network, parts: &[Part], base: usize, stride: usize) -> Self {
        let mut tables = Self::default();
        let mut logits = 0;
        for part in parts {
            let head = &network.spec.heads[part.task];
            let (weight, bias) = network.table.head(part.task);
            let (start, end) = ((part.rows.start - base) as u32, (part.rows.end - base) as u32);
            let (outputs, task) = (head.outputs as u32, part.present as u32);
            let (weight, bias) = (weight.offset as u64, bias.offset as u64);
            tables.heads.push(HeadSegment { start, end, outputs, task, weight, bias, logits });
            let loss = match (&part.targets, head.kind) {
                (Targets::Class(_), _) => Loss::CrossEntropy,
                (Targets::Values(_), HeadKind::Multilabel) => Loss::BinaryCrossEntropy,
                (Targets::Values(_), _) => Loss::SquaredError,
            };
            let (targets, scale) = (tables.targets.len() as u64, part.scale);
            tables.losses.push(LossSegment { start, end, outputs, loss: loss as u32, task, scale, logits, targets });
            match &part.targets {
                Targets::Class(classes) => tables.targets.extend(classes),
                Targets::Values(values) => tables.targets.extend(values.iter().map(|value| value.to_bits())),
            }
            tables.starts.push(start);
            tables.ends.push(end);
            tables.add.push(u32::from(!part.first));
            let row = (part.present * stride) as u64;
            tables.weight_offsets.push(row + network.table.shared[0].offset as u64);
            tables.bias_offsets.push(row + network.table.shared[1].offset as u64);
            logits += (part.rows.len() * head.outputs) as u64;
        }
        tables
    }
}
