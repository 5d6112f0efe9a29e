//! What is launched one by one, captured and replayed; and what is not launched.

use std::cell::Cell;
use std::rc::Rc;

use crate::cases::{ADAMW, PLAIN, Setup, batch, on_emulated, one_round, rates, setup};
use crate::common::device::{Operation, Tampered};
use taskloom::machine::driver::{self, DeviceError, open_emulated};
use taskloom::machine::planned::Planned;
use taskloom::model::network::Limits;
use taskloom::train::round::Trainer;

/// Before anything is allocated.
#[test]
fn what_no_grid_holds_is_refused() {
    let Setup { mut trainer, limits, start } = setup(PLAIN);
    let limits = Limits { group_rows: 9_000_000, ..limits };
    let error = trainer.accelerate(Planned::driver().0, &limits, &start).unwrap_err().to_string();
    assert!(error.contains("at most 8388480 examples in a fused group, found 9000000"), "{error}");
}

/// The capture of a round's launches, in which one fails, is ended: the rounds after it are computed.
#[test]
fn a_failed_capture_is_ended() {
    let Ok(inner) = open_emulated(0) else { return };
    let Setup { mut trainer, limits, start } = setup(PLAIN);
    let refuses = Rc::new(Cell::new(false));
    let asked = Rc::clone(&refuses);
    let instead = move |operation: Operation| -> Option<driver::Result<()>> {
        let refused = operation == Operation::Launch && asked.take();
        refused.then(|| Err(DeviceError::Invalid("refused once".to_owned())))
    };
    trainer.accelerate(Box::new(Tampered { inner, instead }), &limits, &start).unwrap();
    one_round(&mut trainer, PLAIN, ADAMW, 0);
    refuses.set(true);
    let (batch, tasks) = batch(PLAIN, 1);
    let error = trainer.run_round(&batch, &tasks, 1, &rates(ADAMW)).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "refused once");
    for round in 1..4 {
        one_round(&mut trainer, PLAIN, ADAMW, round);
    }
    assert_eq!(replays(&trainer), 3);
}

/// Graphs that were launched.
fn replays(trainer: &Trainer) -> u64 {
    trainer.device_counts().expect("a device").graph_launches
}

/// The second of two equal rounds is captured, and all after it are replayed.
#[test]
fn steady_rounds_are_replayed() {
    let Some(mut device) = on_emulated(PLAIN, 3) else { return };
    for round in 0..5 {
        one_round(&mut device, PLAIN, ADAMW, round);
    }
    assert_eq!(replays(&device), 4);
}
