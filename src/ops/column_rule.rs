//! How the rows of J become one gradient where operations do it: by weights, or column by column under a rule.

use std::ops::Range;

use rayon::prelude::*;

use super::adamw::{ColumnRule, Combine};
use super::chunks::Chunks;
use super::gram::{self, jacobian_rows, narrow, stride};
use super::row_gradients::{PARTIAL_ROWS, RowGradients, UnionAt};
use crate::machine::driver::{Address, Card, PLAIN_SHARED};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::Tensor;

/// How the rows of J become one gradient.
#[derive(Clone)]
pub enum How<'a> {
    /// (sets x rows of J) f32: d = sum_t weights[set][t] J_t
    Weights(Tensor),
    Columns(Rule<'a>),
}

/// A rule for columns.
#[derive(Clone)]
pub struct Rule<'a> {
    pub host: ColumnRule<'a>,
    pub kernel: Kernel,
    /// (T) on the tasks' gradients; the host's rule has them in it.
    pub factors: &'a [f64],
    pub seed: u64,
    pub round: u64,
}

/// Rules by their number in kernels/update.cuh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kernel {
    GradDrop { leak: f64 },
    TrimmedMean { trim: u64 },
}

/// Most tasks of a rule for columns on a device.
pub const RULE_TASKS: usize = PLAIN_SHARED / (8 * 32);

impl How<'_> {
    /// None where there are none.
    pub(super) fn weights(&self) -> Tensor {
        match self {
            Self::Weights(weights) => *weights,
            Self::Columns(_) => Tensor::NONE,
        }
    }

    /// For a group of columns that begins at `first`: the weights at `at`, or the rule.
    pub(super) fn combine<'m>(&'m self, memory: &'m HostMemory, at: Range<usize>, first: u64) -> Combine<'m> {
        match self {
            Self::Weights(weights) => Combine::Weights(&memory.read(*weights)[at]),
            Self::Columns(rule) => Combine::Columns { rule: rule.host, first },
        }
    }
}

impl Rule<'_> {
    /// Factors, and the round.
    pub(super) fn tables(&self) -> Vec<Bytes> {
        vec![bytes_of(self.factors), bytes_of(&[self.round])]
    }

    /// Blocks of as many threads as keep `tasks` doubles each in shared memory: at most 48 KiB a block, beside the few bytes of
    /// the kernel's own.
    pub(super) fn launch(&self, kernel: &'static str, blocks: usize, tasks: usize) -> Launch {
        let most = PLAIN_SHARED / (8 * tasks) / 32 * 32;
        assert!(most >= 32, "a rule for columns takes at most {RULE_TASKS} tasks on a device, found {tasks}");
        let threads = most.min(256);
        Launch::line(kernel, blocks, threads as u32).shared(8 * tasks * threads)
    }

    /// The rule's own arguments; `tables` are those of [`Rule::tables`].
    pub(super) fn arguments(&self, launch: Launch, tables: &[Address]) -> Launch {
        let (number, parameter) = match self.kernel {
            Kernel::GradDrop { leak } => (0, leak),
            Kernel::TrimmedMean { trim } => (1, trim as f64),
        };
        launch.signed(number).double(parameter).addresses([tables[0]]).long(self.seed).addresses([tables[1]])
    }
}

/// Squared norm of the update that a rule makes, which no Gram matrix knows.
pub struct ColumnSquare<'a> {
    /// (rows of J) of P columns each
    pub jacobian: Vec<Tensor>,
    pub rows: Option<RowGradients<'a>>,
    pub rule: Rule<'a>,
    /// (1) f64
    pub out: Tensor,
    /// (partial sums) f64 that kernels write on the way; none on the host.
    pub partials: Tensor,
}

/// Columns of one partial sum on the host; fixed, so that threads cannot change the order of additions.
const COLUMNS: usize = 4096;

impl ColumnSquare<'_> {
    fn chunks(&self) -> Chunks {
        let width = self.jacobian[0].columns as u64;
        Chunks::of_range(0..width, Chunks::gram_length(width))
    }
}

impl Op for ColumnSquare<'_> {
    fn name(&self) -> &'static str {
        "column_square"
    }

    fn operands(&self) -> Operands {
        let mut operands = Operands::new([], [self.out, self.partials]);
        operands.reads.extend(&self.jacobian);
        operands.reads.extend(self.rows.iter().flat_map(|rows| &rows.tasks).filter(|task| !task.is_none()));
        operands
    }

    fn host(&self, memory: &HostMemory) {
        let (width, rule) = (self.jacobian[0].columns, self.rule.host);
        let all = jacobian_rows(memory, &self.jacobian, 0..width);
        let square = |d: &[f32]| d.iter().map(|&d| f64::from(d) * f64::from(d)).sum::<f64>();
        let dense = |block: usize| {
            let range = block * COLUMNS..((block + 1) * COLUMNS).min(width);
            let mut d = vec![0.0; range.len()];
            all.each_f32(range.clone(), &mut Vec::new(), |rows, at, stretch| {
                let d = &mut d[stretch.start - range.start..stretch.end - range.start];
                let rows: Vec<(usize, &[f32])> = rows.iter().map(|row| &row[at..at + d.len()]).enumerate().collect();
                rule(&rows, stretch.start as u64, d);
            });
            square(&d)
        };
        // Collected before they are added: the order of additions must not depend on threads.
        let mut squares: Vec<f64> = (0..width.div_ceil(COLUMNS)).into_par_iter().map(dense).collect();
        if let Some(rows) = &self.rows {
            let (union, values) = (rows.merged(), rows.read(memory));
            let embedded = |index: usize| {
                let mut d = vec![0.0; rows.dim];
                let first = width as u64 + u64::from(union.rows[index]) * rows.dim as u64;
                rule(&values.gathered(union.members(index)), first, &mut d);
                square(&d)
            };
            squares.extend((0..union.rows.len()).into_par_iter().with_min_len(64).map(embedded).collect::<Vec<f64>>());
        }
        memory.write(self.out)[0] = squares.iter().sum::<f64>();
    }

    /// Those of the rule, the chunks, the bounds of all partial sums, and the union's.
    fn tables(&self) -> Vec<Bytes> {
        let chunks = self.chunks();
        let sums = chunks.len() + self.rows.as_ref().map_or(0, RowGradients::partials);
        let mut tables = self.rule.tables();
        tables.extend(chunks.tables());
        tables.push(bytes_of(&[0, sums as u32]));
        tables.extend(self.rows.iter().flat_map(RowGradients::tables));
        tables
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let (rule, [firsts, lengths, sums]) = (&tables[..2], [tables[2], tables[3], tables[4]]);
        let (partials, count, chunks) = (self.partials, self.jacobian.len(), self.chunks().len());
        let dense = self.rule.launch("column_squares", chunks, count).addresses([partials.at, self.jacobian[0].at]);
        let dense = self.rule.arguments(dense.long(stride(&self.jacobian)).int(count), rule).addresses([firsts, lengths]);
        let mut commands: Vec<Command> = vec![dense.int(narrow(&self.jacobian)).into()];
        if let Some(rows) = &self.rows {
            let (UnionAt { count: union_count, starts, members, rows: numbers }, _) = rows.union_at(&tables[5..]);
            let own = self
                .rule
                .launch("row_column_squares", rows.partials(), count)
                .addresses([partials.at + 8 * chunks as Address, rows.base(), numbers, starts, members, union_count])
                .int(PARTIAL_ROWS)
                .int(count)
                .int(rows.dim);
            commands.push(self.rule.arguments(own, rule).long(self.jacobian[0].columns as u64).into());
        }
        // The sum of 1 x 1 matrices, as many as there are partial sums.
        commands.push(gram::finish(1, 1, [self.out, partials], sums).into());
        commands
    }
}
