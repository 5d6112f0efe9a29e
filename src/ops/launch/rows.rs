//! kernels/embedding_bag.cu and kernels/row_gradients.cu: the embedding table and its row-sparse gradients.

use super::surgery::{ColumnRule, RatesOnDevice, rule_threads};
use super::{Address, Launch};
use crate::device::driver::PLAIN_SHARED;
use crate::ops::embedding_bag::RowInit;

const THREADS: u32 = 256;

/// Device arrays of the bags of a round and of the table.
#[derive(Clone, Copy, Debug)]
pub struct Bags {
    pub offsets: Address,
    pub rows: Address,
    pub scales: Address,
    pub slots: Address,
    pub values: Address,
    pub dim: usize,
    pub init: RowInit,
}

/// out (bf16, rows [`super::pitch`] apart) and/or out_wide (f32, dense), (count x dim), of examples first..first + count.
pub fn embedding_bag_forward(out: Address, out_wide: Address, bags: Bags, first: usize, count: usize) -> Launch {
    Launch::line("embedding_bag_forward", count, THREADS)
        .addresses([out, out_wide, bags.offsets, bags.rows, bags.scales, bags.slots, bags.values])
        .int(bags.dim)
        .int(first)
        .long(bags.init.seed)
        .double(bags.init.deviation)
}

/// Gives the slots of `count` rows touched for the first time their initial values.
pub fn embedding_rows_init(values: Address, rows: Address, slots: Address, count: usize, dim: usize, init: RowInit) -> Launch {
    Launch::line("embedding_rows_init", count, THREADS)
        .addresses([values, rows, slots])
        .int(dim)
        .long(init.seed)
        .double(init.deviation)
}

/// gradients (count x dim) from their sources; see kernels/row_gradients.cu. Rows of dout (f32) are [`super::pitch`] apart.
pub fn backward(
    gradients: Address,
    dout: Address,
    scales: Address,
    [sources, starts]: [Address; 2],
    count: usize,
    dim: usize,
) -> Launch {
    Launch::line("row_gradients_backward", count, THREADS).addresses([gradients, dout, scales, sources, starts]).int(dim)
}

/// Device arrays of the union of all tasks' rows.
#[derive(Clone, Copy, Debug)]
pub struct Union {
    /// (count) table rows
    pub rows: Address,
    /// (count + 1)
    pub starts: Address,
    /// (task, gradient row) pairs
    pub members: Address,
    pub count: usize,
}

/// Union rows in one partial Gram matrix.
const GRAM_ROWS: usize = 64;

/// Partial Gram matrices of [`gram`].
pub fn gram_partials(union_rows: usize) -> usize {
    union_rows.div_ceil(GRAM_ROWS)
}

/// partials ([`gram_partials`] x tasks x tasks) f64.
pub fn gram(partials: Address, gradients: Address, union: Union, tasks: usize, dim: usize) -> Launch {
    let sums = 8 * tasks * tasks;
    let shared = sums <= PLAIN_SHARED;
    Launch::line("row_gram", gram_partials(union.count), THREADS)
        .shared(if shared { sums } else { 0 })
        .addresses([partials, gradients, union.starts, union.members])
        .int(union.count)
        .int(GRAM_ROWS)
        .int(tasks)
        .int(dim)
        .signed(i32::from(shared))
}

/// Parameters and moments of the table's slots and where the union's rows lie.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    pub values: Address,
    pub first: Address,
    pub second: Address,
    /// dim, 1 or 0
    pub second_dim: usize,
    /// (union rows)
    pub slots: Address,
    pub dim: usize,
    /// Parameter group.
    pub group: usize,
}

/// d from weights (tasks) f32.
pub fn update_weights(table: Table, gradients: Address, union: Union, weights: Address, rates: RatesOnDevice) -> Launch {
    Launch::line("row_update_weights", union.count, THREADS)
        .addresses([table.values, table.first, table.second])
        .int(table.second_dim)
        .addresses([gradients, table.slots, union.starts, union.members])
        .int(table.dim)
        .addresses([weights, rates.rates, rates.groups])
        .int(table.group)
}

/// d by a rule for columns, numbered from `base`.
pub fn update_columns(
    table: Table,
    gradients: Address,
    union: Union,
    tasks: usize,
    rule: ColumnRule,
    base: u64,
    rates: RatesOnDevice,
) -> Launch {
    let threads = rule_threads(tasks);
    let (number, parameter) = rule.rule.numbers();
    Launch::line("row_update_columns", union.count, threads)
        .shared(8 * tasks * threads as usize)
        .addresses([table.values, table.first, table.second])
        .int(table.second_dim)
        .addresses([gradients, table.slots, union.rows, union.starts, union.members])
        .int(tasks)
        .int(table.dim)
        .signed(number)
        .double(parameter)
        .addresses([rule.factors])
        .long(rule.seed)
        .addresses([rule.round])
        .long(base)
        .addresses([rates.rates, rates.groups])
        .int(table.group)
}

/// squares ([`gram_partials`]) f64 of the update that a rule makes of the union's rows.
pub fn column_squares(
    squares: Address,
    gradients: Address,
    union: Union,
    tasks: usize,
    dim: usize,
    rule: ColumnRule,
    base: u64,
) -> Launch {
    let threads = rule_threads(tasks);
    let (number, parameter) = rule.rule.numbers();
    Launch::line("row_column_squares", gram_partials(union.count), threads)
        .shared(8 * tasks * threads as usize)
        .addresses([squares, gradients, union.rows, union.starts, union.members])
        .int(union.count)
        .int(GRAM_ROWS)
        .int(tasks)
        .int(dim)
        .signed(number)
        .double(parameter)
        .addresses([rule.factors])
        .long(rule.seed)
        .addresses([rule.round])
        .long(base)
}
