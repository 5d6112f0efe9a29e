//! kernels/gram.cu and kernels/update.cu against ops::gram and ops::adamw. The solver is held against the methods in
//! tests of the surgery room, which ops may not import.

use super::super::adamw::{Combine, Group, Rule, Step, combine_and_step};
use super::super::gram;
use super::super::launch::surgery::{
    self, Chunks, ChunksOnDevice, ColumnRule, Columns, Columnwise, GroupRates, Jacobian, Rates, RatesOnDevice, State,
};
use super::{Device, On, assert_close, assert_near, noise};
use crate::device::driver::PLAIN_SHARED;

pub fn on_device(device: &mut Device, chunks: &Chunks) -> ChunksOnDevice {
    ChunksOnDevice {
        count: chunks.len(),
        firsts: device.upload(&chunks.firsts),
        lengths: device.upload(&chunks.lengths),
        blocks: device.upload(&chunks.blocks),
        groups: device.upload(&chunks.groups),
    }
}

/// Rows nearly parallel, their scales up to 1000 apart.
fn rows(tasks: usize, width: usize) -> Vec<f32> {
    let base = noise(width, 0);
    let row = |task: usize| {
        let (own, scale) = (noise(width, 1 + task as u32), 10f32.powi(task as i32 % 4 - 1));
        base.iter().zip(own).map(|(b, o)| scale * (b + 1e-3 * o)).collect::<Vec<_>>()
    };
    (0..tasks).flat_map(row).collect()
}

/// Two blocks of columns that begin and end anywhere.
fn gram_matches(on: On, tasks: usize, width: usize, length: u32) {
    let jacobian = rows(tasks, width);
    let cut = width as u64 / 3;
    let columns = [Columns { columns: 1..cut, block: 0, group: 0 }, Columns { columns: cut..width as u64, block: 1, group: 0 }];
    let chunks = Chunks::new(&columns, length);
    let cells = tasks * tasks;
    let (found, cosines, conflicts) = on.run(|device: &mut Device| {
        let own = Jacobian { at: device.upload(&jacobian), stride: width as u64, tasks };
        let partials = device.room::<f64>(chunks.len() * cells);
        let chunks_at = on_device(device, &chunks);
        device.run(&surgery::gram(partials, own, chunks_at));
        let starts = device.upload(&chunks.starts(2));
        let [gram, cosines, conflicts] = [device.room::<f64>(2 * cells), device.room::<f64>(2 * cells), device.room::<u32>(2)];
        device.run(&surgery::gram_finish([gram, cosines, conflicts], partials, starts, 2, tasks));
        (
            device.download::<f64>(gram, 2 * cells),
            device.download::<f64>(cosines, 2 * cells),
            device.download::<u32>(conflicts, 2),
        )
    });
    for (block, columns) in columns.iter().enumerate() {
        let range = columns.columns.start as usize..columns.columns.end as usize;
        let views: Vec<&[f32]> = jacobian.chunks(width).map(|row| &row[range.clone()]).collect();
        let mut expected = vec![0.0; cells];
        gram::gram(&mut expected, &views);
        let mut exact = vec![0.0; cells];
        let mut negative = 0;
        for i in 0..tasks {
            for j in 0..tasks {
                exact[i * tasks + j] = views[i].iter().zip(views[j]).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
                negative += u32::from(i < j && exact[i * tasks + j] < 0.0);
            }
        }
        let own = &found[block * cells..(block + 1) * cells];
        for (cell, (x, y)) in own.iter().zip(&exact).enumerate() {
            assert!((x / y - 1.0).abs() < 1e-6, "{tasks} tasks, block {block}, {cell}: {x} for {y}");
            assert!((x / expected[cell] - 1.0).abs() < 2e-6);
            let cosine = y / (exact[cell / tasks * (tasks + 1)] * exact[cell % tasks * (tasks + 1)]).sqrt();
            assert!((cosines[block * cells + cell] - cosine).abs() < 2e-6);
        }
        assert_eq!(conflicts[block], negative);
    }
}

fn gram_of_two(on: On) {
    gram_matches(on, 2, 2_500, 8192);
}

fn gram_of_three(on: On) {
    gram_matches(on, 3, 10_001, 3_000);
}

fn gram_of_five(on: On) {
    gram_matches(on, 5, 3_001, 1_500);
}

fn gram_of_nine(on: On) {
    gram_matches(on, 9, 2_000, 8192);
}

fn gram_of_sixteen(on: On) {
    gram_matches(on, 16, 1_500, 8192);
}

fn gram_of_nineteen(on: On) {
    gram_matches(on, 19, 1_100, 8192);
}

const ADAM: Rule = Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, correction1: 0.19, correction2: 0.002 };

/// Two groups with their own weights and rates; where they meet, no vector begins.
fn update_matches(on: On, tasks: usize, width: usize, rule: Rule) {
    let stride = width.next_multiple_of(4);
    let jacobian = noise(tasks * stride, 7);
    let (values, first) = (noise(width, 8), noise(width, 9));
    let second: Vec<f32> = noise(width, 10).iter().map(|x| x * x).collect();
    let weights = noise(2 * tasks, 11);
    let groups = [GroupRates { lr: 0.01, weight_decay: 0.1 }, GroupRates { lr: 0.02, weight_decay: 0.0 }];
    let cut = width / 2 + 1;
    let columns = [
        Columns { columns: 0..cut as u64, block: 0, group: 1 },
        Columns { columns: cut as u64..width as u64, block: 1, group: 0 },
    ];
    let chunks = Chunks::new(&columns, 512);
    let adam = matches!(rule, Rule::AdamW { .. });
    let [mut p, mut m, mut v] = [values.clone(), first.clone(), second.clone()];
    for (block, range) in [0..cut, cut..width].into_iter().enumerate() {
        let views: Vec<&[f32]> = jacobian.chunks(stride).map(|row| &row[range.clone()]).collect();
        let own = groups[1 - block];
        let step = Step { rule, lr: own.lr, weight_decay: own.weight_decay };
        let moments = if adam { &mut v[range.clone()] } else { &mut [][..] };
        let group = Group { values: &mut p[range.clone()], first: &mut m[range.clone()], second: moments };
        combine_and_step(group, &views[..].into(), Combine::Weights(&weights[block * tasks..(block + 1) * tasks]), &step);
    }
    let run = |device: &mut Device, halted: u32| {
        let own = Jacobian { at: device.upload(&jacobian), stride: stride as u64, tasks };
        let state = State {
            values: device.upload(&values),
            first: device.upload(&first),
            second: if adam { device.upload(&second) } else { 0 },
            copy: device.upload(&vec![0u16; width]),
        };
        let rates =
            RatesOnDevice { rates: device.upload(&[Rates { halted, ..Rates::from(rule) }]), groups: device.upload(&groups) };
        let (weights, chunks) = (device.upload(&weights), on_device(device, &chunks));
        device.run(&surgery::update_weights(state, own, weights, rates, chunks));
        let moments = if adam { device.download::<f32>(state.second, width) } else { second.clone() };
        let [p, m] = [device.download::<f32>(state.values, width), device.download(state.first, width)];
        (p, m, moments, device.download::<u16>(state.copy, width))
    };
    let (found_p, found_m, found_v, copy) = on.run(|device: &mut Device| run(device, 0));
    assert_close(&found_p, &p, 1e-5, "parameters");
    assert_close(&found_m, &m, 1e-5, "first moments");
    assert_close(&found_v, &v, 1e-5, "second moments");
    assert_near(&copy, &p, "the bf16 copy");
    let (kept, ..) = on.run(|device: &mut Device| run(device, 1));
    assert_eq!(kept, values, "a halted round changes nothing");
}

fn adamw_in_vectors(on: On) {
    update_matches(on, 3, 2_048, ADAM);
}

fn adamw_ragged(on: On) {
    update_matches(on, 8, 1_333, ADAM);
}

fn sgd(on: On) {
    update_matches(on, 2, 700, Rule::Sgd { momentum: 0.9 });
}

/// 24 tasks take all of the shared memory that needs no permission, beside what the kernel has of its own.
fn a_rule_for_as_many_tasks_as_fill_shared_memory(on: On) {
    let (tasks, width) = (24, 300);
    let jacobian = noise(tasks * width, 13);
    let mean = |column: usize| (0..tasks).map(|task| f64::from(jacobian[task * width + column])).sum::<f64>() / tasks as f64;
    let expected: f64 = (0..width).map(|column| mean(column).powi(2)).sum();
    let found = on.run(|device: &mut Device| {
        let chunks = Chunks::new(&[Columns { columns: 0..width as u64, block: 0, group: 0 }], 8192);
        let own = Jacobian { at: device.upload(&jacobian), stride: width as u64, tasks };
        let (factors, round) = (device.upload(&[1.0f64; 24]), device.upload(&[0u64]));
        let rule = ColumnRule { rule: Columnwise::TrimmedMean { trim: 0 }, factors, seed: 0, round };
        let (squares, chunks) = (device.room::<f64>(1), on_device(device, &chunks));
        let launch = surgery::column_squares(squares, own, rule, chunks);
        assert_eq!(launch.shared as usize, PLAIN_SHARED);
        device.run(&launch);
        device.download::<f64>(squares, 1)
    });
    assert!((found[0] - expected).abs() <= 1e-6 * expected, "{found:?} for {expected}");
}

fn squares_of_segments(on: On) {
    let values = noise(1_000, 12);
    let found = on.run(|device: &mut Device| {
        let (at, bounds, out) =
            (device.upload(&values), device.upload(&[0u64, 300, 300, 300, 350, 1_000]), device.room::<f64>(3));
        device.run(&surgery::segment_squares(out, at, bounds, 3));
        device.download::<f64>(out, 3)
    });
    let square = |values: &[f32]| values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    for (x, y) in found.iter().zip([square(&values[..300]), 0.0, square(&values[350..])]) {
        assert!((x - y).abs() <= 1e-12 * y, "{x} for {y}");
    }
}

super::on_devices! {
    gram_of_two,
    gram_of_three,
    gram_of_five,
    gram_of_nine,
    gram_of_sixteen,
    gram_of_nineteen,
    adamw_in_vectors,
    adamw_ragged,
    a_rule_for_as_many_tasks_as_fill_shared_memory,
    sgd,
    squares_of_segments,
}
