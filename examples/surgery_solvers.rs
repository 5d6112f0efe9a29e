//! Time of every surgery method's T x T solve: `cargo run --release --example surgery_solvers`.
//!
//! Gradients are Gaussian in 2 T dimensions, so about half of all pairs conflict.

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use std::time::Instant;

use serde_json::Map;
use taskloom::surgery::methods::random::{bits, normal};
use taskloom::surgery::methods::registry::{self, DESCRIPTORS};
use taskloom::surgery::methods::{Inputs, Status};

const SIZES: [usize; 4] = [4, 16, 24, 64];
const RUNS: u64 = 15;

fn gram(tasks: usize, seed: u64) -> Vec<f64> {
    let columns = 2 * tasks as u64;
    let rows: Vec<Vec<f64>> =
        (0..tasks as u64).map(|row| (0..columns).map(|column| normal(bits(seed, row, column))).collect()).collect();
    let dot = |left: &[f64], right: &[f64]| left.iter().zip(right).map(|(l, r)| l * r).sum();
    rows.iter().flat_map(|left| rows.iter().map(move |right| dot(left, right))).collect()
}

/// Median milliseconds of a solve, and how many fell back.
fn time(name: &str, tasks: usize) -> Option<(f64, usize)> {
    let mut method = registry::build(name, &Map::new(), tasks).ok()?;
    let present: Vec<usize> = (0..tasks).collect();
    let losses = vec![1.0; tasks];
    let mut times = Vec::new();
    let mut fallbacks = 0;
    for round in 0..RUNS {
        let gram = gram(tasks, round);
        let inputs = Inputs {
            gram: &gram,
            cross_gram: &gram,
            losses: &losses,
            row_sums: &gram,
            tasks: &present,
            round,
            seed: 1,
            orders: None,
        };
        let start = Instant::now();
        let solution = method.solve(&inputs);
        times.push(start.elapsed().as_secs_f64() * 1e3);
        fallbacks += usize::from(solution.status != Status::Ok);
    }
    times.sort_by(f64::total_cmp);
    Some((times[times.len() / 2], fallbacks))
}

fn main() {
    println!("{:14} {}", "ms, T =", SIZES.map(|size| format!("{size:>9}")).join(""));
    for descriptor in DESCRIPTORS.iter().filter(|descriptor| !descriptor.needs.elementwise) {
        let cells = SIZES.map(|size| match time(descriptor.name, size) {
            Some((ms, 0)) => format!("{ms:9.4}"),
            Some((ms, fallbacks)) => format!("{ms:9.4} ({fallbacks} fallbacks)"),
            None => format!("{:>9}", "-"),
        });
        println!("{:14} {}", descriptor.name, cells.join(""));
    }
}
