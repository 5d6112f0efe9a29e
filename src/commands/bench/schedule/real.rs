//! The same workload twice: on the CPU's lanes, whose quanta really compute, and on the simulator's machine.

use anyhow::{Result, anyhow};

use crate::schedule::Nanos;
use crate::schedule::executor::{Ended, Executor};
use crate::schedule::retry::Status;
use crate::simulate::{Drawn, Report, Simulation, Workload};
use crate::train::lanes::AtWork;

/// What a quantum computes with its lane's arena.
pub type Compute<A> = fn(&mut A, Drawn) -> Status;

/// Lanes that compute what was drawn.
struct Computing<'l, 'w, 'a, A> {
    lanes: &'l mut AtWork<'w, 'a, A>,
    compute: Compute<A>,
    /// Milliseconds of every quantum.
    times: &'l mut Vec<f64>,
}

impl<'w, A: 'w> Executor for Computing<'_, 'w, '_, A> {
    type Work = Drawn;

    fn now(&self) -> Nanos {
        self.lanes.now()
    }

    fn submit(&mut self, lane: usize, drawn: Drawn) {
        let compute = self.compute;
        self.lanes.submit(lane, Box::new(move |arena| compute(arena, drawn)));
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
/// What [`Simulation::on`] refuses.
pub fn measured<'w, A: 'w>(
    workload: &Workload,
    lanes: &mut AtWork<'w, '_, A>,
    compute: Compute<A>,
    until: Nanos,
) -> Result<(Report, Vec<f64>)> {
    let mut times = Vec::new();
    let report = run(Simulation::on(workload, Computing { lanes, compute, times: &mut times }), until)?;
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
