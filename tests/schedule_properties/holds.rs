//! What holds of every run of a workload, whatever its quanta run on.

use proptest::prelude::*;
use taskloom::schedule::access::{Blocks, OnStale};
use taskloom::schedule::executor::Executor;
use taskloom::schedule::log::{Entry, What};
use taskloom::schedule::task::State;
use taskloom::simulate::{Drawn, Machine, Report, Simulation, Span, Workload};

/// Everything a run of a workload tells.
pub struct Observed {
    pub report: Report,
    pub spans: Vec<Span>,
    pub log: Vec<Entry>,
}

pub fn observed(workload: &Workload) -> Observed {
    observed_on(workload, Machine::new(workload.settings.lanes))
}

pub fn observed_on(workload: &Workload, lanes: impl Executor<Work = Drawn>) -> Observed {
    let mut simulation = Simulation::on(workload, lanes).expect("the workload is sound");
    simulation.keep_spans();
    simulation.dispatcher.log.keep();
    let (report, spans, dispatcher) = simulation.run().expect("it ends");
    Observed { report, spans, log: dispatcher.log.entries().to_vec() }
}

pub fn blocks_of(workload: &Workload, task: usize) -> Blocks {
    workload.tasks.get(task).map_or(Blocks::MAX, |task| task.blocks)
}

pub fn reserved_bytes_never_exceed_the_budget_and_end_at_the_shared_ones(
    workload: &Workload,
    run: &Observed,
) -> Result<(), TestCaseError> {
    let Observed { report, log, .. } = run;
    let mut reserved = workload.settings.shared;
    let mut held = vec![0; workload.tasks.len() + 1];
    for entry in log {
        match entry.what {
            What::Start { bytes, .. } => {
                held[entry.task as usize] = bytes;
                reserved += bytes;
            }
            What::End { .. } => reserved -= std::mem::take(&mut held[entry.task as usize]),
            What::Admit { bytes } => reserved += bytes,
            What::Dismiss { bytes } => reserved -= bytes,
            _ => {}
        }
        prop_assert!(reserved <= workload.settings.device);
    }
    prop_assert!(report.peak_bytes <= workload.settings.device);
    prop_assert_eq!((reserved, report.bytes_at_end), (workload.settings.shared, workload.settings.shared));
    Ok(())
}

pub fn a_task_stays_within_its_own_budget(workload: &Workload, run: &Observed) -> Result<(), TestCaseError> {
    let Observed { log, .. } = run;
    let mut own = vec![0u64; workload.tasks.len() + 1];
    for entry in log {
        let task = entry.task as usize;
        match entry.what {
            What::Admit { bytes } => own[task] += bytes,
            What::Start { bytes, .. } if task < workload.tasks.len() => {
                let spec = &workload.tasks[task].spec;
                prop_assert!(own[task] + bytes <= spec.budget.max(1));
            }
            _ => {}
        }
    }
    Ok(())
}

pub fn no_reader_runs_beside_a_writer_of_its_block(workload: &Workload, run: &Observed) -> Result<(), TestCaseError> {
    let Observed { spans, .. } = run;
    for (position, one) in spans.iter().enumerate() {
        for other in &spans[..position] {
            let together = one.start < other.end && other.start < one.end;
            let shared = blocks_of(workload, one.task) & blocks_of(workload, other.task) != 0;
            let writes = one.operation.writes() || other.operation.writes();
            prop_assert!(!(together && shared && writes), "{:?} beside {:?}", one, other);
        }
    }
    Ok(())
}

pub fn parents_are_done_before_a_child_starts(workload: &Workload, run: &Observed) -> Result<(), TestCaseError> {
    let Observed { log, .. } = run;
    let mut done = vec![false; workload.tasks.len() + 1];
    for entry in log {
        match entry.what {
            What::State { to: State::Done, .. } => done[entry.task as usize] = true,
            What::Start { .. } if (entry.task as usize) < workload.tasks.len() => {
                prop_assert!(workload.tasks[entry.task as usize].spec.parents.iter().all(|&parent| done[parent]));
            }
            _ => {}
        }
    }
    Ok(())
}

pub fn only_listed_transitions_and_bounded_attempts(workload: &Workload, run: &Observed) -> Result<(), TestCaseError> {
    let Observed { log, .. } = run;
    let mut state = vec![State::Pending; workload.tasks.len() + 1];
    let mut failures = vec![0; workload.tasks.len() + 1];
    for entry in log {
        let task = entry.task as usize;
        let What::State { from, to } = entry.what else { continue };
        prop_assert_eq!(from, state[task]);
        prop_assert!(from.allows(to) && !from.is_final());
        state[task] = to;
        match (from, to) {
            (State::Running, State::Retrying | State::Rollback) => failures[task] += 1,
            (State::Running, _) => failures[task] = 0,
            _ => {}
        }
        prop_assert!(failures[task] <= workload.settings.retry.max + 1);
    }
    prop_assert!(state[..workload.tasks.len()].iter().all(|state| state.is_final()), "{:?}", state);
    Ok(())
}

pub fn every_sample_is_committed_once_or_reported_dropped(workload: &Workload, report: &Report) -> Result<(), TestCaseError> {
    for (task, samples) in report.samples.iter().enumerate() {
        prop_assert_eq!(samples.planned, samples.committed + samples.dropped, "task {}", task);
        let may_drop = report.failed.contains(&task) || workload.settings.on_stale == OnStale::Refuse;
        prop_assert!(may_drop || samples.dropped == 0, "task {} dropped in silence", task);
    }
    Ok(())
}

/// What holds whatever quanta run on.
pub fn what_holds_anywhere(workload: &Workload, run: &Observed) -> Result<(), TestCaseError> {
    reserved_bytes_never_exceed_the_budget_and_end_at_the_shared_ones(workload, run)?;
    a_task_stays_within_its_own_budget(workload, run)?;
    no_reader_runs_beside_a_writer_of_its_block(workload, run)?;
    parents_are_done_before_a_child_starts(workload, run)?;
    only_listed_transitions_and_bounded_attempts(workload, run)?;
    every_sample_is_committed_once_or_reported_dropped(workload, &run.report)
}

pub fn admitted_bytes(log: &[Entry]) -> u64 {
    log.iter().fold(0, |sum, entry| match entry.what {
        What::Admit { bytes } => sum + bytes,
        What::Dismiss { bytes } => sum - bytes,
        _ => sum,
    })
}

pub fn largest_scratch(workload: &Workload) -> u64 {
    workload.tasks.iter().map(|task| task.spec.scratch).max().unwrap_or(0)
}
