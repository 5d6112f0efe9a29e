//! The same workload twice: on the lanes of the CPU or of a device, whose quanta really compute, and on the simulator's machine.

use anyhow::{Result, anyhow, ensure};

use crate::schedule::executor::{Ended, Executor, Making};
use crate::schedule::retry::Status;
use crate::schedule::{Nanos, policy};
use crate::simulate::{Drawn, Report, Simulation, Workload};
use crate::train::lanes::{AtWork, Work};
use crate::train::{DeviceLanes, Passes};

/// The CPU's lanes, which compute what was drawn with their arenas.
pub fn on_host<'e, 'w, 'a, A: 'w>(
    lanes: &'e mut AtWork<'w, 'a, A>,
    compute: fn(&mut A, Drawn) -> Status,
) -> impl Executor<Work = Drawn> + use<'e, 'w, 'a, A> {
    Making::new(lanes, move |drawn| -> Work<'w, A> { Box::new(move |arena| compute(arena, drawn)) })
}

/// Passes that are timed before a workload runs.
const TIMED_PASSES: u64 = 100;

/// A device's lanes, which compute as many passes as take the time that was drawn: what one takes is measured. Tasks above the lowest
/// priority are urgent, where that decides who is next.
pub fn on_device<'e>(lanes: &'e mut DeviceLanes, workload: &Workload) -> Result<impl Executor<Work = Drawn> + use<'e>> {
    // The first ones have their launches captured.
    lanes.time_of_a_pass(3)?;
    let pass = lanes.time_of_a_pass(TIMED_PASSES)?.as_nanos().max(1) as f64;
    let priorities = || workload.tasks.iter().map(|task| task.spec.priority);
    let lowest = priorities().min().unwrap_or(0);
    let counts = workload.settings.policy.name == policy::priority::POLICY.name;
    let urgent: Vec<bool> = priorities().map(|priority| counts && priority > lowest).collect();
    Ok(Making::new(lanes, move |Drawn { task, cost, status }| {
        let count = (cost as f64 / pass).round().max(1.0) as u64;
        Passes { count, urgent: urgent.get(task).copied().unwrap_or(false), status }
    }))
}

/// Lanes and the milliseconds of every quantum that ended on them.
struct Timed<'t, E> {
    lanes: E,
    times: &'t mut Vec<f64>,
}

impl<E: Executor> Executor for Timed<'_, E> {
    type Work = E::Work;

    fn now(&self) -> Nanos {
        self.lanes.now()
    }

    fn submit(&mut self, lane: usize, work: E::Work) {
        self.lanes.submit(lane, work);
    }

    fn wait(&mut self, until: Option<Nanos>) -> Option<Ended> {
        let ended = self.lanes.wait(until)?;
        self.times.push(ended.cost as f64 / 1e6);
        Some(ended)
    }
}

/// Runs a workload on lanes that have just begun, on the wall clock; no quantum begins from `until` on. Returns the milliseconds of
/// every quantum, too.
///
/// # Errors
/// What [`Simulation::on`] refuses, and a run in which no quantum began in time.
pub fn measured<E: Executor<Work = Drawn>>(workload: &Workload, lanes: E, until: Nanos) -> Result<(Report, Vec<f64>)> {
    let mut times = Vec::new();
    let report = run(Simulation::on(workload, Timed { lanes, times: &mut times }), until)?;
    ensure!(!times.is_empty(), "no quantum began within {} s: raise --seconds", until as f64 / 1e9);
    Ok((report, times))
}

/// Runs it on the virtual clock, up to the same time.
///
/// # Errors
/// What [`Simulation::on`] refuses.
pub fn simulated(workload: &Workload, until: Nanos) -> Result<Report> {
    run(Simulation::new(workload), until)
}

fn run<E: Executor<Work = Drawn>>(simulation: Result<Simulation<E>, String>, until: Nanos) -> Result<Report> {
    let mut simulation = simulation.map_err(|refusal| anyhow!(refusal))?;
    simulation.stop_at(until);
    let (report, ..) = simulation.run().map_err(|excess| anyhow!(excess))?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::access::OnStale;
    use crate::schedule::dispatcher::Settings;
    use crate::schedule::task::Spec;
    use crate::simulate::{Arrival, Cost, Faults, Mode, SimTask};
    use crate::train::lanes::Lanes;

    fn workload(mode: Mode, lanes: usize) -> Workload {
        let task = |number: usize| SimTask {
            spec: Spec::new(format!("task{number}"), 1000),
            class: number % 2,
            quanta: 9,
            cost: Cost::fixed(1000),
            arrival: match number {
                0 => Arrival::Trace((0..9).map(|at| 5000 * at).collect()),
                number => Arrival::Closed { think: 500 * number as Nanos },
            },
            write_share: 0.5,
            blocks: 1,
            faults: Faults { out_of_memory: 0.1, ..Faults::default() },
            timeout: 0,
            every: 1,
        };
        Workload {
            settings: Settings { lanes, on_stale: OnStale::Allow, split: false, ..Settings::default() },
            mode,
            commit: 1000,
            classes: vec!["even".into(), "odd".into()],
            tasks: (0..5).map(task).collect(),
            blocks: 1,
        }
    }

    /// Costs and ends are drawn per task, quantum after quantum, so that neither depends on the clock.
    #[test]
    fn real_lanes_do_the_work_of_the_simulator() {
        for (mode, lanes) in [(Mode::TimeSliced, 1), (Mode::TimeSliced, 3), (Mode::Synchronous, 2)] {
            let workload = workload(mode, lanes);
            let mut computed = vec![0; lanes];
            let compute = |count: &mut usize, drawn: Drawn| {
                *count += 1;
                drawn.status
            };
            let run = Lanes::new(lanes)
                .unwrap()
                .at_work(&mut computed, |lanes| measured(&workload, on_host(lanes, compute), Nanos::MAX));
            let (real, times) = run.unwrap();
            let virtual_run = simulated(&workload, Nanos::MAX).unwrap();
            assert_eq!(real.samples, virtual_run.samples);
            assert_eq!((real.left, real.counts.retries), (0, virtual_run.counts.retries));
            assert_eq!((times.len(), computed.iter().sum()), (real.counts.quanta as usize, real.counts.quanta as usize));
            assert!(real.classes.iter().map(|class| class.jobs).sum::<u64>() == 45 && real.makespan > 0);
        }
    }

    #[test]
    fn without_time_nothing_begins() {
        let workload = workload(Mode::TimeSliced, 1);
        let run = Lanes::alone(&mut (), |lanes| measured(&workload, on_host(lanes, |(), drawn| drawn.status), 0));
        assert!(run.unwrap_err().to_string().contains("no quantum began"));
    }
}
