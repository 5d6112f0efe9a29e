//! Row-sparse private gradients of an embedding table: built per task, multiplied on the rows two tasks share, and combined
//! on the union of all tasks' rows. A table row that no task touched costs nothing anywhere.

use anyhow::Result;
use multiversion::multiversion;
use rayon::prelude::*;

use super::adamw::{Combine, Step};
use super::embedding_bag::Bags;
use super::gram::add_symmetric;
use super::simd::{add_scaled, dot};
use crate::device::memory::{Buffer, Memory};

/// One task's gradient: `rows` ascending, and their values.
pub struct RowGradient {
    pub rows: Vec<u32>,
    /// (rows x dim), the first rows.len() * dim values are in use; sized once, by the plan.
    pub values: Buffer,
    dim: usize,
    /// (table row << 32 | example), sorted: where each row's gradient comes from.
    sources: Vec<u64>,
    /// (rows + 1) bounds of each row's sources.
    starts: Vec<u32>,
}

impl RowGradient {
    /// Room for `capacity` rows.
    pub fn new(memory: &mut Memory, name: &str, dim: usize, capacity: usize) -> Result<Self> {
        let values = memory.buffer(name, capacity * dim)?;
        memory.reserve(&format!("{name}: index"), (capacity * (4 + 8 + 4)) as u64)?;
        let capacity = if memory.is_dry() { 0 } else { capacity };
        Ok(Self {
            rows: Vec::with_capacity(capacity),
            values,
            dim,
            sources: Vec::with_capacity(capacity),
            starts: Vec::with_capacity(capacity + 1),
        })
    }

    /// Columns of the table.
    pub fn dim(&self) -> usize {
        self.dim
    }

    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.dim..][..self.dim]
    }

    pub fn clear(&mut self) {
        self.rows.clear();
    }

    /// Backward pass of the embedding bag: row r gets sum over the examples e that hold r of scales[e] * dout[e], in
    /// example order. `dout` is (n x dim) for the n examples of `bags`, of which this task's are `examples`.
    pub fn backward(&mut self, dout: &[f32], bags: &Bags, examples: impl Iterator<Item = usize>) {
        self.sources.clear();
        for example in examples {
            self.sources.extend(bags.example(example).iter().map(|&row| u64::from(row) << 32 | example as u64));
        }
        self.sources.sort_unstable();
        self.rows.clear();
        self.starts.clear();
        for (position, source) in self.sources.iter().enumerate() {
            let row = (source >> 32) as u32;
            if self.rows.last() != Some(&row) {
                self.rows.push(row);
                self.starts.push(position as u32);
            }
        }
        self.starts.push(self.sources.len() as u32);
        let dim = self.dim;
        let used = self.rows.len() * dim;
        assert!(used <= self.values.len(), "{} rows exceed the planned row gradient", self.rows.len());
        let (sources, starts) = (&self.sources, &self.starts);
        self.values[..used].par_chunks_mut(dim).with_min_len(64).enumerate().for_each(|(index, out)| {
            add_sources(out, &sources[starts[index] as usize..starts[index + 1] as usize], dout, &bags.scales);
        });
    }
}

/// out (dim) = sum over the sources' examples of scale * dout.
#[multiversion(targets("x86_64+avx2+fma"))]
fn add_sources(out: &mut [f32], sources: &[u64], dout: &[f32], scales: &[f32]) {
    let dim = out.len();
    out.fill(0.0);
    for source in sources {
        let example = *source as u32 as usize;
        add_scaled(out, scales[example], &dout[example * dim..][..dim]);
    }
}

/// The rows touched by any task, ascending, each with the tasks that touched it.
#[derive(Default)]
pub struct Union {
    pub rows: Vec<u32>,
    /// (rows + 1) bounds of each row's members.
    starts: Vec<u32>,
    /// (task, index of the row in that task's gradient), tasks ascending.
    members: Vec<(u32, u32)>,
}

impl Union {
    /// Merges the tasks' sorted row lists.
    pub fn merge(&mut self, gradients: &[RowGradient]) {
        self.rows.clear();
        self.starts.clear();
        self.members.clear();
        let mut heads = vec![0usize; gradients.len()];
        let next = |heads: &[usize]| gradients.iter().zip(heads).filter_map(|(g, &head)| g.rows.get(head).copied()).min();
        while let Some(row) = next(&heads) {
            self.rows.push(row);
            self.starts.push(self.members.len() as u32);
            for (task, gradient) in gradients.iter().enumerate() {
                if gradient.rows.get(heads[task]) == Some(&row) {
                    self.members.push((task as u32, heads[task] as u32));
                    heads[task] += 1;
                }
            }
        }
        self.starts.push(self.members.len() as u32);
    }

    /// All tasks' parts of union row `index`; `zeros` stands in for a task that did not touch it.
    pub fn gathered<'a>(&self, index: usize, gradients: &'a [RowGradient], zeros: &'a [f32]) -> Vec<&'a [f32]> {
        let mut parts = vec![zeros; gradients.len()];
        for &(task, row) in self.members(index) {
            parts[task as usize] = gradients[task as usize].row(row as usize);
        }
        parts
    }

    fn members(&self, index: usize) -> &[(u32, u32)] {
        &self.members[self.starts[index] as usize..self.starts[index + 1] as usize]
    }
}

/// Union rows in one partial sum of the Gram matrix.
const GRAM_ROWS: usize = 256;

/// gram (T x T, f64) gains the products of the tasks' row gradients; f32 products of one row, summed in f64.
pub fn row_gram(gram: &mut [f64], union: &Union, gradients: &[RowGradient]) {
    let count = gradients.len();
    let blocks = union.rows.len().div_ceil(GRAM_ROWS);
    let partial: Vec<Vec<f64>> = (0..blocks)
        .into_par_iter()
        .map(|block| {
            let mut sums = vec![0.0; count * count];
            for index in block * GRAM_ROWS..((block + 1) * GRAM_ROWS).min(union.rows.len()) {
                member_products(&mut sums, union.members(index), gradients);
            }
            sums
        })
        .collect();
    for sums in partial {
        add_symmetric(gram, &sums, count);
    }
}

/// Upper triangle of the products of all tasks that touched one row.
#[multiversion(targets("x86_64+avx2+fma"))]
fn member_products(sums: &mut [f64], members: &[(u32, u32)], gradients: &[RowGradient]) {
    let count = gradients.len();
    for (position, &(i, i_row)) in members.iter().enumerate() {
        let row = gradients[i as usize].row(i_row as usize);
        for &(j, j_row) in &members[position..] {
            let product = dot(row, gradients[j as usize].row(j_row as usize));
            sums[i as usize * count + j as usize] += f64::from(product);
        }
    }
}

/// Parameters and moments of the touched rows, (slots x dim) each; `second` is empty under SGD, and (slots) where a row has
/// a single second moment.
pub struct RowState<'a> {
    pub values: &'a mut [f32],
    pub first: &'a mut [f32],
    pub second: &'a mut [f32],
}

/// One optimizer step on the union rows: d from the gradients of the tasks that touched a row (zero for the others). Row
/// `union.rows[i]` lies in slot `slots[i]`; slots are distinct.
pub fn row_update(state: RowState, slots: &[u32], union: &Union, gradients: &[RowGradient], how: Combine, step: &Step) {
    let Some(dim) = gradients.first().map(|g| g.dim) else { return };
    let room = state.values.len() / dim;
    assert!(slots.iter().all(|&slot| (slot as usize) < room), "a slot lies outside the table");
    let values = Rows { start: state.values.as_mut_ptr(), dim };
    let first = Rows { start: state.first.as_mut_ptr(), dim };
    let second_dim = state.second.len() / room.max(1);
    let second = Rows { start: state.second.as_mut_ptr(), dim: second_dim };
    assert!(state.first.len() == room * dim && [0, 1, dim].contains(&second_dim), "moments of another shape");
    slots.par_iter().with_min_len(64).enumerate().for_each_init(
        || (vec![0.0f32; dim], vec![0.0f32; dim]),
        |(d, zeros), (index, &slot)| {
            // SAFETY: slots are distinct (one per union row) and inside the three arrays, checked above, so each job has
            // these rows to itself; the borrows of `state` outlive the loop.
            let (p, m, v) = unsafe { (values.row(slot), first.row(slot), second.row(slot)) };
            match how {
                Combine::Weights(weights) => combine_members(d, union.members(index), gradients, weights),
                Combine::Columns { rule, first } => {
                    rule(&union.gathered(index, gradients, zeros), first + u64::from(union.rows[index]) * dim as u64, d);
                }
            }
            match v {
                [v] => step.run_row(p, m, v, d),
                v => step.run(p, m, v, d),
            }
        },
    );
}

/// d (dim) = sum over the tasks that touched a row of their weighted gradients.
#[multiversion(targets("x86_64+avx2+fma"))]
fn combine_members(d: &mut [f32], members: &[(u32, u32)], gradients: &[RowGradient], weights: &[f32]) {
    d.fill(0.0);
    for &(task, row) in members {
        add_scaled(d, weights[task as usize], gradients[task as usize].row(row as usize));
    }
}

/// Rows handed out by number to jobs that use distinct ones.
struct Rows {
    start: *mut f32,
    dim: usize,
}

// SAFETY: only `row` reads the pointer, and its caller promises distinct rows.
unsafe impl Sync for Rows {}

impl Rows {
    /// # Safety
    /// `slot` lies inside the array, and nobody else uses the row while the result lives.
    #[allow(clippy::mut_from_ref, reason = "distinct rows of one array are handed to different jobs")]
    unsafe fn row(&self, slot: u32) -> &mut [f32] {
        unsafe { std::slice::from_raw_parts_mut(self.start.add(slot as usize * self.dim), self.dim) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::adamw::Rule;

    /// Task 0 touches rows 1, 4; task 1 touches rows 4, 9.
    fn two_tasks() -> Vec<RowGradient> {
        let mut memory = Memory::unlimited();
        let mut gradients: Vec<RowGradient> = (0..2).map(|_| RowGradient::new(&mut memory, "rows", 2, 4).unwrap()).collect();
        let bags = Bags { offsets: vec![0, 2, 3], rows: vec![1, 4, 4], scales: vec![1.0, 2.0] };
        gradients[0].backward(&[1.0, 2.0, 3.0, 4.0], &bags, 0..2);
        let bags = Bags { offsets: vec![0, 2], rows: vec![4, 9], scales: vec![0.5] };
        gradients[1].backward(&[2.0, -2.0], &bags, 0..1);
        gradients
    }

    #[test]
    fn backward_adds_the_examples_of_a_row() {
        let gradients = two_tasks();
        assert_eq!(gradients[0].rows, [1, 4]);
        assert_eq!(gradients[0].values[..4], [1.0, 2.0, 7.0, 10.0]);
        assert_eq!(gradients[1].values[..4], [1.0, -1.0, 1.0, -1.0]);
    }

    #[test]
    fn gram_takes_the_intersection() {
        let gradients = two_tasks();
        let mut union = Union::default();
        union.merge(&gradients);
        assert_eq!(union.rows, [1, 4, 9]);
        let mut gram = vec![0.0; 4];
        row_gram(&mut gram, &union, &gradients);
        assert_eq!(gram, [154.0, -3.0, -3.0, 4.0]);
    }

    #[test]
    fn update_takes_the_union() {
        let gradients = two_tasks();
        let mut union = Union::default();
        union.merge(&gradients);
        let (mut values, mut first) = (vec![0.0; 6], vec![0.0; 6]);
        let step = Step { rule: Rule::Sgd { momentum: 0.0 }, lr: 1.0, weight_decay: 0.0 };
        let state = RowState { values: &mut values, first: &mut first, second: &mut [] };
        row_update(state, &[2, 0, 1], &union, &gradients, Combine::Weights(&[1.0, 10.0]), &step);
        assert_eq!(values, [-17.0, 0.0, -10.0, 10.0, -1.0, -2.0]);
    }
}
