//! What a stage of a round gives the device, as a list: run as it is at first, captured once it comes again, and replayed from
//! then on. Whatever changes from round to round is in device memory, so equal shapes make equal lists.

use std::ops::{Range, Sub};
use std::time::{Duration, Instant};

use super::profile::Profile;
use crate::machine::driver::{Address, Driver, EventId, GraphId, Result, StagingId, StreamId};
use crate::machine::launch::{Command, Launch};

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    CopyIn {
        stream: StreamId,
        to: Address,
        from: StagingId,
        bytes: Range<usize>,
    },
    CopyOut {
        stream: StreamId,
        to: StagingId,
        from: Address,
        bytes: usize,
    },
    Copy {
        stream: StreamId,
        to: Address,
        from: Address,
        bytes: usize,
    },
    Launch(StreamId, Launch),
    Record(EventId, StreamId),
    /// Records a timer.
    Time(EventId, StreamId),
    Wait(StreamId, EventId),
}

impl Step {
    pub fn give(&self, driver: &mut dyn Driver) -> Result<()> {
        match self {
            Self::CopyIn { stream, to, from, bytes } => driver.copy_in(*stream, *to, *from, bytes.clone()),
            Self::CopyOut { stream, to, from, bytes } => driver.copy_out(*stream, *to, *from, *bytes),
            Self::Copy { stream, to, from, bytes } => driver.copy(*stream, *to, *from, *bytes),
            Self::Launch(stream, launch) => driver.launch(*stream, launch),
            Self::Record(event, stream) | Self::Time(event, stream) => driver.record(*event, *stream),
            Self::Wait(stream, event) => driver.wait(*stream, *event),
        }
    }
}

#[derive(Debug, Default, PartialEq)]
pub struct Program {
    pub steps: Vec<Step>,
}

impl Program {
    pub fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Kernels, and bytes that go to the device.
    fn size(&self) -> (u64, u64) {
        self.steps.iter().fold((0, 0), |(launches, bytes), step| match step {
            Step::Launch(..) => (launches + 1, bytes),
            Step::CopyIn { bytes: own, .. } => (launches, bytes + own.len() as u64),
            _ => (launches, bytes),
        })
    }

    fn is_timed(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Time(..)))
    }

    fn give(&self, driver: &mut dyn Driver) -> Result<()> {
        self.steps.iter().try_for_each(|step| step.give(driver))
    }

    /// Adds a launch, unless there is nothing to do.
    pub fn launch(&mut self, stream: StreamId, launch: Launch) {
        if !launch.is_empty() {
            self.steps.push(Step::Launch(stream, launch));
        }
    }

    /// Adds an operation's commands.
    pub fn run(&mut self, stream: StreamId, commands: &[Command]) {
        for command in commands {
            match command {
                Command::Launch(launch) => self.launch(stream, launch.clone()),
                &Command::Copy { to, from, bytes } => self.push(Step::Copy { stream, to, from, bytes }),
            }
        }
    }

    /// Adds the time at which everything in `stream` so far is done, if there is a timer for it.
    pub fn time(&mut self, timer: Option<EventId>, stream: StreamId) {
        self.steps.extend(timer.map(|timer| Step::Time(timer, stream)));
    }

    /// What `later` is given from here on starts after everything in `earlier` so far.
    pub fn order(&mut self, earlier: StreamId, event: EventId, later: StreamId) {
        self.steps.extend([Step::Record(event, earlier), Step::Wait(later, event)]);
    }
}

/// A capture ends whatever comes of it: one that is left open would swallow all later work.
fn capture(driver: &mut dyn Driver, origin: StreamId, program: &Program) -> Result<GraphId> {
    driver.begin_capture(origin)?;
    let given = program.give(driver);
    let ended = driver.end_capture(origin);
    given.and(ended)
}

/// Programs remembered: a run has some shapes that keep coming back, each in two buffers, or none that does.
const REMEMBERED: usize = 512;

/// What a device was given since the start, and the host's time for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Kernels, in graphs too.
    pub launches: u64,
    pub graph_launches: u64,
    pub uploaded_bytes: u64,
    /// The host waited for the device.
    pub host_waits: u64,
    /// Laying out batches, giving programs, and waiting.
    pub packing: Duration,
    pub launching: Duration,
    pub waiting: Duration,
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            launches: self.launches - before.launches,
            graph_launches: self.graph_launches - before.graph_launches,
            uploaded_bytes: self.uploaded_bytes - before.uploaded_bytes,
            host_waits: self.host_waits - before.host_waits,
            packing: self.packing - before.packing,
            launching: self.launching - before.launching,
            waiting: self.waiting - before.waiting,
        }
    }
}

/// Programs seen, the newest last, with the graphs of those that came again.
#[derive(Default)]
pub struct Graphs {
    seen: Vec<(Program, Option<GraphId>)>,
    pub counts: Counts,
    /// Where each kernel is timed, none is part of a graph.
    pub profile: Option<Profile>,
}

impl Graphs {
    /// Gives `program` to the device. It begins and ends in `origin`, where all its streams fork and join.
    pub fn execute(&mut self, driver: &mut dyn Driver, origin: StreamId, program: Program) -> Result<()> {
        let clock = Instant::now();
        let (launches, bytes) = program.size();
        self.counts.launches += launches;
        self.counts.uploaded_bytes += bytes;
        let given = self.give(driver, origin, program);
        self.counts.launching += clock.elapsed();
        given
    }

    fn give(&mut self, driver: &mut dyn Driver, origin: StreamId, program: Program) -> Result<()> {
        if let Some(profile) = &mut self.profile {
            return profile.run(driver, origin, &program);
        }
        if !driver.captures() || (!driver.captures_timers() && program.is_timed()) {
            return program.give(driver);
        }
        let Some(at) = self.seen.iter().position(|(known, _)| *known == program) else {
            program.give(driver)?;
            self.remember(program);
            return Ok(());
        };
        let graph = match self.seen[at].1 {
            Some(graph) => graph,
            None => *self.seen[at].1.insert(capture(driver, origin, &program)?),
        };
        self.counts.graph_launches += 1;
        driver.replay(graph, origin)
    }

    /// The oldest program that never came again makes room.
    fn remember(&mut self, program: Program) {
        if self.seen.len() == REMEMBERED {
            let Some(oldest) = self.seen.iter().position(|(_, graph)| graph.is_none()) else { return };
            self.seen.remove(oldest);
        }
        self.seen.push((program, None));
    }
}
