//! The optimizer's step on the rows of an embedding table that a round touched.

use multiversion::multiversion;
use rayon::prelude::*;

use super::adamw::{Combine, Step};
use super::buckets;
use super::column_rule::How;
use super::row_gradients::{RowGradients, RowValues, Union, UnionAt, UnionOf};
use super::simd::add_scaled;
use super::update::rates_tables;
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch, Work};
use crate::machine::tape::{Bytes, Op, Operands};
use crate::machine::tensor::Tensor;

/// Parameters and moments of an embedding table.
#[derive(Clone, Copy)]
pub struct TableState {
    /// (slots x dim) f32
    pub values: Tensor,
    pub first: Tensor,
    /// As `values`; (slots x 1) where a row has a single second moment; none under SGD.
    pub second: Tensor,
    /// (slots x dim) bf16 copy of the values for a device's products, or none.
    pub copy: Tensor,
}

/// One step on the union's rows.
pub struct RowUpdate<'a> {
    pub state: TableState,
    /// (union rows) where each lies; distinct. Not asked for where the device found the rows.
    pub slots: &'a [u32],
    pub gradients: RowGradients<'a>,
    /// Weights are (tasks); columns of J begin at `first_column` for the table.
    pub how: How<'a>,
    pub first_column: u64,
    pub step: Step,
    /// (1) u32: nothing moves unless it is 0; none where it always does.
    pub halted: Tensor,
}

impl Op for RowUpdate<'_> {
    fn name(&self) -> &'static str {
        "row_update"
    }

    fn operands(&self) -> Operands {
        let TableState { values, first, second, copy } = self.state;
        let mut operands = Operands::new([self.how.weights(), self.halted], [values, first, second, copy]);
        operands.reads.extend(self.gradients.tasks.iter().filter(|task| !task.is_none()));
        operands
    }

    fn work(&self) -> Work {
        Work::default()
    }

    fn host(&self, memory: &HostMemory) {
        let TableState { values, first, second, .. } = self.state;
        let state = RowState { values: memory.write(values), first: memory.write(first), second: memory.write(second) };
        let how = self.how.combine(memory, 0..self.gradients.tasks.len(), self.first_column);
        row_update(state, self.slots, self.gradients.merged(), &self.gradients.read(memory), how, &self.step);
    }

    /// Rates, those of a rule, slots, and the union's.
    fn tables(&self) -> Vec<Bytes> {
        let mut tables = rates_tables(&[self.step]).to_vec();
        if let How::Columns(rule) = &self.how {
            tables.extend(rule.tables());
        }
        if let UnionOf::Merged(_) = self.gradients.union {
            tables.push(buckets::table(self.slots, self.gradients.room, 0));
        }
        tables.extend(self.gradients.tables());
        tables
    }

    fn device(&self, card: &Card, tables: &[Address]) -> Vec<Command> {
        let (own, rest) = tables.split_at(if let How::Columns(_) = self.how { 4 } else { 2 });
        let (slots, union) = match (self.gradients.union, rest) {
            (UnionOf::Found(lists), rest) => (lists.union_slots.at, rest),
            (_, [slots, rest @ ..]) => (*slots, rest),
            _ => unreachable!("slots, and the union's tables"),
        };
        let (UnionAt { count: union_count, starts, members, rows }, _) = self.gradients.union_at(union);
        let (dim, count, gradients) = (self.gradients.dim, self.gradients.tasks.len(), self.gradients.base());
        let TableState { values, first, second, copy } = self.state;
        let (table, blocks) = ([values.at, first.at, second.at, copy.at], card.blocks(self.gradients.most));
        let launch = match &self.how {
            How::Weights(weights) => Launch::line("row_update_weights", blocks, 256)
                .addresses(table)
                .int(second.columns)
                .addresses([gradients, slots, starts, members, union_count])
                .int(dim)
                .addresses([weights.at]),
            How::Columns(rule) => {
                let launch = rule
                    .launch("row_update_columns", blocks, count)
                    .addresses(table)
                    .int(second.columns)
                    .addresses([gradients, slots, rows, starts, members, union_count])
                    .int(count)
                    .int(dim);
                rule.arguments(launch, &own[2..]).long(self.first_column)
            }
        };
        vec![launch.addresses([own[0], own[1]]).int(0).addresses([self.halted.at]).into()]
    }
}

/// [`TableState`] on the host.
struct RowState<'a> {
    values: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

/// One optimizer step on the union rows: d from the gradients of the tasks that touched a row (zero for the others). Row
/// `union.rows[i]` lies in slot `slots[i]`; slots are distinct.
fn row_update(state: RowState, slots: &[u32], union: &Union, gradients: &RowValues, how: Combine, step: &Step) {
    let dim = gradients.dim;
    let room = state.values.len() / dim;
    assert!(slots.iter().all(|&slot| (slot as usize) < room), "a slot lies outside the table");
    let values = Rows { start: state.values.as_mut_ptr(), dim };
    let first = Rows { start: state.first.as_mut_ptr(), dim };
    let second_dim = state.second.len() / room.max(1);
    let second = Rows { start: state.second.as_mut_ptr(), dim: second_dim };
    assert!(state.first.len() == room * dim && [0, 1, dim].contains(&second_dim), "moments of another shape");
    slots.par_iter().with_min_len(64).enumerate().for_each_init(
        || vec![0.0f32; dim],
        |d, (index, &slot)| {
            // SAFETY: slots are distinct (one per union row) and inside the three arrays, checked above, so each job has
            // these rows to itself; the borrows of `state` outlive the loop.
            let (p, m, v) = unsafe { (values.row(slot), first.row(slot), second.row(slot)) };
            match how {
                Combine::Weights(weights) => combine_members(d, union.members(index), gradients, weights),
                Combine::Columns { rule, first } => {
                    rule(&gradients.gathered(union.members(index)), first + u64::from(union.rows[index]) * dim as u64, d);
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
fn combine_members(d: &mut [f32], members: &[(u32, u32)], gradients: &RowValues, weights: &[f32]) {
    d.fill(0.0);
    for &member in members {
        add_scaled(d, weights[member.0 as usize], gradients.row(member));
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
    use crate::ops::row_gradients::RowGradient;
    use crate::ops::row_gradients::tests::two_tasks;

    #[test]
    fn update_takes_the_union() {
        let (gradients, union) = two_tasks();
        let (mut values, mut first) = (vec![0.0; 6], vec![0.0; 6]);
        let step = Step { rule: Rule::Sgd { momentum: 0.0 }, lr: 1.0, weight_decay: 0.0 };
        let state = RowState { values: &mut values, first: &mut first, second: &mut [] };
        let gradients = RowValues { tasks: gradients.iter().map(RowGradient::used).collect(), dim: 2 };
        row_update(state, &[2, 0, 1], &union, &gradients, Combine::Weights(&[1.0, 10.0]), &step);
        assert_eq!(values, [-17.0, 0.0, -10.0, 10.0, -1.0, -2.0]);
    }
}

#[cfg(test)]
mod cases {
    use super::*;
    use crate::machine::tensor::DType;
    use crate::ops::adamw::Rule;
    use crate::ops::embedding_bag::Bags;
    use crate::ops::gram::GramMatrices;
    use crate::ops::row_gradients::{RowGradientsBackward, RowIndex, Sources};
    use crate::ops::testing::{Found, On, Place, noise, on_devices};

    const DIM: usize = 37;

    /// Examples 2 t and 2 t + 1 of these bags are task t's.
    fn three_tasks() -> (Bags, Vec<RowIndex>, Union) {
        let bags = Bags {
            offsets: vec![0, 2, 4, 5, 7, 8, 10],
            rows: vec![1, 4, 4, 6, 4, 1, 9, 6, 4, 9],
            scales: vec![1.0, 0.5, 2.0, 1.5, 0.25, 1.0],
        };
        let index = |task: usize| {
            let mut index = RowIndex::default();
            index.fill(&bags, 2 * task..2 * task + 2);
            index
        };
        let indexes: Vec<RowIndex> = (0..3).map(index).collect();
        let mut union = Union::default();
        union.merge(&indexes.iter().map(|index| &index.rows[..]).collect::<Vec<_>>());
        (bags, indexes, union)
    }

    /// Gradients, Gram matrix and update.
    fn rows_of_three_tasks(on: On) {
        let (bags, indexes, union) = three_tasks();
        let total = union.rows.len();
        let slots: Vec<u32> = (0..total as u32).rev().collect();
        for second_dim in [DIM, 1] {
            on.compare(|place: &mut Place| -> Vec<Found> {
                let rows: usize = indexes.iter().map(|index| index.rows.len()).sum();
                let all = place.room(rows, DIM, DType::F32);
                let mut first = 0;
                let task = |index: &RowIndex| {
                    first += index.rows.len();
                    all.rows(first - index.rows.len()..first)
                };
                let tasks: Vec<Tensor> = indexes.iter().map(task).collect();
                let dout = place.padded(&noise(6 * DIM, 1), DIM);
                let sources = Sources::Packed { indexes: &indexes, scales: &bags.scales, room: 0 };
                place.run(&RowGradientsBackward { sources, out: tasks.clone(), dout });
                let gradients = RowGradients::new(&union, tasks, DIM);

                let (gram, blocks) = (place.room(2, 9, DType::F64), [0..0; 1]);
                let partials = place.scratch(9, DType::F64);
                let rows = Some(gradients.clone());
                place.run(&GramMatrices { jacobian: Vec::new(), blocks: &blocks, table: Some(0), rows, gram, partials });

                let square = |values: Vec<f32>| values.iter().map(|x| x * x).collect::<Vec<f32>>();
                let state = TableState {
                    values: place.f32(&noise(total * DIM, 2), DIM),
                    first: place.f32(&noise(total * DIM, 3), DIM),
                    second: place.f32(&square(noise(total * second_dim, 4)), second_dim),
                    copy: match place.is_device() {
                        true => Tensor::dense(place.room(total, DIM, DType::Bf16).at, total, DIM, DType::Bf16),
                        false => Tensor::NONE,
                    },
                };
                let rule = Rule::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, correction1: 0.1, correction2: 0.01 };
                let step = Step { rule, lr: 0.01, weight_decay: 0.1 };
                let how = How::Weights(place.f32(&[0.5, -1.0, 2.0], 3));
                place.run(&RowUpdate { state, slots: &slots, gradients, how, first_column: 0, step, halted: Tensor::NONE });
                let moved = [("values", state.values), ("first moments", state.first), ("second moments", state.second)];
                let mut found = vec![place.found("row gradients", all), place.found("gram", gram).within(0.0, 1e-6)];
                found.extend(moved.map(|(what, tensor)| place.found(what, tensor)));
                found.push(place.found("copy", if place.is_device() { state.copy } else { state.values }));
                found
            });
        }
    }

    /// Of `tasks` tasks on as many union rows as there are `members`, so many tasks each.
    fn row_gram(on: On, tasks: usize, members: &[usize], dim: usize) {
        let mut own = vec![Vec::new(); tasks];
        for (row, &members) in members.iter().enumerate() {
            for member in 0..members {
                // Spread over the tasks: 7 and their number have no divisor in common.
                own[(row + 7 * member) % tasks].push(row as u32);
            }
        }
        let mut union = Union::default();
        union.merge(&own.iter().map(|rows| &rows[..]).collect::<Vec<_>>());
        on.compare(|place: &mut Place| {
            let count = members.iter().sum::<usize>();
            let (all, mut first) = (place.f32(&noise(count * dim, 0), dim), 0);
            let task = |rows: &Vec<u32>| {
                first += rows.len();
                if rows.is_empty() { Tensor::NONE } else { all.rows(first - rows.len()..first) }
            };
            let rows = RowGradients::new(&union, own.iter().map(task).collect(), dim);
            let (gram, blocks) = (place.room(2, tasks * tasks, DType::F64), [0..0; 1]);
            let partials = place.scratch(rows.gram_partials() * tasks * tasks, DType::F64);
            place.run(&GramMatrices { jacobian: Vec::new(), blocks: &blocks, table: Some(0), rows: Some(rows), gram, partials });
            vec![place.found("gram", gram).within(0.0, 1e-6)]
        });
    }

    /// Rows of one tile of members and of several, in vectors and in single columns.
    fn row_gram_by_tiles(on: On) {
        for dim in [1, 37, 256, 768] {
            row_gram(on, 10, &[1, 2, 5, 9, 3, 4, 10, 6, 1], dim);
        }
    }

    fn row_gram_of_one_row(on: On) {
        for members in [1, 2, 8] {
            row_gram(on, 8, &[members], DIM);
        }
    }

    /// Warps that share sums, by fours and all; more tasks than shared memory has sums for.
    fn row_gram_of_shared_sums(on: On) {
        row_gram(on, 30, &[[1, 20, 2, 9], [5, 1, 3, 1], [1, 1, 7, 2], [4, 1, 1, 1], [1, 2, 1, 17]].concat(), DIM);
        row_gram(on, 60, &[30, 1, 3, 9, 2, 1], 8);
        row_gram(on, 90, &[30, 1, 3], DIM);
    }

    /// Beside columns of J in the same block, which is not the last.
    fn row_gram_of_the_first_block(on: On) {
        let (_, indexes, union) = three_tasks();
        let count: usize = indexes.iter().map(|index| index.rows.len()).sum();
        on.compare(|place: &mut Place| {
            let (all, dense) = (place.f32(&noise(count * DIM, 0), DIM), place.f32(&noise(3 * 52, 1), 52));
            let mut first = 0;
            let task = |index: &RowIndex| {
                first += index.rows.len();
                all.rows(first - index.rows.len()..first)
            };
            let rows = RowGradients::new(&union, indexes.iter().map(task).collect(), DIM);
            let jacobian = (0..3).map(|task| Tensor { columns: 50, ..dense.rows(task..task + 1) }).collect();
            let (gram, blocks) = (place.room(3, 9, DType::F64), [0..20, 20..50]);
            let partials = place.scratch(27, DType::F64);
            place.run(&GramMatrices { jacobian, blocks: &blocks, table: Some(0), rows: Some(rows), gram, partials });
            vec![place.found("gram", gram).within(0.0, 1e-6)]
        });
    }

    on_devices! {
        rows_of_three_tasks,
        row_gram_of_the_first_block,
        row_gram_by_tiles,
        row_gram_of_one_row,
        row_gram_of_shared_sums,
    }
}
