//! Random workloads.

use proptest::prelude::*;
use taskloom::schedule::Nanos;
use taskloom::schedule::access::OnStale;
use taskloom::schedule::dispatcher::Settings;
use taskloom::schedule::policy::{POLICIES, Policy};
use taskloom::schedule::retry::Retry;
use taskloom::schedule::task::Spec;
use taskloom::simulate::{Arrival, Cost, Faults, Mode, SimTask, Workload};

pub const MS: Nanos = 1_000_000;

pub fn policy() -> impl Strategy<Value = &'static Policy> {
    prop::sample::select(POLICIES)
}

pub fn faults() -> impl Strategy<Value = Faults> {
    (0.0..0.1f64, 0.0..0.1f64, 0.0..0.1f64, 0.0..0.1f64).prop_map(|(out_of_memory, not_finite, crash, stall)| Faults {
        out_of_memory,
        not_finite,
        crash,
        stall,
        stall_factor: 5.0,
    })
}

prop_compose! {
    /// A task; parents are made of the bits of `parents` that name earlier tasks.
    pub fn task(faulty: bool)(
        weight in 1u32..8,
        priority in -3i64..4,
        cost in 1u64..20,
        spread in 0.0..0.9f64,
        persistent in 0u64..40,
        scratch in 1u64..60,
        parents in any::<u64>(),
        quanta in 1u64..25,
        write_share in prop::sample::select(vec![0.0, 0.1, 0.5, 0.7, 1.0]),
        blocks in 1u64..16,
        arrival in 0u8..4,
        every in 1u64..4,
        faults in faults(),
    ) -> SimTask {
        let base = cost * MS;
        let arrival = match arrival {
            0 => Arrival::Poisson { gap: 20 * MS },
            1 => Arrival::Bursty { gap: 50 * MS, size: 4 },
            _ => Arrival::Closed { think: 0 },
        };
        let spec = Spec {
            weight: f64::from(weight),
            priority,
            persistent,
            scratch,
            // Whole sets of parents are rare; most tasks have none.
            parents: if parents % 3 == 0 { vec![(parents / 3 % 64) as usize] } else { Vec::new() },
            ..Spec::new("t", base)
        };
        SimTask {
            spec,
            class: 0,
            quanta,
            cost: Cost { base, spread, tail_share: 0.0, tail_factor: 1.0 },
            arrival,
            write_share,
            blocks,
            faults: if faulty { faults } else { Faults::default() },
            timeout: 0,
            every,
        }
    }
}

/// Tasks with numbers for names, parents among those before them, and budgets with little to spare.
pub fn workload(mut tasks: Vec<SimTask>, settings: Settings, mode: Mode) -> Workload {
    for (number, task) in tasks.iter_mut().enumerate() {
        task.spec.name = number.to_string();
        task.spec.parents.retain_mut(|parent| {
            *parent %= 8;
            *parent < number
        });
        task.spec.budget = task.spec.persistent + task.spec.scratch;
    }
    Workload { settings, mode, commit: MS, classes: vec!["all".into()], tasks, blocks: 4 }
}

prop_compose! {
    pub fn workloads(faulty: bool)(
        tasks in prop::collection::vec(task(faulty), 1..9),
        policy in policy(),
        lanes in 1usize..4,
        synchronous in any::<bool>(),
        spare in 0u64..80,
        seed in any::<u64>(),
        staleness in prop::sample::select(vec![0, 1, 3, u32::MAX]),
        on_stale in prop::sample::select(vec![OnStale::Allow, OnStale::Recompute]),
    ) -> Workload {
        let shared = 10;
        let scratch = tasks.iter().map(|task| task.spec.scratch).max().unwrap_or(0);
        let kept = tasks.iter().map(|task| task.spec.persistent).sum::<u64>();
        let largest = tasks.iter().map(|task| task.spec.persistent + task.spec.scratch).max().unwrap_or(0);
        // All tasks of a round are there at once; tasks that commit for themselves may take turns.
        let largest = if synchronous { kept + scratch } else { largest };
        let settings = Settings {
            policy,
            lanes,
            device: shared + largest + spare,
            shared,
            max_staleness: staleness,
            on_stale,
            seed,
            retry: Retry { max: 3, base: 10 * MS, cap: 80 * MS },
            ..Settings::default()
        };
        workload(tasks, settings, if synchronous { Mode::Synchronous } else { Mode::TimeSliced })
    }
}
