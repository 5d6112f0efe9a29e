//! The same workloads on lanes of the host and of devices.

use std::sync::Arc;

use crate::holds::{observed_on, what_holds_anywhere};
use crate::workloads::workloads;
use proptest::prelude::*;
use taskloom::machine::driver::{Driver, open, open_emulated};
use taskloom::machine::memory::Memory;
use taskloom::model::encoders::linear::Linear;
use taskloom::model::network::{Batch, Limits, Network, Part, Targets};
use taskloom::model::spec::{HeadKind, HeadSpec, ModelSpec};
use taskloom::model::{Model, Start};
use taskloom::ops::activation::Activation;
use taskloom::ops::dropout::RowKey;
use taskloom::schedule::Nanos;
use taskloom::schedule::executor::Making;
use taskloom::simulate::{Arrival, Drawn, Workload};
use taskloom::train::lanes::{Lanes, Work};
use taskloom::train::{DeviceLanes, Passes};

/// So many times faster, for clocks that really run.
const HURRY: Nanos = 200;

fn hurried(mut workload: Workload) -> Workload {
    for task in &mut workload.tasks {
        task.spec.cost = (task.spec.cost / HURRY).max(1);
        task.cost.base = (task.cost.base / HURRY).max(1);
        match &mut task.arrival {
            Arrival::Poisson { gap } | Arrival::Bursty { gap, .. } => *gap /= HURRY,
            _ => {}
        }
    }
    let retry = &mut workload.settings.retry;
    (retry.base, retry.cap) = (retry.base / HURRY, retry.cap / HURRY);
    workload
}

/// A tiny model's lanes on a device.
fn device_lanes(driver: Box<dyn Driver>, lanes: usize) -> DeviceLanes {
    let encoder = Linear { columns: 8, hidden: 8, activation: Activation::None, residual: false, dropout: 0.0 };
    let head = HeadSpec { task: "a".into(), kind: HeadKind::Classification, outputs: 2, class_weights: None, temperature: 1.0 };
    let network = Network::new(ModelSpec { encoder: Arc::new(encoder), heads: vec![head] });
    let start = Start { seed: 1, equal_heads: false, second_moment: false, row_moment: false, row_capacity: 0 };
    let model = Model::new(&mut Memory::unlimited(), network, &start).expect("little memory");
    let targets = Targets::Class(vec![0; 2]);
    let part = Part { task: 0, present: 0, rows: 0..2, targets, scale: 0.5, batch: 0, first: true };
    let keys = (0..2).map(|example| RowKey { task: 0, example }).collect();
    let batch =
        Batch { features: vec![0.5; 16], keys, parts: vec![part], groups: std::iter::once(0..1).collect(), ..Batch::default() };
    let limits = Limits { group_rows: 2, round_rows: 2, group_logits: 4, present: 1, ..Limits::default() };
    DeviceLanes::new(driver, &model, &batch, &limits, lanes).expect("little memory")
}

/// The emulated device, and a card where one is required.
fn devices() -> Vec<Box<dyn Driver>> {
    let required = std::env::var_os("TASKLOOM_REQUIRE_CUDA").is_some_and(|value| value == "1");
    let card = required.then(|| open("cuda").expect("a card is required"));
    open_emulated(0).into_iter().chain(card).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// What the simulator does, lanes of the host and of a device do: every quantum once, ended as drawn, within the same budgets.
    #[test]
    fn lanes_of_the_host_and_of_devices_keep_what_the_simulator_keeps(workload in workloads(true)) {
        let workload = hurried(workload);
        let lanes = workload.settings.lanes;
        let mut arenas = vec![(); lanes];
        let work = |drawn: Drawn| -> Work<'_, ()> { Box::new(move |()| drawn.status) };
        let on_host = Lanes::new(lanes).unwrap().at_work(&mut arenas, |lanes| observed_on(&workload, Making::new(lanes, work)));
        what_holds_anywhere(&workload, &on_host)?;
        for driver in devices() {
            let work = |Drawn { task, status, .. }: Drawn| Passes { count: 1 + task as u64 % 2, urgent: task % 2 == 0, status };
            let mut own = device_lanes(driver, lanes);
            let on_device = observed_on(&workload, Making::new(&mut own, work));
            own.check().unwrap();
            what_holds_anywhere(&workload, &on_device)?;
        }
    }
}
