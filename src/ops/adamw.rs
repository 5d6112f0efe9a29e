//! The optimizer step, and the fused pass that combines the rows of J, scales, and steps the parameters in one sweep.

use multiversion::multiversion;
use rayon::prelude::*;

use super::simd::dot;
use super::storage::Rows;

/// How a combined gradient moves a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// AdamW (Loshchilov & Hutter, ICLR 2019) with bias corrections 1 - beta^t of this step.
    AdamW { beta1: f32, beta2: f32, eps: f32, correction1: f32, correction2: f32 },
    /// SGD with heavy-ball momentum and coupled weight decay, as PyTorch's.
    Sgd { momentum: f32 },
}

/// One step of one group of parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    pub rule: Rule,
    pub lr: f32,
    pub weight_decay: f32,
}

impl Step {
    /// Moves one embedding row whose second moment is a single number, the running mean square of its gradient.
    pub fn run_row(&self, p: &mut [f32], m: &mut [f32], v: &mut f32, d: &[f32]) {
        step_row(self, p, m, v, d);
    }

    /// Moves `p` by gradient `d` (equal lengths); `m` and `v` are its moments, `v` is unused under SGD and may be empty.
    pub fn run(&self, p: &mut [f32], m: &mut [f32], v: &mut [f32], d: &[f32]) {
        step_slice(self, p, m, v, d);
    }

    #[inline(always)]
    fn apply(&self, p: &mut [f32], m: &mut [f32], v: &mut [f32], d: &[f32]) {
        match self.rule {
            Rule::AdamW { beta1, beta2, eps, correction1, correction2 } => {
                let keep = 1.0 - self.lr * self.weight_decay;
                let rate = self.lr / correction1;
                let inverse_root = 1.0 / correction2.sqrt();
                for (((p, m), v), &d) in p.iter_mut().zip(m).zip(v).zip(d) {
                    *m = beta1.mul_add(*m, (1.0 - beta1) * d);
                    *v = beta2.mul_add(*v, (1.0 - beta2) * d * d);
                    *p = keep.mul_add(*p, -rate * *m / v.sqrt().mul_add(inverse_root, eps));
                }
            }
            Rule::Sgd { momentum } => {
                for ((p, m), &d) in p.iter_mut().zip(m).zip(d) {
                    *m = momentum.mul_add(*m, self.weight_decay.mul_add(*p, d));
                    *p = (-self.lr).mul_add(*m, *p);
                }
            }
        }
    }
}

/// Makes the update of some neighbouring columns from the rows of J there, each with its number, rows of zeros left out; the
/// other number is that of the first column in J.
pub type ColumnRule<'a> = &'a (dyn Fn(&[(usize, &[f32])], u64, &mut [f32]) + Sync);

/// How the rows of J become one gradient.
#[derive(Clone, Copy)]
pub enum Combine<'a> {
    /// (T) d = sum_t weights[t] J_t
    Weights(&'a [f32]),
    /// Column by column; `first` is the number of the group's first column.
    Columns { rule: ColumnRule<'a>, first: u64 },
}

/// Parameters and moments that move together: slices of equal length (`second` may be empty under SGD).
pub struct Group<'a> {
    pub values: &'a mut [f32],
    pub first: &'a mut [f32],
    pub second: &'a mut [f32],
}

/// Columns combined at a time: two rows of this many values stay in the first-level cache with the moments.
const COLUMNS: usize = 1024;

/// One pass over J: d from its rows, then `step` on every parameter. Row t of `rows` is row t of J restricted to the group
/// (equal lengths); clipping is folded into the weights or the rule by the caller.
pub fn combine_and_step(group: Group, rows: &Rows, combination: Combine, step: &Step) {
    let len = group.values.len();
    assert!(rows.all_have(len), "every row of J covers the group");
    let adam = matches!(step.rule, Rule::AdamW { .. });
    assert!(!adam || group.second.len() == len, "AdamW needs a second moment for each parameter");
    let values = group.values.par_chunks_mut(COLUMNS).zip(group.first.par_chunks_mut(COLUMNS)).enumerate();
    let run = |room: &mut Vec<f32>, index: usize, p: &mut [f32], m: &mut [f32], v: &mut [f32]| {
        let columns = index * COLUMNS..index * COLUMNS + p.len();
        let mut d = [0.0f32; COLUMNS];
        let d = &mut d[..p.len()];
        rows.each_f32(columns.clone(), room, |rows, at, stretch| {
            let d = &mut d[stretch.start - columns.start..stretch.end - columns.start];
            match combination {
                Combine::Weights(weights) => combine(d, rows, weights, at),
                Combine::Columns { rule, first } => {
                    let parts: Vec<(usize, &[f32])> = rows.iter().map(|row| &row[at..at + d.len()]).enumerate().collect();
                    rule(&parts, first + stretch.start as u64, d);
                }
            }
        });
        step.run(p, m, v, d);
    };
    if adam {
        let all = values.zip(group.second.par_chunks_mut(COLUMNS)).with_min_len(8);
        all.for_each_init(Vec::new, |room, ((index, (p, m)), v)| run(room, index, p, m, v));
    } else {
        values.with_min_len(8).for_each_init(Vec::new, |room, (index, (p, m))| run(room, index, p, m, &mut []));
    }
}

/// out = sum_t weights[t] * rows[t] without a step; all rows are as long as `out`.
pub fn combine_rows(out: &mut [f32], rows: &Rows, weights: &[f64]) {
    let weights: Vec<f32> = weights.iter().map(|&weight| weight as f32).collect();
    out.par_chunks_mut(COLUMNS).with_min_len(8).enumerate().for_each_init(Vec::new, |room, (index, d)| {
        d.fill(0.0);
        let start = index * COLUMNS;
        rows.each_f32(start..start + d.len(), room, |rows, at, stretch| {
            combine(&mut d[stretch.start - start..stretch.end - start], rows, &weights, at);
        });
    });
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn step_slice(step: &Step, p: &mut [f32], m: &mut [f32], v: &mut [f32], d: &[f32]) {
    step.apply(p, m, v, d);
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn step_row(step: &Step, p: &mut [f32], m: &mut [f32], v: &mut f32, d: &[f32]) {
    let Rule::AdamW { beta1, beta2, eps, correction1, correction2 } = step.rule else {
        return step.apply(p, m, &mut [], d);
    };
    let keep = 1.0 - step.lr * step.weight_decay;
    *v = beta2.mul_add(*v, (1.0 - beta2) * dot(d, d) / d.len() as f32);
    let rate = step.lr / correction1 / ((*v / correction2).sqrt() + eps);
    for ((p, m), &d) in p.iter_mut().zip(m).zip(d) {
        *m = beta1.mul_add(*m, (1.0 - beta1) * d);
        *p = keep.mul_add(*p, -rate * *m);
    }
}

/// d = sum_t weights[t] * rows[t][start..], two rows at a time to halve the traffic on d.
#[multiversion(targets("x86_64+avx2+fma"))]
fn combine(d: &mut [f32], rows: &[&[f32]], weights: &[f32], start: usize) {
    let end = start + d.len();
    for (pair, weights) in rows.chunks(2).zip(weights.chunks(2)) {
        if let ([a, b], [wa, wb]) = (pair, weights) {
            for ((d, &a), &b) in d.iter_mut().zip(&a[start..end]).zip(&b[start..end]) {
                *d = wb.mul_add(b, wa.mul_add(a, *d));
            }
        } else {
            for (d, &a) in d.iter_mut().zip(&pair[0][start..end]) {
                *d = weights[0].mul_add(a, *d);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADAM: Rule = Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, correction1: 0.1, correction2: 0.001 };

    #[test]
    fn the_first_adam_step_has_the_size_of_the_rate() {
        let (mut p, mut m, mut v) = ([1.0], [0.0], [0.0]);
        Step { rule: ADAM, lr: 0.1, weight_decay: 0.0 }.run(&mut p, &mut m, &mut v, &[5.0]);
        assert!((p[0] - 0.9).abs() < 1e-6, "{p:?}");
    }

    #[test]
    fn a_rows_single_moment_is_its_mean_square() {
        let (mut p, mut m, mut v) = ([1.0; 2], [0.0; 2], 0.0);
        Step { rule: ADAM, lr: 0.1, weight_decay: 0.0 }.run_row(&mut p, &mut m, &mut v, &[3.0, 4.0]);
        let root = 12.5f32.sqrt();
        assert!((v - 0.0125).abs() < 1e-6, "{v}");
        assert!((p[0] - (1.0 - 0.3 / root)).abs() < 1e-5 && (p[1] - (1.0 - 0.4 / root)).abs() < 1e-5, "{p:?}");
    }

    #[test]
    fn weight_decay_is_decoupled() {
        let (mut p, mut m, mut v) = ([1.0], [0.0], [0.0]);
        Step { rule: ADAM, lr: 0.1, weight_decay: 0.5 }.run(&mut p, &mut m, &mut v, &[0.0]);
        assert!((p[0] - 0.95).abs() < 1e-7, "{p:?}");
    }

    #[test]
    fn the_fused_pass_is_the_weighted_sum() {
        let len = 3000;
        let rows: Vec<Vec<f32>> = (0..3).map(|t| (0..len).map(|i| (i * (t + 1)) as f32).collect()).collect();
        let views: Vec<&[f32]> = rows.iter().map(|row| &row[..]).collect();
        let (mut p, mut m) = (vec![0.0; len], vec![0.0; len]);
        let step = Step { rule: Rule::Sgd { momentum: 0.0 }, lr: 1.0, weight_decay: 0.0 };
        let group = Group { values: &mut p, first: &mut m, second: &mut [] };
        combine_and_step(group, &views[..].into(), Combine::Weights(&[1.0, 0.5, 2.0]), &step);
        assert!(p.iter().enumerate().all(|(i, &x)| x == -8.0 * i as f32));
    }
}
