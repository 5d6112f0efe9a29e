//! Evaluation on a device: between rounds by what training uses, or beside them by a copy of the parameters, with a stream and an arena
//! of its own, so that rounds and batches of the evaluation are computed at the same time.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::forward::Place;
use super::lane::Lane;
use super::program::Program;
use super::transfer::{Pieces, rows_of};
use super::{Accelerator, Readable};
use crate::machine::driver::{DeviceError, EventId, Priority, StreamId};
use crate::machine::tensor::Tensor;
use crate::model::encoders::{Values, Weights};
use crate::model::network::{Batch, Limits, Network, TokenRoom};
use crate::model::{Model, Parameters};

/// A copy of the parameters that is evaluated while training goes on.
pub(super) struct SnapshotOnDevice {
    from: Readable,
    lane: Lane,
    stream: StreamId,
    /// The copy is there.
    taken: EventId,
}

impl Accelerator {
    /// With room for a copy of the parameters, and a lane that evaluates it.
    pub fn with_snapshot(mut self, network: &Network, limits: &Limits) -> Result<Self> {
        let Readable { weights, table, states } = self.readable();
        let mut copy = |name: &str, own: Tensor| {
            let bytes = own.rows * own.ld * own.dtype.bytes();
            if bytes == 0 {
                return Ok(own);
            }
            let at = self.driver.allocate(&format!("evaluation's copy of {name}"), bytes)?;
            Ok::<_, DeviceError>(Tensor { at, ..own })
        };
        let shared = Values {
            narrow: copy("encoder: parameters in bf16", weights.shared.narrow)?,
            wide: copy("encoder: parameters", weights.shared.wide)?,
        };
        let heads = copy("heads: parameters", weights.heads)?;
        let mlm_layers = copy("heads: layers of mlm in bf16", weights.mlm_layers)?;
        let words = copy("embeddings: parameters in bf16", weights.words)?;
        let table = copy("embeddings: parameters", table)?;
        let from = Readable { weights: Weights { shared, heads, mlm_layers, words, ..weights }, table, states };
        let device = &mut *self.driver;
        let stream = device.stream(Priority::Background)?;
        let lane = Lane::new(device, stream, self.lanes.len(), network, &limits.of_group())?;
        self.forward.compute_in(stream);
        self.snapshot = Some(SnapshotOnDevice { from, lane, stream, taken: device.event()? });
        Ok(self)
    }

    /// Copies parameters to where a snapshot is evaluated while training goes on. No batch of the one before is under way.
    pub fn load_snapshot(&mut self, parameters: &Parameters) -> Result<(), DeviceError> {
        let Some(SnapshotOnDevice { from: to, .. }) = &self.snapshot else { return Ok(()) };
        self.pieces.load(&mut *self.driver, &self.parameters, to, parameters)?;
        self.evaluate_from_here()
    }

    /// As [`Accelerator::load_snapshot`], of the parameters as they are here now. The host knows the slots of `parameters`' rows.
    pub fn take_snapshot(&mut self, parameters: &Parameters) -> Result<(), DeviceError> {
        let Some(SnapshotOnDevice { from: to, .. }) = &self.snapshot else { return Ok(()) };
        let (from, stream, driver) = (self.readable(), self.streams.lanes[0], &mut *self.driver);
        let table = rows_of(parameters) * from.table.columns;
        let dense = |own: Tensor| own.rows * own.columns;
        for (to, from, count) in [
            (to.weights.shared.wide, from.weights.shared.wide, dense(from.weights.shared.wide)),
            (to.weights.heads, from.weights.heads, dense(from.weights.heads)),
            (to.table, from.table, table),
        ] {
            if count > 0 {
                driver.copy(stream, to.at, from.at, 4 * count)?;
            }
        }
        let mut program = Program::default();
        self.parameters.narrow(to, rows_of(parameters)).into_iter().for_each(|launch| program.launch(stream, launch));
        self.graphs.execute(driver, stream, program)?;
        self.evaluate_from_here()
    }

    /// Batches that are submitted from here on follow what the first lane was given so far.
    fn evaluate_from_here(&mut self) -> Result<(), DeviceError> {
        let Some(SnapshotOnDevice { stream, taken, .. }) = &self.snapshot else { return Ok(()) };
        self.driver.record(*taken, self.streams.lanes[0])?;
        self.driver.wait(*stream, *taken)
    }

    /// Whether batches are evaluated beside training, in a lane of their own.
    pub fn evaluates_beside(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Gives a batch without training to the device. Its logits are those of the parameters that [`Accelerator::load_snapshot`]
    /// copied, where there is room for them: the model then is the snapshot.
    pub fn submit(&mut self, model: &Model, batch: &Batch) -> Result<(), DeviceError> {
        let trained = self.readable();
        let Self { driver, lanes, snapshot, forward, pieces, .. } = self;
        forward.submit(&mut **driver, place(snapshot, lanes, pieces, trained), model, batch)
    }

    /// Logits of the oldest batch that was submitted, part after part; waits for them.
    pub fn collect(&mut self) -> Result<&[f32], DeviceError> {
        let trained = self.readable();
        let Self { driver, lanes, snapshot, forward, pieces, .. } = self;
        forward.collect(&mut **driver, place(snapshot, lanes, pieces, trained))
    }

    /// Batches that may be under way while the host goes on.
    pub fn most_under_way(&self) -> usize {
        self.forward.most_under_way()
    }

    /// What a batch of [`Accelerator::submit`] may have, where the encoder reads tokens.
    pub fn token_room(&self) -> Option<TokenRoom> {
        self.lanes[0].at.token_room()
    }

    /// When batches of an evaluation began, and how long they took: those that were collected since this was asked last, where quanta are
    /// timed.
    pub fn evaluated(&mut self) -> Vec<(Instant, Duration)> {
        self.forward.spans()
    }
}

fn place<'a>(snapshot: &'a Option<SnapshotOnDevice>, lanes: &'a [Lane], pieces: &'a Pieces, trained: Readable) -> Place<'a> {
    let (lane, from) = snapshot.as_ref().map_or((&lanes[0], trained), |own| (&own.lane, own.from));
    Place { lane, pieces, from }
}
