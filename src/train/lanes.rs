//! The CPU's lanes: groups of worker threads that compute independent quanta side by side, each with an arena of its own.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::schedule::Nanos;
use crate::schedule::executor::{Ended, Executor};
use crate::schedule::retry::Status;

/// One lane is all of the process's worker threads; several share them out.
pub struct Lanes {
    /// Empty with one lane.
    pools: Vec<ThreadPool>,
}

/// Where and when a quantum was computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantum {
    pub lane: usize,
    /// Since the first of those that were run together began.
    pub start: Duration,
    pub time: Duration,
}

/// When the quanta of a committed round were computed; their starts are since `began`.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundTimes {
    pub began: Instant,
    /// By fused group: its tasks' gradients.
    pub groups: Vec<Quantum>,
    /// Products of the gradients, solve and step.
    pub commit: Quantum,
}

/// What a quantum does with its lane's arena.
pub type Work<'w, A> = Box<dyn FnOnce(&mut A) -> Status + Send + 'w>;

impl Lanes {
    pub fn new(count: usize) -> Result<Self> {
        let threads = rayon::current_num_threads();
        let pool = |lane: usize| {
            let own = threads / count + usize::from(lane < threads % count);
            ThreadPoolBuilder::new().num_threads(own.max(1)).thread_name(move |_| format!("lane {lane}")).build()
        };
        let several = if count > 1 { 0..count } else { 0..0 };
        Ok(Self { pools: several.map(pool).collect::<Result<_, _>>().context("cannot start the worker threads of a lane")? })
    }

    /// Does something with the lanes at work, the first with the first arena, and so on.
    pub fn at_work<'w, A: Send, R>(&self, arenas: &mut [A], dispatch: impl FnOnce(&mut AtWork<'w, '_, A>) -> R) -> R {
        if self.pools.is_empty() {
            return Self::alone(&mut arenas[0], dispatch);
        }
        let begun = Instant::now();
        let (report, reports) = channel();
        let (queues, inboxes): (Vec<_>, Vec<_>) = self.pools.iter().map(|_| channel()).unzip();
        let workers =
            inboxes.into_iter().enumerate().map(|(lane, inbox)| Worker { lane, inbox, report: report.clone() }).collect();
        drop(report);
        let computing = Computing::Lanes(queues);
        // The lanes end with their queues, also where this panics.
        side_by_side(&self.pools, arenas, workers, || dispatch(&mut AtWork { begun, in_flight: 0, computing, reports }))
    }

    /// Does something with all worker threads as the only lane.
    pub fn alone<'w, A, R>(arena: &mut A, dispatch: impl FnOnce(&mut AtWork<'w, '_, A>) -> R) -> R {
        let (report, reports) = channel();
        let computing = Computing::Here { arena, report };
        dispatch(&mut AtWork { begun: Instant::now(), in_flight: 0, computing, reports })
    }

    /// Runs all jobs, on each lane one at a time with that lane's arena, in the order of becoming free. Results are in the order of
    /// the jobs; what a job computes must not depend on its lane.
    pub fn run<A: Send, J: Send, R: Send>(
        &self,
        arenas: &mut [A],
        jobs: Vec<J>,
        work: impl Fn(&mut A, J) -> R + Sync,
    ) -> Vec<(R, Quantum)> {
        let begun = Instant::now();
        let results: Vec<Mutex<Option<(R, Quantum)>>> = jobs.iter().map(|_| Mutex::new(None)).collect();
        let (results_of, work) = (&results, &work);
        self.at_work(arenas, |lanes| {
            let mut free: Vec<usize> = (0..self.pools.len().max(1)).rev().collect();
            for (number, job) in jobs.into_iter().enumerate() {
                let lane = free.pop().or_else(|| lanes.wait(None).map(|ended| ended.lane)).expect("a lane is free or will be");
                lanes.submit(
                    lane,
                    Box::new(move |arena| {
                        let start = begun.elapsed();
                        let result = work(arena, job);
                        let quantum = Quantum { lane, start, time: begun.elapsed() - start };
                        *results_of[number].lock().expect("nobody else writes this result") = Some((result, quantum));
                        Status::Ok
                    }),
                );
            }
            while lanes.wait(None).is_some() {}
        });
        let result = |result: Mutex<Option<_>>| result.into_inner().ok().flatten().expect("every job was run");
        results.into_iter().map(result).collect()
    }
}

/// Lanes that take quanta, on the wall clock. Whoever waits for a quantum that panicked panics with it.
pub struct AtWork<'w, 'a, A> {
    begun: Instant,
    in_flight: usize,
    computing: Computing<'w, 'a, A>,
    reports: Receiver<Report>,
}

enum Computing<'w, 'a, A> {
    /// One lane computes a quantum as it is submitted, with all worker threads.
    Here { arena: &'a mut A, report: Sender<Report> },
    /// Several take theirs from a queue each.
    Lanes(Vec<Sender<Work<'w, A>>>),
}

/// A quantum that ended, or what it panicked with.
type Report = Result<Ended, Box<dyn Any + Send>>;

impl<'w, A> Executor for AtWork<'w, '_, A> {
    type Work = Work<'w, A>;

    fn now(&self) -> Nanos {
        self.begun.elapsed().as_nanos() as Nanos
    }

    fn submit(&mut self, lane: usize, work: Work<'w, A>) {
        self.in_flight += 1;
        match &mut self.computing {
            Computing::Here { arena, report } => report.send(compute(lane, &mut **arena, work)).expect("this reads reports"),
            // A lane is gone only after a panic, which its report tells.
            Computing::Lanes(queues) => drop(queues[lane].send(work)),
        }
    }

    fn wait(&mut self, until: Option<Nanos>) -> Option<Ended> {
        let left = until.map(|until| Duration::from_nanos(until.saturating_sub(self.now())));
        if self.in_flight == 0 {
            left.into_iter().for_each(std::thread::sleep);
            return None;
        }
        let report = match left {
            Some(left) => self.reports.recv_timeout(left).ok()?,
            None => self.reports.recv().expect("a lane reports every quantum"),
        };
        self.in_flight -= 1;
        Some(report.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

/// Where a lane finds its quanta and says how they ended.
struct Worker<'w, A> {
    lane: usize,
    inbox: Receiver<Work<'w, A>>,
    report: Sender<Report>,
}

impl<A> Worker<'_, A> {
    fn serve(self, arena: &mut A) {
        for work in self.inbox {
            if self.report.send(compute(self.lane, arena, work)).is_err() {
                break;
            }
        }
    }
}

fn compute<A>(lane: usize, arena: &mut A, work: Work<A>) -> Report {
    let clock = Instant::now();
    let status = catch_unwind(AssertUnwindSafe(|| work(arena)))?;
    Ok(Ended { lane, cost: clock.elapsed().as_nanos() as Nanos, status })
}

/// Serves each worker with a pool and an arena of its own while `body` runs.
fn side_by_side<A: Send, R>(pools: &[ThreadPool], arenas: &mut [A], mut workers: Vec<Worker<A>>, body: impl FnOnce() -> R) -> R {
    let mut body = Some(body);
    let mut result = None;
    serve_all(pools, &mut arenas[..pools.len()], &mut workers, &mut || result = body.take().map(|body| body()));
    result.expect("the body was run once")
}

fn serve_all<A: Send>(pools: &[ThreadPool], arenas: &mut [A], workers: &mut Vec<Worker<A>>, body: &mut dyn FnMut()) {
    let (Some(worker), [pools @ .., pool], [arenas @ .., arena]) = (workers.pop(), pools, arenas) else { return body() };
    pool.in_place_scope(|scope| {
        scope.spawn(move |_| worker.serve(arena));
        serve_all(pools, arenas, workers, body);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn results_come_in_the_order_of_the_jobs() {
        for count in [1, 2, 3] {
            let mut arenas = vec![0u64; count];
            let done = Lanes::new(count).unwrap().run(&mut arenas, (0..50u64).collect(), |arena, job| {
                *arena += job;
                job * job
            });
            assert!(done.iter().map(|(result, _)| *result).eq((0..50).map(|job| job * job)));
            assert_eq!(arenas.iter().sum::<u64>(), 49 * 50 / 2);
            assert!(done.iter().all(|(_, quantum)| quantum.lane < count));
        }
    }

    /// Each job waits for the other: on one lane this would never end.
    #[test]
    fn lanes_run_at_the_same_time() {
        let barrier = Barrier::new(2);
        let done = Lanes::new(2).unwrap().run(&mut [(), ()], vec![1, 2], |_, job| {
            barrier.wait();
            job
        });
        assert_eq!(done.iter().map(|(result, _)| *result).collect::<Vec<_>>(), [1, 2]);
        assert_ne!(done[0].1.lane, done[1].1.lane);
    }

    #[test]
    fn a_panic_reaches_whoever_waits() {
        for count in [1, 3] {
            let lanes = Lanes::new(count).unwrap();
            let run = || lanes.run(&mut vec![(); count], vec![1, 2, 3, 4], |(), job| assert!(job != 3, "the third one"));
            let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            assert_eq!(panic.downcast_ref::<&str>().copied(), Some("the third one"));
        }
    }

    #[test]
    fn waiting_ends_in_time() {
        for count in [1, 2] {
            Lanes::new(count).unwrap().at_work(&mut vec![0; count], |lanes| {
                let later = lanes.now() + 2_000_000;
                assert_eq!(lanes.wait(Some(later)), None);
                assert!(lanes.now() >= later);
                lanes.submit(count - 1, Box::new(|_| Status::Crashed));
                let ended = lanes.wait(None).expect("one is in flight");
                assert_eq!((ended.lane, ended.status), (count - 1, Status::Crashed));
                assert_eq!(lanes.wait(None), None);
            });
        }
    }
}
