//! The dispatcher against brute force, on every instance of up to six jobs (up to renaming jobs).

use taskloom::schedule::access::Operation;
use taskloom::schedule::deadlines::{late_under_edf, late_under_rms};
use taskloom::schedule::dispatcher::{Dispatcher, Job, Settings};
use taskloom::schedule::retry::Status;
use taskloom::schedule::task::Spec;
use taskloom::schedule::{Nanos, Policy, policy};
use taskloom::simulate::{Arrival, Cost, Faults, Mode, SimTask, Workload, simulate};

const UNIT: Nanos = 1_000_000;

/// One job of its own task. `key` is a deadline, a period or a priority.
#[derive(Clone, Copy, Debug)]
struct Small {
    release: Nanos,
    cost: Nanos,
    key: Nanos,
}

/// Every multiset of `count` of the `choices`.
fn multisets(choices: &[Small], count: usize, visit: &mut impl FnMut(&[Small])) {
    fn extend(choices: &[Small], from: usize, chosen: &mut Vec<Small>, count: usize, visit: &mut impl FnMut(&[Small])) {
        if chosen.len() == count {
            return visit(chosen);
        }
        for next in from..choices.len() {
            chosen.push(choices[next]);
            extend(choices, next, chosen, count, visit);
            chosen.pop();
        }
    }
    extend(choices, 0, &mut Vec::new(), count, visit);
}

/// The order in which the dispatcher runs the jobs on one lane, and when each of them ends.
fn dispatched(policy: &'static Policy, jobs: &[Small]) -> Vec<(usize, Nanos)> {
    let spec = |job: &Small| match policy.name {
        "edf" => Spec { deadline: job.key * UNIT, ..Spec::new("t", 0) },
        "rms" => Spec { period: job.key * UNIT, ..Spec::new("t", 0) },
        _ => Spec { priority: job.key as i64, ..Spec::new("t", 0) },
    };
    let settings = Settings { policy, server_share: 0.0, ..Settings::default() };
    let mut dispatcher = Dispatcher::new(settings, jobs.iter().map(spec).collect(), 1).unwrap();
    let mut order = Vec::new();
    let mut submitted = vec![false; jobs.len()];
    let mut now = 0;
    while order.len() < jobs.len() {
        let mut due: Vec<usize> = (0..jobs.len()).filter(|&job| !submitted[job] && jobs[job].release <= now).collect();
        // What became due while a quantum ran became so in this order.
        due.sort_by_key(|&job| jobs[job].release);
        for job in due {
            let Small { release, cost, .. } = jobs[job];
            let new = Job { operation: Operation::Commit, blocks: 1, release: release * UNIT, cost: cost * UNIT, bytes: 0 };
            dispatcher.submit(job, new, now * UNIT);
            submitted[job] = true;
        }
        match dispatcher.next(now * UNIT) {
            Some(started) => {
                now += jobs[started.task].cost;
                dispatcher.complete(started.lane, started.job.cost, Status::Ok, now * UNIT);
                order.push((started.task, now));
            }
            None => now += 1,
        }
    }
    order
}

/// The same by the policy's definition, looking at all jobs each time.
fn by_definition(policy: &'static Policy, jobs: &[Small]) -> Vec<(usize, Nanos)> {
    let mut left: Vec<usize> = (0..jobs.len()).collect();
    let mut now = 0;
    let mut order = Vec::new();
    while !left.is_empty() {
        let rank = |&job: &usize| {
            let Small { release, key, .. } = jobs[job];
            let first = match policy.name {
                "edf" => (release + key) as i64,
                "rms" => key as i64,
                "priority" => -(key as i64),
                _ => 0,
            };
            (first, release, job)
        };
        match left.iter().copied().filter(|&job| jobs[job].release <= now).min_by_key(rank) {
            Some(job) => {
                now += jobs[job].cost;
                order.push((job, now));
                left.retain(|&other| other != job);
            }
            None => now += 1,
        }
    }
    order
}

fn choices(releases: Nanos, costs: Nanos, keys: Nanos) -> Vec<Small> {
    let mut all = Vec::new();
    for release in 0..releases {
        for cost in 1..=costs {
            all.extend((1..=keys).map(|key| Small { release, cost, key }));
        }
    }
    all
}

#[test]
fn every_policy_runs_as_it_is_defined() {
    let mut seen = 0;
    for count in 1..=6 {
        multisets(&choices(3, 2, 2), count, &mut |jobs| {
            for policy in [&policy::round_robin::POLICY, &policy::priority::POLICY, &policy::rms::POLICY, &policy::edf::POLICY] {
                assert_eq!(dispatched(policy, jobs), by_definition(policy, jobs), "{policy:?} {jobs:?}");
                seen += 1;
            }
        });
    }
    assert!(seen > 50_000, "{seen}");
}

/// A task with jobs one after the other, each given as soon as the one before is done.
#[derive(Clone, Copy, Debug)]
struct Backlog {
    weight: u64,
    cost: Nanos,
    jobs: usize,
}

/// The order in which the dispatcher runs the tasks under stride scheduling.
fn dispatched_by_weight(tasks: &[Backlog]) -> Vec<usize> {
    let spec = |task: &Backlog| Spec { weight: task.weight as f64, ..Spec::new("t", 0) };
    let settings = Settings { policy: &policy::weighted::POLICY, server_share: 0.0, ..Settings::default() };
    let mut dispatcher = Dispatcher::new(settings, tasks.iter().map(spec).collect(), 1).unwrap();
    let job = |task: &Backlog, now: Nanos| Job {
        operation: Operation::Commit,
        blocks: 1,
        release: now,
        cost: task.cost * UNIT,
        bytes: 0,
    };
    tasks.iter().enumerate().for_each(|(task, backlog)| dispatcher.submit(task, job(backlog, 0), 0));
    let (mut order, mut now) = (Vec::new(), 0);
    while let Some(started) = dispatcher.next(now) {
        now += started.job.cost;
        order.push(started.task);
        dispatcher.complete(started.lane, started.job.cost, Status::Ok, now);
        let own = &tasks[started.task];
        if order.iter().filter(|&&task| task == started.task).count() < own.jobs {
            dispatcher.submit(started.task, job(own, now), now);
        }
    }
    order
}

/// Of the tasks with jobs left always the one that had the least time for its weight, of equal ones the first.
fn by_least_served(tasks: &[Backlog]) -> Vec<usize> {
    let mut done = vec![0; tasks.len()];
    let mut order = Vec::new();
    // Times and weights are whole numbers: served / weight is compared exactly over the common multiple of 1, 2 and 3.
    let served = |task: usize, done: &[usize]| done[task] as u64 * tasks[task].cost * (6 / tasks[task].weight);
    while let Some(next) =
        (0..tasks.len()).filter(|&task| done[task] < tasks[task].jobs).min_by_key(|&task| (served(task, &done), task))
    {
        done[next] += 1;
        order.push(next);
    }
    order
}

#[test]
fn weighted_runs_whoever_had_least_for_its_weight() {
    fn extend(tasks: &mut Vec<Backlog>, jobs_left: usize, seen: &mut u32) {
        if !tasks.is_empty() {
            assert_eq!(dispatched_by_weight(tasks), by_least_served(tasks), "{tasks:?}");
            *seen += 1;
        }
        for jobs in 1..=jobs_left {
            for (weight, cost) in [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2)] {
                tasks.push(Backlog { weight, cost, jobs });
                extend(tasks, jobs_left - jobs, seen);
                tasks.pop();
            }
        }
    }
    let mut seen = 0;
    extend(&mut Vec::new(), 6, &mut seen);
    // All compositions of up to six jobs, six kinds a task.
    assert_eq!(seen, (1..=6).map(|jobs| 6 * 7u32.pow(jobs - 1)).sum::<u32>());
}

/// Least greatest lateness over every order of the jobs, all released at once.
fn best_lateness(jobs: &[Small], now: i64, left: &mut Vec<usize>) -> i64 {
    if left.is_empty() {
        return i64::MIN;
    }
    let mut best = i64::MAX;
    for position in 0..left.len() {
        let job = left.swap_remove(position);
        let end = now + jobs[job].cost as i64;
        let worst = (end - jobs[job].key as i64).max(best_lateness(jobs, end, left));
        best = best.min(worst);
        left.push(job);
        let last = left.len() - 1;
        left.swap(position, last);
    }
    best
}

#[test]
fn no_order_is_less_late_than_edf() {
    for count in 1..=6 {
        multisets(&choices(1, 2, 4), count, &mut |jobs| {
            let ours =
                dispatched(&policy::edf::POLICY, jobs).into_iter().map(|(job, end)| end as i64 - jobs[job].key as i64).max();
            assert_eq!(ours, Some(best_lateness(jobs, 0, &mut (0..count).collect())), "{jobs:?}");
        });
    }
}

fn misses(policy: &'static Policy, specs: &[Spec], offsets: &[Nanos]) -> u64 {
    let task = |(spec, &offset): (&Spec, &Nanos)| SimTask {
        spec: spec.clone(),
        class: 0,
        quanta: 12,
        cost: Cost::fixed(spec.cost),
        arrival: Arrival::Periodic { period: spec.period, offset: offset * UNIT },
        write_share: 0.0,
        blocks: 1,
        faults: Faults::default(),
        timeout: 0,
        every: 1,
    };
    let tasks = specs.iter().zip(offsets).map(task).collect();
    let settings = Settings { policy, server_share: 0.0, ..Settings::default() };
    let workload = Workload { settings, mode: Mode::TimeSliced, commit: 0, classes: vec!["all".into()], tasks, blocks: 1 };
    simulate(&workload).map_or(u64::MAX, |report| report.counts.deadline_misses)
}

#[test]
fn an_admitted_periodic_set_meets_every_deadline_from_every_start() {
    let shapes: Vec<(Nanos, Nanos)> = (1..=2).flat_map(|cost| (2..=7).map(move |period| (cost, period))).collect();
    let (mut admitted, mut full) = (0, 0);
    for (i, &one) in shapes.iter().enumerate() {
        for (j, &two) in shapes.iter().enumerate().skip(i) {
            for &three in &shapes[j..] {
                let specs: Vec<Spec> = [one, two, three]
                    .iter()
                    .map(|&(cost, period)| Spec { period: period * UNIT, ..Spec::new("t", cost * UNIT) })
                    .collect();
                let load: f64 = [one, two, three].iter().map(|&(cost, period)| cost as f64 / period as f64).sum();
                for (policy, late) in
                    [(&policy::edf::POLICY, late_under_edf(&specs, 0.0)), (&policy::rms::POLICY, late_under_rms(&specs, 0.0))]
                {
                    assert!(load <= 1.0 + 1e-9 || late.is_some(), "{policy:?} admits a load of {load}");
                    if late.is_some() {
                        continue;
                    }
                    admitted += 1;
                    full += u32::from(load > 0.8);
                    for a in 0..one.1 {
                        for b in 0..two.1 {
                            assert_eq!(misses(policy, &specs, &[a, b, 0]), 0, "{policy:?} {specs:?} from {a}, {b}, 0");
                        }
                    }
                }
            }
        }
    }
    assert!(admitted > 100 && full > 10, "{admitted} sets admitted, {full} of them nearly full");
}
