//! Training examples that lie on the device for the whole run, so that a round brings no more than their numbers.

use anyhow::Result;
use rayon::prelude::*;

use super::lane::Lane;
use super::prepared::narrow;
use super::rows::{TableOnDevice, gradient_rows, union_rows};
use super::transfer::Pieces;
use crate::data::{Corpus, Inputs};
use crate::machine::driver::{Address, DeviceError, Driver};
use crate::machine::tape::Tape;
use crate::machine::tensor::{DType, Tensor, pitch};
use crate::model::Start;
use crate::model::encoders::Input;
use crate::model::network::{Batch, Limits, Network, Part, Randomness, group_rows};
use crate::model::rows::RowTable;
use crate::ops::gather::GatherRows;
use crate::ops::row_index::{BagData, BagPart, FetchBags, IndexRows, KeyBits, MostRows, RowLists, SlotsAt, WordDropout};
use crate::train::shapes::example_bag;

/// Examples that are read at a time.
const CHUNK: usize = 4096;

pub struct DataOnDevice {
    /// By task, the number of its first example.
    firsts: Vec<u32>,
    examples: Examples,
}

enum Examples {
    /// (examples x features) bf16, rows [`pitch`] apart, as a matrix without gaps.
    Features(Tensor),
    Bags(Box<BagsOnDevice>),
}

struct BagsOnDevice {
    data: BagData,
    lists: RowLists,
    table: SlotsAt,
    bits: KeyBits,
    word_dropout: f64,
}

/// A batch's examples, as they are fetched.
pub struct Draw {
    /// (packed examples) features: each one's number in the data; bags: within its task, whose first is in the parts.
    numbers: Vec<u32>,
    parts: Vec<BagPart>,
}

impl DataOnDevice {
    /// Room for a run's examples, if they are to lie on the device.
    pub fn new(
        device: &mut dyn Driver,
        network: &Network,
        table: Option<&TableOnDevice>,
        batches: usize,
        limits: &Limits,
        start: &Start,
    ) -> Result<Option<Self>, DeviceError> {
        let (count, encoder) = (limits.data.examples, &network.spec.encoder);
        if count == 0 {
            return Ok(None);
        }
        let mut room = |name: &str, rows: usize, columns: usize, dtype: DType| {
            let at = device.allocate(&format!("data: {name}"), rows * columns * dtype.bytes())?;
            Ok(Tensor::dense(at, rows, columns, dtype))
        };
        let examples = match (encoder.reads(), encoder.table(), table) {
            (Input::Features(columns), ..) => Examples::Features(room("features", count, pitch(columns), DType::Bf16)?),
            (Input::Bags(bag), Some(spec), Some(own)) => {
                let most = MostRows {
                    examples: limits.round_rows,
                    entries: limits.bag_entries,
                    gradient_rows: gradient_rows(batches, limits),
                    union_rows: union_rows(network, batches, limits),
                };
                Examples::Bags(Box::new(BagsOnDevice {
                    data: BagData {
                        rows: room("n-grams", 1, limits.data.entries.max(1), DType::U32)?,
                        offsets: room("bounds of examples", 1, count + 1, DType::U32)?,
                    },
                    lists: RowLists::new(most, |name, rows, columns, dtype| {
                        room(&format!("a round's {name}"), rows, columns, dtype)
                    })?,
                    table: SlotsAt {
                        slots: room("slots of the table's rows", 1, spec.rows, DType::U32)?,
                        touched: room("rows with a slot", 1, start.row_capacity.max(1), DType::U32)?,
                        values: own.state.values,
                        init: own.init,
                    },
                    bits: KeyBits::of(spec.rows, limits.present * batches).expect("the plan saw that keys have room"),
                    word_dropout: bag.word_dropout,
                }))
            }
            _ => unreachable!("the plan keeps examples of features and of bags on a device"),
        };
        Ok(Some(Self { firsts: Vec::new(), examples }))
    }

    /// Copies all training examples.
    pub fn load(&mut self, driver: &mut dyn Driver, pieces: &Pieces, corpus: &Corpus, network: &Network) -> Result<()> {
        let (mut first, mut entries, mut offsets) = (0usize, 0usize, vec![0u32]);
        self.firsts.clear();
        for task in &corpus.tasks {
            self.firsts.push(first as u32);
            for start in (0..task.train.rows()).step_by(CHUNK) {
                let own = start..(start + CHUNK).min(task.train.rows());
                match (&task.train.inputs, &self.examples, network.spec.encoder.reads()) {
                    (Inputs::Features(store), Examples::Features(all), Input::Features(columns)) => {
                        let values: Vec<f32> = own.flat_map(|example| store.row(example)).collect();
                        let rows = all.rows(first + start..all.rows);
                        pieces.upload(driver, rows.at, bytemuck::cast_slice(&narrow(&values, columns)))?;
                    }
                    (Inputs::Tokens(store), Examples::Bags(bags), Input::Bags(bag)) => {
                        let read: Vec<Vec<u32>> = own.into_par_iter().map(|example| example_bag(store, example, bag)).collect();
                        let to = bags.data.rows.at + 4 * entries as Address;
                        for rows in &read {
                            entries += rows.len();
                            offsets.push(entries as u32);
                        }
                        pieces.upload(driver, to, bytemuck::cast_slice(&read.concat()))?;
                    }
                    _ => unreachable!("examples of the kind that the encoder reads"),
                }
            }
            first += task.train.rows();
        }
        if let Examples::Bags(bags) = &self.examples {
            pieces.upload(driver, bags.data.offsets.at, bytemuck::cast_slice(&offsets))?;
        }
        Ok(())
    }

    /// Lists of the batch's n-grams and of the rows that it touches, where examples are bags.
    pub fn lists(&self) -> Option<&RowLists> {
        match &self.examples {
            Examples::Features(_) => None,
            Examples::Bags(bags) => Some(&bags.lists),
        }
    }

    /// The examples of a batch of which a round makes `batches` independent ones.
    pub fn draw(&self, batch: &Batch, batches: usize) -> Draw {
        let first = |task: usize| self.firsts[task];
        if let Examples::Features(_) = self.examples {
            let numbers = batch.keys.iter().map(|key| first(key.task as usize) + key.example).collect();
            return Draw { numbers, parts: Vec::new() };
        }
        let part = |part: &Part| BagPart {
            start: part.rows.start as u32,
            row: (part.present * batches + part.batch) as u32,
            task: part.task as u32,
            first: first(part.task),
        };
        let numbers = batch.keys.iter().map(|key| key.example).collect();
        Draw { numbers, parts: batch.parts.iter().map(part).collect() }
    }

    /// What a round begins with.
    pub fn begin<'a>(&'a self, tape: &mut Tape<'a>, draw: &'a Draw, random: Randomness) {
        let Examples::Bags(bags) = &self.examples else { return };
        let BagsOnDevice { data, lists, table, bits, word_dropout: probability } = **bags;
        let dropout = (probability > 0.0).then_some(WordDropout { random, probability });
        tape.push(FetchBags { lists, data, examples: &draw.numbers, parts: &draw.parts, bits, dropout });
        tape.push(IndexRows { lists, table, bits });
    }

    /// (rows x features) what a group reads, fetched into its lane; none where examples are bags.
    pub fn features<'a>(&self, tape: &mut Tape<'a>, draw: &'a Draw, parts: &[Part], lane: &Lane, columns: usize) -> Tensor {
        let Examples::Features(x) = self.examples else { return Tensor::NONE };
        let index = &draw.numbers[group_rows(parts)];
        let out = lane.features.rows(0..index.len());
        tape.push(GatherRows { out: Tensor { columns: x.columns, ..out }, x, index });
        Tensor { columns, ..out }
    }

    /// Gives the device the slots of the table's rows.
    pub fn load_slots(&self, driver: &mut dyn Driver, pieces: &Pieces, host: &RowTable) -> Result<(), DeviceError> {
        let Examples::Bags(bags) = &self.examples else { return Ok(()) };
        let touched = host.touched();
        pieces.upload(driver, bags.table.slots.at, bytemuck::cast_slice(host.view().slots))?;
        pieces.upload(driver, bags.table.touched.at, bytemuck::cast_slice(touched))?;
        pieces.upload(driver, bags.lists.touched_count().at, bytemuck::bytes_of(&(touched.len() as u32)))
    }

    /// Takes back all slots but the first `count` that were given.
    pub fn forget_slots(
        &self,
        driver: &mut dyn Driver,
        pieces: &Pieces,
        host: &mut RowTable,
        count: u32,
    ) -> Result<(), DeviceError> {
        let Examples::Bags(bags) = &self.examples else { return Ok(()) };
        pieces.upload(driver, bags.lists.touched_count().at, bytemuck::bytes_of(&count))?;
        self.store_slots(driver, pieces, host)?;
        self.load_slots(driver, pieces, host)
    }

    /// Gives the host the slots that the device has given since.
    pub fn store_slots(&self, driver: &mut dyn Driver, pieces: &Pieces, host: &mut RowTable) -> Result<(), DeviceError> {
        let Examples::Bags(bags) = &self.examples else { return Ok(()) };
        let (mut count, known) = ([0u32], host.touched().len());
        pieces.download(driver, bags.lists.touched_count().at, bytemuck::cast_slice_mut(&mut count))?;
        let mut rows = vec![0u32; count[0] as usize - known];
        let from = bags.table.touched.at + 4 * known as Address;
        pieces.download(driver, from, bytemuck::cast_slice_mut(&mut rows))?;
        host.touch_elsewhere(&rows, &mut Vec::new());
        Ok(())
    }
}
