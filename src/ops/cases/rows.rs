//! kernels/embedding_bag.cu and kernels/row_gradients.cu against ops::embedding_bag and ops::row_gradients.

use super::super::adamw::{Combine, Rule, Step};
use super::super::embedding_bag::{self, RowInit, UNTOUCHED, embedding_bag_forward};
use super::super::launch::pitch;
use super::super::launch::rows::{self, Bags, Table, Union};
use super::super::launch::surgery::{GroupRates, Rates, RatesOnDevice};
use super::super::row_gradients::{self, RowGradient, RowState, row_gram, row_update};
use super::{Device, On, assert_close, assert_near, dense, noise, padded};
use crate::device::memory::Memory;

const DIM: usize = 37;

fn bags_of_touched_and_untouched_rows(on: On) {
    let init = RowInit { seed: 77, deviation: 0.5 };
    let values = noise(2 * DIM, 0);
    let slots = [1, UNTOUCHED, 0, UNTOUCHED];
    let bags = embedding_bag::Bags { offsets: vec![0, 2, 2, 5], rows: vec![0, 3, 0, 1, 2], scales: vec![0.5, 1.0, 2.0] };
    let mut expected = vec![0.0; 3 * DIM];
    embedding_bag_forward(&mut expected, &bags, 0..3, embedding_bag::Table { dim: DIM, slots: &slots, values: &values, init });
    let (narrow, wide) = on.run(|device: &mut Device| {
        let own = Bags {
            offsets: device.upload(&bags.offsets),
            rows: device.upload(&bags.rows),
            scales: device.upload(&bags.scales),
            slots: device.upload(&slots),
            values: device.upload(&values),
            dim: DIM,
            init,
        };
        // The kernel leaves alone what pads the rows.
        let (out, out_wide) = (device.upload(&[0u16; 3 * pitch(DIM)]), device.room::<f32>(3 * DIM));
        device.run(&rows::embedding_bag_forward(out, out_wide, own, 0, 3));
        (device.download::<u16>(out, 3 * pitch(DIM)), device.download::<f32>(out_wide, 3 * DIM))
    });
    assert_close(&wide, &expected, 1e-5, "bags");
    assert_near(&dense(&narrow, DIM), &expected, "bags in bf16");
}

/// Three tasks with overlapping rows: gradients, Gram matrix and update.
fn row_gradients_of_three_tasks(on: On) {
    let dout = noise(6 * DIM, 1);
    let bags = embedding_bag::Bags {
        offsets: vec![0, 2, 4, 5, 7, 8, 10],
        rows: vec![1, 4, 4, 6, 4, 1, 9, 6, 4, 9],
        scales: vec![1.0, 0.5, 2.0, 1.5, 0.25, 1.0],
    };
    let mut memory = Memory::unlimited();
    let mut gradients: Vec<RowGradient> =
        (0..3).map(|_| RowGradient::new(&mut memory, "rows", DIM, 4).expect("memory")).collect();
    let (mut sources, mut starts, mut bases) = (Vec::new(), Vec::new(), Vec::new());
    for (task, gradient) in gradients.iter_mut().enumerate() {
        let examples = 2 * task..2 * task + 2;
        gradient.backward(&dout, &bags, examples.clone());
        bases.push(starts.len() as u32);
        for &row in &gradient.rows {
            starts.push(sources.len() as u32);
            sources.extend(examples.clone().filter(|&e| bags.example(e).contains(&row)).map(|e| e as u32));
        }
    }
    let count = starts.len();
    starts.push(sources.len() as u32);
    let mut union = row_gradients::Union::default();
    union.merge(&gradients);
    let (mut union_starts, mut members) = (vec![0u32], Vec::new());
    for row in &union.rows {
        for (task, gradient) in gradients.iter().enumerate() {
            if let Ok(at) = gradient.rows.binary_search(row) {
                members.extend([task as u32, bases[task] + at as u32]);
            }
        }
        union_starts.push(members.len() as u32 / 2);
    }
    let expected: Vec<f32> = gradients.iter().flat_map(|g| g.values[..g.rows.len() * DIM].to_vec()).collect();
    let mut gram = vec![0.0; 9];
    row_gram(&mut gram, &union, &gradients);
    let total = union.rows.len();
    let slots: Vec<u32> = (0..total as u32).rev().collect();
    let rule = Rule::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, correction1: 0.1, correction2: 0.01 };
    let step = Step { rule, lr: 0.01, weight_decay: 0.1 };
    let weights = [0.5f32, -1.0, 2.0];
    for second_dim in [DIM, 1] {
        let (values, first) = (noise(total * DIM, 2), noise(total * DIM, 3));
        let second: Vec<f32> = noise(total * second_dim, 4).iter().map(|x| x * x).collect();
        let [mut p, mut m, mut v] = [values.clone(), first.clone(), second.clone()];
        let state = RowState { values: &mut p, first: &mut m, second: &mut v };
        row_update(state, &slots, &union, &gradients, Combine::Weights(&weights), &step);
        let (found, products, moved) = on.run(|device: &mut Device| {
            let (dout, scales) = (device.upload(&padded(&dout, DIM, f32::NAN)), device.upload(&bags.scales));
            let lists = [device.upload(&sources), device.upload(&starts)];
            let rows_at = device.room::<f32>(count * DIM);
            device.run(&rows::backward(rows_at, dout, scales, lists, count, DIM));
            let own = Union {
                rows: device.upload(&union.rows),
                starts: device.upload(&union_starts),
                members: device.upload(&members),
                count: total,
            };
            let partials = device.room::<f64>(9 * rows::gram_partials(total));
            device.run(&rows::gram(partials, rows_at, own, 3, DIM));
            let table = Table {
                values: device.upload(&values),
                first: device.upload(&first),
                second: device.upload(&second),
                second_dim,
                slots: device.upload(&slots),
                dim: DIM,
                group: 0,
            };
            let rates = RatesOnDevice {
                rates: device.upload(&[Rates::from(rule)]),
                groups: device.upload(&[GroupRates { lr: 0.01, weight_decay: 0.1 }]),
            };
            let weights = device.upload(&weights);
            device.run(&rows::update_weights(table, rows_at, own, weights, rates));
            let moved = [
                device.download::<f32>(table.values, total * DIM),
                device.download(table.first, total * DIM),
                device.download(table.second, total * second_dim),
            ];
            (device.download::<f32>(rows_at, count * DIM), device.download::<f64>(partials, 9), moved)
        });
        assert_close(&found, &expected, 1e-5, "row gradients");
        for i in 0..3 {
            for j in i..3 {
                let scale = (gram[4 * i] * gram[4 * j]).sqrt();
                assert!((products[3 * i + j] - gram[3 * i + j]).abs() < 1e-6 * scale, "product {i} {j}");
            }
        }
        for (found, expected) in moved.iter().zip([p, m, v]) {
            assert_close(found, &expected, 1e-5, "state");
        }
    }
}

/// More tasks than shared memory has sums for: two union rows, of every task and of every second one.
fn row_gram_of_ninety_tasks(on: On) {
    const TASKS: usize = 90;
    let members: Vec<[u32; 2]> = (0..TASKS).chain((0..TASKS).step_by(2)).zip(0..).map(|(task, row)| [task as u32, row]).collect();
    let (gradients, starts) = (noise(members.len() * DIM, 0), [0u32, TASKS as u32, members.len() as u32]);
    let row = |at: [u32; 2]| &gradients[at[1] as usize * DIM..][..DIM];
    let mut expected = vec![0.0f64; TASKS * TASKS];
    for own in [&members[..TASKS], &members[TASKS..]] {
        for (at, &left) in own.iter().enumerate() {
            for &right in &own[at..] {
                let product = row(left).iter().zip(row(right)).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
                expected[left[0] as usize * TASKS + right[0] as usize] += product;
            }
        }
    }
    let found = on.run(|device: &mut Device| {
        let (partials, at) = (device.room::<f64>(TASKS * TASKS), device.upload(&gradients));
        let union = Union { rows: 0, starts: device.upload(&starts), members: device.upload(&members), count: 2 };
        device.run(&rows::gram(partials, at, union, TASKS, DIM));
        device.download::<f64>(partials, TASKS * TASKS)
    });
    for (cell, (x, y)) in found.iter().zip(&expected).enumerate() {
        assert!((x - y).abs() <= 1e-5 * DIM as f64, "{cell}: {x} for {y}");
    }
}

/// Slots that nobody has written gain their rows' initial values, and bags of slots read them.
fn rows_begin_with_their_initial_values(on: On) {
    for deviation in [0.0, 0.5] {
        let init = RowInit { seed: 77, deviation };
        let (fresh, slots) = ([9u32, 2, 5], [1u32, 0, 2]);
        let mut expected = vec![0.0; 3 * DIM];
        fresh.iter().zip(slots).for_each(|(&row, slot)| init.fill(row, &mut expected[slot as usize * DIM..][..DIM]));
        let (found, bag) = on.run(|device: &mut Device| {
            let [values, out] = [device.room::<f32>(3 * DIM), device.room::<f32>(DIM)];
            let (rows, at) = (device.upload(&fresh), device.upload(&slots));
            device.run(&rows::embedding_rows_init(values, rows, at, 3, DIM, init));
            let bags = Bags {
                offsets: device.upload(&[0u32, 1]),
                rows: device.upload(&[2u32]),
                scales: device.upload(&[2.0f32]),
                slots: 0,
                values,
                dim: DIM,
                init,
            };
            device.run(&rows::embedding_bag_forward(0, out, bags, 0, 1));
            (device.download::<f32>(values, 3 * DIM), device.download::<f32>(out, DIM))
        });
        assert_close(&found, &expected, 1e-5, "initial rows");
        let doubled: Vec<f32> = expected[2 * DIM..].iter().map(|x| 2.0 * x).collect();
        assert_close(&bag, &doubled, 1e-5, "a bag of slots");
    }
}

super::on_devices! {
    rows_begin_with_their_initial_values,
    bags_of_touched_and_untouched_rows,
    row_gradients_of_three_tasks,
    row_gram_of_ninety_tasks,
}
