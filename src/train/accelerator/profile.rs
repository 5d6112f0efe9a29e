//! How long a round's operations take on a device: their kernels are given one after the other, each between two timers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Accelerator;
use super::program::{Program, Step};
use crate::machine::driver::{Driver, EventId, Result, StreamId};
use crate::machine::launch::{Origin, Work};

/// Bytes of the copy that bandwidth is measured by: more than a second-level cache holds.
const COPIED: usize = 256 << 20;

/// Copies, and pairs of timers with nothing between them, of which the fastest counts.
const TRIES: usize = 5;

/// All launches of an operation since this was asked last.
#[derive(Clone, Debug, Default)]
pub struct OpTime {
    pub kernels: BTreeSet<&'static str>,
    pub launches: u64,
    pub time: Duration,
    pub work: Work,
    /// Some of its bytes are not known.
    pub is_partly_known: bool,
}

pub(super) struct Profile {
    timers: Vec<EventId>,
    /// Between two timers alone.
    nothing: Duration,
    ops: BTreeMap<&'static str, OpTime>,
    /// Bytes a second of a copy on the device, read and written.
    pub bandwidth: f64,
}

impl Profile {
    pub fn new(driver: &mut dyn Driver, stream: StreamId) -> Result<Self> {
        let timers = vec![driver.timer()?, driver.timer()?];
        let mut profile = Self { timers, nothing: Duration::ZERO, ops: BTreeMap::new(), bandwidth: 0.0 };
        profile.nothing = profile.fastest(driver, stream, &mut |_| Ok(()))?;
        let [from, to] = [driver.allocate("profile: copy", COPIED)?, driver.allocate("profile: copy", COPIED)?];
        driver.fill(stream, from, 0, COPIED)?;
        let time = profile.fastest(driver, stream, &mut |driver| driver.copy(stream, to, from, COPIED))?;
        [from, to].into_iter().for_each(|at| driver.free(at));
        profile.bandwidth = 2.0 * COPIED as f64 / time.max(Duration::from_nanos(1)).as_secs_f64();
        Ok(profile)
    }

    fn fastest(
        &self,
        driver: &mut dyn Driver,
        stream: StreamId,
        work: &mut dyn FnMut(&mut dyn Driver) -> Result<()>,
    ) -> Result<Duration> {
        let mut fastest = Duration::MAX;
        for _ in 0..TRIES {
            driver.record(self.timers[0], stream)?;
            work(driver)?;
            driver.record(self.timers[1], stream)?;
            driver.synchronize(stream)?;
            fastest = fastest.min(driver.elapsed(self.timers[0], self.timers[1])?);
        }
        Ok(fastest.saturating_sub(self.nothing))
    }

    /// Gives the device a program that begins and ends in `origin`, and waits for it.
    pub fn run(&mut self, driver: &mut dyn Driver, origin: StreamId, program: &Program) -> Result<()> {
        let mut launched = Vec::new();
        for step in &program.steps {
            let Step::Launch(stream, launch) = step else {
                step.give(driver)?;
                continue;
            };
            while self.timers.len() < 2 * launched.len() + 2 {
                self.timers.push(driver.timer()?);
            }
            driver.record(self.timers[2 * launched.len()], *stream)?;
            step.give(driver)?;
            driver.record(self.timers[2 * launched.len() + 1], *stream)?;
            launched.push(launch);
        }
        driver.synchronize(origin)?;
        for (launch, pair) in launched.iter().zip(self.timers.chunks_exact(2)) {
            let Origin { op, work } = launch.origin;
            let own = self.ops.entry(op).or_default();
            own.is_partly_known |= own.kernels.is_empty() && work.bytes == 0;
            own.kernels.insert(launch.kernel);
            own.launches += 1;
            own.time += driver.elapsed(pair[0], pair[1])?.saturating_sub(self.nothing);
            own.work.bytes += work.bytes;
            own.work.operations += work.operations;
        }
        Ok(())
    }

    pub fn take(&mut self) -> BTreeMap<&'static str, OpTime> {
        std::mem::take(&mut self.ops)
    }
}

impl Accelerator {
    /// Times each kernel from here on, for which the device is given one after the other; the bytes a second of a copy.
    pub fn profile(&mut self) -> Result<f64> {
        let profile = Profile::new(&mut *self.driver, self.streams.lanes[0])?;
        let bandwidth = profile.bandwidth;
        self.graphs.profile = Some(profile);
        Ok(bandwidth)
    }

    /// By name, the operations since this was asked last, where they are timed.
    pub fn profiled(&mut self) -> BTreeMap<&'static str, OpTime> {
        self.graphs.profile.as_mut().map_or_else(BTreeMap::new, Profile::take)
    }
}
