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
use crate::model::encoders::{Fetched, Input};
use crate::model::network::{Batch, Limits, Network, Part, Randomness, group_rows};
use crate::model::rows::RowTable;
use crate::model::spec::TableSpec;
use crate::ops::gather::GatherRows;
use crate::ops::row_index::{
    BagData, FetchBags, FetchPart, FetchTokens, IndexRows, KeyBits, LookUpSlots, MostRows, RowLists, SlotsAt, TokenData,
    TokensAt, WordDropout,
};
use crate::train::shapes::example_bag;
use crate::train::tokens::{Sequence, sequence};

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
    Bags {
        data: BagData,
        word_dropout: f64,
        rows: Box<RowsOnDevice>,
    },
    Tokens {
        data: TokenData,
        /// Those of a round.
        fetched: Box<TokensAt>,
        rows: Box<RowsOnDevice>,
    },
}

/// What finds the rows of the table that a round touches.
struct RowsOnDevice {
    lists: RowLists,
    table: SlotsAt,
    bits: KeyBits,
}

impl RowsOnDevice {
    /// For a table, of which so many rows of J bring gradients, and so many rows have a slot.
    fn new(
        (spec, own): (TableSpec, &TableOnDevice),
        most: MostRows,
        [tasks, slots]: [usize; 2],
        mut room: impl FnMut(&str, usize, usize, DType) -> Result<Tensor, DeviceError>,
    ) -> Result<Box<Self>, DeviceError> {
        let lists = RowLists::new(most, |name, rows, columns, dtype| room(&format!("a round's {name}"), rows, columns, dtype))?;
        let table = SlotsAt {
            slots: room("slots of the table's rows", 1, spec.rows, DType::U32)?,
            touched: room("rows with a slot", 1, slots.max(1), DType::U32)?,
            values: own.state.values,
            init: own.init,
        };
        let bits = KeyBits::of(spec.rows, tasks).expect("the plan saw that keys have room");
        Ok(Box::new(Self { lists, table, bits }))
    }
}

/// A batch's examples, as they are fetched.
#[derive(Default)]
pub struct Draw {
    /// (packed examples) features: each one's number in the data; else within its task, whose first is in the parts.
    numbers: Vec<u32>,
    parts: Vec<FetchPart>,
    /// Of tokens: (examples + 1) bounds of each example's, and how many pad nothing.
    bounds: Vec<u32>,
    entries: usize,
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
        let most = MostRows {
            gradient_rows: gradient_rows(batches, limits),
            union_rows: union_rows(network, batches, limits),
            ..MostRows::default()
        };
        let (tasks, slots) = (limits.present * batches, start.row_capacity);
        let examples = match (encoder.reads(), encoder.table(), table) {
            (Input::Features(columns), ..) => Examples::Features(room("features", count, pitch(columns), DType::Bf16)?),
            (Input::Bags(bag), Some(spec), Some(own)) => Examples::Bags {
                data: BagData {
                    rows: room("n-grams", 1, limits.data.entries.max(1), DType::U32)?,
                    offsets: room("bounds of examples", 1, count + 1, DType::U32)?,
                },
                word_dropout: bag.word_dropout,
                rows: RowsOnDevice::new(
                    (spec, own),
                    MostRows { examples: limits.round_rows, entries: limits.bag_entries, ..most },
                    [tasks, slots],
                    room,
                )?,
            },
            (Input::Tokens(_), Some(spec), Some(own)) => {
                let (most, tokens) = (MostRows { entries: limits.tokens.round_tokens, ..most }, limits.tokens.round_tokens);
                let mut list = |name: &str, columns: usize| room(name, 1, columns.max(1), DType::U32);
                let data = TokenData {
                    ids: list("tokens", limits.data.entries)?,
                    offsets: list("bounds of examples", count + 1)?,
                    seconds: list("beginnings of second texts", count)?,
                };
                let [ids, positions, types] =
                    [list("a round's tokens", tokens)?, list("a round's positions", tokens)?, list("a round's types", tokens)?];
                let keys = room("a round's keys of tokens", tokens.max(1), 3, DType::U32)?;
                let rows = RowsOnDevice::new((spec, own), most, [tasks, slots], room)?;
                let fetched = Box::new(TokensAt { ids, positions, types, keys, slots: rows.table.slots });
                Examples::Tokens { data, fetched, rows }
            }
            _ => unreachable!("the plan keeps on a device what the encoder reads"),
        };
        Ok(Some(Self { firsts: Vec::new(), examples }))
    }

    /// Copies all training examples.
    pub fn load(&mut self, driver: &mut dyn Driver, pieces: &Pieces, corpus: &Corpus, network: &Network) -> Result<()> {
        let (mut first, mut entries, mut offsets, mut seconds) = (0usize, 0usize, vec![0u32], Vec::new());
        let mut next = |lengths: &mut dyn Iterator<Item = usize>| {
            let start = entries;
            for length in lengths {
                entries += length;
                offsets.push(entries as u32);
            }
            4 * start as Address
        };
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
                    (Inputs::Tokens(store), Examples::Bags { data, .. }, Input::Bags(bag)) => {
                        let read: Vec<Vec<u32>> = own.into_par_iter().map(|example| example_bag(store, example, bag)).collect();
                        let to = data.rows.at + next(&mut read.iter().map(Vec::len));
                        pieces.upload(driver, to, bytemuck::cast_slice(&read.concat()))?;
                    }
                    (Inputs::Tokens(store), Examples::Tokens { data, .. }, Input::Tokens(spec)) => {
                        let read: Vec<Sequence> = own.into_par_iter().map(|example| sequence(store, example, spec)).collect();
                        let to = data.ids.at + next(&mut read.iter().map(|own| own.ids.len()));
                        seconds.extend(read.iter().map(|own| own.second as u32));
                        let ids: Vec<u32> = read.into_iter().flat_map(|own| own.ids).collect();
                        pieces.upload(driver, to, bytemuck::cast_slice(&ids))?;
                    }
                    _ => unreachable!("examples of the kind that the encoder reads"),
                }
            }
            first += task.train.rows();
        }
        match &self.examples {
            Examples::Features(_) => Ok(()),
            Examples::Bags { data, .. } => Ok(pieces.upload(driver, data.offsets.at, bytemuck::cast_slice(&offsets))?),
            Examples::Tokens { data, .. } => {
                pieces.upload(driver, data.offsets.at, bytemuck::cast_slice(&offsets))?;
                Ok(pieces.upload(driver, data.seconds.at, bytemuck::cast_slice(&seconds))?)
            }
        }
    }

    fn rows(&self) -> Option<&RowsOnDevice> {
        match &self.examples {
            Examples::Features(_) => None,
            Examples::Bags { rows, .. } | Examples::Tokens { rows, .. } => Some(rows),
        }
    }

    /// Lists of the rows of the table that the batch touches.
    pub fn lists(&self) -> Option<&RowLists> {
        self.rows().map(|rows| &rows.lists)
    }

    /// What an encoder with a table reads of the batch.
    pub fn fetched(&self) -> Option<Fetched<'_>> {
        match &self.examples {
            Examples::Features(_) => None,
            Examples::Bags { rows, .. } => Some(Fetched::Bags(&rows.lists)),
            Examples::Tokens { fetched, .. } => Some(Fetched::Tokens(**fetched)),
        }
    }

    /// The examples of a batch of which a round makes `batches` independent ones.
    pub fn draw(&self, batch: &Batch, batches: usize) -> Draw {
        let first = |task: usize| self.firsts[task];
        if let Examples::Features(_) = self.examples {
            let numbers = batch.keys.iter().map(|key| first(key.task as usize) + key.example).collect();
            return Draw { numbers, ..Draw::default() };
        }
        let (bounds, padding) = (batch.tokens.bounds().to_vec(), batch.tokens.padding());
        let padding_before = |example: usize| padding.get(example).copied().unwrap_or(0);
        let part = |part: &Part| FetchPart {
            start: part.rows.start as u32,
            row: (part.present * batches + part.batch) as u32,
            task: part.task as u32,
            first: first(part.task),
            padding: padding_before(part.rows.start),
        };
        let entries = bounds.last().map_or(0, |end| end - padding_before(batch.keys.len())) as usize;
        let numbers = batch.keys.iter().map(|key| key.example).collect();
        Draw { numbers, parts: batch.parts.iter().map(part).collect(), bounds, entries }
    }

    /// What a round begins with.
    pub fn begin<'a>(&'a self, tape: &mut Tape<'a>, draw: &'a Draw, random: Randomness) {
        let Draw { numbers: examples, parts, bounds, entries } = draw;
        let Some(&RowsOnDevice { lists, table, bits }) = self.rows() else { return };
        match &self.examples {
            Examples::Features(_) => {}
            &Examples::Bags { data, word_dropout: probability, .. } => {
                let dropout = (probability > 0.0).then_some(WordDropout { random, probability });
                tape.push(FetchBags { lists, data, examples, parts, bits, dropout });
                tape.push(IndexRows { lists, table, bits });
                tape.push(LookUpSlots { lists, slots: table.slots });
            }
            &Examples::Tokens { data, fetched: ref to, .. } => {
                tape.push(FetchTokens { to: **to, lists, data, examples, bounds, parts, entries: *entries, bits });
                tape.push(IndexRows { lists, table, bits });
            }
        }
    }

    /// (rows x features) what a group reads, fetched into its lane; none where examples are no features.
    pub fn features<'a>(&self, tape: &mut Tape<'a>, draw: &'a Draw, parts: &[Part], lane: &Lane, columns: usize) -> Tensor {
        let Examples::Features(x) = self.examples else { return Tensor::NONE };
        let index = &draw.numbers[group_rows(parts)];
        let out = lane.features.rows(0..index.len());
        tape.push(GatherRows { out: Tensor { columns: x.columns, ..out }, x, index });
        Tensor { columns, ..out }
    }

    /// Gives the device the slots of the table's rows.
    pub fn load_slots(&self, driver: &mut dyn Driver, pieces: &Pieces, host: &RowTable) -> Result<(), DeviceError> {
        let Some(rows) = self.rows() else { return Ok(()) };
        let touched = host.touched();
        pieces.upload(driver, rows.table.slots.at, bytemuck::cast_slice(host.view().slots))?;
        pieces.upload(driver, rows.table.touched.at, bytemuck::cast_slice(touched))?;
        pieces.upload(driver, rows.lists.touched_count().at, bytemuck::bytes_of(&(touched.len() as u32)))
    }

    /// Takes back all slots but the first `count` that were given.
    pub fn forget_slots(
        &self,
        driver: &mut dyn Driver,
        pieces: &Pieces,
        host: &mut RowTable,
        count: u32,
    ) -> Result<(), DeviceError> {
        let Some(rows) = self.rows() else { return Ok(()) };
        pieces.upload(driver, rows.lists.touched_count().at, bytemuck::bytes_of(&count))?;
        self.store_slots(driver, pieces, host)?;
        self.load_slots(driver, pieces, host)
    }

    /// Gives the host the slots that the device has given since.
    pub fn store_slots(&self, driver: &mut dyn Driver, pieces: &Pieces, host: &mut RowTable) -> Result<(), DeviceError> {
        let Some(rows) = self.rows() else { return Ok(()) };
        let (mut count, known) = ([0u32], host.touched().len());
        pieces.download(driver, rows.lists.touched_count().at, bytemuck::cast_slice_mut(&mut count))?;
        let mut found = vec![0u32; count[0] as usize - known];
        let from = rows.table.touched.at + 4 * known as Address;
        pieces.download(driver, from, bytemuck::cast_slice_mut(&mut found))?;
        host.touch_elsewhere(&found, &mut Vec::new());
        Ok(())
    }
}
