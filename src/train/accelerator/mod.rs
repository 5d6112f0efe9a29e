//! A run's parameters, gradients and activations on a device, and the launches of a round.
//!
//! bf16 activations and copies of the weights, f32 parameters and moments, rows of J in either. All memory is allocated before round 0.
//! The host waits for the device once a round, when it reads losses and products of gradients, or twice where a method or a single row of J
//! asks for more; where the device solves by itself and the next round is certain, that one was given before ([`flight`]). Three streams: two
//! lanes that fused groups take in turn, and one for copies, so that a group's inputs travel while the one before computes; events order
//! them.

mod buffers;
mod data;
mod executor;
mod flight;
mod forward;
mod inference;
mod lane;
mod parameters;
mod pass;
mod prepared;
mod profile;
mod program;
mod resident;
mod results;
mod rows;
mod snapshot;
mod solve;
mod states;
mod timers;
mod transfer;
mod update_step;
mod upload;

use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Instant;

use anyhow::Result;

use crate::machine::driver::{Card, DeviceError, Driver, EventId, Priority, StreamId};
use crate::machine::tensor::{DType, Tensor, pitch};
use crate::model::encoders::{Input, Weights};
use crate::model::network::{Keep, Limits, Network};
use crate::model::{Parameters, Start};
use crate::ops::chunks::Chunks;
use crate::ops::gram::Cut;
use crate::ops::row_index::RowLists;
use crate::ops::storage::Storage;
use crate::surgery::blocks::Blocks;
use crate::surgery::update::Rates;
use crate::train::ahead::Packed as PackedBatch;
use crate::train::quanta::RoundTimes;
use buffers::BuffersOnDevice;
use data::DataOnDevice;
pub use executor::{DeviceLanes, Passes};
use flight::Flight;
use forward::Forward;
pub use inference::Inference;
use lane::Lane;
use parameters::ParametersOnDevice;
use pass::Packed;
pub use prepared::Prepared;
pub use profile::OpTime;
pub use program::Counts;
use program::Graphs;
use resident::Resident;
use results::Results;
use rows::{TableOnDevice, Touched};
use snapshot::SnapshotOnDevice;
use solve::Solver;
pub use solve::SolverRoom;
pub use states::FIRST_STATE;
use timers::Timers;
use transfer::Pieces;
use upload::StagingBuffer;

pub struct Accelerator {
    driver: Box<dyn Driver>,
    card: Card,
    streams: Streams,
    graphs: Graphs,
    parameters: ParametersOnDevice,
    table: Option<TableOnDevice>,
    touched: Touched,
    /// The training examples, where they lie here for the whole run.
    data: Option<DataOnDevice>,
    /// (rows x hidden) bf16 what a transformer's frozen prefix makes of the texts, or none.
    states: Tensor,
    /// Rows of the table may have a slot of which the host does not know.
    gave_slots: bool,
    keep: Keep,
    /// (rows of J x P) f32 or bf16
    jacobian: Tensor,
    /// f32, as the heads' values.
    head_gradients: Tensor,
    lanes: Vec<Lane>,
    results: Results,
    /// Of a surgery method that the device solves by itself.
    solver: Option<Solver>,
    /// What a round begins with: one is laid out while the other's round is computed.
    batches: [StagingBuffer; 2],
    /// Which of them holds the round's batch.
    buffer: usize,
    /// What the step of either needs.
    steps: [StagingBuffer; 2],
    /// Tables that are the same in every round.
    resident: Resident,
    /// The round whose gradients lie here, or the rounds that are computed together.
    packed: Option<Packed>,
    /// Of this round's batch, if it was made before.
    prepared: Option<Prepared>,
    /// From where the next round's batch comes, and the batch once it is there.
    coming: Option<Receiver<PackedBatch>>,
    next: Option<PackedBatch>,
    /// Rates of the next round, if it is certain to follow where this one commits.
    certain: Option<Rates>,
    /// The next round, if it has been given to the device.
    flight: Option<Flight>,
    /// A step was given to the device since the host waited for it last.
    stepping: bool,
    /// What the host read of it.
    read: Vec<f64>,
    timers: Timers,
    /// Of a round that was stepped and timed, until they are asked for.
    times: Option<RoundTimes>,
    /// Batches that are evaluated.
    forward: Forward,
    /// A copy that is evaluated while training goes on, where it is.
    snapshot: Option<SnapshotOnDevice>,
    /// Those of a surgery method that keeps some.
    buffers: Option<BuffersOnDevice>,
    pieces: Pieces,
}

/// What a forward pass reads of the parameters.
#[derive(Clone, Copy)]
struct Readable {
    weights: Weights,
    /// (slots x dim), or none.
    table: Tensor,
    /// (rows x hidden) what is kept of a transformer's frozen prefix, or none.
    states: Tensor,
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

impl Accelerator {
    /// Allocates everything for `network`. Gradients that are computed together may be committed `apart`.
    pub fn new(
        mut driver: Box<dyn Driver>,
        network: &Network,
        blocks: &Blocks,
        keep: Keep,
        apart: bool,
        limits: &Limits,
        start: &Start,
    ) -> Result<Self> {
        let device = &mut *driver;
        let streams = Streams::new(device)?;
        let (present, batches_per_round) = (limits.present.max(1), keep.batches);
        let rows_of_j = keep.rows(present);
        let parameters = ParametersOnDevice::new(device, network, start)?;
        let ParametersOnDevice { shared, heads, .. } = parameters;
        let table = match network.spec.encoder.table() {
            Some(_) => Some(TableOnDevice::new(device, network, batches_per_round, limits, start, parameters.weights.words)?),
            None => None,
        };
        let data = DataOnDevice::new(device, network, table.as_ref(), batches_per_round, limits, start)?;
        let states = states::room(device, streams.lanes[0], network, limits)?;
        let stride = shared.values.columns.next_multiple_of(64);
        let (name, dtype) = match keep.storage() {
            Storage::F32 => ("jacobian: dense", DType::F32),
            Storage::Bf16 => ("jacobian: dense, bf16", DType::Bf16),
        };
        let at = device.allocate(name, dtype.bytes() * rows_of_j * stride)?;
        let jacobian = Tensor { at, rows: rows_of_j, ld: stride, dtype, ..shared.values };
        let head_gradients = parameters::row(device, "heads: gradients", heads.values.columns)?;
        // More rows in a round than in a group: there are several groups, which can overlap unless all add to one row.
        let lanes = if limits.round_rows > limits.group_rows && keep.stored { 2 } else { 1 };
        let lanes: Vec<Lane> =
            (0..lanes).map(|number| Lane::new(device, streams.lanes[0], number, network, limits)).collect::<Result<_>>()?;
        let partials = gram_cut(blocks).chunks.len()
            + table.as_ref().map_or(0, |_| TableOnDevice::partials(network, batches_per_round, limits));
        let forward = Forward::new(device, streams.lanes[0], &lanes[0], network, limits)?;
        let results = Results::new(device, present, batches_per_round, blocks, partials)?;
        let bytes = batch_bytes(network, blocks, batches_per_round, limits);
        let mut examples = |name| StagingBuffer::new(device, name, bytes);
        let batches = [examples("a round's examples")?, examples("the next round's examples")?];
        // Of all rows that are touched together, the batch has the lists.
        let lists = if apart && table.is_some() { TableOnDevice::table_bytes(network, batches_per_round, limits) } else { 0 };
        let bytes = step_bytes(network, present * batches_per_round, blocks.sets()) + lists;
        let mut step = |name| StagingBuffer::new(device, name, bytes);
        let steps = [step("a round's step")?, step("the next round's step")?];
        let resident = Resident::new(device, streams.lanes[0], network, blocks)?;
        let in_table = table.as_ref().map_or(0, |table| table.state.values.rows * table.state.values.columns);
        let largest = [shared.values.columns, heads.values.columns, in_table];
        let pieces = Pieces::new(device, streams.lanes[0], &largest)?;
        Ok(Self {
            card: driver.card(),
            driver,
            streams,
            graphs: Graphs::default(),
            parameters,
            table,
            touched: Touched::default(),
            data,
            states,
            gave_slots: false,
            keep,
            jacobian,
            head_gradients,
            lanes,
            results,
            solver: None,
            batches,
            buffer: 0,
            steps,
            resident,
            packed: None,
            prepared: None,
            coming: None,
            next: None,
            certain: None,
            flight: None,
            stepping: false,
            read: Vec::new(),
            timers: Timers::default(),
            times: None,
            forward,
            snapshot: None,
            buffers: None,
            pieces,
        })
    }

    fn readable(&self) -> Readable {
        let table = self.table.as_ref().map_or(Tensor::NONE, |table| table.state.values);
        Readable { weights: self.parameters.weights, table, states: self.states }
    }

    /// The embedding table, where it is trained.
    fn trained_table(&self) -> Option<&TableOnDevice> {
        self.table.as_ref().filter(|table| table.trained)
    }

    /// Whether the training examples lie on the device: their inputs are not packed then.
    pub fn holds_data(&self) -> bool {
        self.data.is_some()
    }

    /// Lists of the rows that the device found.
    fn found(&self) -> Option<&RowLists> {
        self.data.as_ref()?.lists()
    }

    /// Takes what was made of the round's batch beforehand, if anything was.
    pub fn prepare(&mut self, prepared: Option<Prepared>, parameters: &mut Parameters) {
        if let Some(before) = &mut std::mem::replace(&mut self.prepared, prepared) {
            Self::undo_layout(before, parameters);
        }
    }

    /// From where the batch of the round after this one will come; it is laid out while this one is computed, and given to the device
    /// if it is `certain`, with these rates.
    pub fn expect(&mut self, coming: Option<Receiver<PackedBatch>>, certain: Option<Rates>) {
        (self.coming, self.certain) = (coming, certain);
    }

    /// The batch that was expected, if it is `wanted`; waits for it.
    pub fn expected(&mut self, wanted: bool, parameters: &mut Parameters) -> Option<PackedBatch> {
        assert!(wanted || self.flight.is_none(), "a round that the device was given is the next one");
        let (coming, mut next) = (self.coming.take(), self.next.take());
        if wanted {
            return next.or_else(|| coming?.recv().ok());
        }
        next.iter_mut().for_each(|next| Self::undo_layout(&mut next.prepared, parameters));
        None
    }

    /// No slot is given to rows that the round after this one touches first.
    pub fn forget_layouts(&mut self, parameters: &mut Parameters) {
        let waiting = self.prepared.iter_mut().chain(self.next.iter_mut().map(|next| &mut next.prepared));
        waiting.for_each(|prepared| Self::undo_layout(prepared, parameters));
    }

    /// What the device is called.
    pub fn name(&self) -> String {
        self.driver.name()
    }

    /// Streams that take fused groups.
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    pub fn counts(&self) -> Counts {
        self.graphs.counts
    }

    /// Waits for everything in a stream.
    fn wait(&mut self, stream: StreamId) -> Result<(), DeviceError> {
        let clock = Instant::now();
        let waited = self.driver.synchronize(stream);
        self.waited(clock);
        waited
    }

    /// Waits for what an event was recorded for, awake: a thread that sleeps hears of it late.
    fn wait_for(&mut self, event: EventId) -> Result<(), DeviceError> {
        let clock = Instant::now();
        while !self.driver.event_done(event)? {
            thread::yield_now();
        }
        self.waited(clock);
        Ok(())
    }

    fn waited(&mut self, since: Instant) {
        self.graphs.counts.host_waits += 1;
        self.graphs.counts.waiting += since.elapsed();
    }
}

impl Streams {
    fn new(device: &mut dyn Driver) -> Result<Self, DeviceError> {
        let lanes = [device.stream(Priority::Normal)?, device.stream(Priority::Normal)?];
        let copies = device.stream(Priority::Urgent)?;
        let done = [device.event()?, device.event()?];
        Ok(Self { lanes, copies, fork: device.event()?, arrived: device.event()?, done })
    }
}

fn gram_cut(blocks: &Blocks) -> Cut {
    Cut::new(&blocks.ranges, blocks.table)
}

/// Inputs, and what products of gradients need.
fn batch_bytes(network: &Network, blocks: &Blocks, batches: usize, limits: &Limits) -> usize {
    // Bounds of partial sums: twice, where dense gradients are added up in one row and embedding rows are not.
    input_bytes(network, batches, limits) + 16 * (blocks.count() + 3) + 16 * limits.present
}

/// A row brings its input, its key and its targets, and at worst a part of its own with all its tables.
fn input_bytes(network: &Network, batches: usize, limits: &Limits) -> usize {
    let encoder = &network.spec.encoder;
    let widest = network.spec.widest_head();
    let lists = encoder.table().map_or(0, |_| TableOnDevice::table_bytes(network, batches, limits));
    let features = if let Input::Features(columns) = encoder.reads() { 2 * pitch(columns) } else { 0 };
    let [input, own] = encoder.upload_bytes(limits);
    // What the shortest tables have.
    8192 + limits.round_rows.max(limits.group_rows) * (features + input + 8 + 4 * widest + 416) + own + lists
}

/// Rates, weights, orders of visits, and the chunks of the heads.
fn step_bytes(network: &Network, rows_of_j: usize, sets: usize) -> usize {
    let chunks = network.table.heads_len() / Chunks::UPDATE_LENGTH as usize + network.table.heads.len();
    4096 + 4 * sets * rows_of_j * (rows_of_j + 1) + 72 * rows_of_j + 20 * chunks
}
