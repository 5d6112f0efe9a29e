//! The CPU's lanes: groups of worker threads that compute independent quanta side by side, each with an arena of its own.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};

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

    /// Runs all jobs, on each lane one at a time with that lane's arena, in the order of becoming free. Results are in the order of
    /// the jobs; what a job computes must not depend on its lane.
    pub fn run<A: Send, J: Send, R: Send>(
        &self,
        arenas: &mut [A],
        jobs: Vec<J>,
        work: impl Fn(&mut A, J) -> R + Sync,
    ) -> Vec<(R, Quantum)> {
        let begun = Instant::now();
        let count = jobs.len();
        let queue = Mutex::new(jobs.into_iter().enumerate());
        let results = Mutex::new((0..count).map(|_| None).collect::<Vec<_>>());
        let serve = |lane: usize, arena: &mut A| {
            loop {
                // A statement of its own, so that the queue is not locked while the job runs.
                let next = locked(&queue).next();
                let Some((number, job)) = next else { break };
                let start = begun.elapsed();
                let result = work(arena, job);
                let quantum = Quantum { lane, start, time: begun.elapsed() - start };
                locked(&results)[number] = Some((result, quantum));
            }
        };
        if self.pools.is_empty() || count < 2 {
            serve(0, &mut arenas[0]);
        } else {
            side_by_side(&self.pools, arenas, 0, &serve);
        }
        let results = results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        results.into_iter().map(|result| result.expect("every job was run")).collect()
    }
}

/// Serves every lane from `lane` on at the same time.
fn side_by_side<A: Send>(pools: &[ThreadPool], arenas: &mut [A], lane: usize, serve: &(impl Fn(usize, &mut A) + Sync)) {
    let ([pool, pools @ ..], [arena, arenas @ ..]) = (pools, arenas) else { return };
    if pools.is_empty() {
        return pool.install(|| serve(lane, arena));
    }
    pool.in_place_scope(|scope| {
        scope.spawn(|_| serve(lane, arena));
        side_by_side(pools, arenas, lane + 1, serve);
    });
}

/// A lane that panics takes the others' results with it: the panic goes on to the caller.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
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
}
