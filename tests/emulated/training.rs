//! Rounds on the device against those of the CPU.

use crate::cases::{
    ADAMW, BAG, Case, HIDDEN, INPUTS, KINDS, PLAIN, SGD, Setup, batch, distance, on_emulated, one_round, parameters, rates,
    setup, train,
};
use serde_json::Map;
use taskloom::config::schema::ClipScope;
use taskloom::machine::driver::open_emulated;
use taskloom::ops::activation::Activation;
use taskloom::ops::adamw::Rule;
use taskloom::ops::storage::Storage;
use taskloom::surgery::methods::{ColumnBlock, Granularity, Inputs, columns, registry};
use taskloom::train::round::Trainer;

/// bf16 has 8 bits of mantissa: 1e-2 by norm, of what training has changed.
fn five_rounds_match(case: Case, rule: Rule) {
    let Some(mut device) = on_emulated(case, 1) else { return };
    let (losses, found) = train(&mut device, case, rule);
    let mut trainer = setup(case).trainer;
    let start = parameters(&mut trainer);
    let (expected_losses, expected) = train(&mut trainer, case, rule);
    let (error, moved) = (distance(&found, &expected), distance(&expected, &start));
    assert!(error <= 1e-2 * moved, "{case:?}: {error} of {moved}");
    for (at, (loss, expected)) in losses.iter().zip(&expected_losses).enumerate() {
        assert!((loss - expected).abs() <= 1e-2 * expected.abs().max(0.1), "{case:?} loss {at}: {loss} for {expected}");
    }
}

#[test]
fn the_linear_encoder_trains_as_on_the_cpu() {
    let tensor = Granularity::Tensor;
    for case in [
        PLAIN,
        Case { method: "mean", activation: Activation::None, residual: true, ..PLAIN },
        Case { method: "gradvac", activation: Activation::Tanh, dropout: 0.25, ..PLAIN },
        Case { residual: true, uneven: true, weighted_heads: true, ..PLAIN },
        Case { clip: ClipScope::Task, apart: true, uneven: true, ..PLAIN },
        Case { method: "gradvac", granularity: tensor, ..PLAIN },
        Case { method: "upgrad", uneven: true, ..PLAIN },
        Case { method: "cagrad", granularity: tensor, apart: true, ..PLAIN },
        Case { balance: "dwa", ..PLAIN },
        Case { method: "sum", balance: "famo", apart: true, ..PLAIN },
        Case { method: "trimmed_mean", uneven: true, apart: true, ..PLAIN },
        Case { method: "trimmed_mean", balance: "dwa", clip: ClipScope::Task, ..PLAIN },
        Case { storage: Storage::Bf16, uneven: true, ..PLAIN },
        Case { storage: Storage::Bf16, method: "trimmed_mean", ..PLAIN },
        Case { conflict_every: 0, method: "sum", uneven: true, apart: true, ..PLAIN },
        Case { conflict_every: 0, method: "mean", storage: Storage::Bf16, ..PLAIN },
        Case { conflict_every: 0, method: "sum", balance: "dwa", ..PLAIN },
        Case { method: "moco", balance: "dwa", ..PLAIN },
        Case { method: "moco", granularity: tensor, uneven: true, clip: ClipScope::Task, ..PLAIN },
        Case { method: "excess_mtl", weighted_heads: true, apart: true, ..PLAIN },
        Case { method: "excess_mtl", granularity: tensor, uneven: true, ..PLAIN },
    ] {
        five_rounds_match(case, SGD);
    }
}

#[test]
fn the_bag_encoder_trains_as_on_the_cpu() {
    for case in [
        BAG,
        Case { method: "gradvac", init: 0.0, uneven: true, dropout: 0.25, ..BAG },
        Case { method: "upgrad", residual: true, apart: true, ..BAG },
        Case { granularity: Granularity::Tensor, residual: true, activation: Activation::None, ..BAG },
        Case { method: "trimmed_mean", uneven: true, apart: true, ..BAG },
        Case { storage: Storage::Bf16, method: "upgrad", uneven: true, ..BAG },
        Case { conflict_every: 0, method: "sum", uneven: true, ..BAG },
        Case { conflict_every: 0, method: "mean", apart: true, ..BAG },
        Case { method: "moco", uneven: true, apart: true, ..BAG },
        Case { method: "moco", granularity: Granularity::Tensor, ..BAG },
        Case { method: "excess_mtl", uneven: true, ..BAG },
        Case { method: "excess_mtl", granularity: Granularity::Tensor, clip: ClipScope::Task, ..BAG },
    ] {
        five_rounds_match(case, SGD);
    }
}

fn rounded(x: &mut f32) {
    let bits = x.to_bits();
    *x = f32::from_bits((bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) & 0xffff_0000);
}

/// Two runs part where rounding turns a ReLU or a constraint on or off. So each round starts anew from the device's parameters:
/// its rows of J are those of a CPU that sees weights and inputs rounded to bf16 (1e-2 by norm), and its weights those of the
/// method on the Gram matrix of these very rows.
#[test]
fn every_round_matches_the_cpu_at_the_same_parameters() {
    let relu = Case { activation: Activation::Relu, residual: true, ..PLAIN };
    for case in [
        Case { method: "upgrad", uneven: true, ..relu },
        Case { method: "pcgrad", apart: true, ..relu },
        Case { method: "gradvac", uneven: true, ..relu },
        Case { method: "nash_mtl", ..relu },
    ] {
        let Some(mut device) = on_emulated(case, 1) else { return };
        let mut method = registry::build(case.method, &Map::new(), KINDS.len()).unwrap();
        for round in 0..5 {
            let mut cpu = setup(case).trainer;
            device.fetch_parameters().unwrap();
            cpu.model.parameters.shared.values.copy_from_slice(&device.model.parameters.shared.values);
            cpu.model.parameters.heads.values.copy_from_slice(&device.model.parameters.heads.values);
            cpu.model.parameters.shared.values[..HIDDEN * INPUTS].iter_mut().for_each(rounded);
            let (mut coarse, tasks) = batch(case, round);
            coarse.features.iter_mut().for_each(rounded);
            cpu.run_round(&coarse, &tasks, round, &rates(SGD)).unwrap().unwrap();
            let done = one_round(&mut device, case, SGD, round);
            let (rows, expected) = (device.private_gradients(tasks.len()).unwrap(), cpu.private_gradients(tasks.len()).unwrap());
            for (row, expected) in rows.iter().zip(&expected) {
                let (error, size) = (distance(row, expected), distance(expected, &vec![0.0; expected.len()]));
                assert!(error <= 1e-2 * size, "{case:?} round {round}: {error} of {size}");
            }
            let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
            let gram: Vec<f64> = rows.iter().flat_map(|a| rows.iter().map(|b| product(a, b))).collect();
            let inputs = Inputs {
                gram: &gram,
                cross_gram: &[],
                losses: &done.losses,
                row_sums: &[],
                tasks: &tasks,
                round,
                seed: 7,
                orders: None,
            };
            let expected = method.solve(&inputs).weights;
            for (found, expected) in done.weights[0].iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{case:?} round {round}");
            }
        }
    }
}

/// Three rounds of every method that a device solves by itself: their weights are those of the method on the Gram matrix of the device's
/// own rows of J (1e-5: of f32). What it remembers after two of them goes to another run, whose third round is the same.
#[test]
fn what_a_device_solves_is_the_methods_own() {
    for descriptor in registry::DESCRIPTORS.iter().filter(|descriptor| descriptor.is_solved_on_device()) {
        let case = Case { method: descriptor.name, uneven: true, ..PLAIN };
        let Some(mut device) = on_emulated(case, 1) else { return };
        let mut method = registry::build(case.method, &Map::new(), KINDS.len()).unwrap();
        let round = |device: &mut Trainer, round| {
            let waits = device.device_counts().unwrap().host_waits;
            let done = one_round(device, case, SGD, round);
            assert_eq!(device.device_counts().unwrap().host_waits - waits, 1, "{case:?}");
            (done.weights, done.losses, done.status)
        };
        for number in 0..2 {
            let (weights, losses, status) = round(&mut device, number);
            let rows = device.private_gradients(losses.len()).unwrap();
            let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
            let gram: Vec<f64> = rows.iter().flat_map(|a| rows.iter().map(|b| product(a, b))).collect();
            let (losses, tasks) = (&losses[..], &[0, 1, 3][..]);
            let (cross_gram, row_sums, seed, orders) = (&[][..], &[][..], 7, None);
            let inputs = Inputs { gram: &gram, cross_gram, losses, row_sums, tasks, round: number, seed, orders };
            let expected = method.solve(&inputs);
            assert_eq!(status, expected.status, "{case:?} round {number}");
            for (found, expected) in weights[0].iter().zip(&expected.weights) {
                assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{case:?} round {number}");
            }
        }
        device.fetch_parameters().unwrap();
        let Setup { trainer: mut other, limits, start } = setup(case);
        other.model.parameters.shared.values.copy_from_slice(&device.model.parameters.shared.values);
        other.model.parameters.heads.values.copy_from_slice(&device.model.parameters.heads.values);
        other.restore_method(&device.method_state()).unwrap();
        other.accelerate(open_emulated(2).unwrap(), &limits, &start).unwrap();
        assert_eq!(round(&mut other, 2), round(&mut device, 2), "{case:?}");
        device.fetch_parameters().unwrap();
        other.fetch_parameters().unwrap();
        assert_eq!(other.method_state(), device.method_state(), "{case:?}");
    }
}

/// GradDrop keeps a sign or drops it, and rounding can turn that over. So its step is held against the rule on the device's own
/// rows of J, from the same parameters.
#[test]
fn graddrop_steps_by_its_rule_on_the_rows_it_has() {
    for (round, balance, case) in [(0, "equal", PLAIN), (3, "dwa", Case { uneven: true, apart: true, ..PLAIN })] {
        let case = Case { method: "graddrop", balance, ..case };
        let Some(mut device) = on_emulated(case, round) else { return };
        let before = device.model.parameters.shared.values.to_vec();
        let done = one_round(&mut device, case, SGD, round);
        assert!(done.clip < 1.0 && (done.clip - 1.0 / done.norm).abs() < 1e-12, "{} of {}", done.clip, done.norm);
        let rows = device.private_gradients(done.losses.len()).unwrap();
        let rows: Vec<(f64, &[f32])> =
            rows.iter().zip(&done.balance.factors).map(|(row, factor)| (done.clip * factor, row.as_slice())).collect();
        let method = registry::build("graddrop", &Map::new(), KINDS.len()).unwrap();
        let mut expected = vec![0.0; before.len()];
        let block = ColumnBlock { rows: &rows, count: rows.len(), first: 0, round, seed: 7 };
        columns::combine(method.columnwise().expect("elementwise"), &block, &mut expected);
        let square: f64 = expected.iter().map(|&d| f64::from(d).powi(2)).sum();
        assert!(square > 0.01 && square < 1.0, "the encoder's share of a clipped update: {square}");
        let rates = rates(SGD);
        device.fetch_parameters().unwrap();
        for (at, (found, (p, d))) in device.model.parameters.shared.values.iter().zip(before.iter().zip(&expected)).enumerate() {
            let decay = if at < HIDDEN * INPUTS { rates.weight_decay as f32 } else { 0.0 };
            let wanted = p - rates.lr as f32 * (decay * p + d);
            assert!((found - wanted).abs() <= 1e-6, "round {round}, column {at}: {found} for {wanted}");
        }
    }
}

/// One moment a row, and rows that round after round get their slots.
#[test]
fn adamw_on_the_table_moves_as_on_the_cpu() {
    for row_moment in [false, true] {
        let case = Case { row_moment, uneven: true, method: "sum", ..BAG };
        let Some(mut device) = on_emulated(case, 2) else { return };
        let mut cpu = setup(case).trainer;
        // One round: where a gradient is all rounding AdamW's first step is of full length, one way or the other.
        let losses = one_round(&mut device, case, ADAMW, 0).losses;
        let expected = one_round(&mut cpu, case, ADAMW, 0).losses;
        assert!(losses.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-2 * b.abs()));
        device.fetch_parameters().unwrap();
        let (ours, theirs) = (device.model.parameters.rows.as_ref().unwrap(), cpu.model.parameters.rows.as_ref().unwrap());
        assert_eq!(ours.touched(), theirs.touched());
        for (what, (ours, theirs)) in ["values", "first", "second"].iter().zip(ours.stored().into_iter().zip(theirs.stored())) {
            let size = distance(theirs, &vec![0.0; theirs.len()]);
            assert!(distance(ours, theirs) <= 2e-2 * size, "{what}: {} of {size}", distance(ours, theirs));
        }
    }
}
