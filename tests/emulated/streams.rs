//! Orders of blocks and streams, and the events between them.

use std::cell::Cell;
use std::rc::Rc;

use crate::cases::{ADAMW, BAG, Case, PLAIN, Setup, batch, on_emulated, one_round, parameters, rates, setup};
use crate::common::device::{Operation, Tampered};
use taskloom::machine::driver::{self, open_emulated};
use taskloom::train::quanta::RoundTimes;
use taskloom::train::round::Trainer;

/// Three rounds, of which the last is replayed where the shapes stay.
fn few_rounds(trainer: &mut Trainer, case: Case) -> (Vec<f64>, Vec<f32>) {
    let losses = (0..3).flat_map(|round| one_round(trainer, case, ADAMW, round).losses).collect();
    (losses, parameters(trainer))
}

/// Orders of blocks, threads and streams are the seed's.
#[test]
fn twenty_orders_give_the_same_bytes() {
    for case in [Case { dropout: 0.1, uneven: true, apart: true, ..PLAIN }, Case { apart: true, residual: true, ..BAG }] {
        let Some(mut first) = on_emulated(case, 0) else { return };
        let first = few_rounds(&mut first, case);
        for seed in 1..20u64 {
            let (losses, parameters) = few_rounds(&mut on_emulated(case, seed).expect("there was one before"), case);
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&parameters), bits(&first.1), "seed {seed}");
            assert_eq!(losses, first.0, "seed {seed}");
        }
    }
}

/// Four timed rounds, of which the last are replayed where the shapes stay.
fn timed_rounds(trainer: &mut Trainer, case: Case) -> (Vec<RoundTimes>, Vec<f32>) {
    trainer.time_quanta(true);
    let times = (0..4).map(|round| one_round(trainer, case, ADAMW, round).times.expect("asked for")).collect();
    (times, parameters(trainer))
}

/// Groups that do not depend on each other are in flight together on their two lanes, the commit follows them all; the times of
/// the emulated device are the same whatever the seed, and taking them changes no byte.
#[test]
fn quanta_are_timed_on_the_streams_they_ran_on() {
    let apart = Case { apart: true, ..PLAIN };
    for case in [apart, Case { method: "upgrad", ..apart }, Case { uneven: true, balance: "famo", ..apart }, PLAIN] {
        let Some(mut plain) = on_emulated(case, 0) else { return };
        for round in 0..4 {
            assert_eq!(one_round(&mut plain, case, ADAMW, round).times, None);
        }
        let plain = parameters(&mut plain);
        let starts_and_lengths = |times: &RoundTimes| {
            let quanta = times.groups.iter().chain([&times.commit]);
            quanta.map(|quantum| (quantum.lane, quantum.start, quantum.time)).collect::<Vec<_>>()
        };
        let mut first = Vec::new();
        for seed in 0..6 {
            let mut device = on_emulated(case, seed).expect("there was one before");
            let (rounds, parameters) = timed_rounds(&mut device, case);
            assert_eq!(parameters, plain, "{case:?}");
            for (round, times) in rounds.iter().enumerate() {
                let RoundTimes { groups, commit, .. } = times;
                assert_eq!(groups.len(), batch(case, round as u64).0.groups.len());
                let ends = groups.iter().map(|group| group.start + group.time);
                assert!(groups.iter().all(|group| !group.time.is_zero()) && !commit.time.is_zero(), "{times:?}");
                assert!(ends.clone().all(|end| end <= commit.start), "{times:?}");
                if let [first, second, ..] = groups[..] {
                    assert_eq!((first.lane, second.lane), (0, 1));
                    assert!(first.start < second.start && second.start < first.start + first.time, "{times:?}");
                }
            }
            let found: Vec<_> = rounds.iter().map(starts_and_lengths).collect();
            if seed == 0 {
                first = found;
            } else {
                assert_eq!(found, first, "seed {seed}");
            }
        }
    }
}

/// Two rounds in which one wait for an event is left out: the fault, if any, and the waits there were.
fn without_wait(case: Case, timed: bool, missed: usize, seed: u64) -> Option<(Option<String>, usize)> {
    let inner = match open_emulated(seed) {
        Ok(inner) => inner,
        Err(why) => {
            eprintln!("skipped: {why}");
            return None;
        }
    };
    let Setup { mut trainer, limits, start } = setup(case);
    let waits = Rc::new(Cell::new(0));
    let so_far = Rc::clone(&waits);
    let instead = move |operation: Operation| -> Option<driver::Result<()>> {
        let missing = operation == Operation::Wait && so_far.replace(so_far.get() + 1) == missed;
        missing.then_some(Ok(()))
    };
    trainer.accelerate(Box::new(Tampered { inner, instead }), &limits, &start).unwrap();
    trainer.time_quanta(timed);
    let run = |round| {
        let (batch, tasks) = batch(case, round);
        trainer.run_round(&batch, &tasks, round, &rates(ADAMW)).map(|_| ())
    };
    let fault = (0..2).try_for_each(run).and_then(|()| trainer.fetch_parameters()).err();
    Some((fault.map(|error| format!("{error:#}")), waits.get()))
}

/// Every wait of a round on two lanes orders something: without it the emulated device finds a race, whatever the seed. Timers
/// order nothing.
#[test]
fn a_removed_event_is_caught() {
    [false, true].into_iter().for_each(every_wait_orders_something);
}

fn every_wait_orders_something(timed: bool) {
    let case = Case { apart: true, uneven: true, method: "upgrad", ..BAG };
    let Some((sound, waits)) = without_wait(case, timed, usize::MAX, 0) else { return };
    assert_eq!(sound, None);
    let round = waits / 2;
    assert!(round >= 8, "{round} waits a round");
    let mut unseen = Vec::new();
    // The first wait is for the step of the round before, which the host has waited for where rounds are timed.
    for missed in round + usize::from(timed)..waits {
        let fault = without_wait(case, timed, missed, missed as u64).and_then(|(fault, _)| fault);
        if !fault.is_some_and(|fault| {
            fault.contains("no event puts that before this one") || fault.contains("nothing has been written")
        }) {
            unseen.push(missed - round);
        }
    }
    assert!(unseen.is_empty(), "waits {unseen:?} of {round} order nothing");
}
