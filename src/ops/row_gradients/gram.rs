//! Products of the tasks' row gradients: how a device cuts them, and the host's sums.

use multiversion::multiversion;
use rayon::prelude::*;

use super::{PARTIAL_ROWS, RowValues, THREADS, Union};
use crate::machine::driver::PLAIN_SHARED;
use crate::ops::gram::add_symmetric;
use crate::ops::simd::dot;

/// Of a block.
const WARPS: usize = THREADS as usize / 32;

/// Groups of a block's warps that keep sums of their own, of `tasks` x `tasks` products each, in shared memory; 0 where those of one do
/// not fit.
pub(super) fn gram_groups(tasks: usize) -> usize {
    [WARPS, WARPS / 2, WARPS / 4, 1].into_iter().find(|groups| 8 * groups * tasks * tasks <= PLAIN_SHARED).unwrap_or(0)
}

/// Partial Gram matrices, a block each, that a kernel makes of so many union rows: a row for each warp of its own sums, as long as
/// these are no more blocks than a few for each multiprocessor of a large card.
pub(super) fn gram_partials(union_rows: usize, tasks: usize) -> usize {
    const FULL: usize = 512;
    let least = PARTIAL_ROWS / gram_groups(tasks).max(1);
    union_rows.div_ceil(least).min(FULL).max(union_rows.div_ceil(PARTIAL_ROWS))
}

/// Room, in matrices of `tasks` x `tasks`, for the partial Gram matrices of up to so many rows and tasks: those of fewer tasks are
/// smaller, but can be more.
pub fn most_gram_partials(union_rows: usize, tasks: usize) -> usize {
    let cells = |tasks: usize| gram_partials(union_rows, tasks) * tasks * tasks;
    (1..=tasks).map(cells).max().map_or(0, |most| most.div_ceil(tasks * tasks))
}

/// Union rows in one partial sum of the Gram matrix on the host.
const GRAM_ROWS: usize = 256;

/// gram (T x T, f64) gains the products of the tasks' row gradients; f32 products of one row, summed in f64.
pub fn row_gram(gram: &mut [f64], union: &Union, values: &RowValues) {
    let count = values.tasks.len();
    let blocks = union.rows.len().div_ceil(GRAM_ROWS);
    let partial: Vec<Vec<f64>> = (0..blocks)
        .into_par_iter()
        .map(|block| {
            let mut sums = vec![0.0; count * count];
            for index in block * GRAM_ROWS..((block + 1) * GRAM_ROWS).min(union.rows.len()) {
                member_products(&mut sums, union.members(index), values);
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
fn member_products(sums: &mut [f64], members: &[(u32, u32)], values: &RowValues) {
    let count = values.tasks.len();
    for (position, &(i, i_row)) in members.iter().enumerate() {
        let row = values.row((i, i_row));
        for &(j, j_row) in &members[position..] {
            let product = dot(row, values.row((j, j_row)));
            sums[i as usize * count + j as usize] += f64::from(product);
        }
    }
}
