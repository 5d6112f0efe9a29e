//! From the gradient of the encoder's input to the tasks' gradients of the table.

use rayon::prelude::*;

use super::super::buckets;
use super::super::row_index::RowLists;
use super::{RowIndex, THREADS, first_of};
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::{DType, Tensor};

/// From which examples rows of gradients come.
#[derive(Clone, Copy)]
pub enum Sources<'a> {
    /// By task, and (examples) scales; a device's tables have `room` items at least.
    Packed { indexes: &'a [RowIndex], scales: &'a [f32], room: usize },
    /// As a device found them.
    Found(&'a RowLists),
}

/// Sums by row of the table; a gradient of all rows gains them.
pub struct RowGradientsBackward<'a> {
    pub sources: Sources<'a>,
    /// (rows x dim) f32 of each task, or none; on a device one after another, and all in one where the device found the rows.
    pub out: Vec<Tensor>,
    /// (examples x dim); on a device f32 or bf16.
    pub dout: Tensor,
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

/// Where a device finds everything.
struct At {
    sources: Address,
    starts: Address,
    scales: Address,
    /// None where rows go one after another.
    places: Address,
    /// How many rows there are.
    count: Address,
}

impl Run {
    fn of(indexes: &[RowIndex]) -> Vec<Self> {
        let (mut runs, mut first, mut gradient) = (Vec::<Self>::new(), 0, 0);
        for index in indexes {
            let (rows, adds) = (index.sourced().len(), index.added.is_some());
            match runs.last_mut().filter(|last| last.adds == adds) {
                Some(last) => last.rows += rows,
                None => runs.push(Self { first, gradient, rows, adds }),
            }
            first += rows;
            gradient += index.rows.len();
        }
        runs
    }
}

/// Where rows go that are added: gradient rows, by row with sources; empty where there are none.
fn places(indexes: &[RowIndex]) -> Vec<u32> {
    if indexes.iter().all(|index| index.added.is_none()) {
        return Vec::new();
    }
    let (mut places, mut gradient) = (Vec::new(), 0);
    for index in indexes {
        match &index.added {
            Some(rows) => places.extend(rows.iter().map(|row| gradient + row)),
            None => places.extend(gradient..gradient + index.rows.len() as u32),
        }
        gradient += index.rows.len() as u32;
    }
    places
}

impl RowGradientsBackward<'_> {
    /// Of at most so many rows, into `out`.
    fn launch(&self, card: &Card, most: usize, out: Address, at: At) -> Command {
        let (blocks, width) = (card.blocks(buckets::items(most)), self.dout.columns);
        let launch = match self.dout.dtype {
            DType::Bf16 => Launch::new("row_gradients_backward_bf16", [blocks, width.div_ceil(256), 1], THREADS).vectors(width),
            _ => Launch::line("row_gradients_backward", blocks, THREADS),
        };
        let At { sources, starts, scales, places, count } = at;
        launch.addresses([out, self.dout.at, scales, sources, starts, places, count]).int(width).into()
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
        let Sources::Packed { indexes, scales, .. } = self.sources else { unreachable!("the host packs its batches") };
        let dout: &[f32] = memory.read(self.dout);
        indexes.par_iter().zip(&self.out).with_max_len(1).for_each(|(index, &out)| {
            index.gradients(memory.write(out), self.dout.columns, dout, scales);
        });
    }

    /// Packed: examples of each row of all tasks, their bounds, all examples' scales, where rows go that are added, and the rows of
    /// each run.
    fn tables(&self) -> Vec<Bytes> {
        let Sources::Packed { indexes, scales, room } = self.sources else { return Vec::new() };
        let (mut sources, mut starts) = (Vec::new(), Vec::new());
        for index in indexes {
            starts.extend(index.starts[..index.sourced().len()].iter().map(|start| start + sources.len() as u32));
            sources.extend(index.sources.iter().map(|&source| source as u32));
        }
        starts.push(sources.len() as u32);
        let counts: Vec<u32> = Run::of(indexes).iter().map(|run| run.rows as u32).collect();
        let [sources, starts] = [&sources, &starts].map(|list| buckets::table(list, room, 0));
        let places = places(indexes);
        let places = if places.is_empty() { Bytes::new() } else { buckets::table(&places, room, 0) };
        vec![sources, starts, bytes_of(scales), places, bytes_of(&counts)]
    }

    fn device(&self, card: &Card, tables: &[Address]) -> Vec<Command> {
        let (all, width) = (first_of(&self.out), self.dout.columns);
        let (indexes, room) = match self.sources {
            Sources::Packed { indexes, room, .. } => (indexes, room),
            Sources::Found(lists) => {
                let &RowLists { most, sources, starts, scales, .. } = lists;
                let [sources, starts, scales] = [sources, starts, scales].map(|list| list.at);
                let at = At { sources, starts, scales, places: 0, count: lists.gradient_count() };
                return vec![self.launch(card, most.gradient_rows, all, at)];
            }
        };
        let &[sources, starts, scales, places, counts] = tables else { unreachable!("five tables") };
        let run = |(number, run): (usize, &Run)| {
            let (starts, places) = (starts + 4 * run.first as Address, places + 4 * run.first as Address);
            let [out, places] = if run.adds { [all, places] } else { [all + (4 * run.gradient * width) as Address, 0] };
            let at = At { sources, starts, scales, places, count: counts + 4 * number as Address };
            self.launch(card, run.rows.max(room), out, at)
        };
        Run::of(indexes).iter().enumerate().map(run).collect()
    }
}
