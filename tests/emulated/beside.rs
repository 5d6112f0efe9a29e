//! A copy of the parameters that is evaluated beside rounds.

use std::cell::Cell;
use std::rc::Rc;

use crate::cases::{ADAMW, BAG, Case, PLAIN, Setup, batch, on_emulated, one_round, parameters, setup};
use crate::common::device::{Operation, Tampered};
use taskloom::machine::driver::{self, open_emulated};
use taskloom::model::network::Batch;
use taskloom::train::predictor::Predictor;
use taskloom::train::round::Trainer;

/// A batch of one task, as an evaluation has it.
fn evaluated(case: Case) -> Batch {
    let (mut batch, _) = batch(case, 9);
    batch.parts.truncate(1);
    batch.groups.truncate(1);
    batch
}

/// Logits of a copy that was taken after one round: computed at once, and beside the round after it, in a lane of its own.
fn beside_a_round(trainer: &mut Trainer, case: Case) -> anyhow::Result<[Vec<f32>; 2]> {
    let batch = evaluated(case);
    trainer.take_snapshot()?;
    let at_once = trainer.with_snapshot(|trainer| trainer.predict(&batch).map(<[f32]>::to_vec))?;
    trainer.with_snapshot(|trainer| trainer.submit(&batch))?;
    one_round(trainer, case, ADAMW, 1);
    let beside = trainer.with_snapshot(|trainer| trainer.collect().map(<[f32]>::to_vec))?;
    Ok([at_once, beside])
}

#[test]
fn a_copy_is_evaluated_beside_rounds_in_any_order() {
    for case in [Case { beside: true, apart: true, ..PLAIN }, Case { beside: true, ..BAG }] {
        let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
        for seed in 0..20 {
            let Some(mut trainer) = on_emulated(case, seed) else { return };
            one_round(&mut trainer, case, ADAMW, 0);
            let [at_once, beside] = beside_a_round(&mut trainer, case).expect("no fault");
            assert_eq!(at_once, beside, "seed {seed}");
            assert!(beside.iter().all(|logit| logit.is_finite()) && !beside.is_empty());
            let now = trainer.with_snapshot(|trainer| trainer.model.parameters.shared.values.to_vec());
            assert_ne!(parameters(&mut trainer)[..now.len()], now, "the round moved what was copied");
            let found = (beside, parameters(&mut trainer));
            assert_eq!(*first.get_or_insert_with(|| found.clone()), found, "seed {seed}");
        }
    }
}

/// Nothing but one event puts the copy before the batches that read it.
#[test]
fn a_copy_that_is_not_waited_for_is_caught() {
    let case = Case { beside: true, ..PLAIN };
    let mut expected = usize::MAX;
    for missed in [false, true] {
        let inner = match open_emulated(0) {
            Ok(inner) => inner,
            Err(why) => return eprintln!("skipped: {why}"),
        };
        let Setup { mut trainer, limits, start } = setup(case);
        let waits = Rc::new(Cell::new(0));
        let (so_far, left_out) = (Rc::clone(&waits), expected);
        let instead = move |operation: Operation| -> Option<driver::Result<()>> {
            let missing = operation == Operation::Wait && so_far.replace(so_far.get() + 1) == left_out;
            missing.then_some(Ok(()))
        };
        trainer.accelerate(Box::new(Tampered { inner, instead }), &limits, &start).unwrap();
        one_round(&mut trainer, case, ADAMW, 0);
        expected = waits.get();
        let fault = beside_a_round(&mut trainer, case).err().map(|error| format!("{error:#}"));
        assert_eq!(fault.is_some(), missed, "{fault:?}");
        assert!(fault.is_none_or(|fault| fault.contains("no event puts that before this one")));
    }
}
