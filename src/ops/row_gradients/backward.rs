//! From the gradient of the encoder's input to the tasks' gradients of the table.

use rayon::prelude::*;

use super::super::buckets;
use super::super::row_index::RowLists;
use super::{RowIndex, THREADS, first_of};
use crate::machine::driver::{Address, Card};
use crate::machine::host::HostMemory;
use crate::machine::launch::{Command, Launch, Work};
use crate::machine::tape::{Bytes, Op, Operands, bytes_of};
use crate::machine::tensor::{DType, Tensor};

/// From which examples rows of gradients come.
#[derive(Clone, Copy)]
pub enum Sources<'a> {
    /// By task, and (examples) scales, of tokens 1; a device's tables have `room` items at least.
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

/// Rows with sources of the tasks whose gradients are of the whole table, or of the others.
struct Run {
    /// Bounds of each row's sources among all, one more than there are rows.
    starts: Vec<u32>,
    /// The first row of their gradients.
    first: usize,
    /// Sums are added, each to the row that `places` says; otherwise rows go one after another.
    adds: bool,
    places: Vec<u32>,
}

/// Tasks in the order of their gradients on a device: first those of the whole table, which lie at the same place in every round.
fn in_order(indexes: &[RowIndex]) -> impl Iterator<Item = &RowIndex> {
    [true, false].into_iter().flat_map(|whole| indexes.iter().filter(move |index| index.added.is_some() == whole))
}

/// The first row of each task's gradient among all on a device.
pub fn first_rows(indexes: &[RowIndex]) -> Vec<usize> {
    let starts = |whole: bool, before: usize| {
        indexes.iter().scan(before, move |next, index| {
            let first = *next;
            *next += if index.added.is_some() == whole { index.rows.len() } else { 0 };
            Some(first)
        })
    };
    let whole_rows = indexes.iter().filter(|index| index.added.is_some()).map(|index| index.rows.len()).sum();
    let both = starts(true, 0).zip(starts(false, whole_rows)).zip(indexes);
    both.map(|((whole, other), index)| if index.added.is_some() { whole } else { other }).collect()
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
        let (mut runs, mut sources, mut gradient) = (Vec::<Self>::new(), 0, 0);
        for index in in_order(indexes) {
            let adds = index.added.is_some();
            if runs.last().is_none_or(|last| last.adds != adds) {
                runs.push(Self { starts: vec![sources], first: gradient, adds, places: Vec::new() });
            }
            let Self { starts, places, .. } = runs.last_mut().expect("just made");
            starts.extend(index.starts[1..=index.sourced().len()].iter().map(|start| start + sources));
            places.extend(index.added.iter().flatten().map(|row| gradient as u32 + row));
            sources += index.sources.len() as u32;
            gradient += index.rows.len();
        }
        runs
    }

    fn rows(&self) -> usize {
        self.starts.len() - 1
    }
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
        let launch = launch.addresses([out, self.dout.at]);
        // Tokens are not scaled.
        let launch = if self.dout.dtype == DType::Bf16 { launch } else { launch.addresses([scales]) };
        launch.addresses([sources, starts, places, count]).int(width).into()
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

    fn work(&self) -> Work {
        Work::default()
    }

    fn host(&self, memory: &HostMemory) {
        let Sources::Packed { indexes, scales, .. } = self.sources else { unreachable!("the host packs its batches") };
        let dout: &[f32] = memory.read(self.dout);
        indexes.par_iter().zip(&self.out).with_max_len(1).for_each(|(index, &out)| {
            index.gradients(memory.write(out), self.dout.columns, dout, scales);
        });
    }

    /// Packed: examples of each row of all tasks, all examples' scales (none of tokens), the rows of each run, then by run their bounds, and where
    /// rows go that are added.
    fn tables(&self) -> Vec<Bytes> {
        let Sources::Packed { indexes, scales, room } = self.sources else { return Vec::new() };
        let sources: Vec<u32> = in_order(indexes).flat_map(|index| index.sources.iter().map(|&source| source as u32)).collect();
        let list = |list: &[u32]| buckets::table(list, room, 0);
        let runs = Run::of(indexes);
        let counts: Vec<u32> = runs.iter().map(|run| run.rows() as u32).collect();
        let scales = if self.dout.dtype == DType::Bf16 { &[][..] } else { scales };
        let mut tables = vec![list(&sources), bytes_of(scales), bytes_of(&counts)];
        tables.extend(runs.iter().flat_map(|run| [list(&run.starts), list(&run.places)]));
        tables
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
        let &[sources, scales, counts, ref lists @ ..] = tables else { unreachable!("three tables and two a run") };
        let run = |(number, (run, lists)): (usize, (&Run, &[Address]))| {
            let [out, places] = if run.adds { [all, lists[1]] } else { [all + (4 * run.first * width) as Address, 0] };
            let at = At { sources, starts: lists[0], scales, places, count: counts + 4 * number as Address };
            self.launch(card, run.rows().max(room), out, at)
        };
        Run::of(indexes).iter().zip(lists.chunks(2)).enumerate().map(run).collect()
    }
}
