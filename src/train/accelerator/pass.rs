//! Forward and backward of a round's fused groups, as [`Network::forward`] and [`Network::backward`] do them.

use super::Accelerator;
use super::lane::Lane;
use super::packet::{Packet, to_bf16};
use super::program::{Program, Step};
use super::rows::{RowIndex, RowsOnDevice};
use crate::device::driver::{Address, DeviceError, StreamId};
use crate::model::network::{Batch, Network, Part, Targets};
use crate::model::spec::HeadKind;
use crate::ops::activation::Activation;
use crate::ops::launch::gemm as matmul;
use crate::ops::launch::heads::{self, HeadSegment, Loss, LossSegment};
use crate::ops::launch::{elementwise, pitch, rows};
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
    packet: Packet,
}

/// A fused group, on the device.
struct Group {
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
        let mut packet = self.batches.packet();
        let round = packet.push(&[round]);
        let heads = tasks.iter().map(|&task| network.table.head_range(task));
        let bounds = packet.push(&heads.flat_map(|range| [range.start as u64, range.end as u64]).collect::<Vec<_>>());
        let index = self.table.as_ref().map(|_| RowIndex::new(batch, tasks.len()));
        let mut rows = match (&self.table, &mut parameters.rows, &index) {
            (Some(table), Some(host), Some(index)) => Some(RowsOnDevice::forward(table, host, &mut packet, batch, index)),
            _ => None,
        };
        packet.close();
        let mut groups = Vec::with_capacity(batch.groups.len());
        for range in &batch.groups {
            groups.push(self.group(&mut packet, network, batch, &batch.parts[range.clone()]));
            packet.close();
        }
        let mut starts = self.cut.starts.clone();
        if let (Some(rows), Some(index)) = (&mut rows, &index) {
            rows.backward(&mut packet, index);
            // The table's block is the last.
            starts[self.cut.blocks] += rows::gram_partials(rows.union.count) as u32;
        }
        starts.extend([0, starts[self.cut.blocks]]);
        let starts = packet.push(&starts);
        packet.close();
        self.batches.fill(&mut *self.driver, &packet)?;
        Ok(Packed { groups, round, rows, bounds, starts, packet })
    }

    fn group(&self, packet: &mut Packet, network: &Network, batch: &Batch, parts: &[Part]) -> Group {
        let base = parts.first().map_or(0, |part| part.rows.start);
        let end = parts.last().map_or(0, |part| part.rows.end);
        let inputs = network.spec.encoder.inputs();
        let features = if self.table.is_some() { &[][..] } else { &batch.features[base * inputs..end * inputs] };
        let features = narrow_rows(features, inputs);
        let keys: Vec<[u32; 2]> = batch.keys[base..end].iter().map(|key| [key.task, key.example]).collect();
        let tables = Tables::new(network, parts, base, self.stride);
        let count = parts.len();
        let segments = |at| heads::Segments { at, count, rows: end - base };
        let [starts, ends, add] = [&tables.starts, &tables.ends, &tables.add].map(|table| packet.push(table));
        let weights = matmul::Segments { starts, ends, offsets: packet.push(&tables.weight_offsets), add, count };
        Group {
            base,
            rows: end - base,
            features: packet.push(&features),
            keys: packet.push(&keys),
            heads: segments(packet.push(&tables.heads)),
            losses: segments(packet.push(&tables.losses)),
            targets: packet.push(&tables.targets),
            add,
            adds: tables.add.contains(&1),
            weights,
            biases: matmul::Segments { offsets: packet.push(&tables.bias_offsets), ..weights },
            outputs: parts.iter().map(|part| network.spec.heads[part.task].outputs).max().unwrap_or(0),
        }
    }

    /// Adds all groups: losses, and with `backward` private gradients. Groups take the lanes in turn; one that adds to an
    /// earlier micro-batch's gradients follows it.
    pub(super) fn add_pass(&self, program: &mut Program, work: &Work, packed: &Packed, backward: bool) {
        let streams = &self.streams;
        let [first, second] = streams.lanes;
        let mut sections = packed.packet.sections.iter();
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
            let place = Place { stream, lane: &self.lanes[lane], group, packed };
            self.add_forward(program, work, &place);
            if backward {
                self.add_backward(program, work, &place);
            }
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

    fn add_forward(&self, program: &mut Program, work: &Work, place: &Place) {
        let Place { stream, lane, group, packed } = *place;
        let (network, encoder) = (work.network, &work.network.spec.encoder);
        let (width, inputs) = (encoder.hidden, encoder.inputs());
        let x = place.input();
        if let Some(rows) = &packed.rows {
            program.launch(stream, rows::embedding_bag_forward(x, 0, rows.bags, group.base, group.rows));
        }
        let bias = network.table.shared[1].offset as Address;
        program.launch(
            stream,
            matmul::forward(matmul::Forward {
                out: lane.hidden,
                pre: lane.pre,
                x,
                weight: self.weight.at,
                bias: self.shared.state.values + 4 * bias,
                residual: if encoder.residual { x } else { 0 },
                residual_columns: if encoder.residual { inputs } else { 0 },
                m: group.rows,
                n: width,
                k: inputs,
                activation: encoder.activation,
            }),
        );
        place.dropout(program, work, lane.hidden);
        program.launch(stream, heads::forward(lane.logits, lane.hidden, self.heads.state.values, group.heads, width));
        let smoothing = network.label_smoothing;
        let losses = heads::loss_rows(lane.dlogits, lane.row_losses, lane.logits, group.targets, group.losses, smoothing, 0);
        program.launch(stream, losses);
        program.launch(stream, heads::loss_sums(self.results.at, lane.row_losses, group.losses, group.add));
    }

    fn add_backward(&self, program: &mut Program, work: &Work, place: &Place) {
        let Place { stream, lane, group, .. } = *place;
        let encoder = &work.network.spec.encoder;
        let (width, inputs, x) = (encoder.hidden, encoder.inputs(), place.input());
        let weights = heads::weight(self.head_gradients, lane.dlogits, lane.hidden, group.heads, group.add, width, group.outputs);
        program.launch(stream, weights);
        program.launch(stream, heads::input(lane.dhidden, lane.dlogits, self.heads.state.values, group.heads, width));
        place.dropout(program, work, lane.dhidden);
        if lane.shortcut != 0 {
            program.push(Step::Copy { stream, to: lane.shortcut, from: lane.dhidden, bytes: 2 * group.rows * pitch(width) });
        }
        if encoder.activation != Activation::None {
            let (rows, activation) = (group.rows, encoder.activation);
            program.launch(stream, elementwise::activation_backward(lane.dhidden, lane.pre, rows, width, activation));
        }
        program.launch(stream, matmul::weight(self.jacobian, lane.dhidden, x, group.weights, width, inputs));
        program.launch(stream, matmul::bias(self.jacobian, lane.dhidden, group.biases, width));
        let Some(table) = &self.table else { return };
        program.launch(
            stream,
            matmul::input(matmul::Input {
                out: 0,
                out_wide: table.dinput + 4 * (group.base * pitch(inputs)) as Address,
                dout: lane.dhidden,
                weight: self.weight.at,
                pre: 0,
                residual: lane.shortcut,
                residual_columns: if lane.shortcut != 0 { width } else { 0 },
                m: group.rows,
                n: inputs,
                k: width,
                activation: Activation::None,
            }),
        );
    }
}

/// Where a group is computed.
struct Place<'a> {
    stream: StreamId,
    lane: &'a Lane,
    group: &'a Group,
    packed: &'a Packed,
}

impl Place<'_> {
    /// (rows x inputs) bf16
    fn input(&self) -> Address {
        if self.packed.rows.is_some() { self.lane.input } else { self.group.features }
    }

    fn dropout(&self, program: &mut Program, work: &Work, x: Address) {
        let encoder = &work.network.spec.encoder;
        if encoder.dropout > 0.0 {
            let (at, rows) = ([x, self.group.keys, self.packed.round], self.group.rows);
            let seed = work.random.seed;
            program.launch(self.stream, elementwise::dropout(at, rows, encoder.hidden, encoder.dropout, seed));
        }
    }
}

/// Rows of `columns` in bf16, [`pitch`] apart.
fn narrow_rows(values: &[f32], columns: usize) -> Vec<u16> {
    let mut narrow = Vec::with_capacity(values.len() / columns.max(1) * pitch(columns));
    for row in values.chunks_exact(columns.max(1)) {
        narrow.extend(row.iter().map(|&x| to_bf16(x)));
        narrow.resize(pitch(narrow.len()), 0);
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
