//! The quanta of rounds on the CPU's lanes: the dispatcher says which runs where and beside what, on the wall clock.
//!
//! What a round computes is settled before ([`crate::schedule::order`]); here only the place and the order of quanta follow from the
//! clock, and no result depends on those.

use std::time::{Duration, Instant};

use crate::schedule::Nanos;
use crate::schedule::access::{Blocks, Operation};
use crate::schedule::dispatcher::{Counts, Dispatcher, Job, Settings};
use crate::schedule::executor::Executor;
use crate::schedule::retry::Status;
use crate::schedule::task::Spec;
use crate::simulate::{Drawn, Machine};
use crate::train::lanes::Lanes;

/// All of the encoder: every gradient reads it, every commit writes it.
const ENCODER: Blocks = 1;

/// Where and when a quantum was computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantum {
    pub lane: usize,
    /// Since the first of those that were submitted together was.
    pub start: Duration,
    pub time: Duration,
}

/// When the quanta of a committed round were computed; their starts are since `began`.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundTimes {
    pub began: Instant,
    /// By fused group: its tasks' gradients. Of rounds that were computed together, the first has them all.
    pub groups: Vec<Quantum>,
    /// Products of the gradients, solve and step.
    pub commit: Quantum,
}

/// A fused group to be computed: the first of its tasks, which stands for it, and what is computed.
pub struct Group<J> {
    pub task: usize,
    pub job: J,
}

/// A quantum of its own, computed by whoever began it.
#[must_use]
pub struct Running {
    lane: usize,
    clock: Instant,
}

/// The dispatcher of a machine's lanes.
pub struct Quanta {
    dispatcher: Dispatcher,
    begun: Instant,
    /// Behind them, what stands for commits, for evaluations and for checkpoints.
    tasks: usize,
    /// Bytes of a lane's arena, which a gradient has to itself.
    scratch: u64,
}

impl Quanta {
    /// For so many tasks, with an arena of `scratch` bytes on each lane.
    pub fn new(tasks: usize, lanes: usize, scratch: u64) -> Self {
        let specs = (0..tasks + 3).map(|_| Spec::new(String::new(), 0)).collect();
        let settings = Settings { lanes, device: scratch.saturating_mul(lanes as u64), ..Settings::default() };
        let dispatcher = Dispatcher::new(settings, specs, 1).expect("tasks without bytes or deadlines fit");
        Self { dispatcher, begun: Instant::now(), tasks, scratch }
    }

    /// What the dispatcher counted, conflicts of quanta on the encoder's parameters among it.
    pub fn counts(&self) -> Counts {
        self.dispatcher.counts
    }

    fn now(&self) -> Nanos {
        self.begun.elapsed().as_nanos() as Nanos
    }

    fn submit(&mut self, task: usize, operation: Operation, bytes: u64) {
        let now = self.now();
        self.dispatcher.submit(task, Job { operation, blocks: ENCODER, release: now, cost: 0, bytes }, now);
    }

    /// Computes gradients of groups without a common task, each on a lane with that lane's arena. Results are in the groups' order; what
    /// a group computes must not depend on its lane.
    pub fn gradients<A: Send, J: Send, R: Send>(
        &mut self,
        lanes: &Lanes,
        arenas: &mut [A],
        groups: Vec<Group<J>>,
        work: impl Fn(&mut A, J) -> R + Sync,
    ) -> Vec<(R, Quantum)> {
        let (begun, work) = (Instant::now(), &work);
        let mut results: Vec<Option<(R, Quantum)>> = groups.iter().map(|_| None).collect();
        groups.iter().for_each(|group| self.submit(group.task, Operation::Gradient, self.scratch));
        let mut waiting: Vec<_> = groups.into_iter().zip(&mut results).collect();
        lanes.at_work(arenas, |executor| {
            loop {
                while let Some(started) = self.dispatcher.next(self.now()) {
                    let at = waiting.iter().position(|(group, _)| group.task == started.task);
                    let (Group { job, .. }, out) = waiting.swap_remove(at.expect("only these were submitted"));
                    let lane = started.lane;
                    let compute = move |arena: &mut A| {
                        let start = begun.elapsed();
                        let result = work(arena, job);
                        *out = Some((result, Quantum { lane, start, time: begun.elapsed() - start }));
                        Status::Ok
                    };
                    executor.submit(lane, Box::new(compute));
                }
                let Some(ended) = executor.wait(None) else { break };
                self.dispatcher.complete(ended.lane, ended.cost, ended.status, self.now());
            }
        });
        results.into_iter().map(|result| result.expect("every group was computed")).collect()
    }

    /// Begins the gradient of a group for which `task` stands.
    pub fn begin_gradient(&mut self, task: usize) -> Running {
        self.begin(task, Operation::Gradient, self.scratch)
    }

    pub fn begin_commit(&mut self) -> Running {
        self.begin(self.tasks, Operation::Commit, 0)
    }

    pub fn begin_evaluation(&mut self) -> Running {
        self.begin(self.tasks + 1, Operation::Evaluation, self.scratch)
    }

    /// A checkpoint, or the copy of what it will hold.
    pub fn begin_save(&mut self) -> Running {
        self.begin(self.tasks + 2, Operation::Save, 0)
    }

    /// Between quanta that lanes compute, so that it need not wait.
    fn begin(&mut self, task: usize, operation: Operation, bytes: u64) -> Running {
        self.submit(task, operation, bytes);
        let started = self.dispatcher.next(self.now()).expect("nothing else is in flight");
        Running { lane: started.lane, clock: Instant::now() }
    }

    /// How long it took.
    pub fn end(&mut self, quantum: Running) -> Duration {
        let time = quantum.clock.elapsed();
        self.dispatcher.complete(quantum.lane, time.as_nanos() as Nanos, Status::Ok, self.now());
        time
    }
}

/// The lane of each group of a round that is given to a device as a whole, where each takes as long as its `costs` says: the one that is
/// free first.
pub fn planned_lanes(costs: &[Nanos], lanes: usize) -> Vec<usize> {
    let specs = costs.iter().map(|&cost| Spec::new(String::new(), cost)).collect();
    let mut dispatcher =
        Dispatcher::new(Settings { lanes, ..Settings::default() }, specs, 1).expect("groups without bytes or deadlines fit");
    let (mut machine, mut placed) = (Machine::new(lanes), vec![0; costs.len()]);
    for (group, &cost) in costs.iter().enumerate() {
        dispatcher.submit(group, Job { operation: Operation::Gradient, blocks: ENCODER, release: 0, cost, bytes: 0 }, 0);
    }
    loop {
        while let Some(started) = dispatcher.next(machine.now()) {
            placed[started.task] = started.lane;
            machine.submit(started.lane, Drawn { task: started.task, cost: started.job.cost, status: Status::Ok });
        }
        let Some(ended) = machine.wait(None) else { return placed };
        dispatcher.complete(ended.lane, ended.cost, ended.status, machine.now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;

    fn run<A: Send, R: Send>(
        arenas: &mut [A],
        jobs: std::ops::Range<u64>,
        work: impl Fn(&mut A, u64) -> R + Sync,
    ) -> Vec<(R, Quantum)> {
        let lanes = Lanes::new(arenas.len()).unwrap();
        let groups = jobs.map(|job| Group { task: job as usize, job }).collect();
        Quanta::new(50, arenas.len(), 100).gradients(&lanes, arenas, groups, work)
    }

    #[test]
    fn results_come_in_the_order_of_the_groups() {
        for count in [1, 2, 3] {
            let mut arenas = vec![0u64; count];
            let done = run(&mut arenas, 0..50, |arena, job| {
                *arena += job;
                job * job
            });
            assert!(done.iter().map(|(result, _)| *result).eq((0..50).map(|job| job * job)));
            assert_eq!(arenas.iter().sum::<u64>(), 49 * 50 / 2);
            assert!(done.iter().all(|(_, quantum)| quantum.lane < count));
        }
    }

    /// Each waits for the other: on one lane this would never end.
    #[test]
    fn lanes_run_at_the_same_time() {
        let barrier = Barrier::new(2);
        let done = run(&mut [(), ()], 1..3, |(), job| {
            barrier.wait();
            job
        });
        assert_eq!(done.iter().map(|(result, _)| *result).collect::<Vec<_>>(), [1, 2]);
        assert_ne!(done[0].1.lane, done[1].1.lane);
    }

    #[test]
    fn a_panic_reaches_whoever_waits() {
        for count in [1, 3] {
            let run = || run(&mut vec![(); count], 1..5, |(), job| assert!(job != 3, "the third one"));
            let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            assert_eq!(panic.downcast_ref::<&str>().copied(), Some("the third one"));
        }
    }

    #[test]
    fn long_groups_have_a_lane_to_themselves() {
        assert_eq!(planned_lanes(&[50, 10, 10, 10, 30, 10], 2), [0, 1, 1, 1, 1, 0]);
        assert_eq!(planned_lanes(&[7; 4], 2), [0, 1, 0, 1]);
        assert_eq!(planned_lanes(&[7; 2], 1), [0, 0]);
    }

    #[test]
    fn quanta_one_after_another_conflict_with_nobody() {
        let mut quanta = Quanta::new(2, 1, 8);
        for _ in 0..3 {
            let gradient = |quanta: &mut Quanta| quanta.begin_gradient(1);
            for begin in [Quanta::begin_commit, Quanta::begin_evaluation, Quanta::begin_save, gradient] {
                let quantum = begin(&mut quanta);
                quanta.end(quantum);
            }
        }
        assert_eq!((quanta.counts().quanta, quanta.counts().read_write), (12, 0));
    }
}
