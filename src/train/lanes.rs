//! The CPU's lanes: groups of worker threads that compute independent quanta side by side, each with an arena of its own.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
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
