//! Gram matrices on devices against exact ones.

use super::*;
use crate::ops::testing::{On, Place, noise, on_devices, rounded};

/// Rows nearly parallel, their scales up to 1000 apart.
fn rows(tasks: usize, width: usize) -> Vec<f32> {
    let base = noise(width, 0);
    let row = |task: usize| {
        let (own, scale) = (noise(width, 1 + task as u32), 10f32.powi(task as i32 % 4 - 1));
        base.iter().zip(own).map(|(b, o)| scale * (b + 1e-3 * o)).collect::<Vec<_>>()
    };
    (0..tasks).flat_map(row).collect()
}

/// Two blocks of columns that begin and end anywhere; each product against the exact one, on the host as well.
fn gram_matches(on: On, tasks: usize, width: usize, dtype: DType) {
    let values = rounded(rows(tasks, width), dtype);
    let (blocks, cells) = ([1..width / 3, width / 3..width], tasks * tasks);
    let exact = |block: &Range<usize>| {
        let rows: Vec<&[f32]> = values.chunks(width).map(|row| &row[block.clone()]).collect();
        let product =
            |cell: usize| rows[cell / tasks].iter().zip(rows[cell % tasks]).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
        (0..cells).map(product).collect::<Vec<f64>>()
    };
    let expected: Vec<f64> = blocks.iter().flat_map(exact).collect();
    on.compare(|place: &mut Place| {
        let all = place.jacobian(&values, width, dtype);
        let jacobian: Vec<Tensor> = (0..tasks).map(|task| all.rows(task..task + 1)).collect();
        let partials = place.scratch(2 * cells, DType::F64);
        let gram = place.room(3, cells, DType::F64);
        place.run(&GramMatrices { jacobian, blocks: &blocks, table: None, rows: None, gram, partials });
        let found = place.found("gram", gram);
        for (cell, (x, y)) in found.values.iter().zip(&expected).enumerate() {
            assert!((x / y - 1.0).abs() < 1e-6, "{tasks} tasks, {cell}: {x} for {y}");
        }
        vec![found]
    });
}

fn gram_of_two(on: On) {
    gram_matches(on, 2, 2_500, DType::F32);
    gram_matches(on, 2, 2_500, DType::Bf16);
}

fn gram_of_three(on: On) {
    gram_matches(on, 3, 10_001, DType::F32);
}

fn gram_of_five(on: On) {
    gram_matches(on, 5, 3_001, DType::F32);
    gram_matches(on, 5, 3_002, DType::Bf16);
}

fn gram_of_nine(on: On) {
    gram_matches(on, 9, 2_000, DType::F32);
}

fn gram_of_sixteen(on: On) {
    gram_matches(on, 16, 1_500, DType::F32);
    gram_matches(on, 16, 1_502, DType::Bf16);
}

fn gram_of_nineteen(on: On) {
    gram_matches(on, 19, 1_100, DType::F32);
    gram_matches(on, 19, 1_100, DType::Bf16);
}

/// Three groups of rows, the last of which is not full.
fn gram_of_seventy(on: On) {
    gram_matches(on, 70, 1_700, DType::F32);
    gram_matches(on, 70, 600, DType::Bf16);
}

fn squares_of_segments(on: On) {
    on.compare(|place: &mut Place| {
        let (values, out) = (place.f32(&noise(1_000, 12), 1_000), place.room(1, 3, DType::F64));
        place.run(&Squares { values, segments: vec![0..300, 300..300, 350..1_000], out });
        vec![place.found("squares", out).within(1e-12, 0.0)]
    });
}

on_devices! {
    gram_of_two,
    gram_of_three,
    gram_of_five,
    gram_of_nine,
    gram_of_sixteen,
    gram_of_nineteen,
    gram_of_seventy,
    squares_of_segments,
}
