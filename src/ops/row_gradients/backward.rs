//! From the gradient of the encoder's input to the tasks' gradients of the table.

use rayon::prelude::*;

use super::{RowIndex, THREADS, first_of};
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::{DType, Tensor};

/// Sums by row of the table; a gradient of all rows gains them.
pub struct RowGradientsBackward<'a> {
    /// By task.
    pub indexes: &'a [RowIndex],
    /// (rows x dim) f32 of each task, or none; on a device one after another.
    pub out: Vec<Tensor>,
    /// (examples x dim); on a device f32 or bf16.
    pub dout: Tensor,
    /// (examples)
    pub scales: &'a [f32],
}

/// Rows with sources of neighbouring tasks, end to end.
struct Run {
    /// Of all tasks' rows with sources, and of all gradient rows.
    first: usize,
    gradient: usize,
    rows: usize,
    /// Their sums are added, each to a row that a table says.
    adds: bool,
}

impl RowGradientsBackward<'_> {
    fn runs(&self) -> Vec<Run> {
        let (mut runs, mut first, mut gradient) = (Vec::<Run>::new(), 0, 0);
        for index in self.indexes {
            let (rows, adds) = (index.sourced().len(), index.added.is_some());
            match runs.last_mut().filter(|last| last.adds == adds) {
                Some(last) => last.rows += rows,
                None => runs.push(Run { first, gradient, rows, adds }),
            }
            first += rows;
            gradient += index.rows.len();
        }
        runs
    }

    /// Where rows go that are added: gradient rows, by row with sources; empty where there are none.
    fn places(&self) -> Vec<u32> {
        if self.indexes.iter().all(|index| index.added.is_none()) {
            return Vec::new();
        }
        let (mut places, mut gradient) = (Vec::new(), 0);
        for index in self.indexes {
            match &index.added {
                Some(rows) => places.extend(rows.iter().map(|row| gradient + row)),
                None => places.extend(gradient..gradient + index.rows.len() as u32),
            }
            gradient += index.rows.len() as u32;
        }
        places
    }
}

impl Op for RowGradientsBackward<'_> {
    fn name(&self) -> &'static str {
        "row_gradients_backward"
    }

    fn operands(&self) -> Operands {
        let mut operands = Operands::new([self.dout], []);
        operands.writes.extend(self.out.iter().filter(|out| !out.is_none()));
        operands
    }

    fn host(&self, memory: &HostMemory) {
        let dout: &[f32] = memory.read(self.dout);
        self.indexes.par_iter().zip(&self.out).with_max_len(1).for_each(|(index, &out)| {
            index.gradients(memory.write(out), self.dout.columns, dout, self.scales);
        });
    }

    /// Examples of each row of all tasks, their bounds, all examples' scales, and where rows go that are added.
    fn tables(&self) -> Vec<Bytes> {
        let (mut sources, mut starts) = (Vec::new(), Vec::new());
        for index in self.indexes {
            starts.extend(index.starts[..index.sourced().len()].iter().map(|start| start + sources.len() as u32));
            sources.extend(index.sources.iter().map(|&source| source as u32));
        }
        starts.push(sources.len() as u32);
        vec![bytes_of(&sources), bytes_of(&starts), bytes_of(self.scales), bytes_of(&self.places())]
    }

    fn device(&self, _: &Card, tables: &[Address]) -> Vec<Command> {
        let &[sources, starts, scales, places] = tables else { unreachable!("four tables") };
        let (all, width) = (first_of(&self.out), self.dout.columns);
        let run = |run: Run| {
            let launch = match self.dout.dtype {
                DType::Bf16 => {
                    Launch::new("row_gradients_backward_bf16", [run.rows, width.div_ceil(256), 1], THREADS).vectors(width)
                }
                _ => Launch::line("row_gradients_backward", run.rows, THREADS),
            };
            let (starts, places) = (starts + 4 * run.first as Address, places + 4 * run.first as Address);
            let [out, places] = if run.adds { [all, places] } else { [all + (4 * run.gradient * width) as Address, 0] };
            launch.addresses([out, self.dout.at, scales, sources, starts, places]).int(width).into()
        };
        self.runs().into_iter().map(run).collect()
    }
}
