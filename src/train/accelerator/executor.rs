//! A device's lanes as the dispatcher sees them: quanta that hang on nothing else run in streams of their own, at the same time, and are
//! over when the device says so.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::forward::lay_out;
use super::inference::copy_parameters;
use super::input_bytes;
use super::lane::Lane;
use super::program::{Graphs, Program};
use super::upload::StagingBuffer;
use crate::machine::driver::{DeviceError, Driver, EventId, Priority, StreamId};
use crate::machine::launch::Command;
use crate::model::Model;
use crate::model::network::{Batch, Limits};
use crate::schedule::Nanos;
use crate::schedule::executor::{Ended, Executor};
use crate::schedule::retry::Status;

/// A quantum: so many forward passes of the lanes' batch.
#[derive(Clone, Copy, Debug)]
pub struct Passes {
    pub count: u64,
    /// Others wait for it: it runs in a stream that the device serves first.
    pub urgent: bool,
    /// How it ends.
    pub status: Status,
}

/// Lanes that compute forward passes through one model, each in an arena of its own.
pub struct DeviceLanes {
    driver: Box<dyn Driver>,
    lanes: Vec<StreamLane>,
    graphs: Graphs,
    began: Instant,
    /// In the device's time.
    begin: EventId,
    failed: Option<DeviceError>,
}

/// What computes in one arena, in one of two streams at a time.
struct StreamLane {
    /// One pass.
    commands: Vec<Command>,
    /// For urgent quanta, and for others.
    streams: [StreamId; 2],
    /// Of the last quantum: its stream, begin and end.
    stream: StreamId,
    timers: [EventId; 2],
    in_flight: Option<Status>,
}

impl DeviceLanes {
    /// So many lanes for a batch within `limits`; waits until parameters and batch are there.
    ///
    /// # Errors
    /// Too little memory, or a device that is lost.
    pub fn new(mut driver: Box<dyn Driver>, model: &Model, batch: &Batch, limits: &Limits, lanes: usize) -> Result<Self> {
        let device = &mut *driver;
        let normal = device.stream(Priority::Normal)?;
        let (from, _) = copy_parameters(device, normal, model)?;
        let limits = limits.of_group();
        let mut own = Vec::with_capacity(lanes);
        for number in 0..lanes {
            let arena = Lane::new(device, normal, number, &model.network, &limits)?;
            let examples = StagingBuffer::new(device, "a batch's examples", input_bytes(&model.network, 1, &limits))?;
            let (commands, inputs) = lay_out(device, &examples, &arena, from, model, batch, |tape, group| {
                model.network.emit_forward(tape, group, None);
            })?;
            let streams = [device.stream(Priority::Urgent)?, device.stream(Priority::Normal)?];
            let mut program = Program::default();
            program.push(examples.send(streams[1], &inputs));
            program.run(streams[1], &commands);
            Graphs::default().execute(device, streams[1], program)?;
            let timers = [device.timer()?, device.timer()?];
            // A quantum in the other stream follows this.
            device.record(timers[1], streams[1])?;
            device.synchronize(streams[1])?;
            own.push(StreamLane { commands, streams, stream: streams[1], timers, in_flight: None });
        }
        let begin = device.timer()?;
        device.record(begin, normal)?;
        device.synchronize(normal)?;
        Ok(Self { driver, lanes: own, graphs: Graphs::default(), began: Instant::now(), begin, failed: None })
    }

    /// Mean time of so many passes one after the other in the first lane, which is idle.
    ///
    /// # Errors
    /// As [`DeviceLanes::check`].
    pub fn time_of_a_pass(&mut self, count: u64) -> Result<Duration> {
        self.submit(0, Passes { count, urgent: false, status: Status::Ok });
        let cost = self.wait(None).map_or(0, |ended| ended.cost);
        self.check()?;
        Ok(Duration::from_nanos(cost / count.max(1)))
    }

    /// An error if a quantum could not be computed: it ended as one that crashed.
    pub fn check(&mut self) -> Result<()> {
        self.failed.take().map_or(Ok(()), |error| Err(error.into()))
    }

    fn begin(&mut self, number: usize, Passes { count, urgent, .. }: Passes) -> Result<(), DeviceError> {
        let Self { driver, lanes, graphs, .. } = self;
        let (driver, lane) = (&mut **driver, &mut lanes[number]);
        let stream = lane.streams[usize::from(!urgent)];
        if stream != lane.stream {
            driver.wait(stream, lane.timers[1])?;
        }
        lane.stream = stream;
        driver.record(lane.timers[0], stream)?;
        for _ in 0..count {
            let mut program = Program::default();
            program.run(stream, &lane.commands);
            graphs.execute(driver, stream, program)?;
        }
        driver.record(lane.timers[1], stream)
    }

    /// The quantum that ended first of those that are over.
    fn over(&mut self) -> Result<Option<Ended>, DeviceError> {
        let mut first: Option<(Duration, usize)> = None;
        for (number, lane) in self.lanes.iter().enumerate().filter(|(_, lane)| lane.in_flight.is_some()) {
            if self.driver.event_done(lane.timers[1])? {
                let end = self.driver.elapsed(self.begin, lane.timers[1])?;
                first = Some(first.map_or((end, number), |before| before.min((end, number))));
            }
        }
        let Some((_, number)) = first else { return Ok(None) };
        let lane = &mut self.lanes[number];
        let cost = self.driver.elapsed(lane.timers[0], lane.timers[1])?.as_nanos() as Nanos;
        Ok(lane.in_flight.take().map(|status| Ended { lane: number, cost, status }))
    }

    /// Some quantum in flight, ended by an error.
    fn crash(&mut self, error: DeviceError) -> Option<Ended> {
        self.failed.get_or_insert(error);
        let (number, lane) = self.lanes.iter_mut().enumerate().find(|(_, lane)| lane.in_flight.is_some())?;
        lane.in_flight = None;
        Some(Ended { lane: number, cost: 0, status: Status::Crashed })
    }
}

/// A quantum that the device refuses ends as one that crashed; [`DeviceLanes::check`] has the error.
impl Executor for DeviceLanes {
    type Work = Passes;

    fn now(&self) -> Nanos {
        self.began.elapsed().as_nanos() as Nanos
    }

    fn submit(&mut self, lane: usize, work: Passes) {
        self.lanes[lane].in_flight = Some(work.status);
        if let Err(error) = self.begin(lane, work) {
            self.failed.get_or_insert(error);
        }
    }

    fn wait(&mut self, until: Option<Nanos>) -> Option<Ended> {
        if self.lanes.iter().all(|lane| lane.in_flight.is_none()) {
            let left = until.map(|until| Duration::from_nanos(until.saturating_sub(self.now())));
            left.into_iter().for_each(thread::sleep);
            return None;
        }
        loop {
            let over = match self.failed.clone() {
                Some(error) => Err(error),
                None => self.over(),
            };
            match over {
                Ok(Some(ended)) => return Some(ended),
                Ok(None) if until.is_some_and(|until| self.now() >= until) => return None,
                Ok(None) => thread::yield_now(),
                Err(error) => return self.crash(error),
            }
        }
    }
}
