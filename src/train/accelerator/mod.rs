//! A run's parameters, gradients and activations on a device, and the launches of a round.
//!
//! The `linear` and the `bag` encoder; bf16 activations and copies of the weights, f32 parameters, moments and rows of J. All
//! memory is allocated before round 0. The host waits for the device once a round, when it reads losses and products of
//! gradients. Three streams: two lanes that fused groups take in turn, and one for copies, so that a group's inputs travel
//! while the one before computes; events order them.

mod lane;
mod pass;
mod program;
mod rows;
mod solve;
mod transfer;
mod update_step;
mod upload;

use anyhow::Result;

use crate::device::driver::{Address, DeviceError, Driver, EventId, Priority, StagingId, StreamId};
use crate::model::Start;
use crate::model::network::{Limits, Network};
use crate::model::spec::{EncoderSpec, Param};
use crate::ops::launch::surgery::{Chunks, ChunksOnDevice, Columns, State};
use crate::ops::launch::{Launch, elementwise, pitch};
use crate::surgery::blocks::Blocks;
use lane::Lane;
use pass::Packed;
use program::Graphs;
use rows::TableOnDevice;
use solve::Solver;
use upload::{StagingBuffer, Upload};

/// Parameter groups: shared with and without decay, heads with and without, the embedding table.
const GROUPS: usize = 5;
const TABLE_GROUP: usize = 4;

/// Pinned memory that parameters and moments go through, piece by piece.
const STAGING_BYTES: usize = 16 << 20;

pub struct Accelerator {
    driver: Box<dyn Driver>,
    streams: Streams,
    graphs: Graphs,
    shared: Dense,
    weight: Weight,
    heads: Dense,
    table: Option<TableOnDevice>,
    /// (present tasks x stride) f32
    jacobian: Address,
    stride: usize,
    head_gradients: Address,
    lanes: Vec<Lane>,
    results: Results,
    solver: Solver,
    /// What a round begins with, and what its step needs.
    batches: StagingBuffer,
    steps: StagingBuffer,
    cut: Cut,
    /// The round whose gradients lie here.
    packed: Option<Packed>,
    /// What the host read of it.
    read: Vec<f64>,
    staging: StagingId,
    staging_bytes: usize,
}

/// In-order queues and the events between them.
struct Streams {
    lanes: [StreamId; 2],
    copies: StreamId,
    /// Everything before this round is done.
    fork: EventId,
    arrived: EventId,
    /// By lane: its groups so far are done.
    done: [EventId; 2],
}

/// Parameters of one space with their moments, f32.
struct Dense {
    state: State,
    len: usize,
}

/// The bf16 copy of the encoder's weight (rows x columns), which products read; the weight is the first of the shared parameters.
struct Weight {
    at: Address,
    rows: usize,
    columns: usize,
}

impl Weight {
    /// `shared`: number of shared parameters.
    fn new(device: &mut dyn Driver, encoder: &EncoderSpec, shared: usize) -> Result<Self, DeviceError> {
        let (rows, columns) = (encoder.hidden, encoder.inputs());
        let values = shared.max(rows * pitch(columns));
        Ok(Self { at: device.allocate("encoder: parameters in bf16", 2 * values)?, rows, columns })
    }

    /// Where the update itself writes the copy: null where its rows are padded, so that they do not lie as the parameters do.
    fn of_update(&self) -> Address {
        if pitch(self.columns) == self.columns { self.at } else { 0 }
    }

    fn narrow(&self, values: Address) -> Launch {
        elementwise::to_bf16(self.at, values, self.rows, self.columns)
    }
}

/// How the columns of J are cut for the kernels.
struct Cut {
    gram: ChunksOnDevice,
    update: ChunksOnDevice,
    /// (blocks + 1) bounds of each block's partial products; without a table, whose partials differ from round to round.
    starts: Vec<u32>,
    blocks: usize,
    /// Sets of weights.
    sets: usize,
    /// The set that the embedding table takes.
    table_set: usize,
}

/// What the host reads after a round, all f64: T loss sums, T squares of head gradients, T balancing and task clipping,
/// 4 of summary, sets x T weights, then the Gram matrices of all blocks and of their sum.
struct Results {
    at: Address,
    bytes: usize,
    /// T, most tasks present.
    tasks: usize,
    sets: usize,
    partials: Address,
    cosines: Address,
    conflicts: Address,
    staging: StagingId,
}

impl Results {
    fn squares(&self) -> usize {
        self.tasks
    }

    fn factors(&self) -> usize {
        2 * self.tasks
    }

    fn summary(&self) -> usize {
        3 * self.tasks
    }

    fn weights(&self) -> usize {
        3 * self.tasks + 4
    }

    fn grams(&self) -> usize {
        self.weights() + self.sets * self.tasks
    }

    fn address(&self, value: usize) -> Address {
        self.at + 8 * value as Address
    }
}

impl Accelerator {
    /// Allocates everything for `network`, whose encoder is `linear` or `bag`.
    pub fn new(
        mut driver: Box<dyn Driver>,
        network: &Network,
        blocks: &Blocks,
        limits: &Limits,
        start: &Start,
    ) -> Result<Self, DeviceError> {
        let device = &mut *driver;
        let streams = Streams::new(device)?;
        let present = limits.present.max(1);
        let mut shared = Dense::new(device, "encoder", network.table.shared_len(), start.second_moment)?;
        let weight = Weight::new(device, &network.spec.encoder, shared.len)?;
        shared.state.copy = weight.of_update();
        let heads = Dense::new(device, "heads", network.table.heads_len(), start.second_moment)?;
        let table = match network.spec.encoder.table() {
            Some(spec) => Some(TableOnDevice::new(device, spec, limits, start)?),
            None => None,
        };
        let stride = shared.len.next_multiple_of(64);
        let jacobian = device.allocate("jacobian: dense", 4 * present * stride)?;
        let head_gradients = device.allocate("heads: gradients", 4 * heads.len)?;
        // More rows in a round than in a group: there are several groups, which can overlap.
        let lanes = if limits.round_rows > limits.group_rows { 2 } else { 1 };
        let lanes = (0..lanes).map(|number| Lane::new(device, number, network, limits)).collect::<Result<_, _>>()?;
        let cut = Cut::new(device, streams.lanes[0], network, blocks)?;
        let partials = cut.gram.count + table.as_ref().map_or(0, |_| TableOnDevice::partials(limits));
        let results = Results::new(device, present, &cut, partials)?;
        let solver = Solver::new(device, network.spec.heads.len(), present, cut.sets)?;
        let batches = StagingBuffer::new(device, "a round's examples", batch_bytes(network, limits))?;
        let steps = StagingBuffer::new(device, "a round's step", step_bytes(network, present, &cut))?;
        let largest = [shared.len, heads.len, table.as_ref().map_or(0, |table| table.capacity * table.dim)];
        let staging_bytes = (4 * largest.into_iter().max().unwrap_or(0)).clamp(64, STAGING_BYTES);
        let staging = device.staging(staging_bytes)?;
        Ok(Self {
            driver,
            streams,
            graphs: Graphs::default(),
            shared,
            weight,
            heads,
            table,
            jacobian,
            stride,
            head_gradients,
            lanes,
            results,
            solver,
            batches,
            steps,
            cut,
            packed: None,
            read: Vec::new(),
            staging,
            staging_bytes,
        })
    }

    /// What the device is called.
    pub fn name(&self) -> String {
        self.driver.name()
    }

    /// Stages of rounds that ran as a captured graph.
    pub fn replays(&self) -> u64 {
        self.graphs.replays
    }
}

impl Streams {
    fn new(device: &mut dyn Driver) -> Result<Self, DeviceError> {
        let lanes = [device.stream(Priority::Low)?, device.stream(Priority::Low)?];
        let copies = device.stream(Priority::High)?;
        let done = [device.event()?, device.event()?];
        Ok(Self { lanes, copies, fork: device.event()?, arrived: device.event()?, done })
    }
}

impl Dense {
    fn new(device: &mut dyn Driver, name: &str, len: usize, second_moment: bool) -> Result<Self, DeviceError> {
        let mut buffer = |what: &str, bytes: usize| device.allocate(&format!("{name}: {what}"), bytes);
        let state = State {
            values: buffer("parameters", 4 * len)?,
            first: buffer("first moment", 4 * len)?,
            second: if second_moment { buffer("second moment", 4 * len)? } else { 0 },
            copy: 0,
        };
        Ok(Self { state, len })
    }
}

impl Results {
    fn new(device: &mut dyn Driver, tasks: usize, cut: &Cut, partials: usize) -> Result<Self, DeviceError> {
        let gram = 8 * tasks * tasks;
        let sets = cut.sets;
        let bytes = 8 * (3 * tasks + 4 + sets * tasks) + (cut.blocks + 1) * gram;
        Ok(Self {
            at: device.allocate("losses and products of gradients", bytes)?,
            bytes,
            tasks,
            sets,
            partials: device.allocate("partial products", partials * gram)?,
            cosines: device.allocate("cosines", (cut.blocks + 1) * gram)?,
            conflicts: device.allocate("conflicts", 4 * (cut.blocks + 1))?,
            staging: device.staging(bytes)?,
        })
    }
}

impl Cut {
    fn new(device: &mut dyn Driver, stream: StreamId, network: &Network, blocks: &Blocks) -> Result<Self, DeviceError> {
        let (gram, update) = (gram_chunks(network, blocks), update_chunks(network, blocks));
        let words = |chunks: &Chunks| 20 * chunks.len() + 64;
        let constants = StagingBuffer::new(device, "chunks", words(&gram) + words(&update))?;
        let mut upload = constants.upload();
        let [on_gram, on_update] = [&gram, &update].map(|chunks| push_chunks(&mut upload, chunks));
        upload.close();
        constants.fill(device, &upload)?;
        let mut program = program::Program::default();
        upload.sections.iter().for_each(|section| program.push(constants.send(stream, section)));
        Graphs::default().execute(device, stream, program)?;
        device.synchronize(stream)?;
        Ok(Self {
            gram: on_gram,
            update: on_update,
            starts: gram.starts(blocks.count() as u32),
            blocks: blocks.count(),
            sets: blocks.sets(),
            table_set: blocks.table.map_or(0, |block| blocks.set_of(block)),
        })
    }
}

fn columns(range: std::ops::Range<usize>, block: usize, group: usize) -> Columns {
    Columns { columns: range.start as u64..range.end as u64, block: block as u32, group: group as u32 }
}

fn gram_chunks(network: &Network, blocks: &Blocks) -> Chunks {
    let ranges = blocks.ranges.iter().enumerate().map(|(block, range)| columns(range.clone(), block, 0));
    Chunks::new(&ranges.collect::<Vec<_>>(), Chunks::gram_length(network.table.shared_len() as u64))
}

/// A chunk's block is its set of weights.
fn update_chunks(network: &Network, blocks: &Blocks) -> Chunks {
    let own = |param: &Param| columns(param.range(), blocks.set_of(blocks.of_column(param.offset)), usize::from(!param.decay));
    Chunks::new(&network.table.shared.iter().map(own).collect::<Vec<_>>(), Chunks::UPDATE_LENGTH)
}

fn push_chunks(upload: &mut Upload, chunks: &Chunks) -> ChunksOnDevice {
    ChunksOnDevice {
        count: chunks.len(),
        firsts: upload.push(&chunks.firsts),
        lengths: upload.push(&chunks.lengths),
        blocks: upload.push(&chunks.blocks),
        groups: upload.push(&chunks.groups),
    }
}

/// A row brings its input, its key and its targets, and at worst a part of its own with all its tables.
fn batch_bytes(network: &Network, limits: &Limits) -> usize {
    let encoder = &network.spec.encoder;
    let widest = network.spec.heads.iter().map(|head| head.outputs).max().unwrap_or(0);
    let (input, rows) = match encoder.bag() {
        None => (2 * pitch(encoder.inputs()), 0),
        Some(_) => (0, TableOnDevice::packet_bytes(limits)),
    };
    4096 + limits.round_rows * (input + 8 + 4 * widest + 320) + rows
}

/// Rates, weights, orders of visits, and the chunks of the heads.
fn step_bytes(network: &Network, present: usize, cut: &Cut) -> usize {
    let chunks = network.table.heads_len() / Chunks::UPDATE_LENGTH as usize + network.table.heads.len();
    4096 + 4 * cut.sets * present * (present + 1) + 72 * present + 20 * chunks + 4 * (cut.blocks + 2)
}
