//! Each promise in a test named after it, over random workloads on the simulator.

use crate::holds::{
    Observed, a_task_stays_within_its_own_budget, admitted_bytes, every_sample_is_committed_once_or_reported_dropped,
    largest_scratch, no_reader_runs_beside_a_writer_of_its_block, observed, only_listed_transitions_and_bounded_attempts,
    parents_are_done_before_a_child_starts, reserved_bytes_never_exceed_the_budget_and_end_at_the_shared_ones,
};
use crate::workloads::{MS, policy, task, workload, workloads};
use proptest::prelude::*;
use taskloom::schedule::Nanos;
use taskloom::schedule::access::{OnStale, Operation};
use taskloom::schedule::dispatcher::{After, Dispatcher, Job, Settings};
use taskloom::schedule::log::What;
use taskloom::schedule::policy::{self};
use taskloom::schedule::retry::{Retry, Status};
use taskloom::schedule::task::{Spec, State};
use taskloom::simulate::{Arrival, Cost, Faults, Mode, SimTask, Simulation, Span, simulate};

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn p01_reserved_bytes_never_exceed_the_budget_and_end_at_the_shared_ones(workload in workloads(true)) {
        reserved_bytes_never_exceed_the_budget_and_end_at_the_shared_ones(&workload, &observed(&workload))?;
    }

    #[test]
    fn p02_a_task_stays_within_its_own_budget(workload in workloads(true)) {
        a_task_stays_within_its_own_budget(&workload, &observed(&workload))?;
    }

    #[test]
    fn p03_no_reader_runs_beside_a_writer_of_its_block(workload in workloads(true)) {
        no_reader_runs_beside_a_writer_of_its_block(&workload, &observed(&workload))?;
    }

    #[test]
    fn p04_parents_are_done_before_a_child_starts(workload in workloads(true)) {
        parents_are_done_before_a_child_starts(&workload, &observed(&workload))?;
    }

    #[test]
    fn p05_only_listed_transitions_and_bounded_attempts(workload in workloads(true)) {
        only_listed_transitions_and_bounded_attempts(&workload, &observed(&workload))?;
    }

    #[test]
    fn p06_somebody_runnable_means_somebody_runs_within_one_quantum(workload in workloads(true)) {
        let Observed { spans, log, .. } = observed(&workload);
        // Instants at which nothing ran although a job was known, its parents done, and nobody backing off.
        let mut running = 0;
        let mut waiting = vec![false; workload.tasks.len() + 1];
        let mut state = vec![State::Pending; workload.tasks.len() + 1];
        let done = |state: &[State], task: usize| {
            workload.tasks.get(task).is_none_or(|own| own.spec.parents.iter().all(|&parent| state[parent] == State::Done))
        };
        for (position, entry) in log.iter().enumerate() {
            let task = entry.task as usize;
            match entry.what {
                What::Submit => waiting[task] = true,
                What::Start { .. } => { waiting[task] = false; running += 1; }
                What::End { .. } => running -= 1,
                What::State { to, .. } => {
                    state[task] = to;
                    if to.is_final() { waiting[task] = false; }
                }
                _ => {}
            }
            let last_of_instant = log.get(position + 1).is_none_or(|next| next.at > entry.at);
            if last_of_instant && running == 0 {
                let runnable = |task: &usize| waiting[*task] && state[*task] == State::Pending && done(&state, *task);
                let idle: Vec<usize> = (0..waiting.len()).filter(runnable).collect();
                // Whoever waits for admission may wait for an admitted task to end, or for its turn behind one that does.
                let admitted = &log[..=position];
                let is_admitted = |task: usize| admitted.iter().any(|entry| {
                    entry.task as usize == task && matches!(entry.what, What::Admit { .. })
                });
                prop_assert!(!idle.iter().any(|&task| is_admitted(task)), "an admitted task waits at {} while nothing runs", entry.at);
                let taken = workload.settings.shared + admitted_bytes(admitted) + largest_scratch(&workload);
                let held = idle.iter().any(|&task| taken + workload.tasks[task].spec.persistent > workload.settings.device);
                prop_assert!(idle.is_empty() || held, "{:?} wait at {} while nothing runs", idle, entry.at);
            }
        }
        prop_assert!(!spans.is_empty());
    }

    #[test]
    fn p07_weighted_pairs_share_within_one_quantum_each(
        tasks in prop::collection::vec((1u32..20, 1u64..20, 0.0..0.9f64), 2..8), seed in any::<u64>()
    ) {
        let specs = tasks.iter().map(|&(weight, cost, _)| Spec { weight: f64::from(weight), ..Spec::new("t", cost * MS) }).collect();
        let settings = Settings { policy: &policy::weighted::POLICY, ..Settings::default() };
        let mut dispatcher = Dispatcher::new(settings, specs, 1).unwrap();
        let mut random = taskloom::schedule::random::Random::new(seed, 0);
        let mut service = vec![0.0; tasks.len()];
        let most = tasks.iter().map(|&(_, cost, spread)| cost as f64 * MS as f64 * (1.0 + spread)).fold(0.0, f64::max);
        let job = |task: usize, now| {
            let cost = tasks[task].1 * MS;
            Job { operation: Operation::Evaluation, blocks: 1, release: now, cost, bytes: 0 }
        };
        let mut now = 0;
        (0..tasks.len()).for_each(|task| dispatcher.submit(task, job(task, 0), 0));
        for _ in 0..300 {
            let started = dispatcher.next(now).unwrap();
            let cost = Cost { base: started.job.cost, spread: tasks[started.task].2, tail_share: 0.0, tail_factor: 1.0 }.draw(&mut random);
            now += cost;
            dispatcher.complete(started.lane, cost, Status::Ok, now);
            service[started.task] += cost as f64;
            dispatcher.submit(started.task, job(started.task, now), now);
            for i in 0..tasks.len() {
                for j in 0..i {
                    let (wi, wj) = (f64::from(tasks[i].0), f64::from(tasks[j].0));
                    // One nanosecond a quantum is lost to integers.
                    let bound = most * (1.0 / wi + 1.0 / wj) + 300.0;
                    prop_assert!((service[i] / wi - service[j] / wj).abs() <= bound);
                }
            }
        }
    }

    #[test]
    fn p08_best_effort_tasks_wait_for_a_bounded_time(
        count in 1usize..6, cost in 1u64..8, share in 0.02..0.3f64, by_priority in any::<bool>()
    ) {
        // One task that always has work goes before all others, which the server must bring through.
        let greedy = Spec { priority: 9, deadline: u64::MAX / 4, ..Spec::new("greedy", cost * MS) };
        let mut specs = vec![greedy];
        specs.extend((0..count).map(|_| Spec::new("other", cost * MS)));
        let policy = if by_priority { &policy::priority::POLICY } else { &policy::edf::POLICY };
        let settings = Settings { policy, server_share: share, ..Settings::default() };
        let mut dispatcher = Dispatcher::new(settings, specs, 1).unwrap();
        let job = |now| Job { operation: Operation::Evaluation, blocks: 1, release: now, cost: cost * MS, bytes: 0 };
        (0..=count).for_each(|task| dispatcher.submit(task, job(0), 0));
        let mut now = 0;
        let mut since = vec![0; count + 1];
        // Between two quanta of the server lies at most what it needs to earn one, and the quantum that runs by then; under
        // `priority` the greedy task stands in the server's line, too.
        let line = (count + usize::from(by_priority)) as f64;
        let bound = line * (cost as f64 / share + 2.0 * cost as f64) * MS as f64;
        for _ in 0..2000 {
            let started = dispatcher.next(now).unwrap();
            prop_assert!(((now - since[started.task]) as f64) <= bound);
            now += cost * MS;
            dispatcher.complete(started.lane, cost * MS, Status::Ok, now);
            since[started.task] = now;
            dispatcher.submit(started.task, job(now), now);
        }
        prop_assert!(since.iter().all(|&since| (now - since) as f64 <= bound));
    }

    #[test]
    fn p09_an_admitted_deadline_set_without_faults_misses_nothing(
        tasks in prop::collection::vec((1u64..20, 5u64..200, 0.3..1.0f64, 0u64..100), 1..6),
        background in prop::collection::vec(1u64..10, 0..4),
        edf in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let sim = |spec: Spec, quanta, arrival| SimTask {
            cost: Cost { base: spec.cost, spread: 0.0, tail_share: 0.0, tail_factor: 1.0 },
            spec, class: 0, quanta, arrival, write_share: 0.0, blocks: 1, faults: Faults::default(), timeout: 0, every: 1,
        };
        let mut all: Vec<SimTask> = tasks.iter().map(|&(cost, period, tightness, offset)| {
            let (period, cost) = (period * MS, cost * MS / 4);
            let deadline = ((period as f64 * tightness) as Nanos).max(cost);
            let spec = Spec { period, deadline, ..Spec::new("d", cost) };
            sim(spec, 60, Arrival::Periodic { period, offset: offset * MS / 3 })
        }).collect();
        all.extend(background.iter().map(|&cost| sim(Spec::new("b", cost * MS / 4), 500, Arrival::Closed { think: 0 })));
        let settings = Settings { policy: if edf { &policy::edf::POLICY } else { &policy::rms::POLICY }, seed, ..Settings::default() };
        let workload = workload(all, settings, Mode::TimeSliced);
        // What is refused promises nothing.
        if let Ok(report) = simulate(&workload) {
            prop_assert_eq!(report.counts.deadline_misses, 0);
        }
    }

    #[test]
    fn p10_priority_inversion_is_bounded_by_the_quanta_in_flight(
        others in prop::collection::vec((1u64..10, 0.0..1.0f64), 1..6), lanes in 1usize..4, seed in any::<u64>()
    ) {
        let sim = |priority, cost, quanta, arrival, write_share| SimTask {
            spec: Spec { priority, ..Spec::new("t", cost * MS) },
            class: 0, quanta, cost: Cost::fixed(cost * MS), arrival, write_share, blocks: 1,
            faults: Faults::default(), timeout: 0, every: 1,
        };
        let mut tasks = vec![sim(9, 2, 40, Arrival::Poisson { gap: 15 * MS }, 0.5)];
        tasks.extend(others.iter().map(|&(cost, writes)| sim(0, cost, 60, Arrival::Closed { think: 0 }, writes)));
        let settings = Settings { policy: &policy::priority::POLICY, lanes, server_share: 0.0, seed, ..Settings::default() };
        let Observed { spans, .. } = observed(&workload(tasks, settings, Mode::TimeSliced));
        let mine: Vec<&Span> = spans.iter().filter(|span| span.task == 0).collect();
        for (position, span) in mine.iter().enumerate() {
            // Ready once it is due and its own last job is over.
            let ready = span.release.max(if position > 0 { mine[position - 1].end } else { 0 });
            let before = spans.iter().filter(|other| other.task != 0 && other.start >= ready && other.start < span.start);
            prop_assert_eq!(before.count(), 0, "somebody below started while the highest was ready");
            let in_flight = spans.iter().filter(|other| other.task != 0 && other.start < ready && other.end > ready).count();
            prop_assert!(in_flight <= lanes);
            let longest = others.iter().map(|&(cost, _)| cost * MS).max().unwrap_or(0);
            prop_assert!(span.start - ready <= longest);
        }
    }

    #[test]
    fn p11_rollback_restores_exact_bytes_and_cursor(workload in workloads(true)) {
        // A task that got through all its failures ends in the very bytes of one that never failed.
        let mut calm = workload.clone();
        calm.tasks.iter_mut().for_each(|task| task.faults = Faults::default());
        let (rough, calm) = (simulate(&workload).unwrap(), simulate(&calm).unwrap());
        for (task, (rough, calm)) in rough.samples.iter().zip(&calm.samples).enumerate() {
            if rough.dropped == 0 {
                prop_assert_eq!(rough, calm, "task {}", task);
            }
        }
    }

    #[test]
    fn p12_weights_do_not_depend_on_lanes_or_policy(
        tasks in prop::collection::vec(task(false), 1..9), seed in any::<u64>(), (one, other) in (policy(), policy()), lanes in 2usize..5
    ) {
        let run = |policy, lanes| {
            let settings = Settings { policy, lanes, seed, ..Settings::default() };
            simulate(&workload(tasks.clone(), settings, Mode::Synchronous)).unwrap()
        };
        let (reference, varied) = (run(one, 1), run(other, lanes));
        prop_assert_eq!(reference.weights, varied.weights);
        prop_assert_eq!(reference.samples, varied.samples);
    }

    #[test]
    fn p13_scaling_all_weights_changes_nothing(mut workload in workloads(true), factor in prop::sample::select(vec![0.1, 0.5, 3.0, 10.0, 1000.0])) {
        workload.settings.policy = &policy::weighted::POLICY;
        let plain = simulate(&workload).unwrap();
        workload.tasks.iter_mut().for_each(|task| task.spec.weight *= factor);
        let scaled = simulate(&workload).unwrap();
        prop_assert_eq!(plain.event_hash, scaled.event_hash);
    }

    #[test]
    fn p14_every_sample_is_committed_once_or_reported_dropped(mut workload in workloads(true), refuse in any::<bool>()) {
        if refuse {
            workload.settings.on_stale = OnStale::Refuse;
        }
        every_sample_is_committed_once_or_reported_dropped(&workload, &simulate(&workload).unwrap())?;
    }

    #[test]
    fn p15_a_stopped_simulation_begins_nothing_later_and_says_what_is_left(workload in workloads(true), until in 0u64..400) {
        let mut simulation = Simulation::new(&workload).unwrap();
        simulation.keep_spans();
        simulation.stop_at(until * MS);
        let (report, spans, _) = simulation.run().unwrap();
        prop_assert!(spans.iter().all(|span| span.start < until * MS));
        let over: u64 = report.samples.iter().map(|samples| samples.committed + samples.dropped).sum();
        let planned: u64 = report.samples.iter().map(|samples| samples.planned).sum();
        prop_assert_eq!(over + report.left, planned);
        let whole = observed(&workload);
        prop_assert_eq!(whole.report.left, 0);
        // Up to then it is the run that was not stopped.
        let started = |spans: &[Span]| spans.iter().filter(|span| span.start < until * MS).count();
        prop_assert_eq!(started(&spans), started(&whole.spans));
    }

    #[test]
    fn equal_seeds_give_equal_logs_and_others_do_not(workload in workloads(true)) {
        let (one, again) = (simulate(&workload).unwrap(), simulate(&workload).unwrap());
        prop_assert_eq!(&one, &again);
    }
}

#[test]
fn a_failure_fails_its_descendants_and_nobody_else() {
    let mut dispatcher = Dispatcher::new(
        Settings { retry: Retry { max: 1, base: 0, cap: 0 }, ..Settings::default() },
        vec![
            Spec::new("a", 1),
            Spec { parents: vec![0], ..Spec::new("b", 1) },
            Spec { parents: vec![1], ..Spec::new("c", 1) },
            Spec::new("d", 1),
        ],
        1,
    )
    .unwrap();
    let job = Job { operation: Operation::Gradient, blocks: 1, release: 0, cost: 1, bytes: 0 };
    (0..4).for_each(|task| dispatcher.submit(task, job, 0));
    let mut failed = Vec::new();
    for now in 0..6 {
        let Some(started) = dispatcher.next(now) else { break };
        let status = if started.task == 0 { Status::NotFinite } else { Status::Ok };
        if dispatcher.complete(started.lane, 1, status, now).1 == After::Restore {
            failed.extend(dispatcher.restored(0, now));
            dispatcher.submit(0, job, now);
        }
    }
    failed.sort_unstable();
    assert_eq!(failed, [0, 1, 2]);
    assert_eq!(dispatcher.state(3), State::Pending);
}
