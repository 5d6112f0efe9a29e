//! The emulated device as a driver: streams are queues, and what is unordered between them runs in a seeded order.
//!
//! Each operation carries a vector clock, from which the check knows whether an event puts one operation before another: a
//! missing event is a fault whatever order the seed happened to choose.
//!
//! Time is virtual: an operation begins when those before it in its stream and the events that it waits for are over, and takes
//! as long as [`Work::nanos`] says, whatever else runs. So times do not depend on the seed, and what two streams do without
//! waiting for each other overlaps.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::clock::Clock;
use super::kernels::{self, Kernel};
use super::machine::{Launch, Machine, Moment, ThreadOrder};
use super::streams::{Event, Queued, Stream, Work};
use crate::machine::driver::{
    Address, Card, DeviceError, Driver, EventId, GraphId, MemoryInfo, Priority, Result, StagingId, StreamId,
};
use crate::machine::launch;
use crate::random::Random;

/// Memory of the emulated device: enough for tests, and small enough to be run out of.
const MEMORY: u64 = 4 << 30;

pub struct Emulated {
    machine: Box<Machine>,
    random: Random,
    streams: Vec<Stream>,
    events: Vec<Event>,
    staging: Vec<Vec<u8>>,
    /// The stream that captured, and what was noted.
    graphs: Vec<(StreamId, Vec<(StreamId, Work)>)>,
    /// The stream that captures, and what was noted.
    capture: Option<(StreamId, Vec<(StreamId, Work)>)>,
    /// What the host knows to be over.
    host: Clock,
    allocations: BTreeMap<Address, u64>,
    broken: Option<String>,
}

impl Emulated {
    pub fn new(seed: u64) -> Self {
        Self {
            machine: Box::default(),
            random: Random(seed),
            streams: Vec::new(),
            events: Vec::new(),
            staging: Vec::new(),
            graphs: Vec::new(),
            capture: None,
            host: Clock::default(),
            allocations: BTreeMap::new(),
            broken: None,
        }
    }

    fn usable(&self) -> Result<()> {
        match &self.broken {
            Some(fault) => Err(DeviceError::Fault(fault.clone())),
            None => Ok(()),
        }
    }

    /// Puts work into a stream, or notes it for a graph.
    fn give(&mut self, stream: StreamId, work: Work) -> Result<()> {
        self.usable()?;
        match &mut self.capture {
            Some((_, noted)) => noted.push((stream, work)),
            None => self.queue(stream, work)?,
        }
        Ok(())
    }

    fn queue(&mut self, StreamId(index): StreamId, work: Work) -> Result<()> {
        let recorded =
            match work {
                Work::Wait(event) => {
                    let recorded = self.events[event.0].recorded.clone();
                    Some(recorded.ok_or_else(|| {
                        DeviceError::Fault(format!("stream {index} waits for an event that was never recorded"))
                    })?)
                }
                _ => None,
            };
        let stream = &mut self.streams[index];
        stream.clock.join(&self.host);
        recorded.iter().for_each(|recorded| stream.clock.join(recorded));
        let before = stream.clock.places.clone();
        stream.given += 1;
        if stream.given >= Moment::PLACES {
            return Err(DeviceError::Invalid("the emulated device takes 16 million operations a stream".to_owned()));
        }
        stream.clock.advance(index, stream.given, work.nanos());
        let operation = index as u32 * Moment::PLACES + stream.given;
        let clock = stream.clock.clone();
        stream.queue.push_back(Queued { work: work.clone(), moment: Moment { operation, clock: before } });
        if let Work::Record(event) = work {
            self.events[event.0].recorded = Some(clock);
        }
        Ok(())
    }

    /// Runs operations of all streams in a random order until this stream is empty.
    fn drain(&mut self, StreamId(wanted): StreamId) -> Result<()> {
        while !self.streams[wanted].queue.is_empty() {
            self.run_one()?;
        }
        Ok(())
    }

    /// Runs an operation of some stream.
    fn run_one(&mut self) -> Result<()> {
        let ready: Vec<usize> = (0..self.streams.len()).filter(|&index| self.is_ready(index)).collect();
        if ready.is_empty() {
            return self.fail("no stream can go on: events wait for each other".to_owned());
        }
        let index = ready[self.random.below(ready.len())];
        let queued = self.streams[index].queue.pop_front().expect("a ready stream has work");
        if let Err(what) = self.run(&queued) {
            return self.fail(what);
        }
        self.streams[index].done += 1;
        Ok(())
    }

    /// Everything up to there is done.
    fn is_over(&self, clock: &Clock) -> bool {
        clock.places.iter().zip(&self.streams).all(|(&place, stream)| stream.done >= place)
    }

    /// When a timer was reached.
    fn time(&self, timer: EventId) -> Result<u64> {
        let invalid = |what: &str| Err(DeviceError::Invalid(format!("event {} {what}", timer.0)));
        match &self.events[timer.0] {
            Event { timed: false, .. } => invalid("is no timer"),
            Event { recorded: None, .. } => invalid("was never recorded"),
            Event { recorded: Some(clock), .. } if !self.is_over(clock) => invalid("is not done: synchronize its stream first"),
            Event { recorded: Some(clock), .. } => Ok(clock.nanos),
        }
    }

    fn fail(&mut self, what: String) -> Result<()> {
        self.broken = Some(what.clone());
        Err(DeviceError::Fault(what))
    }

    /// Everything that the front of a queue has to follow is done.
    fn is_ready(&self, index: usize) -> bool {
        let follows = |queued: &Queued| {
            queued.moment.clock.iter().enumerate().all(|(stream, &place)| stream == index || self.streams[stream].done >= place)
        };
        self.streams[index].queue.front().is_some_and(follows)
    }

    fn run(&mut self, Queued { work, moment }: &Queued) -> std::result::Result<(), String> {
        let in_copy = |what: String| format!("copy or fill: {what}");
        match work {
            Work::CopyIn { to, from, bytes } => {
                let from = &self.staging[from.0][bytes.clone()];
                self.machine.host_write(*to as usize, from, moment).map_err(in_copy)
            }
            Work::CopyOut { to, from, bytes } => {
                let to = &mut self.staging[to.0][..*bytes];
                self.machine.host_read(*from as usize, to, moment).map_err(in_copy)
            }
            Work::Copy { to, from, bytes } => {
                let mut through = vec![0; *bytes];
                let read = self.machine.host_read(*from as usize, &mut through, moment);
                read.and_then(|()| self.machine.host_write(*to as usize, &through, moment)).map_err(in_copy)
            }
            Work::Fill { address, byte, bytes } => {
                self.machine.host_write(*address as usize, &vec![*byte; *bytes], moment).map_err(in_copy)
            }
            Work::Launch { kernel, grid, threads, shared, arguments } => {
                let pointers: Vec<_> = arguments.iter().map(|argument| std::ptr::from_ref(argument).cast()).collect();
                let orders = [ThreadOrder::Ascending, ThreadOrder::Descending, ThreadOrder::Shuffled];
                let launch = Launch {
                    kernel: kernels::find(kernel).ok_or_else(|| format!("no kernel {kernel}"))?,
                    grid: *grid,
                    block: [*threads, 1, 1],
                    shared: *shared as usize,
                    arguments: &pointers,
                    seed: self.random.next(),
                    order: orders[self.random.below(orders.len())],
                    moment: moment.clone(),
                };
                self.machine.launch(&launch)
            }
            Work::Record(_) | Work::Wait(_) => Ok(()),
        }
    }
}

impl Driver for Emulated {
    fn name(&self) -> String {
        "emulated".to_owned()
    }

    /// Small, so that blocks have several items each.
    fn card(&self) -> Card {
        Card { multiprocessors: 2, ..Card::PLAIN }
    }

    fn memory(&self) -> Result<MemoryInfo> {
        let used: u64 = self.allocations.values().sum();
        Ok(MemoryInfo { free: MEMORY - used, total: MEMORY })
    }

    fn allocate(&mut self, name: &str, bytes: usize) -> Result<Address> {
        let free = self.memory()?.free;
        let fits = bytes as u64 <= free;
        let place = if fits { self.machine.heap.allocate(name, bytes) } else { None };
        let too_little = || DeviceError::TooLittleMemory { name: name.to_owned(), bytes: bytes as u64, free };
        let address = place.ok_or_else(too_little)? as Address;
        self.allocations.insert(address, bytes as u64);
        Ok(address)
    }

    fn free(&mut self, address: Address) {
        assert!(self.allocations.remove(&address).is_some(), "freed what was allocated");
        self.machine.heap.free(address as usize);
    }

    fn stream(&mut self, _: Priority) -> Result<StreamId> {
        self.streams.push(Stream::default());
        Ok(StreamId(self.streams.len() - 1))
    }

    fn event(&mut self) -> Result<EventId> {
        self.events.push(Event::default());
        Ok(EventId(self.events.len() - 1))
    }

    fn timer(&mut self) -> Result<EventId> {
        self.events.push(Event { timed: true, ..Event::default() });
        Ok(EventId(self.events.len() - 1))
    }

    /// Where it is not done, some stream goes on by an operation, so that asking again and again comes to an end.
    fn event_done(&mut self, event: EventId) -> Result<bool> {
        self.usable()?;
        if self.capture.is_some() || self.events[event.0].captured {
            return Err(DeviceError::Invalid(
                "no event can be asked for during a capture, or that was recorded in one".to_owned(),
            ));
        }
        let Some(clock) = self.events[event.0].recorded.clone() else { return Ok(true) };
        if !self.is_over(&clock) {
            self.run_one()?;
            return Ok(false);
        }
        self.host.join(&clock);
        Ok(true)
    }

    fn elapsed(&mut self, from: EventId, to: EventId) -> Result<Duration> {
        let from = self.time(from)?;
        Ok(Duration::from_nanos(self.time(to)?.saturating_sub(from)))
    }

    fn record(&mut self, event: EventId, stream: StreamId) -> Result<()> {
        let known = &mut self.events[event.0];
        known.captured = self.capture.is_some() && !known.timed;
        self.give(stream, Work::Record(event))
    }

    fn wait(&mut self, stream: StreamId, event: EventId) -> Result<()> {
        self.give(stream, Work::Wait(event))
    }

    fn staging(&mut self, bytes: usize) -> Result<StagingId> {
        self.staging.push(vec![0; bytes]);
        Ok(StagingId(self.staging.len() - 1))
    }

    fn staging_bytes(&mut self, staging: StagingId) -> Result<&mut [u8]> {
        let queued = self.streams.iter().flat_map(|stream| &stream.queue);
        if queued.into_iter().any(|queued| queued.work.staging() == Some(staging)) {
            let what = "pinned memory was used on the host while a copy of it may be under way: synchronize its stream first";
            return Err(DeviceError::Fault(what.to_owned()));
        }
        Ok(&mut self.staging[staging.0])
    }

    fn copy_in(&mut self, stream: StreamId, to: Address, from: StagingId, bytes: Range<usize>) -> Result<()> {
        self.give(stream, Work::CopyIn { to, from, bytes })
    }

    fn copy_out(&mut self, stream: StreamId, to: StagingId, from: Address, bytes: usize) -> Result<()> {
        self.give(stream, Work::CopyOut { to, from, bytes })
    }

    fn copy(&mut self, stream: StreamId, to: Address, from: Address, bytes: usize) -> Result<()> {
        self.give(stream, Work::Copy { to, from, bytes })
    }

    fn fill(&mut self, stream: StreamId, address: Address, byte: u8, bytes: usize) -> Result<()> {
        self.give(stream, Work::Fill { address, byte, bytes })
    }

    fn launch(&mut self, stream: StreamId, call: &launch::Launch) -> Result<()> {
        let kernel = kernels::find(call.kernel).ok_or_else(|| no_kernel(call.kernel))?;
        check_arguments(kernel, call)?;
        call.check()?;
        let (grid, threads, shared) = (call.grid, call.threads, call.shared);
        self.give(stream, Work::Launch { kernel: kernel.name(), grid, threads, shared, arguments: call.arguments.to_vec() })
    }

    fn begin_capture(&mut self, stream: StreamId) -> Result<()> {
        if self.capture.is_some() {
            return Err(DeviceError::Invalid("a capture is under way already".to_owned()));
        }
        self.capture = Some((stream, Vec::new()));
        Ok(())
    }

    fn end_capture(&mut self, stream: StreamId) -> Result<GraphId> {
        match self.capture.take() {
            Some((origin, noted)) if origin == stream => {
                self.graphs.push((origin, noted));
                Ok(GraphId(self.graphs.len() - 1))
            }
            _ => Err(DeviceError::Invalid("this stream does not capture".to_owned())),
        }
    }

    fn replay(&mut self, graph: GraphId, stream: StreamId) -> Result<()> {
        self.usable()?;
        let (origin, noted) = self.graphs[graph.0].clone();
        let place = |at: StreamId| if at == origin { stream } else { at };
        for (at, work) in &noted {
            self.queue(place(*at), work.clone())?;
        }
        // A graph is over for its stream when all of it is.
        let all: Vec<Clock> = noted.iter().map(|(at, _)| self.streams[place(*at).0].clock.clone()).collect();
        all.iter().for_each(|clock| self.streams[stream.0].clock.join(clock));
        Ok(())
    }

    fn synchronize(&mut self, stream: StreamId) -> Result<()> {
        self.usable()?;
        if self.capture.is_some() {
            return Err(DeviceError::Invalid("no stream can be waited for during a capture".to_owned()));
        }
        self.drain(stream)?;
        let clock = self.streams[stream.0].clock.clone();
        self.host.join(&clock);
        Ok(())
    }
}

fn no_kernel(name: &str) -> DeviceError {
    DeviceError::Invalid(format!("there is no kernel {name}"))
}

/// An argument that is too wide for the kernel has bits where the kernel does not look.
fn check_arguments(kernel: &Kernel, call: &launch::Launch) -> Result<()> {
    let sizes = kernel.sizes();
    if !call.maps.is_empty() {
        return Err(DeviceError::Invalid(format!("kernel {}: this device has no copy engine for boxes", call.kernel)));
    }
    if sizes.len() != call.arguments.len() {
        let (takes, got) = (sizes.len(), call.arguments.len());
        return Err(DeviceError::Invalid(format!("kernel {} takes {takes} arguments, got {got}", call.kernel)));
    }
    for (position, (&size, &argument)) in sizes.iter().zip(&call.arguments).enumerate() {
        if size > 8 || (size < 8 && argument >> (8 * size) != 0) {
            let what = format!("kernel {}: argument {position} has {size} bytes and cannot hold {argument:#x}", call.kernel);
            return Err(DeviceError::Invalid(what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
