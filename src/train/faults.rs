//! `[faults]`: failures made on purpose. Each goes the way a real one goes: a NaN is found by the round's own check, a dead reader
//! unwinds out of the packing of the batch.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::schema::{Fault, FaultKind};
use crate::model::network::Batch;

/// The faults that hit one round, by run-wide task.
#[derive(Default)]
pub struct InjectedFaults {
    hit: Vec<(usize, FaultKind, f64)>,
}

impl InjectedFaults {
    /// Those that hit the present tasks (names by run-wide index) in round `round`. `fired` counts how often each has happened.
    pub fn of(
        faults: &BTreeMap<String, Fault>,
        fired: &mut BTreeMap<String, u64>,
        round: u64,
        present: impl Fn(&str) -> Option<usize>,
    ) -> Self {
        let mut hit = Vec::new();
        for (name, fault) in faults.iter().filter(|(_, fault)| fault.round <= round) {
            let Some(task) = present(&fault.task) else { continue };
            let count = fired.entry(name.clone()).or_default();
            if *count < fault.times {
                *count += 1;
                hit.push((task, fault.kind, fault.ms));
            }
        }
        Self { hit }
    }

    fn hits(&self, task: usize, kind: FaultKind) -> bool {
        self.hit.iter().any(|&(hit, own, _)| (hit, own) == (task, kind))
    }

    pub fn takes_memory(&self, task: usize) -> bool {
        self.hits(task, FaultKind::OutOfMemory)
    }

    /// Unwinds as a reader does that dies, where the task's is hit.
    pub fn read(&self, task: usize) {
        if self.hits(task, FaultKind::Crash) {
            std::panic::resume_unwind(Box::new("made on purpose"));
        }
    }

    /// Makes the gradients of the tasks that are hit NaN.
    pub fn poison(&self, batch: &mut Batch) {
        for part in batch.parts.iter_mut().filter(|part| self.hits(part.task, FaultKind::NotFinite)) {
            part.scale = f32::NAN;
        }
    }

    /// Sleeps as long as the present tasks stall.
    pub fn stall(&self) {
        let stalls = self.hit.iter().filter(|(_, kind, _)| *kind == FaultKind::Stall);
        let ms: f64 = stalls.map(|(.., ms)| ms).sum();
        std::thread::sleep(Duration::from_secs_f64(ms / 1e3));
    }
}
