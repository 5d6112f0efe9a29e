//! When the quanta of a round were computed on their streams.

use std::time::{Duration, Instant};

use super::Accelerator;
use crate::machine::driver::{DeviceError, Driver, EventId};
use crate::train::quanta::{Quantum, RoundTimes};

/// Timers that rounds have used so far.
#[derive(Default)]
pub(super) struct Timers {
    /// Rounds from here on are timed.
    pub wanted: bool,
    /// By the buffer of a round's batch.
    made: [Vec<EventId>; 2],
    /// When the last round that was measured ended.
    ended: Option<Instant>,
}

impl Timers {
    /// Those of a round whose groups run on these lanes, if it is to be timed.
    pub fn of_round(
        &mut self,
        driver: &mut dyn Driver,
        lanes: &[usize],
        buffer: usize,
    ) -> Result<Option<RoundTimers>, DeviceError> {
        if !self.wanted {
            return Ok(None);
        }
        let made = &mut self.made[buffer];
        while made.len() < 3 + 2 * lanes.len() {
            made.push(driver.timer()?);
        }
        let pair = |first: usize| [made[first], made[first + 1]];
        let groups = lanes.iter().enumerate().map(|(group, &lane)| (lane, pair(3 + 2 * group))).collect();
        Ok(Some(RoundTimers { begin: made[0], commit: pair(1), groups }))
    }
}

/// Begin and end of each of a round's quanta.
pub(super) struct RoundTimers {
    /// Before anything of the round.
    pub begin: EventId,
    /// By fused group, with its lane.
    pub groups: Vec<(usize, [EventId; 2])>,
    /// After all groups, and after the step.
    pub commit: [EventId; 2],
}

impl Accelerator {
    /// Times the fused groups and the commit of each round from here on, or no more.
    pub fn time_quanta(&mut self, wanted: bool) {
        self.timers.wanted = wanted;
        self.forward.time(wanted && self.snapshot.is_some());
    }

    /// Notes the times of a round whose step was given to the device, and waits for it where it is not over. One that was given at a time
    /// when the round before was not over began at its end, or when it was given.
    pub(super) fn measure(&mut self, timers: &RoundTimers, given: Option<Instant>) -> Result<(), DeviceError> {
        let &RoundTimers { begin, ref groups, commit } = timers;
        if !self.driver.event_done(commit[1])? {
            self.wait(self.streams.lanes[0])?;
        }
        let now = Instant::now();
        let mut quantum = |lane: usize, [from, to]: [EventId; 2]| -> Result<Quantum, DeviceError> {
            Ok(Quantum { lane, start: self.driver.elapsed(begin, from)?, time: self.driver.elapsed(from, to)? })
        };
        let groups = groups.iter().map(|&(lane, pair)| quantum(lane, pair)).collect::<Result<_, _>>()?;
        let commit = quantum(0, commit)?;
        let took: Duration = commit.start + commit.time;
        let began = match (given, self.timers.ended) {
            (Some(given), Some(ended)) => given.max(ended),
            _ => now.checked_sub(took).unwrap_or(now),
        };
        self.timers.ended = Some(began + took);
        self.times = Some(RoundTimes { began, groups, commit });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::driver::{Address, Priority, StreamId};
    use crate::ops::testing::{On, on_devices};
    use crate::train::accelerator::program::{Graphs, Program, Step};

    on_devices!(time_passes_between_timers, programs_are_timed_each_time_they_run);

    const BYTES: usize = 64 << 10;

    struct Bench {
        driver: Box<dyn Driver>,
        streams: [StreamId; 2],
        from: Address,
        to: [Address; 2],
    }

    impl Bench {
        fn new(on: On) -> Self {
            let mut driver = on.open(1).unwrap();
            let streams = [(); 2].map(|()| driver.stream(Priority::Normal).unwrap());
            let [from, first, second] = [(); 3].map(|()| driver.allocate("buffer", BYTES).unwrap());
            driver.fill(streams[0], from, 1, BYTES).unwrap();
            Self { driver, streams, from, to: [first, second] }
        }

        fn timers<const N: usize>(&mut self) -> [EventId; N] {
            [(); N].map(|()| self.driver.timer().unwrap())
        }

        fn elapsed(&mut self, [from, to]: [EventId; 2]) -> Duration {
            self.driver.elapsed(from, to).unwrap()
        }
    }

    fn time_passes_between_timers(on: On) {
        let mut bench = Bench::new(on);
        let [before, after, fresh] = bench.timers();
        let plain = bench.driver.event().unwrap();
        for event in [before, plain] {
            bench.driver.record(event, bench.streams[0]).unwrap();
        }
        bench.driver.copy(bench.streams[0], bench.to[0], bench.from, BYTES).unwrap();
        bench.driver.record(after, bench.streams[0]).unwrap();
        while !bench.driver.event_done(after).unwrap() {}
        assert!(bench.driver.event_done(before).unwrap() && bench.driver.event_done(fresh).unwrap());
        assert!(bench.elapsed([before, after]) > Duration::ZERO);
        assert_eq!([bench.elapsed([after, before]), bench.elapsed([after, after])], [Duration::ZERO; 2]);
        for without_time in [plain, fresh] {
            assert!(matches!(bench.driver.elapsed(before, without_time), Err(DeviceError::Invalid(_))));
        }
    }

    /// Two streams between a fork and a join; replayed where the device can.
    fn programs_are_timed_each_time_they_run(on: On) {
        let mut bench = Bench::new(on);
        let whole: [EventId; 2] = bench.timers();
        let parts: [[EventId; 2]; 2] = [bench.timers(), bench.timers()];
        let [fork, join] = [(); 2].map(|()| bench.driver.event().unwrap());
        let ([first, second], mut graphs) = (bench.streams, Graphs::default());
        for _ in 0..4 {
            let mut program = Program::default();
            program.time(Some(whole[0]), first);
            program.order(first, fork, second);
            for (stream, to, [begin, end]) in [(first, bench.to[0], parts[0]), (second, bench.to[1], parts[1])] {
                program.time(Some(begin), stream);
                program.push(Step::Copy { stream, to, from: bench.from, bytes: BYTES });
                program.time(Some(end), stream);
            }
            program.order(second, join, first);
            program.time(Some(whole[1]), first);
            graphs.execute(&mut *bench.driver, first, program).unwrap();
            bench.driver.synchronize(first).unwrap();
            assert!(bench.driver.event_done(whole[1]).unwrap());
            // A card resolves half a microsecond.
            let took = bench.elapsed(whole) + Duration::from_micros(1);
            for part in parts {
                let (before, time) = (bench.elapsed([whole[0], part[0]]), bench.elapsed(part));
                assert!(time > Duration::ZERO && before + time <= took, "{before:?} and {time:?} of {took:?}");
            }
        }
        assert_eq!(graphs.counts.graph_launches, if bench.driver.captures_timers() { 3 } else { 0 });
    }
}
