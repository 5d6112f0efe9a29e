//! The two-task toy problem of Nash-MTL (Navon et al., ICML 2022; objectives of Liu et al., CAGrad, NeurIPS 2021):
//! `cargo run --release --example two_task_toy`.
//!
//! Two parameters, two losses whose gradients differ by an order of magnitude and conflict along a curved valley. Each
//! method starts from five points and takes 35,000 Adam steps of 1e-3. Prints one line a start. A file given as argument gets
//! the paths: a picture of some methods if it ends in `.svg`, else a table (method, start, step, x, y, loss 1, loss 2).

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

mod plot;

use std::fmt::Write;
use std::ops::{Add, Mul};

use serde_json::Map;
use taskloom::surgery::methods::{Inputs, registry};

const STARTS: [[f64; 2]; 5] = [[-8.5, 7.5], [0.0, 0.0], [9.0, 9.0], [-7.5, -0.5], [9.0, -1.0]];
const METHODS: [&str; 8] = ["sum", "pcgrad", "mgda", "cagrad", "imtl_g", "nash_mtl", "upgrad", "aligned_mtl"];
/// Those in the picture.
const SHOWN: [&str; 4] = ["sum", "pcgrad", "cagrad", "nash_mtl"];
const STEPS: u64 = 35_000;
const LR: f64 = 1e-3;
/// Makes the first loss small beside the second, as in Nash-MTL.
const SCALES: [f64; 2] = [0.1, 1.0];

/// A value with its derivatives by x and y.
#[derive(Clone, Copy)]
struct Dual {
    value: f64,
    slope: [f64; 2],
}

impl Dual {
    fn constant(value: f64) -> Self {
        Self { value, slope: [0.0; 2] }
    }

    /// The chain rule.
    fn map(self, value: f64, derivative: f64) -> Self {
        Self { value, slope: self.slope.map(|slope| slope * derivative) }
    }

    fn tanh(self) -> Self {
        let value = self.value.tanh();
        self.map(value, 1.0 - value * value)
    }

    /// ln(max(|x|, 5e-6)), flat below.
    fn log_abs(self) -> Self {
        let size = self.value.abs();
        if size < 5e-6 { Self::constant(5e-6_f64.ln()) } else { self.map(size.ln(), 1.0 / self.value) }
    }

    /// max(x, 0), with the slope of x at 0 itself: at (0, 0) both losses would be flat otherwise.
    fn positive_part(self) -> Self {
        if self.value >= 0.0 { self } else { Self::constant(0.0) }
    }

    fn square(self) -> Self {
        self * self
    }

    fn plus(self, constant: f64) -> Self {
        Self { value: self.value + constant, ..self }
    }

    fn times(self, factor: f64) -> Self {
        self.map(factor * self.value, factor)
    }
}

impl Add for Dual {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let slope = [self.slope[0] + other.slope[0], self.slope[1] + other.slope[1]];
        Self { value: self.value + other.value, slope }
    }
}

impl Mul for Dual {
    type Output = Self;

    #[allow(clippy::suspicious_arithmetic_impl, reason = "the product rule adds")]
    fn mul(self, other: Self) -> Self {
        let slope = |axis: usize| self.slope[axis] * other.value + self.value * other.slope[axis];
        Self { value: self.value * other.value, slope: [slope(0), slope(1)] }
    }
}

/// Both losses at a point, with gradients.
fn losses([x, y]: [f64; 2]) -> [Dual; 2] {
    let x = Dual { value: x, slope: [1.0, 0.0] };
    let y = Dual { value: y, slope: [0.0, 1.0] };
    let down = y.times(-1.0).tanh();
    let near = [x.plus(7.0).times(-0.5) + down.times(-1.0), x.plus(-3.0).times(-0.5) + down.plus(2.0)];
    let far = |center: f64| (x.plus(center).square() + y.plus(8.0).square().times(0.1)).times(0.1).plus(-20.0);
    let (upper, lower) = (y.times(0.5).tanh().positive_part(), y.times(-0.5).tanh().positive_part());
    let loss = |task: usize, center: f64| (near[task].log_abs().plus(6.0) * upper + far(center) * lower).times(SCALES[task]);
    [loss(0, -7.0), loss(1, 7.0)]
}

/// Descends from `start`; the points passed, every `every` steps and the last.
fn descend(name: &str, start: [f64; 2], every: u64) -> Vec<(u64, [f64; 2])> {
    let mut method = registry::build(name, &Map::new(), 2).expect("a known method");
    let (mut point, mut first, mut second) = (start, [0.0; 2], [0.0; 2]);
    let mut path = Vec::new();
    for step in 0..STEPS {
        if step % every == 0 {
            path.push((step, point));
        }
        let rows = losses(point);
        let dot = |i: usize, j: usize| rows[i].slope[0] * rows[j].slope[0] + rows[i].slope[1] * rows[j].slope[1];
        let gram = [dot(0, 0), dot(0, 1), dot(1, 0), dot(1, 1)];
        let values = rows.map(|row| row.value);
        let inputs = Inputs {
            gram: &gram,
            cross_gram: &gram,
            losses: &values,
            row_sums: &[],
            tasks: &[0, 1],
            round: step,
            seed: 1,
            orders: None,
        };
        let weights = method.solve(&inputs).weights;
        for axis in 0..2 {
            let gradient = weights[0] * rows[0].slope[axis] + weights[1] * rows[1].slope[axis];
            first[axis] = 0.9 * first[axis] + 0.1 * gradient;
            second[axis] = 0.999 * second[axis] + 0.001 * gradient * gradient;
            let corrected = |moment: f64, beta: f64| moment / (1.0 - beta.powi(step as i32 + 1));
            point[axis] -= LR * corrected(first[axis], 0.9) / (corrected(second[axis], 0.999).sqrt() + 1e-8);
        }
    }
    path.push((STEPS, point));
    path
}

fn main() -> std::io::Result<()> {
    let mut table = String::from("method\tstart\tstep\tx\ty\tloss_1\tloss_2\n");
    let mut panels = Vec::new();
    for method in METHODS {
        let mut panel = plot::Panel { title: method, paths: Vec::new() };
        for start in STARTS {
            let path = descend(method, start, 250);
            let (_, end) = path[path.len() - 1];
            let [one, two] = losses(end).map(|loss| loss.value);
            println!("{method:12} {start:>12?} -> ({:7.3}, {:7.3})  losses {one:8.3} {two:8.3}", end[0], end[1]);
            panel.paths.push(path.iter().map(|(_, point)| *point).collect());
            for (step, point) in path {
                let [one, two] = losses(point).map(|loss| loss.value);
                let _ = writeln!(table, "{method}\t{start:?}\t{step}\t{}\t{}\t{one}\t{two}", point[0], point[1]);
            }
        }
        if SHOWN.contains(&method) {
            panels.push(panel);
        }
    }
    match std::env::args().nth(1) {
        Some(path) if path.ends_with(".svg") => {
            std::fs::write(path, plot::svg(&panels, |point| losses(point).iter().map(|loss| loss.value).sum()))
        }
        Some(path) => std::fs::write(path, table),
        None => Ok(()),
    }
}
